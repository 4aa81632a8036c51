/* The state file, this process's slot in it, and the faults that it asks for. */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "liveness.h"

struct fg_state *fg_state;
struct fg_process *fg_me;
int fg_initialised;
pthread_mutex_t fg_lock = PTHREAD_MUTEX_INITIALIZER;

static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fg_process_id *my_id;

/* Without a usable state file the driver still works, but finds no device. */
static struct fg_state *map_state(void) {
    const char *path = getenv("FAKEGPU_STATE");
    struct fg_state *state = MAP_FAILED;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        struct stat info;
        if (fstat(fd, &info) == 0 && (u64)info.st_size >= sizeof *state)
            state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (state != MAP_FAILED && state->magic == FG_MAGIC && state->version == FG_VERSION &&
            state->layout_bytes == sizeof *state)
            return state;
        fprintf(stderr, "simulated libcuda: %s is no state file of this version\n", path);
    }
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (state == MAP_FAILED)
        abort();
    state->driver_version = 12020;
    return state;
}

/* What the process held before it replaced its program is gone with the program. */
static void release_all(struct fg_process *process) {
    for (int device = 0; device < FG_MAX_DEVICES; device++) {
        struct fg_activity *activity = &process->activity[device];
        for (int kind = 0; kind < FG_KINDS; kind++) {
            struct fg_memory *memory = &process->memory[device * FG_KINDS + kind];
            fg_add(&memory->releases, memory->allocations - memory->frees - memory->releases);
            fg_add(&memory->released_bytes, fg_live_bytes(memory));
        }
        fg_sub(&fg_state->devices[device].memory_used, activity->held_bytes);
        activity->held_bytes = 0;
        activity->live_bytes = 0;
        activity->granule_bytes = 0;
        activity->contexts = 0;
    }
    process->initialised = 0;
}

