/* What the kernel side keeps. Sizes (PROCESSES, …) and lanes (LANE_…, LANES) are definitions from
 * gpubpf/lanes.py and gpubpf/bpf/program.py: the layout is written once, there. */
#ifndef GPUBPF_MAPS_H
#define GPUBPF_MAPS_H

/* A process that calls the driver: when it made its first call, and its counters. */
struct process {
    u64 born; /* CLOCK_BOOTTIME, ns: tells apart two processes that had the same pid */
    u64 lane[LANES];
};

struct owner {
    u64 born;
    u64 pid;
};

/* A call that is under way in a thread, from its entry to its return. */
struct pending {
    u64 call; /* which function, see CALL_FUNCTION */
    u64 bytes;
    union {
        u64 out;     /* allocation: where the driver will store the address */
        u64 address; /* free */
        u64 lane;    /* copy and set: where the bytes go */
        u64 since;   /* wait: when it began, ns */
    };
    u64 kind; /* free: of the allocation */
};

struct address {
    u64 value;
    u64 born;
    u32 pid;
    u32 space; /* addresses and handles may have equal values */
};

struct allocation {
    u64 bytes;
    u64 kind;
};

struct losses {
    u64 count[LOST_COUNT];
};

struct failure {
    u64 born;
    u32 pid;
    u16 function;
    u16 error;
};

enum space { SPACE_ADDRESS, SPACE_HANDLE, SPACE_ARRAY };

BPF_HASH(processes, u32, struct process, PROCESSES);
BPF_HASH(ended, struct owner, struct process, PROCESSES);
BPF_ARRAY(overflow, struct process, 1); /* calls of processes that do not fit */
BPF_ARRAY(blank, struct process, 1);    /* all zero: too large for the 512-byte stack */
BPF_HASH(pending, u64, struct pending, PENDING);
BPF_HASH(allocations, struct address, struct allocation, ALLOCATIONS);
BPF_HASH(failures, struct failure, u64, FAILURES);
BPF_PERCPU_ARRAY(lost, struct losses, 1); /* what did not fit, or could not be read */

#endif
