/* The simulated NVML: which of the simulated CUDA processes live. */
#define _GNU_SOURCE
#include "liveness.h"
#include "nvml_node.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Per slot: 0 not looked at, -1 dead, else a descriptor of its /proc/PID/statm plus one. */
static int watched[FG_MAX_PROCESSES];
static u32 pids[FG_MAX_PROCESSES]; /* as /proc here tells them, once watched */
static u64 own_pid_namespace;

u32 slot_pid(u32 slot) { return pids[slot]; }

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
    if (!own_pid_namespace)
        own_pid_namespace = fg_own_pid_namespace();
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
int slot_lives(u32 slot) {
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
