/* Nodes added by hand: a handle with its graph in `to` and its type in `flags`. */

/* CUgraphNodeType, and where CUgraphNodeParams holds what we need */
#define TYPE_KERNEL 0
#define TYPE_GRAPH 4
#define TYPE_CONDITIONAL 13
#define TYPE_OTHER 5 /* one of those without kernels */
#define PARAMS_UNION 16
#define CHILD_OWNERSHIP 24 /* a child graph is copied, or becomes the node's own (CUDA 12.9) */
#define OWNERSHIP_MOVE 1
#define KERNEL_CONTEXT 64 /* in CUDA_KERNEL_NODE_PARAMS_v2 and _v3 */

/* What is in a graph is also in those that it is embedded in; deeper ones become unsure. */
#define MOST_EMBEDDED 4

static __always_inline void stop_at(struct process *process, u64 value) {
    if (value)
        process->unsure_at = bpf_ktime_get_ns();
}

/* A function runs in the context that it was loaded in; a kernel, which has none, in the one that
 * the parameters name, or in the current one. `detail` as below. */
static __always_inline u32 device_of_node(struct process *process, u32 detail, u64 params) {
    if (process->way == PLAIN_WAY)
        return process->home;
    u64 at = params + (detail >= 4 ? PARAMS_UNION : 0);
    struct handle *function = handle_of(process, stored(at), SPACE_FUNCTION);
    if (function || process->late)
        return function ? function->device : DEVICE_UNKNOWN;
    u64 context = detail == 1 ? 0 : stored(at + KERNEL_CONTEXT);
    return context ? device_of_context(process, context) : current_device(process);
}

/* What is done to that graph from now on is done to the one that it is in. */
static __always_inline void embed(struct process *process, u64 child, u64 in) {
    struct graph *graph = graph_of(process, child, SPACE_GRAPH);
    if (graph)
        graph->parent = in;
}

/* (CUgraphNode *out, CUgraph, dependencies, count, …); detail: 1 kernel node, 2 kernel node with a
 * context, 3 child graph, 4 and 5 cuGraphAddNode with its parameters in that argument, 6 any node
 * without kernels. */
static __always_inline int on_add_node_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    u32 detail = CALL_DETAIL(call), type = TYPE_KERNEL, device = DEVICE_UNKNOWN;
    if (!process)
        return 0;
    u64 params = detail == 5 ? entry.arg[5] : entry.arg[4], embedded = params;
    if (detail == 6) {
        type = TYPE_OTHER;
    } else if (detail == 3) {
        type = TYPE_GRAPH;
    } else if (detail >= 4) {
        if (read_user(&type, sizeof(type), (void *)params))
            type = TYPE_CONDITIONAL;
        if (type == TYPE_GRAPH)
            embedded = stored(params + PARAMS_UNION);
    }
    if (type == TYPE_KERNEL)
        device = device_of_node(process, detail, params);
    u64 made = stored(entry.arg[0]), value = entry.arg[1];
    struct handle node = {.to = value, .device = device, .flags = type};
    keep(process, made, SPACE_NODE, &node);
    struct graph *child = 0;
    if (type == TYPE_GRAPH) {
        copy_graph(process, graph_of(process, embedded, SPACE_GRAPH), made, SPACE_NODE);
        child = graph_of(process, made, SPACE_NODE);
        if (detail >= 4 && stored(params + CHILD_OWNERSHIP) & OWNERSHIP_MOVE)
            embed(process, embedded, value);
    }
#pragma clang loop unroll(disable)
    for (u32 level = 0; level < MOST_EMBEDDED && value; level++) {
        struct graph *graph = graph_of(process, value, SPACE_GRAPH);
        if (!graph)
            break; /* it may be embedded in one that we know */
        if (type == TYPE_KERNEL)
            change_kernels(graph, device, 1);
        else if (type == TYPE_CONDITIONAL || (type == TYPE_GRAPH && !child))
            graph->unknown = 1;
        else if (child)
            add_kernels(graph, child);
        value = graph->parent;
    }
    stop_at(process, value);
    return 0;
}