static void claim_slot(void) {
    struct fg_process_id self = {.pid_namespace = fg_own_pid_namespace()};
    u32 used = __atomic_load_n(&fg_state->slots_used, __ATOMIC_ACQUIRE);
    u32 place;

    fg_read_process("self", &self.pid, &self.start_time);
    if (used > FG_MAX_PROCESSES)
        used = FG_MAX_PROCESSES;
    for (place = 0; place < used; place++) { /* the same process before an exec */
        struct fg_process_id *id = &fg_state->ids[place];
        if (id->pid == self.pid && id->start_time == self.start_time &&
            id->pid_namespace == self.pid_namespace) {
            if (__atomic_exchange_n(&id->status, FG_SLOT_LIVE, __ATOMIC_ACQ_REL) == FG_SLOT_LIVE)
                release_all(&fg_state->processes[place]);
            my_id = id;
            __atomic_store_n(&fg_me, &fg_state->processes[place], __ATOMIC_RELEASE);
            return;
        }
    }
    place = __atomic_fetch_add(&fg_state->slots_used, 1, __ATOMIC_ACQ_REL);
    if (place >= FG_MAX_PROCESSES) {
        __atomic_store_n(&fg_state->slots_used, FG_MAX_PROCESSES, __ATOMIC_RELEASE);
        fg_add(&fg_state->processes_without_slot, 1);
        place = FG_MAX_PROCESSES;
    } else {
        my_id = &fg_state->ids[place];
        *my_id = self;
        __atomic_store_n(&my_id->status, FG_SLOT_LIVE, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&fg_me, &fg_state->processes[place], __ATOMIC_RELEASE);
}

static void end_slot(void) {
    u32 live = FG_SLOT_LIVE;
    if (my_id && __atomic_compare_exchange_n(&my_id->status, &live, FG_SLOT_ENDED, false,
                                             __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        fg_return_memory(fg_state, fg_me);
}

__attribute__((destructor)) static void at_exit(void) { end_slot(); }

static void before_fork(void) {
    pthread_mutex_lock(&attach_lock);
    pthread_mutex_lock(&fg_lock);
}

static void after_fork_in_parent(void) {
    pthread_mutex_unlock(&fg_lock);
    pthread_mutex_unlock(&attach_lock);
}

/* A forked child is a process of its own. Where the parent had initialised the driver the child
 * can't use it, as with the real one: -1 keeps it from ever being initialised there. */
static void after_fork_in_child(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    fg_lock = fresh;
    attach_lock = fresh;
    fg_me = NULL;
    my_id = NULL;
    if (fg_initialised)
        fg_initialised = -1;
}

static void attach(void) {
    static bool handlers;
    pthread_mutex_lock(&attach_lock);
    if (!fg_me) {
        if (!fg_state)
            fg_state = map_state();
        if (!handlers)
            handlers = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
        claim_slot();
    }
    pthread_mutex_unlock(&attach_lock);
}

static CUresult fault(const struct fg_call *c, enum fg_needs needs) {
    struct fg_fault *f = &fg_state->faults[c->function];
    i32 error = __atomic_load_n(&f->error, __ATOMIC_ACQUIRE);
    u64 block = fg_load(&f->block_ns);
    u64 left;

    if ((error || block) && (!f->pid || (my_id && f->pid == my_id->pid))) {
        if (block) {
            struct timespec time = {block / 1000000000, block % 1000000000};
            while (nanosleep(&time, &time) && errno == EINTR)
                ;
        }
        u64 every = fg_load(&f->every);
        u64 seen = __atomic_add_fetch(&f->seen, 1, __ATOMIC_RELAXED);
        if (error && (every <= 1 || seen % every == 0))
            for (left = fg_load(&f->remaining); left;)
                if (__atomic_compare_exchange_n(&f->remaining, &left, left - 1, false,
                                                __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
                    return error;
    }
    if (needs == FG_NEEDS_CONTEXT && fg_initialised == 1) {
        struct fg_context *context = fg_current();
        if (fg_valid_context(context))
            return __atomic_load_n(&fg_state->devices[context->device].lost, __ATOMIC_ACQUIRE)
                       ? CUDA_ERROR_UNKNOWN
                       : CUDA_SUCCESS;
    }
    return CUDA_SUCCESS;
}

CUresult fg_enter(struct fg_call *c, enum fg_needs needs) {
    if (__builtin_expect(!fg_me, 0))
        attach();
    fg_add(&fg_me->calls[c->function], 1);
    if (__builtin_expect(__atomic_load_n(&fg_state->faults_active, __ATOMIC_RELAXED), 0)) {
        CUresult injected = fault(c, needs);
        if (injected)
            return injected;
    }
    if (needs == FG_NEEDS_NOTHING)
        return CUDA_SUCCESS;
    if (__atomic_load_n(&fg_initialised, __ATOMIC_ACQUIRE) != 1)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (needs == FG_NEEDS_CONTEXT) {
        c->context = fg_current();
        if (!c->context)
            return CUDA_ERROR_INVALID_CONTEXT;
        if (!fg_valid_context(c->context))
            return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    return CUDA_SUCCESS;
}

CUresult fg_failed(const struct fg_call *c, CUresult result) {
    u64 key = ((u64)c->function + 1) << 32 | (u32)result;
    u32 start = (c->function * 31u + (u32)result) % FG_MAX_ERRORS;
    for (u32 i = 0; i < FG_MAX_ERRORS; i++) {
        struct fg_error *row = &fg_me->errors[(start + i) % FG_MAX_ERRORS];
        u64 found = fg_load(&row->key);
        if (found == 0 && __atomic_compare_exchange_n(&row->key, &found, key, false,
                                                      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            found = key;
        if (found == key) {
            fg_add(&row->count, 1);
            return result;
        }
    }
    fg_add(&fg_me->errors_lost, 1);
    return result;
}

static bool try_charge(struct fg_device *device, u64 bytes) {
    u64 used = fg_load(&device->memory_used);
    while (bytes <= device->memory_bytes && used <= device->memory_bytes - bytes)
        if (__atomic_compare_exchange_n(&device->memory_used, &used, used + bytes, false,
                                        __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return true;
    return false;
}

/* Takes memory of a device; killed processes give theirs back when it is needed. */
bool fg_charge(int device, u64 bytes) {
    if (!try_charge(&fg_state->devices[device], bytes)) {
        fg_reap(fg_state);
        if (!try_charge(&fg_state->devices[device], bytes))
            return false;
    }
    fg_add(&fg_activity(device)->held_bytes, bytes);
    return true;
}

void fg_discharge(int device, u64 bytes) {
    fg_sub(&fg_activity(device)->held_bytes, bytes);
    fg_sub(&fg_state->devices[device].memory_used, bytes);
}
