/* Nodes as the interface adds, reads and changes them, each type in its own form. */
#include "graph.h"
#include <string.h>

static CUresult add(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                    const struct fg_node *pattern) {
    if (!node || !fg_is(graph, FG_GRAPH) || (count && !dependencies))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    CUresult result = fg_add_node_locked(graph, dependencies, count, pattern, node);
    pthread_mutex_unlock(&fg_lock);
    return result;
}

static bool is_node(const struct fg_node *node, int type) {
    return fg_is(node, FG_NODE) && node->type == type;
}

/* Kernels. The second form may name a CUkernel instead of a function, and the context that it is to
 * run in. A function runs in its own, a CUkernel without one in the current one. */

static CUresult kernel_pattern(const struct fg_kernel_params *params, struct fg_kernel *kernel,
                               struct fg_context *context, struct fg_node *pattern) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    *pattern = (struct fg_node){.type = FG_NODE_KERNEL, .kernel = *params};
    if (!params->function)
        pattern->kernel.function = kernel;
    if (!fg_is(pattern->kernel.function, FG_KERNEL))
        return CUDA_ERROR_INVALID_VALUE;
    if (pattern->kernel.function->head.context)
        context = pattern->kernel.function->head.context;
    else if (params->function || !context)
        context = fg_current();
    if (!fg_valid_context(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    pattern->context = fg_root(context);
    pattern->context_id = pattern->context->id;
    pattern->device = context->device;
    for (int i = 0; i < 3; i++)
        if (!params->grid[i] || !params->block[i])
            return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphAddKernelNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                 const CUgraphNode *dependencies, size_t count,
                                 const struct fg_kernel_params *params) {
    struct fg_node pattern;
    CUresult result = kernel_pattern(params, NULL, NULL, &pattern);
    return result ? result : add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphAddKernelNode_v2(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                    const CUgraphNode *dependencies, size_t count,
                                    const struct fg_kernel_params_v2 *params) {
    struct fg_node pattern;
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = kernel_pattern(&params->common, params->kernel, params->context, &pattern);
    return result ? result : add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphKernelNodeGetParams(struct fg_call *c, CUgraphNode node,
                                       struct fg_kernel_params *params) {
    if (!is_node(node, FG_NODE_KERNEL) || !params)
        return CUDA_ERROR_INVALID_VALUE;
    *params = node->kernel;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphKernelNodeGetParams_v2(struct fg_call *c, CUgraphNode node,
                                          struct fg_kernel_params_v2 *params) {
    if (!is_node(node, FG_NODE_KERNEL) || !params)
        return CUDA_ERROR_INVALID_VALUE;
    *params = (struct fg_kernel_params_v2){.common = node->kernel};
    return CUDA_SUCCESS;
}

static CUresult set_kernel(struct fg_node *node, const struct fg_kernel_params *params,
                           struct fg_kernel *kernel, struct fg_context *context) {
    struct fg_node pattern;
    CUresult result = kernel_pattern(params, kernel, context, &pattern);
    if (result || !is_node(node, FG_NODE_KERNEL))
        return CUDA_ERROR_INVALID_VALUE;
    if (node->graph->executable && pattern.context != node->context)
        return CUDA_ERROR_INVALID_VALUE; /* it stays in its context */
    node->kernel = pattern.kernel;
    node->context = pattern.context;
    node->context_id = pattern.context_id;
    node->device = pattern.device;
    node->kernel.params = node->kernel.extra = NULL;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphKernelNodeSetParams(struct fg_call *c, CUgraphNode node,
                                       const struct fg_kernel_params *params) {
    return set_kernel(node, params, NULL, NULL);
}

CUresult do_cuGraphKernelNodeSetParams_v2(struct fg_call *c, CUgraphNode node,
                                          const struct fg_kernel_params_v2 *params) {
    return set_kernel(node, params ? &params->common : NULL, params ? params->kernel : NULL,
                      params ? params->context : NULL);
}

CUresult do_cuGraphExecKernelNodeSetParams(struct fg_call *c, CUgraphExec exec, CUgraphNode node,
                                           const struct fg_kernel_params *params) {
    return set_kernel(fg_node_in_exec(exec, node), params, NULL, NULL);
}

CUresult do_cuGraphExecKernelNodeSetParams_v2(struct fg_call *c, CUgraphExec exec, CUgraphNode node,
                                              const struct fg_kernel_params_v2 *params) {
    return set_kernel(fg_node_in_exec(exec, node), params ? &params->common : NULL,
                      params ? params->kernel : NULL, params ? params->context : NULL);
}

/* Copies. */

static CUresult copy_pattern(const struct fg_copy3d *shape, struct fg_copy *copy,
                             struct fg_node *pattern) {
    CUresult result = fg_copy_from_3d(shape, copy);
    *pattern = (struct fg_node){.type = FG_NODE_COPY, .copy = copy};
    return result ? result : fg_copy_check(copy);
}

CUresult do_cuGraphAddMemcpyNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                 const CUgraphNode *dependencies, size_t count,
                                 const struct fg_copy3d *shape, CUcontext context) {
    struct fg_copy copy;
    struct fg_node pattern;
    CUresult result = copy_pattern(shape, &copy, &pattern);
    return result ? result : add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphMemcpyNodeGetParams(struct fg_call *c, CUgraphNode node,
                                       struct fg_copy3d *copy) {
    if (!is_node(node, FG_NODE_COPY) || !copy)
        return CUDA_ERROR_INVALID_VALUE;
    *copy = node->copy->shape;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphMemcpyNodeSetParams(struct fg_call *c, CUgraphNode node,
                                       const struct fg_copy3d *shape) {
    struct fg_copy copy;
    struct fg_node pattern;
    if (!is_node(node, FG_NODE_COPY) || copy_pattern(shape, &copy, &pattern))
        return CUDA_ERROR_INVALID_VALUE;
    *node->copy = copy;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphExecMemcpyNodeSetParams(struct fg_call *c, CUgraphExec exec, CUgraphNode node,
                                           const struct fg_copy3d *copy, CUcontext context) {
    return do_cuGraphMemcpyNodeSetParams(c, fg_node_in_exec(exec, node), copy);
}

/* Sets. */

CUresult do_cuGraphAddMemsetNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                 const CUgraphNode *dependencies, size_t count,
                                 const struct fg_set_params *set, CUcontext context) {
    if (!set || fg_set_check(set))
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_node pattern = {.type = FG_NODE_SET, .set = *set};
    return add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphMemsetNodeGetParams(struct fg_call *c, CUgraphNode node,
                                       struct fg_set_params *set) {
    if (!is_node(node, FG_NODE_SET) || !set)
        return CUDA_ERROR_INVALID_VALUE;
    *set = node->set;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphMemsetNodeSetParams(struct fg_call *c, CUgraphNode node,
                                       const struct fg_set_params *set) {
    if (!is_node(node, FG_NODE_SET) || !set || fg_set_check(set))
        return CUDA_ERROR_INVALID_VALUE;
    node->set = *set;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphExecMemsetNodeSetParams(struct fg_call *c, CUgraphExec exec, CUgraphNode node,
                                           const struct fg_set_params *set, CUcontext context) {
    return do_cuGraphMemsetNodeSetParams(c, fg_node_in_exec(exec, node), set);
}

/* Host functions. */

CUresult do_cuGraphAddHostNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                               const CUgraphNode *dependencies, size_t count,
                               const struct fg_host_params *params) {
    if (!params || !params->function)
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_node pattern = {.type = FG_NODE_HOST, .host = *params};
    return add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphHostNodeGetParams(struct fg_call *c, CUgraphNode node,
                                     struct fg_host_params *params) {
    if (!is_node(node, FG_NODE_HOST) || !params)
        return CUDA_ERROR_INVALID_VALUE;
    *params = node->host;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphHostNodeSetParams(struct fg_call *c, CUgraphNode node,
                                     const struct fg_host_params *params) {
    if (!is_node(node, FG_NODE_HOST) || !params || !params->function)
        return CUDA_ERROR_INVALID_VALUE;
    node->host = *params;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphExecHostNodeSetParams(struct fg_call *c, CUgraphExec exec, CUgraphNode node,
                                         const struct fg_host_params *params) {
    return do_cuGraphHostNodeSetParams(c, fg_node_in_exec(exec, node), params);
}

/* Graphs in graphs. */

CUresult do_cuGraphAddChildGraphNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                     const CUgraphNode *dependencies, size_t count, CUgraph child) {
    if (!fg_is(child, FG_GRAPH) || child == graph)
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_node pattern = {.type = FG_NODE_CHILD, .child = child};
    return add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphChildGraphNodeGetGraph(struct fg_call *c, CUgraphNode node, CUgraph *child) {
    if (!is_node(node, FG_NODE_CHILD) || !child)
        return CUDA_ERROR_INVALID_VALUE;
    *child = node->child;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphExecChildGraphNodeSetParams(struct fg_call *c, CUgraphExec exec,
                                               CUgraphNode node, CUgraph child) {
    struct fg_node *found = fg_node_in_exec(exec, node);
    if (!is_node(found, FG_NODE_CHILD) || !fg_is(child, FG_GRAPH))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_graph *copy = fg_clone_graph_locked(child);
    copy->owned = true;
    bool fits = fg_sort_all_locked(copy) && fg_fits_locked(found->child, copy);
    fg_delete_graph_locked(fits ? found->child : copy);
    if (fits)
        found->child = copy;
    pthread_mutex_unlock(&fg_lock);
    return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Empty nodes, events, memory. */

CUresult do_cuGraphAddEmptyNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                const CUgraphNode *dependencies, size_t count) {
    struct fg_node pattern = {.type = FG_NODE_EMPTY};
    return add(node, graph, dependencies, count, &pattern);
}

static CUresult add_event(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                          size_t count, CUevent event, int type) {
    struct fg_node pattern = {.type = type, .event = event};
    if (!fg_is(event, FG_EVENT))
        return CUDA_ERROR_INVALID_VALUE;
    return add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphAddEventRecordNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                      const CUgraphNode *dependencies, size_t count,
                                      CUevent event) {
    return add_event(node, graph, dependencies, count, event, FG_NODE_EVENT_RECORD);
}

CUresult do_cuGraphAddEventWaitNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                    const CUgraphNode *dependencies, size_t count, CUevent event) {
    return add_event(node, graph, dependencies, count, event, FG_NODE_EVENT_WAIT);
}

CUresult do_cuGraphAddMemAllocNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                   const CUgraphNode *dependencies, size_t count,
                                   struct fg_alloc_node_params *params) {
    u64 base;
    if (!params || !params->bytes || !fg_valid_device(params->pool.location.id) ||
        params->pool.location.type != FG_LOCATION_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_graph_reserve(params->pool.location.id, params->bytes, &base);
    if (result)
        return result;
    struct fg_node pattern = {.type = FG_NODE_ALLOC, .pointer = base, .bytes = params->bytes};
    params->pointer = base;
    return add(node, graph, dependencies, count, &pattern);
}

CUresult do_cuGraphAddMemFreeNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                                  const CUgraphNode *dependencies, size_t count,
                                  CUdeviceptr pointer) {
    struct fg_node pattern = {.type = FG_NODE_FREE, .pointer = pointer};
    if (!fg_known(pointer))
        return CUDA_ERROR_INVALID_VALUE;
    return add(node, graph, dependencies, count, &pattern);
}

/* Any type. */

CUresult do_cuGraphAddNode(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                           const CUgraphNode *dependencies, size_t count,
                           struct fg_node_params *p) {
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    switch (p->type) {
    case FG_NODE_KERNEL:
        return do_cuGraphAddKernelNode_v2(c, node, graph, dependencies, count, &p->kernel);
    case FG_NODE_COPY:
        return do_cuGraphAddMemcpyNode(c, node, graph, dependencies, count, &p->copy.copy,
                                       p->copy.context);
    case FG_NODE_SET:
        return do_cuGraphAddMemsetNode(c, node, graph, dependencies, count, &p->set.set,
                                       p->set.context);
    case FG_NODE_HOST:
        return do_cuGraphAddHostNode(c, node, graph, dependencies, count, &p->host);
    case FG_NODE_CHILD:
        return do_cuGraphAddChildGraphNode(c, node, graph, dependencies, count, p->child.graph);
    case FG_NODE_EMPTY:
        return do_cuGraphAddEmptyNode(c, node, graph, dependencies, count);
    case FG_NODE_EVENT_WAIT:
        return do_cuGraphAddEventWaitNode(c, node, graph, dependencies, count, p->event.event);
    case FG_NODE_EVENT_RECORD:
        return do_cuGraphAddEventRecordNode(c, node, graph, dependencies, count, p->event.event);
    case FG_NODE_ALLOC:
        return do_cuGraphAddMemAllocNode(c, node, graph, dependencies, count, &p->allocation);
    case FG_NODE_FREE:
        return do_cuGraphAddMemFreeNode(c, node, graph, dependencies, count, p->free.pointer);
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult do_cuGraphAddNode_v2(struct fg_call *c, CUgraphNode *node, CUgraph graph,
                              const CUgraphNode *dependencies, const void *data, size_t count,
                              struct fg_node_params *params) {
    if (data)
        return CUDA_ERROR_NOT_SUPPORTED;
    return do_cuGraphAddNode(c, node, graph, dependencies, count, params);
}

CUresult do_cuGraphNodeGetType(struct fg_call *c, CUgraphNode node, int *type) {
    if (!fg_is(node, FG_NODE) || !type)
        return CUDA_ERROR_INVALID_VALUE;
    *type = node->type;
    return CUDA_SUCCESS;
}
