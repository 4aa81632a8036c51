/* The simulated NVML's view of the shared state: who holds what, who was busy. */
#define _GNU_SOURCE
#include "nvml_node.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_NS 100000000ull
#define SECOND_NS 1000000000ull

struct fg_state *node;

/* Two samples of busy time per device, [1] the newer; per process slot and for the device. */
static struct history {
    u64 at_ns[2];
    u64 at_us; /* the newer one's wall-clock time */
    u64 device_busy[2];
    u64 busy[2][FG_MAX_PROCESSES];
} history[FG_MAX_DEVICES];

u64 clock_ns(int clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (u64)t.tv_sec * SECOND_NS + (u64)t.tv_nsec;
}

int node_open(void) {
    struct stat st;
    const char *path = getenv("FAKEGPU_STATE");
    if (node)
        return 0;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return -1;
    if (fstat(fd, &st) == 0 && st.st_size >= (off_t)sizeof(struct fg_state)) {
        void *p = mmap(NULL, sizeof(struct fg_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p != MAP_FAILED)
            node = p;
    }
    close(fd);
    if (node && (node->magic != FG_MAGIC || node->version != FG_VERSION ||
                 node->layout_bytes != sizeof(struct fg_state))) {
        munmap(node, sizeof(struct fg_state));
        node = NULL;
    }
    return node ? 0 : -1;
}

struct fgn_node *node_settings(void) {
    return (struct fgn_node *)(void *)node->nvml;
}

struct fgn_device *device_settings(u32 device) {
    return (struct fgn_device *)(void *)node->devices[device].nvml;
}

static int fault_matches(const struct fgn_fault *f, const char *function, i32 device) {
    size_t n = strlen(function);
    if (f->device_plus_one && (i32)f->device_plus_one != device + 1)
        return 0;
    if (n > 3 && function[n - 3] == '_' && function[n - 2] == 'v')
        n -= 3;
    return strcmp(f->function, "*") == 0 ||
           (strncmp(f->function, function, n) == 0 && f->function[n] == 0);
}

int node_fault(const char *function, i32 device) {
    struct fgn_node *settings = node_settings();
    if (!settings->faults_active)
        return 0;
    for (int i = 0; i < FGN_FAULTS; i++) {
        struct fgn_fault *f = &settings->faults[i];
        if (!f->function[0] || !fault_matches(f, function, device) || !fg_load(&f->remaining))
            continue;
        fg_sub(&f->remaining, 1);
        if (f->block_ns) {
            struct timespec t = {(time_t)(f->block_ns / SECOND_NS),
                                 (long)(f->block_ns % SECOND_NS)};
            while (nanosleep(&t, &t) && errno == EINTR)
                ;
        }
        if (f->error)
            return f->error;
    }
    return 0;
}

static u64 done_ns(const u64 *busy, const u64 *until, u64 now) {
    u64 charged = fg_load(busy), end = fg_load(until);
    u64 ahead = end > now ? end - now : 0;
    return charged > ahead ? charged - ahead : 0;
}

u64 device_busy_ns(u32 device) {
    const struct fg_device *d = &node->devices[device];
    return done_ns(&d->busy_ns, &d->busy_until_ns, clock_ns(CLOCK_MONOTONIC));
}

static u32 slots_used(void) {
    u32 n = __atomic_load_n(&node->slots_used, __ATOMIC_ACQUIRE);
    return n < FG_MAX_PROCESSES ? n : FG_MAX_PROCESSES;
}

void node_sample(u32 device) {
    struct history *h = &history[device];
    u64 now = clock_ns(CLOCK_MONOTONIC);
    if (h->at_ns[1] && now - h->at_ns[1] < SAMPLE_NS)
        return;
    h->at_ns[0] = h->at_ns[1];
    h->at_ns[1] = now;
    h->at_us = clock_ns(CLOCK_REALTIME) / 1000;
    h->device_busy[0] = h->device_busy[1];
    h->device_busy[1] = device_busy_ns(device);
    for (u32 slot = 0; slot < slots_used(); slot++) {
        const struct fg_activity *a = &node->processes[slot].activity[device];
        if (node->ids[slot].status != FG_SLOT_LIVE)
            continue;
        h->busy[0][slot] = h->busy[1][slot];
        h->busy[1][slot] = done_ns(&a->busy_ns, &a->busy_until_ns, now);
    }
}

/* Percent of a window, rounded up so that some work is never 0. */
static u32 percent(u64 busy, u64 window) {
    u64 p = window ? (busy * 100 + window - 1) / window : 0;
    return p > 100 ? 100 : (u32)p;
}

u32 device_utilization(u32 device) {
    struct history *h = &history[device];
    node_sample(device);
    if (!h->at_ns[0]) /* one sample only: is it working at this moment */
        return fg_load(&node->devices[device].busy_until_ns) > h->at_ns[1] ? 100 : 0;
    return percent(h->device_busy[1] - h->device_busy[0], h->at_ns[1] - h->at_ns[0]);
}

u64 device_memory_used(u32 device) {
    for (u32 slot = 0; slot < slots_used(); slot++)
        if (fg_load(&node->processes[slot].activity[device].held_bytes))
            slot_lives(slot); /* gives back what a killed process held */
    return fg_load(&node->devices[device].memory_used);
}

static struct listed listed_as_given(const struct fgn_process *p) {
    return (struct listed){
        p->pid, p->memory, p->gpu_instance_plus_one ? p->gpu_instance_plus_one - 1u : NO_INSTANCE,
        p->compute_instance_plus_one ? p->compute_instance_plus_one - 1u : NO_INSTANCE};
}

static struct listed listed_in_its_instance(u32 device, u32 pid, u64 memory) {
    const struct fgn_device *settings = device_settings(device);
    struct listed row = {pid, memory, NO_INSTANCE, NO_INSTANCE};
    if (!node->devices[device].is_mig)
        return row;
    for (u32 i = FGN_INSTANCES; i-- > 0;)
        if (settings->instances[i].used) {
            row.gpu_instance = settings->instances[i].gpu_instance;
            row.compute_instance = settings->instances[i].compute_instance;
        }
    for (u32 i = 0; i < FGN_PLACES; i++)
        if (settings->places[i].pid == pid) {
            row.gpu_instance = settings->places[i].gpu_instance;
            row.compute_instance = settings->places[i].compute_instance;
        }
    return row;
}

u32 device_processes(u32 device, u32 kind, struct listed *rows, u32 capacity) {
    const struct fgn_device *settings = device_settings(device);
    u32 n = 0;
    for (u32 slot = 0; kind == FGN_COMPUTE && slot < slots_used(); slot++) {
        const struct fg_activity *a = &node->processes[slot].activity[device];
        if (node->ids[slot].status != FG_SLOT_LIVE || !fg_load(&a->contexts) || !slot_lives(slot))
            continue;
        if (n < capacity)
            rows[n] = listed_in_its_instance(device, slot_pid(slot), fg_load(&a->held_bytes));
        n++;
    }
    for (u32 i = 0; i < settings->process_count && i < FGN_PROCESSES; i++) {
        if (settings->processes[i].kind != kind)
            continue;
        if (n < capacity)
            rows[n] = listed_as_given(&settings->processes[i]);
        n++;
    }
    for (u32 i = 0; settings->hide_memory && i < n && i < capacity; i++)
        rows[i].memory = NOT_AVAILABLE;
    return n;
}

/* 0 asks for the average over everything still remembered: here, over a process's whole life. */
static u32 slot_utilization(u32 device, u32 slot, int whole_life) {
    const struct history *h = &history[device];
    if (!whole_life)
        return h->at_ns[0] ? percent(h->busy[1][slot] - h->busy[0][slot], h->at_ns[1] - h->at_ns[0])
                           : 0;
    u64 born = node->ids[slot].start_time * (SECOND_NS / (u64)sysconf(_SC_CLK_TCK));
    return percent(h->busy[1][slot], clock_ns(CLOCK_BOOTTIME) - born);
}

u32 device_samples(u32 device, u64 newer_than_us, struct fgn_sample *rows, u32 capacity) {
    const struct fgn_device *settings = device_settings(device);
    const struct history *h = &history[device];
    u32 n = 0;
    node_sample(device);
    for (u32 slot = 0; !settings->samples_only && slot < slots_used(); slot++) {
        if (node->ids[slot].status != FG_SLOT_LIVE || h->at_us <= newer_than_us)
            continue;
        u32 sm = slot_utilization(device, slot, newer_than_us == 0);
        if (!sm || !slot_lives(slot))
            continue;
        if (n < capacity)
            rows[n] = (struct fgn_sample){
                .pid = slot_pid(slot), .sm = sm, .memory = sm / 2, .time_us = h->at_us};
        n++;
    }
    for (u32 i = 0; i < settings->sample_count && i < FGN_SAMPLES; i++) {
        struct fgn_sample row = settings->samples[i];
        row.time_us = row.time_us ? row.time_us : h->at_us;
        if (row.time_us <= newer_than_us)
            continue;
        if (n < capacity)
            rows[n] = row;
        n++;
    }
    return n;
}
