/* Executable graphs: a sorted copy of a graph, and what a launch of it does. */
#include "graph.h"
#include <string.h>

enum {
    UPDATED = 0,
    TOPOLOGY_CHANGED = 2,
    TYPE_CHANGED = 3,
    FUNCTION_CHANGED = 7
}; /* results of an update */

struct fg_node *fg_node_in_exec(struct fg_exec *exec, const struct fg_node *node) {
    if (!fg_is(exec, FG_EXEC) || !fg_is(node, FG_NODE)) /* cuGraphDestroy ends the nodes too */
        return NULL;
    for (size_t i = 0; i < exec->graph->count; i++)
        if (exec->graph->nodes[i]->original == node)
            return exec->graph->nodes[i];
    return NULL;
}

bool fg_sort_all_locked(struct fg_graph *graph) {
    for (size_t i = 0; i < graph->count; i++)
        if (graph->nodes[i]->type == FG_NODE_CHILD && !fg_sort_all_locked(graph->nodes[i]->child))
            return false;
    return fg_sort_graph_locked(graph);
}

/* Flags: 1 frees on launch, 2 uploads, 4 is for launches by the device, 8 uses nodes' priority. */
static CUresult instantiate(const struct fg_call *c, CUgraphExec *exec, CUgraph graph, u64 flags) {
    if (!exec || !fg_is(graph, FG_GRAPH) || flags > 15)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & 4)
        return CUDA_ERROR_NOT_SUPPORTED;
    pthread_mutex_lock(&fg_lock);
    struct fg_graph *copy = fg_clone_graph_locked(graph);
    copy->owned = copy->executable = true;
    bool sorted = fg_sort_all_locked(copy);
    if (sorted) {
        *exec = fg_new(FG_EXEC, NULL);
        (*exec)->graph = copy;
        (*exec)->flags = flags;
    } else {
        fg_delete_graph_locked(copy);
    }
    pthread_mutex_unlock(&fg_lock);
    return sorted ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuGraphInstantiate(struct fg_call *c, CUgraphExec *exec, CUgraph graph,
                               CUgraphNode *failed, char *log, size_t size) {
    if (failed)
        *failed = NULL;
    if (log && size)
        *log = 0;
    return instantiate(c, exec, graph, 0);
}

CUresult do_cuGraphInstantiateWithFlags(struct fg_call *c, CUgraphExec *exec, CUgraph graph,
                                        u64 flags) {
    return instantiate(c, exec, graph, flags);
}

CUresult do_cuGraphInstantiateWithParams(struct fg_call *c, CUgraphExec *exec, CUgraph graph,
                                         struct fg_instantiate_params *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = instantiate(c, exec, graph, params->flags);
    params->failed = NULL;
    params->result = result != CUDA_SUCCESS;
    return result;
}

