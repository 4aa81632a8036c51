/* Which processes of the state file still live, told from /proc. For every part of the node that
 * needs it: the driver to give back what a killed process held, the NVML simulation to list only
 * what runs. */
#ifndef FAKEGPU_LIVENESS_H
#define FAKEGPU_LIVENESS_H

#include "state.h"
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The pid and the start time in /proc/WHO/stat; false where there is no such process. */
static inline bool fg_read_process(const char *who, u32 *pid, u64 *start_time) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%s/stat", who);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return false;
    text[length] = 0;
    char *field = strrchr(text, ')'); /* the command's name, before it, may hold anything */
    if (!field)
        return false;
    *pid = strtoul(text, NULL, 10);
    for (int number = 2; number < 22; number++) {
        field = strchr(field + 1, ' ');
        if (!field)
            return false;
    }
    *start_time = strtoull(field + 1, NULL, 10);
    return true;
}

static inline u64 fg_own_pid_namespace(void) {
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? info.st_ino : 0;
}

/* A process of another pid namespace counts as alive: its pid says nothing here. */
static inline bool fg_process_lives(const struct fg_process_id *id, u64 own_pid_namespace) {
    char who[16];
    u32 pid;
    u64 start_time;
    if (__atomic_load_n(&id->status, __ATOMIC_ACQUIRE) != FG_SLOT_LIVE)
        return false;
    if (id->pid_namespace != own_pid_namespace)
        return true;
    snprintf(who, sizeof who, "%u", id->pid);
    return fg_read_process(who, &pid, &start_time) && start_time == id->start_time;
}

/* Gives what a process holds back to the devices. Only for who set its slot to FG_SLOT_ENDED. */
static inline void fg_return_memory(struct fg_state *state, struct fg_process *process) {
    for (int device = 0; device < FG_MAX_DEVICES; device++)
        fg_sub(&state->devices[device].memory_used,
               __atomic_exchange_n(&process->activity[device].held_bytes, 0, __ATOMIC_ACQ_REL));
}

/* Ends the slots of processes that were killed. */
static inline void fg_reap(struct fg_state *state) {
    u64 own = fg_own_pid_namespace();
    u32 used = __atomic_load_n(&state->slots_used, __ATOMIC_ACQUIRE);
    for (u32 place = 0; place < used && place < FG_MAX_PROCESSES; place++) {
        struct fg_process_id *id = &state->ids[place];
        u32 live = FG_SLOT_LIVE;
        if (__atomic_load_n(&id->status, __ATOMIC_ACQUIRE) == FG_SLOT_LIVE &&
            !fg_process_lives(id, own) &&
            __atomic_compare_exchange_n(&id->status, &live, FG_SLOT_ENDED, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            fg_return_memory(state, &state->processes[place]);
    }
}

#endif