/* (CUgraphNode, params): a kernel node's parameters may name another context. `detail` as above. */
static __always_inline int on_set_node_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct handle *node = process ? handle_of(process, entry.arg[0], SPACE_NODE) : 0;
    if (!node || node->flags != TYPE_KERNEL)
        return 0;
    u32 before = node->device, device = device_of_node(process, CALL_DETAIL(call), entry.arg[1]);
    u64 value = device == before ? 0 : node->to;
    node->device = device;
#pragma clang loop unroll(disable)
    for (u32 level = 0; level < MOST_EMBEDDED && value; level++) {
        struct graph *graph = graph_of(process, value, SPACE_GRAPH);
        if (!graph)
            break;
        change_kernels(graph, before, -1);
        change_kernels(graph, device, 1);
        value = graph->parent;
    }
    stop_at(process, value);
    return 0;
}

static __always_inline int on_destroy_node_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct handle *node = process ? handle_of(process, entry.arg[0], SPACE_NODE) : 0;
    if (!process)
        return 0;
    if (!node) { /* captured, or cloned: it isn't known what it was, nor of which graph */
        process->unsure_at = bpf_ktime_get_ns();
        return 0;
    }
    u64 value = node->to;
    u32 kind = node->flags, device = node->device;
    struct graph *child = kind == TYPE_GRAPH ? graph_of(process, entry.arg[0], SPACE_NODE) : 0;
#pragma clang loop unroll(disable)
    for (u32 level = 0; level < MOST_EMBEDDED && value; level++) {
        struct graph *graph = graph_of(process, value, SPACE_GRAPH);
        if (!graph)
            break;
        if (kind == TYPE_KERNEL)
            change_kernels(graph, device, -1);
        else if (child)
            remove_kernels(graph, child);
        value = graph->parent;
    }
    stop_at(process, value);
    forget(process, entry.arg[0], SPACE_NODE);
    if (child)
        drop_graph(process, entry.arg[0], SPACE_NODE);
    return 0;
}

/* cuGraphChildGraphNodeGetGraph(CUgraphNode, CUgraph *out): what is done to that graph is done to
 * the one that it is embedded in. */
static __always_inline int on_get_child_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct handle *node = process ? handle_of(process, entry.arg[0], SPACE_NODE) : 0;
    u64 value = node ? stored(entry.arg[1]) : 0;
    struct graph *in = node ? graph_of(process, node->to, SPACE_GRAPH) : 0;
    struct graph *known = value ? graph_of(process, value, SPACE_GRAPH) : 0;
    /* Known already, unless the graphs that had these handles are gone. */
    if (!value || !in || (known && known->parent == node->to && known->made >= in->made))
        return 0;
    copy_graph(process, graph_of(process, entry.arg[0], SPACE_NODE), value, SPACE_GRAPH);
    struct graph *child = graph_of(process, value, SPACE_GRAPH);
    if (child)
        child->parent = node->to;
    return 0;
}

/* cuGraphNodeSetEnabled(CUgraphExec, CUgraphNode, enabled) */
static __always_inline int on_enable_node_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct graph *instance = process ? graph_of(process, entry.arg[0], SPACE_INSTANCE) : 0;
    struct handle *node = instance ? handle_of(process, entry.arg[1], SPACE_NODE) : 0;
    if (!instance)
        return 0;
    if (!node || !graph_of(process, node->to, SPACE_GRAPH)) {
        instance->unknown = 1;
        return 0;
    }
    if (node->flags != TYPE_KERNEL)
        return 0;
    bool enabled = (u32)entry.arg[2];
    u32 device = node->device, free = MOST_DISABLED, at = MOST_DISABLED;
#pragma clang loop unroll(full)
    for (u32 i = 0; i < MOST_DISABLED; i++) {
        if (instance->disabled[i] == entry.arg[1])
            at = i;
        else if (!instance->disabled[i])
            free = i;
    }
    if (enabled == (at == MOST_DISABLED))
        return 0; /* it is already */
    u64 place = enabled ? at : free;
    if (!below(&place, MOST_DISABLED)) {
        instance->unknown = 1; /* no room to remember it */
        return 0;
    }
    instance->disabled[place] = enabled ? 0 : entry.arg[1];
    change_kernels(instance, device, enabled ? 1 : -1);
    return 0;
}