CUresult do_cuGraphExecGetFlags(struct fg_call *c, CUgraphExec exec, u64 *flags) {
    if (!fg_is(exec, FG_EXEC) || !flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

void fg_delete_exec_locked(struct fg_exec *exec) {
    fg_delete_graph_locked(exec->graph);
    fg_delete(exec);
}

CUresult do_cuGraphExecDestroy(struct fg_call *c, CUgraphExec exec) {
    if (!fg_is(exec, FG_EXEC))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    fg_delete_exec_locked(exec);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

/* A graph fits for an update when its nodes have the same types and edges, and its kernels stay in
 * their contexts; those in it must fit, too. */
static int compare(const struct fg_graph *old, const struct fg_graph *new, struct fg_node **where) {
    *where = NULL;
    if (old->count != new->count)
        return TOPOLOGY_CHANGED;
    for (size_t i = 0; i < new->count; i++) {
        const struct fg_node *one = old->nodes[i];
        struct fg_node *other = new->nodes[i];
        *where = other->original;
        if (one->type != other->type)
            return TYPE_CHANGED;
        if (one->dependency_count != other->dependency_count)
            return TOPOLOGY_CHANGED;
        if (one->type == FG_NODE_KERNEL &&
            (one->context != other->context || one->context_id != other->context_id))
            return FUNCTION_CHANGED;
        if (one->type == FG_NODE_CHILD) {
            struct fg_node *inner;
            int outcome = compare(one->child, other->child, &inner);
            if (outcome != UPDATED)
                return outcome;
        }
    }
    *where = NULL;
    return UPDATED;
}

bool fg_fits_locked(const struct fg_graph *old, const struct fg_graph *new) {
    struct fg_node *where;
    return compare(old, new, &where) == UPDATED;
}

static CUresult update(struct fg_exec *exec, struct fg_graph *graph, struct fg_node **where,
                       int *outcome) {
    if (!fg_is(exec, FG_EXEC) || !fg_is(graph, FG_GRAPH))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_graph *copy = fg_clone_graph_locked(graph);
    copy->owned = copy->executable = true;
    *outcome = fg_sort_all_locked(copy) ? compare(exec->graph, copy, where) : TOPOLOGY_CHANGED;
    if (*outcome == UPDATED) {
        /* nodes stay known by the graph that the executable one was made of */
        for (size_t i = 0; i < copy->count; i++) {
            copy->nodes[i]->original = exec->graph->nodes[i]->original;
            copy->nodes[i]->disabled = exec->graph->nodes[i]->disabled;
        }
        struct fg_graph *old = exec->graph;
        exec->graph = copy;
        copy = old;
    }
    fg_delete_graph_locked(copy);
    pthread_mutex_unlock(&fg_lock);
    return *outcome == UPDATED ? CUDA_SUCCESS : CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
}

CUresult do_cuGraphExecUpdate(struct fg_call *c, CUgraphExec exec, CUgraph graph,
                              CUgraphNode *failed, int *result) {
    struct fg_node *where = NULL;
    int outcome = 1;
    CUresult returned = update(exec, graph, &where, &outcome);
    if (failed)
        *failed = where;
    if (result)
        *result = outcome;
    return returned;
}

CUresult do_cuGraphExecUpdate_v2(struct fg_call *c, CUgraphExec exec, CUgraph graph,
                                 struct fg_update_result *result) {
    struct fg_update_result found = {.result = 1};
    CUresult returned = update(exec, graph, &found.failed, &found.result);
    if (result)
        *result = found;
    return returned;
}

CUresult do_cuGraphNodeSetEnabled(struct fg_call *c, CUgraphExec exec, CUgraphNode node,
                                  unsigned enabled) {
    struct fg_node *found = fg_node_in_exec(exec, node);
    if (!found || found->type > FG_NODE_SET)
        return CUDA_ERROR_INVALID_VALUE;
    found->disabled = !enabled;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphNodeGetEnabled(struct fg_call *c, CUgraphExec exec, CUgraphNode node,
                                  unsigned *enabled) {
    struct fg_node *found = fg_node_in_exec(exec, node);
    if (!found || found->type > FG_NODE_SET || !enabled)
        return CUDA_ERROR_INVALID_VALUE;
    *enabled = !found->disabled;
    return CUDA_SUCCESS;
}

struct run {
    u64 kernels[FG_MAX_DEVICES];
    u64 copied;
    u64 set;
};

static void run_graph(const struct fg_graph *graph, struct fg_stream *stream, struct run *run) {
    for (size_t i = 0; i < graph->count; i++) {
        struct fg_node *node = graph->nodes[i];
        if (node->disabled)
            continue;
        switch (node->type) {
        case FG_NODE_KERNEL:
            run->kernels[node->device]++;
            break;
        case FG_NODE_COPY:
            fg_copy_run(node->copy);
            run->copied += node->copy->bytes;
            break;
        case FG_NODE_SET:
            if (fg_set_check(&node->set) == CUDA_SUCCESS)
                fg_set_run(&node->set);
            run->set += (u64)node->set.width * node->set.height * node->set.element;
            break;
        case FG_NODE_HOST:
            node->host.function(node->host.data);
            break;
        case FG_NODE_CHILD:
            run_graph(node->child, stream, run);
            break;
        case FG_NODE_EVENT_RECORD:
            if (fg_is(node->event, FG_EVENT)) {
                node->event->at = fg_now();
                node->event->recorded = true;
                node->event->capture = NULL;
            }
            break;
        default:
            break;
        }
    }
}

/* Whether the contexts that the kernels run in are still there. */
static bool can_run(const struct fg_graph *graph) {
    for (size_t i = 0; i < graph->count; i++) {
        const struct fg_node *node = graph->nodes[i];
        if (node->type == FG_NODE_KERNEL &&
            (!fg_valid_context(node->context) || node->context->id != node->context_id))
            return false;
        if (node->type == FG_NODE_CHILD && !can_run(node->child))
            return false;
    }
    return true;
}

static CUresult launch(struct fg_stream *stream, struct fg_exec *exec) {
    if (!stream || !fg_is(exec, FG_EXEC))
        return CUDA_ERROR_INVALID_HANDLE;
    int device = stream->head.context->device;
    struct fg_activity *activity = fg_activity(device);
    if (!can_run(exec->graph))
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (fg_capturing(stream)) {
        struct fg_node pattern = {.type = FG_NODE_CHILD, .child = exec->graph};
        return fg_capture_node(stream, &pattern, NULL);
    }
    CUresult result = fg_legacy_allowed(stream);
    if (result)
        return result;
    struct run run = {0};
    run_graph(exec->graph, stream, &run);
    for (int other = 0; other < FG_MAX_DEVICES; other++) {
        u64 time = run.kernels[other] * fg_load(&fg_state->devices[other].kernel_ns);
        if (other == device)
            fg_submit(stream, time);
        else
            fg_submit_elsewhere(other, time);
        fg_add(&fg_activity(other)->graph_kernels, run.kernels[other]);
    }
    fg_add(&activity->graph_launches, 1);
    fg_add(&activity->graph_copied_bytes, run.copied);
    fg_add(&activity->graph_set_bytes, run.set);
    return CUDA_SUCCESS;
}

CUresult do_cuGraphLaunch(struct fg_call *c, CUgraphExec exec, CUstream handle) {
    struct fg_stream *stream = fg_resolve(c, handle);
    CUresult result = launch(stream, exec);
    if (result)
        fg_add(&fg_activity(fg_device_of(c, stream))->failed_graph_launches, 1);
    return result;
}

CUresult do_cuGraphUpload(struct fg_call *c, CUgraphExec exec, CUstream stream) {
    return fg_resolve(c, stream) && fg_is(exec, FG_EXEC) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* The memory of graphs: 0 and 1 are what is used and the most that was, 2 and 3 what is reserved.
 */
static u64 graph_memory(int device) {
    u64 bytes = 0;
    struct fg_node *node;
    u32 place = 0;
    pthread_mutex_lock(&fg_lock);
    while ((node = fg_next(FG_NODE, NULL, &place))) {
        struct fg_allocation *a =
            node->type == FG_NODE_ALLOC && !node->original ? fg_find_locked(node->pointer) : NULL;
        if (a && a->device == device)
            bytes += node->bytes;
    }
    pthread_mutex_unlock(&fg_lock);
    return bytes;
}

CUresult do_cuDeviceGraphMemTrim(struct fg_call *c, CUdevice device) {
    return fg_valid_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuDeviceGetGraphMemAttribute(struct fg_call *c, CUdevice device, int attribute,
                                         void *value) {
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!value || attribute < 0 || attribute > 3)
        return CUDA_ERROR_INVALID_VALUE;
    *(u64 *)value = graph_memory(device);
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceSetGraphMemAttribute(struct fg_call *c, CUdevice device, int attribute,
                                         void *value) {
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!value || *(u64 *)value || (attribute != 1 && attribute != 3))
        return CUDA_ERROR_INVALID_VALUE; /* only the highest values can be reset */
    return CUDA_SUCCESS;
}
