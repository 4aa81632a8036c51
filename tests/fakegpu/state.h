/* The simulated GPU node's shared state: one sparse file, mapped by every client process (libcuda),
 * by the simulated NVML and by node.py, its path in the environment variable FAKEGPU_STATE.
 *
 * The layout is written here and nowhere else: node.py builds its ctypes structures by parsing this
 * file, so keep to fixed-width types, arrays and structs, one declaration a line.
 *
 * Who writes what: node.py writes the configuration and the faults; a client process writes its own
 * slot and adds to its devices' totals; the NVML simulation writes nothing but the areas named
 * nvml. Every u64 that changes while clients run is read and written with the __atomic builtins. */
#ifndef FAKEGPU_STATE_H
#define FAKEGPU_STATE_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;

#define FG_MAGIC 0x47504246
#define FG_VERSION 2
#define FG_MAX_DEVICES 16
#define FG_MAX_FUNCTIONS 640
#define FG_MAX_ERRORS 192
#define FG_MAX_PROCESSES 16384
#define FG_NVML_NODE_BYTES 65536
#define FG_NVML_DEVICE_BYTES 65536

/* Kinds of memory. */
#define FG_KIND_DEVICE 0
#define FG_KIND_MANAGED 1
#define FG_KIND_POOL 2
#define FG_KIND_VIRTUAL 3
#define FG_KIND_HOST 4
#define FG_KIND_ARRAY 5
#define FG_KINDS 6

/* Directions of a copy. */
#define FG_HOST_TO_DEVICE 0
#define FG_DEVICE_TO_HOST 1
#define FG_DEVICE_TO_DEVICE 2
#define FG_PEER 3
#define FG_UNKNOWN 4
#define FG_DIRECTIONS 5

/* Allocations by requested size: up to 4 KiB, 64 KiB, 1 MiB, 2 MiB, 16 MiB, 128 MiB, 1 GiB, more.
 */
#define FG_SIZES 8

/* What the physical memory of a device is handed out in. */
#define FG_GRANULE 2097152

/* States of a process slot. A slot is never used again for another process. */
#define FG_SLOT_FREE 0
#define FG_SLOT_CLAIMED 1
#define FG_SLOT_LIVE 2
#define FG_SLOT_ENDED 3

/* One simulated device. memory_used counts what live processes hold (all kinds but host memory),
 * the context overhead included. busy_ns is the simulated GPU time charged so far; it is charged
 * when work is submitted, so at time now (CLOCK_MONOTONIC, ns) the part that has run is
 * busy_ns - max(0, busy_until_ns - now). */
struct fg_device {
    char name[96];
    u8 uuid[16];
    u8 mig_uuid[16];
    u32 is_mig;
    u32 pci_domain;
    u32 pci_bus;
    u32 pci_device;
    u32 compute_major;
    u32 compute_minor;
    u32 multiprocessors;
    u32 clock_khz;
    u32 memory_clock_khz;
    u32 memory_bus_bits;
    u32 l2_bytes;
    u32 lost;
    u64 memory_bytes;
    u64 context_bytes;
    u64 kernel_ns;
    u64 memory_used;
    u64 busy_ns;
    u64 busy_until_ns;
    u8 nvml[FG_NVML_DEVICE_BYTES];
};

/* A fault of one driver function (same index as in functions.list): every call first sleeps for
 * block_ns; then every `every`-th call (0 and 1: each) fails with `error`, `remaining` times. pid
 * limits it to one process; 0 means all. */
struct fg_fault {
    i32 error;
    u32 pid;
    u64 every;
    u64 remaining;
    u64 seen;
    u64 block_ns;
};

/* The index of the process slots, apart from them so that it can be scanned. pid is as /proc/self
 * of that process tells it, pid_namespace the inode of its pid namespace: only processes of the
 * same namespace may judge by the pid whether it still lives. */
struct fg_process_id {
    u32 status;
    u32 pid;
    u64 start_time;
    u64 pid_namespace;
};

/* What one process did with one kind of memory of one device. Live bytes are
 * allocated_bytes - freed_bytes - released_bytes; released is what went without a call that frees
 * it: with its context, with its device's reset, or by exec. A process's end adds nothing to it. */
struct fg_memory {
    u64 allocations;
    u64 allocated_bytes;
    u64 frees;
    u64 freed_bytes;
    u64 releases;
    u64 released_bytes;
};

