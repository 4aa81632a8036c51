/* What the simulated NVML is told beyond what the simulated CUDA processes do: the contents of the
 * nvml areas of the node and of each device in state.h. nvml_control.py parses this file for its
 * ctypes structures, so keep to fixed-width types, arrays and structs, one declaration a line.
 *
 * A value of the type fgn_value is 0 for "as simulated", else the figure plus one. */
#ifndef FAKEGPU_NVML_STATE_H
#define FAKEGPU_NVML_STATE_H

#include "state.h"

#define FGN_FAULTS 64
#define FGN_PROCESSES 1024
#define FGN_SAMPLES 512
#define FGN_NAME 64

/* Kinds of a listed process. */
#define FGN_COMPUTE 0
#define FGN_GRAPHICS 1
#define FGN_MPS 2

typedef uint64_t fgn_value;

/* A fault of one NVML function, named without its _v suffix ("*": of all): each call first sleeps
 * for block_ns, then fails with `error` (0: doesn't), `remaining` times. device_plus_one limits it
 * to one device; 0 means all. An empty name is a free row. */
struct fgn_fault {
    char function[FGN_NAME];
    i32 error;
    u32 device_plus_one;
    u64 remaining;
    u64 block_ns;
};

/* A process that is listed though no simulated CUDA process stands behind it. All bits of memory
 * set: NVML's "not available". */
struct fgn_process {
    u32 pid;
    u32 kind;
    u64 memory;
};

/* A row of nvmlDeviceGetProcessUtilization, out of range if a test wants it. time_us is in
 * microseconds since the Unix epoch; 0 stands for the time of the newest sample. */
struct fgn_sample {
    u32 pid;
    u32 sm;
    u32 memory;
    u32 encoder;
    u32 decoder;
    u32 reserved;
    u64 time_us;
};

/* generation: raised when the driver is reloaded; whoever initialised before gets errors from then
 * on. unloaded: there is no driver. calls and inits are the library's own counts. */
struct fgn_node {
    u64 generation;
    u32 unloaded;
    u32 faults_active;
    u64 calls;
    u64 inits;
    u64 shutdowns;
    struct fgn_fault faults[FGN_FAULTS];
};

/* samples_only: the rows given here are all that process utilization says, instead of the simulated
 * busy time. hide_memory: no process has a memory figure. */
struct fgn_device {
    fgn_value utilization;
    fgn_value memory_utilization;
    fgn_value encoder;
    fgn_value decoder;
    fgn_value temperature;
    fgn_value power_mw;
    fgn_value power_limit_mw;
    fgn_value energy_mj;
    fgn_value fan;
    fgn_value performance_state;
    fgn_value sm_clock_mhz;
    fgn_value memory_clock_mhz;
    fgn_value throttle_reasons;
    fgn_value ecc_corrected;
    fgn_value ecc_uncorrected;
    fgn_value compute_mode;
    fgn_value persistence;
    u32 samples_only;
    u32 hide_memory;
    u32 process_count;
    u32 sample_count;
    struct fgn_process processes[FGN_PROCESSES];
    struct fgn_sample samples[FGN_SAMPLES];
};

_Static_assert(sizeof(struct fgn_node) <= FG_NVML_NODE_BYTES, "the node's nvml area is too small");
_Static_assert(sizeof(struct fgn_device) <= FG_NVML_DEVICE_BYTES, "a device's area is too small");
_Static_assert(offsetof(struct fg_state, nvml) % 8 == 0, "the node's nvml area is not aligned");
_Static_assert(offsetof(struct fg_device, nvml) % 8 == 0, "a device's area is not aligned");

#endif
