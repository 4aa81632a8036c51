/* What libnvidia_ml.c asks of the shared state; see nvml_node.c. Sizes in bytes, times in ns. */
#ifndef FAKEGPU_NVML_NODE_H
#define FAKEGPU_NVML_NODE_H

#include "nvml_state.h"

#define NOT_AVAILABLE UINT64_MAX
#define NO_INSTANCE UINT32_MAX

struct listed {
    u32 pid;
    u64 memory;                         /* NOT_AVAILABLE where NVML would have none */
    u32 gpu_instance, compute_instance; /* NO_INSTANCE outside MIG */
};

extern struct fg_state *node; /* NULL until node_open succeeds */

int node_open(void); /* 0, or -1 where FAKEGPU_STATE names no state file */

struct fgn_node *node_settings(void);
struct fgn_device *device_settings(u32 device);

/* The fault that this call meets: an NVML error or 0. Sleeps first if it is to block. */
int node_fault(const char *function, i32 device);

/* Notes the busy times of everybody on a device, at most every 100 ms: what utilization is computed
 * from. Real drivers do so by themselves; here it happens on demand. */
void node_sample(u32 device);

u32 device_utilization(u32 device); /* percent */
u64 device_busy_ns(u32 device);     /* simulated work done since the start */
u64 device_memory_used(u32 device);

/* Whether the process of a slot lives, and its pid as /proc here tells it (once asked whether it
 * lives). Gives back what a killed process held. */
int slot_lives(u32 slot);
u32 slot_pid(u32 slot);

/* Both fill at most `capacity` rows and return how many there are. */
u32 device_processes(u32 device, u32 kind, struct listed *rows, u32 capacity);
u32 device_samples(u32 device, u64 newer_than_us, struct fgn_sample *rows, u32 capacity);

u64 clock_ns(int clock);

#endif
