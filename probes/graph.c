/* Graphs: how many kernels each holds, on which device, from capture or built by hand; what is
 * instantiated of it inherits that. Where it can't be known, that is noted, and nothing guessed. */

static __always_inline void put_graph(struct process *process, u64 value, u32 space,
                                      struct graph *graph) {
    struct name name = name_of(process, value, space);
    if (is_tracked(process) && graphs.update(&name, graph))
        lose(LOST_GRAPHS);
}

static __always_inline void drop_graph(struct process *process, u64 value, u32 space) {
    struct name name = name_of(process, value, space);
    graphs.delete(&name);
}

/* A graph from before we watched may hold anything; one that lost a node may hold less. */
static __always_inline bool is_sure(struct process *process, struct graph *graph) {
    return graph && !graph->unknown && graph->made > process->unsure_at;
}

static __always_inline void add_kernels(struct graph *to, struct graph *from) {
    asm volatile(""
                 : "+r"(from)); /* else clang computes with it before it is known not to be NULL */
    to->unknown |= from->unknown;
#pragma clang loop unroll(disable)
    for (u32 device = 0; device < DEVICES; device++)
        to->kernels[device] += from->kernels[device];
}

static __always_inline void remove_kernels(struct graph *to, struct graph *from) {
    asm volatile("" : "+r"(from));
#pragma clang loop unroll(disable)
    for (u32 device = 0; device < DEVICES; device++)
        to->kernels[device] -= from->kernels[device];
}

static __always_inline void change_kernels(struct graph *graph, u64 device, u32 n) {
    if (!below(&device, DEVICES))
        return;
    if (n == (u32)-1 && !graph->kernels[device])
        graph->unknown = 1; /* a node that isn't what we take it for */
    else
        __sync_fetch_and_add(&graph->kernels[device], n);
}

/* Under a new name as it is now. */
static __always_inline void copy_graph(struct process *process, struct graph *from, u64 value,
                                       u32 space) {
    struct graph copy = {};
    if (from) {
        copy = *from;
        copy.unknown = !is_sure(process, from);
    } else {
        copy.unknown = 1;
    }
    copy.made = bpf_ktime_get_ns();
    copy.parent = 0;
    copy.origin = 0;
    put_graph(process, value, space, &copy);
}

/* What was captured becomes a graph, or is added to the one that was given. */
static __always_inline void finish_graph(struct process *process, struct graph *capture,
                                         struct graph *given, u64 value) {
    if (given) {
        add_kernels(given, capture);
        if (given->parent) /* what it is embedded in has them, too */
            process->unsure_at = bpf_ktime_get_ns();
    } else if (!capture->parent) {
        copy_graph(process, capture, value, SPACE_GRAPH);
    }
}

/* cuGraphCreate(CUgraph *out, flags) */
static __always_inline int on_create_graph_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct graph graph = {.made = bpf_ktime_get_ns()};
    if (process)
        put_graph(process, stored(entry.arg[0]), SPACE_GRAPH, &graph);
    return 0;
}

/* (out, CUgraph, …): a clone, or an instance (detail 1). */
static __always_inline int on_copy_graph_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (process)
        copy_graph(process, graph_of(process, entry.arg[1], SPACE_GRAPH), stored(entry.arg[0]),
                   CALL_DETAIL(call) ? SPACE_INSTANCE : SPACE_GRAPH);
    return 0;
}

/* cuGraphExecUpdate(CUgraphExec, CUgraph, …) succeeds only if both have the same nodes: it tells
 * something new only of an instance from before we watched. */
static __always_inline int on_update_instance_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct graph *instance = process ? graph_of(process, entry.arg[0], SPACE_INSTANCE) : 0;
    if (process && (!instance || instance->unknown))
        copy_graph(process, graph_of(process, entry.arg[1], SPACE_GRAPH), entry.arg[0],
                   SPACE_INSTANCE);
    return 0;
}

/* (CUgraph), (CUgraphExec) (detail 1) */
static __always_inline int on_destroy_graph_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (process)
        drop_graph(process, entry.arg[0], CALL_DETAIL(call) ? SPACE_INSTANCE : SPACE_GRAPH);
    return 0;
}

/* --- launches of graphs --- */

static __always_inline void launch_kernels(struct process *process, struct graph *instance) {
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < DEVICES; i++) {
        u32 kernels = instance->kernels[i];
        if (!kernels)
            continue;
        struct share *share = share_of(process, i);
        if (share)
            add(share, LANE_GRAPH_KERNELS, kernels);
    }
}

/* cuGraphLaunch(CUgraphExec, CUstream), on entry */
static __always_inline int on_launch_graph(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    struct graph *capture;
    if (!process)
        return 0;
    u32 device = spot_of(process, call, stream_argument(ctx, call), &capture);
    struct name name = name_of(process, ARG(ctx, 0), SPACE_INSTANCE);
    struct graph *instance = graphs.lookup(&name);
    if (!instance && inherited(process, &name))
        instance = graphs.lookup(&name);
    bool known = instance && !instance->unknown;
    if (capture) { /* becomes a child graph of what is captured */
        if (known)
            add_kernels(capture, instance);
        else
            capture->unknown = 1;
        return 0;
    }
    struct share *share = share_of(process, device);
    if (!share)
        return 0;
    add(share, LANE_GRAPH_LAUNCHES, 1);
    if (known)
        launch_kernels(process, instance);
    else
        add(share, LANE_UNKNOWN_GRAPH_LAUNCHES, 1);
    return 0;
}