/* What one process did on one device. launches: kernels launched directly; captured: launches that
 * only became graph nodes, on the device of their stream. graph_launches: on the device of the
 * stream; graph_kernels: kernels run by graph launches, each on the device of its node's context.
 * failed_*: calls that the driver refused, on the device of the stream that they named, else of the
 * current context (refused without either: on none). copied_bytes and set_bytes are those of direct
 * calls; what became a node is in captured_*, what graph launches moved is in graph_*. A copy's
 * direction is what the call itself says: arrays are device memory, and where the driver alone
 * would know (cuMemcpy, unified types) it is FG_UNKNOWN. contexts: those that exist now.
 * held_bytes: its part of the device's memory_used. busy_ns, busy_until_ns: as in fg_device.
 *
 * Of all kinds of memory but host memory: live_bytes as requested, the highest that they were, and
 * the allocations by size. granule_bytes: the granules that live memory takes, those of kinds
 * device and pool by address (each granule that any byte as requested lies in, once), those of
 * kinds virtual and array each rounded up; managed memory is in none. */
struct fg_activity {
    u64 launches;
    u64 captured;
    u64 graph_launches;
    u64 graph_kernels;
    u64 host_functions;
    u64 failed_launches;
    u64 failed_graph_launches;
    u64 failed_host_functions;
    u64 copies[FG_DIRECTIONS];
    u64 copied_bytes[FG_DIRECTIONS];
    u64 sets;
    u64 set_bytes;
    u64 captured_copied_bytes;
    u64 captured_set_bytes;
    u64 graph_copied_bytes;
    u64 graph_set_bytes;
    u64 waits;
    u64 wait_ns;
    u64 contexts;
    u64 contexts_created;
    u64 held_bytes;
    u64 live_bytes;
    u64 peak_bytes;
    u64 allocation_sizes[FG_SIZES];
    u64 granule_bytes;
    u64 busy_ns;
    u64 busy_until_ns;
};

/* Calls of one function that returned one error. key is ((function + 1) << 32) | error; 0: free. */
struct fg_error {
    u64 key;
    u64 count;
};

/* One process. calls[] has one counter per row of functions.list. errors_lost: failed calls that
 * found no free row in errors[]. */
struct fg_process {
    u64 calls[FG_MAX_FUNCTIONS];
    u64 errors_lost;
    u64 initialised;
    struct fg_error errors[FG_MAX_ERRORS];
    struct fg_memory memory[FG_MAX_DEVICES * FG_KINDS];
    struct fg_activity activity[FG_MAX_DEVICES];
} __attribute__((aligned(4096)));

/* The file. faults_active is not 0 when any fault is set or any device is lost: the only word of
 * the faults that an unhindered call reads. wait_ns: the least that a synchronizing call takes. The
 * last slot of processes[] is shared by all processes that found no slot of their own. */
struct fg_state {
    u32 magic;
    u32 version;
    u64 layout_bytes;
    u32 device_count;
    u32 driver_version;
    u32 faults_active;
    u32 slots_used;
    u64 wait_ns;
    u64 processes_without_slot;
    char driver_branch[32];
    u8 nvml[FG_NVML_NODE_BYTES];
    struct fg_device devices[FG_MAX_DEVICES];
    struct fg_fault faults[FG_MAX_FUNCTIONS];
    struct fg_process_id ids[FG_MAX_PROCESSES];
    struct fg_process processes[FG_MAX_PROCESSES + 1];
} __attribute__((aligned(4096)));

static inline u64 fg_load(const u64 *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }

static inline void fg_add(u64 *p, u64 n) { __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }

static inline void fg_sub(u64 *p, u64 n) { __atomic_fetch_sub(p, n, __ATOMIC_RELAXED); }

static inline void fg_raise(u64 *p, u64 value) {
    u64 now = fg_load(p);
    while (now < value &&
           !__atomic_compare_exchange_n(p, &now, value, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

/* Bytes of one kind that a process holds on a device; wraps never, may lag by calls in flight. */
static inline u64 fg_live_bytes(const struct fg_memory *m) {
    u64 gone = fg_load(&m->freed_bytes) + fg_load(&m->released_bytes);
    u64 made = fg_load(&m->allocated_bytes);
    return made > gone ? made - gone : 0;
}

#endif
