/* What the simulated NVML is told beyond what the simulated CUDA processes do: the contents of the
 * nvml areas of the node and of each device in state.h. nvml_control.py parses this file for its
 * ctypes structures, so keep to fixed-width types, arrays and structs, one declaration a line.
 *
 * A value of the type fgn_value is 0 for "as simulated" (where nothing is: not supported), 1 for
 * "not supported", else the figure (if signed: its two's complement) with its highest bit turned.
 */
#ifndef FAKEGPU_NVML_STATE_H
#define FAKEGPU_NVML_STATE_H

#include "nvml_names.h"
#include "state.h"

#define FGN_FAULTS 64
#define FGN_PROCESSES 1024
#define FGN_SAMPLES 512
#define FGN_NAME 64
#define FGN_FIGURES 240
#define FGN_LINKS 18
#define FGN_LINK_FIGURES 24
#define FGN_TEXTS 12
#define FGN_FIELDS 96
#define FGN_METRICS 256
#define FGN_INSTANCES 8
#define FGN_PLACES 64
#define FGN_EVENTS 256

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
 * set: NVML's "not available". The instances of a MIG device, plus one; 0: none. */
struct fgn_process {
    u32 pid;
    u8 kind;
    u8 gpu_instance_plus_one;
    u8 compute_instance_plus_one;
    u8 reserved;
    u64 memory;
};

/* Which MIG instance a simulated CUDA process is in; those that no row names are in the first. */
struct fgn_place {
    u32 pid;
    u16 gpu_instance;
    u16 compute_instance;
};

/* A row of nvmlDeviceGetProcessUtilization, out of range if a test wants it. time_us is in
 * microseconds since the Unix epoch; 0 stands for the time of the newest sample. */
struct fgn_sample {
    u32 pid;
    u32 sm;
    u32 memory;
    u32 encoder;
    u32 decoder;
    u16 jpeg;
    u16 ofa;
    u64 time_us;
};

/* What one field id says instead of its figure, of one scope or (any_scope) of every one. */
struct fgn_field {
    u32 used;
    u32 field;
    u32 scope;
    u32 any_scope;
    i32 error;
    u32 reserved;
    u64 value;
};

/* A GPM metric of the device (gpu_instance_plus_one 0) or of an instance. value: a double's bits.
 */
struct fgn_metric {
    u32 used;
    u32 metric;
    u32 gpu_instance_plus_one;
    i32 error;
    u64 value;
};

/* A MIG device; its place in the array is its index. */
struct fgn_instance {
    u32 used;
    u32 gpu_instance;
    u32 compute_instance;
    u32 multiprocessors;
    u32 copy_engines;
    u32 decoders;
    u32 encoders;
    u32 jpeg_engines;
    u32 ofa_engines;
    u32 gpu_slices;
    u32 compute_slices;
    u32 reserved;
    u64 memory_bytes;
    u8 uuid[16];
    char profile[32];
};

struct fgn_event {
    u64 type;
    u64 data;
    u32 device;
    u32 gpu_instance;
    u32 compute_instance;
    u32 reserved;
};

/* generation: raised when the driver is reloaded; whoever initialised before gets errors from then
 * on. unloaded: there is no driver. calls and inits are the library's own counts. Event number n
 * (from 0, events_written so far) is in place n modulo FGN_EVENTS. */
struct fgn_node {
    u64 generation;
    u32 unloaded;
    u32 faults_active;
    u64 calls;
    u64 inits;
    u64 shutdowns;
    struct fgn_fault faults[FGN_FAULTS];
    u64 events_written;
    struct fgn_event events[FGN_EVENTS];
};

/* samples_only: the rows given here are all that process utilization says, instead of the simulated
 * busy time. hide_memory: no process has a memory figure. board: the row of nvml_boards.py. */
struct fgn_device {
    char board[32];
    fgn_value figures[FGN_FIGURES];
    fgn_value links[FGN_LINKS][FGN_LINK_FIGURES];
    char texts[FGN_TEXTS][FGN_NAME];
    u32 samples_only;
    u32 hide_memory;
    u32 process_count;
    u32 sample_count;
    struct fgn_process processes[FGN_PROCESSES];
    struct fgn_sample samples[FGN_SAMPLES];
    struct fgn_instance instances[FGN_INSTANCES];
    struct fgn_place places[FGN_PLACES];
    struct fgn_field fields[FGN_FIELDS];
    struct fgn_metric metrics[FGN_METRICS];
};

_Static_assert(FIGURES_END <= FGN_FIGURES, "more figures than places");
_Static_assert((int)LINK_FIGURES_END <= FGN_LINK_FIGURES, "more link figures than places");
_Static_assert((int)TEXTS_END <= FGN_TEXTS, "more texts than places");
_Static_assert(sizeof(struct fgn_node) <= FG_NVML_NODE_BYTES, "the node's nvml area is too small");
_Static_assert(sizeof(struct fgn_device) <= FG_NVML_DEVICE_BYTES, "a device's area is too small");
_Static_assert(offsetof(struct fg_state, nvml) % 8 == 0, "the node's nvml area is not aligned");
_Static_assert(offsetof(struct fg_device, nvml) % 8 == 0, "a device's area is not aligned");

#endif
