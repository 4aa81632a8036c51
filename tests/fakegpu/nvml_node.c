/* The simulated NVML's view of the shared state: who lives, who holds what, who was busy. */
#define _GNU_SOURCE
#include "nvml_node.h"
#include "liveness.h"

#include <dirent.h>
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

/* Per slot: 0 not looked at, -1 dead, else a descriptor of its /proc/PID/statm plus one. */
static int watched[FG_MAX_PROCESSES];
static u32 pids[FG_MAX_PROCESSES]; /* as /proc here tells them, once watched */
static u64 own_pid_namespace;

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
    own_pid_namespace = fg_own_pid_namespace();
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

static int started_at(u32 pid, u64 start_time) {
    char who[16];
    u32 ignored;
    u64 found;
    snprintf(who, sizeof who, "%u", pid);
    return fg_read_process(who, &ignored, &found) && found == start_time;
}

/* Whether `pid` is the innermost of a process's pids. */
static int is_inner_pid(const char *who, u32 pid) {
    char path[300], line[512];
    int same = 0;
    snprintf(path, sizeof path, "/proc/%s/status", who);
    FILE *f = fopen(path, "re");
    while (f && !same && fgets(line, sizeof line, f))
        if (strncmp(line, "NSpid:", 6) == 0)
            same = strtoul(strrchr(line, '\t'), NULL, 10) == pid;
    if (f)
        fclose(f);
    return same;
}

/* NVML tells pids of the node: that of a process in a container, 0 where it can't be seen here. */
static u32 node_pid(const struct fg_process_id *id) {
    char path[300];
    struct stat st;
    u32 pid, found = 0;
    u64 start_time;
    if (id->pid_namespace == own_pid_namespace)
        return id->pid;
    DIR *proc = opendir("/proc");
    for (struct dirent *e; proc && !found && (e = readdir(proc));) {
        if (e->d_name[0] < '1' || e->d_name[0] > '9' || strlen(e->d_name) > 10 ||
            !fg_read_process(e->d_name, &pid, &start_time) || start_time != id->start_time)
            continue;
        snprintf(path, sizeof path, "/proc/%s/ns/pid", e->d_name);
        if (stat(path, &st) == 0 && st.st_ino == id->pid_namespace &&
            is_inner_pid(e->d_name, id->pid))
            found = pid;
    }
    if (proc)
        closedir(proc);
    return found;
}

static int gone(u32 slot) {
    u32 live = FG_SLOT_LIVE;
    watched[slot] = -1;
    if (__atomic_compare_exchange_n(&node->ids[slot].status, &live, FG_SLOT_ENDED, 0,
                                    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        fg_return_memory(node, &node->processes[slot]);
    return 0;
}

/* Whether a process whose first thread is gone has others; nobody has waited for it yet. */
static int has_threads(u32 pid) {
    char path[64], text[1024];
    unsigned long threads = 0;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    char *field = strrchr(text, ')');
    for (int number = 2; field && number < 20; number++)
        field = strchr(field + 1, ' ');
    if (field)
        threads = strtoul(field, NULL, 10);
    return threads > 1;
}

/* A process that was killed leaves its slot as it was, so ask the kernel. As fg_process_lives, but
 * for many calls: an open statm belongs to one process even when its pid is used again, and reads
 * zeros once its first thread has no memory any more. */
static int alive(u32 slot) {
    const struct fg_process_id *id = &node->ids[slot];
    char text[64];
    if (__atomic_load_n(&id->status, __ATOMIC_ACQUIRE) != FG_SLOT_LIVE || watched[slot] < 0)
        return 0;
    if (!watched[slot]) {
        pids[slot] = node_pid(id);
        if (!pids[slot]) {
            watched[slot] = -1; /* not for us to judge */
            return 0;
        }
        snprintf(text, sizeof text, "/proc/%u/statm", pids[slot]);
        int fd = open(text, O_RDONLY | O_CLOEXEC);
        if (fd < 0 && errno != ENOENT) /* out of descriptors: the slower way */
            return started_at(pids[slot], id->start_time) ? 1 : gone(slot);
        if (fd < 0)
            return gone(slot);
        watched[slot] = fd + 1;
        if (!started_at(pids[slot], id->start_time)) {
            close(fd);
            return gone(slot);
        }
    }
    ssize_t n = pread(watched[slot] - 1, text, sizeof text, 0);
    if (n > 1 && (text[0] != '0' || has_threads(pids[slot])))
        return 1;
    close(watched[slot] - 1);
    return gone(slot);
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
            alive(slot); /* gives back what a killed process held */
    return fg_load(&node->devices[device].memory_used);
}

u32 device_processes(u32 device, u32 kind, struct listed *rows, u32 capacity) {
    const struct fgn_device *settings = device_settings(device);
    u32 n = 0;
    for (u32 slot = 0; kind == FGN_COMPUTE && slot < slots_used(); slot++) {
        const struct fg_activity *a = &node->processes[slot].activity[device];
        if (node->ids[slot].status != FG_SLOT_LIVE || !fg_load(&a->contexts) || !alive(slot))
            continue;
        if (n < capacity)
            rows[n] = (struct listed){pids[slot], fg_load(&a->held_bytes)};
        n++;
    }
    for (u32 i = 0; i < settings->process_count && i < FGN_PROCESSES; i++) {
        if (settings->processes[i].kind != kind)
            continue;
        if (n < capacity)
            rows[n] = (struct listed){settings->processes[i].pid, settings->processes[i].memory};
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
        if (!sm || !alive(slot))
            continue;
        if (n < capacity)
            rows[n] = (struct fgn_sample){
                .pid = pids[slot], .sm = sm, .memory = sm / 2, .time_us = h->at_us};
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
