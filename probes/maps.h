/* What the kernel side keeps. Sizes (PROCESSES, …), lanes (LANE_…) and devices are definitions from
 * gpubpf/lanes.py and gpubpf/bpf/program.py: the layout is written once, there. */
#ifndef GPUBPF_MAPS_H
#define GPUBPF_MAPS_H

/* What a process did on one device. Counters only grow; live and peak are gauges: the requested
 * bytes of device memory that it holds now, and the most that it held. */
struct share {
    u64 live;
    u64 peak;
    u64 lane[FACT_LANES];
};

/* A process that calls the driver. Most use one device and capture nothing at the moment: what
 * they do is counted here, after one look-up. Whatever makes another look necessary shows in
 * `way`; then a call is counted in the share of its device (map `shares`). */
#define PLAIN_WAY (1ULL << 48) /* settled, and nothing else */
struct process {
    u64 born;      /* CLOCK_BOOTTIME, ns, of its first call: with the pid its identity */
    u64 unsure_at; /* graphs made before this may have lost a node that we did not know */
    union {
        u64 way;
        struct {
            u32 captures; /* stream captures under way */
            u8 late;      /* it called the driver before we watched: its contexts are not known */
            u8 multi;     /* it has contexts on several devices */
            u8 settled;   /* `home` is known */
        };
    };
    u32 home;   /* the device of its first context */
    u32 parent; /* a fork: whose handles it inherited, and when that process was born */
    u64 parent_born;
    struct share share; /* on `home` */
    u64 calls[CALL_LANES];
};

struct owner {
    u64 born;
    u64 pid;
};

struct place {
    u64 born;
    u32 pid;
    u32 device;
};

struct allocation {
    u64 bytes;
    u64 context; /* that takes it along when it is destroyed, see owner_of; 0: none does */
    u64 made;    /* when that was made */
    u32 kind;
    u32 device;
    u32 handles; /* virtual memory: those not yet released */
    u32 mappings;
};

/* A call that is under way in a thread, from its entry to its return: what it was given, or, of a
 * free, what it took out of `allocations`. */
struct pending {
    u64 call;  /* which function, see CALL_FUNCTION */
    u64 since; /* ns */
    u64 stream;
    union {
        u64 arg[6];
        struct {
            u64 address;
            struct allocation taken;
        };
    };
};

/* An address or a handle of a process. Those of different spaces may have equal values. */
struct name {
    u64 value;
    u64 born;
    u32 pid;
    u32 space;
};

/* A context, or what is kept of a device's primary one: whatever handles it has and however often
 * it is reset, it is one, and the contexts of green contexts share its memory. */
struct context {
    u64 made; /* ns; a handle may be used again for another context */
    u32 device;
    u32 uses;    /* primary: retained; else attached. Destroyed at 0 */
    u32 primary; /* a handle of the primary one: the rest is kept there */
    u32 pad;
    u64 bytes[KINDS];
    u64 count[KINDS];
};

/* A stream, event, pool, module, green context, node or mapping: what is known of it. */
struct handle {
    u64 to;      /* node: its graph; mapping: its memory; stream: its context, see owner_of */
    u64 capture; /* stream, event: the capture that it was last part of */
    u32 device;
    u32 flags;
};

/* The kernels that a graph, an instance of it or a capture under way holds, by device. */
#define MOST_DISABLED 4
struct graph {
    u64 made;
    u64 parent; /* embedded in this graph: what is added here is added there */
    u64 origin; /* of a capture: the stream that it began in, and that one's context */
    u64 context;
    u64 context_made;
    u64 disabled[MOST_DISABLED]; /* of an instance: nodes that don't run */
    u32 unknown;
    u32 kernels[DEVICES];
};

/* The contexts that are current to a thread: the last ones of a stack that may be deeper. Entry
 * depth % MOST_CONTEXTS is that of `depth`, if depth > floor; what was below is not known. */
#define MOST_CONTEXTS 8
struct thread {
    u32 depth;
    u32 floor;
    u32 device[MOST_CONTEXTS];
    u64 context[MOST_CONTEXTS];
};

struct answer {
    char text[32];
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

enum space {
    SPACE_ADDRESS,
    SPACE_PHYSICAL,
    SPACE_ARRAY,
    SPACE_CONTEXT,
    SPACE_PRIMARY,
    SPACE_GREEN,
    SPACE_STREAM,
    SPACE_EVENT,
    SPACE_POOL,
    SPACE_MAPPING,
    SPACE_GRAPH,
    SPACE_INSTANCE,
    SPACE_CAPTURE,
    SPACE_NODE,
    SPACE_HOME,
    SPACE_MODULE,
    SPACE_FUNCTION,
};

BPF_HASH(processes, u32, struct process, PROCESSES);
BPF_HASH(ended, struct owner, struct process, PROCESSES);
BPF_HASH(shares, struct place, struct share, SHARES);
BPF_ARRAY(overflow, struct process, 1); /* calls of processes that do not fit */
BPF_ARRAY(since, u64, SLOTS);        /* by library: when it was attached to, CLOCK_BOOTTIME, ns */
BPF_ARRAY(blank, struct process, 1); /* all zero: too large for the 512-byte stack */
BPF_HASH(threads, u64, struct thread, THREADS);
BPF_HASH(pending, u64, struct pending, PENDING);
BPF_HASH(allocations, struct name, struct allocation, ALLOCATIONS);
BPF_HASH(contexts, struct name, struct context, CONTEXTS);
BPF_HASH(handles, struct name, struct handle, HANDLES);
BPF_HASH(graphs, struct name, struct graph, GRAPHS);
BPF_HASH(answers, struct name, struct answer, ANSWERS);
BPF_HASH(failures, struct failure, u64, FAILURES);
BPF_PERCPU_ARRAY(lost, struct losses, 1); /* what did not fit, or could not be read */

#ifdef BIRTH_PAGES /* somebody wants to look at processes while they are there */
BPF_RINGBUF_OUTPUT(births, BIRTH_PAGES);
#endif

#endif
