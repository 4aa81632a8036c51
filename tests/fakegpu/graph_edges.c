/* What graphs tell about their nodes and edges, and edges that are added and removed. */
#include "graph.h"
#include <stdlib.h>
#include <string.h>

/* The lists that the interface gives out: NULL asks how many there are; entries that are too many
 * for what there is are set to NULL. */
struct list {
    struct fg_node **nodes;
    size_t room;
    size_t count;
};

static void put(struct list *list, struct fg_node *node) {
    if (list->nodes && list->count < list->room)
        list->nodes[list->count] = node;
    list->count++;
}

static CUresult finish_list(const struct list *list, size_t *count) {
    for (size_t i = list->count; list->nodes && i < list->room; i++)
        list->nodes[i] = NULL;
    *count = list->nodes && list->count > list->room ? list->room : list->count;
    return CUDA_SUCCESS;
}

CUresult do_cuGraphGetNodes(struct fg_call *c, CUgraph graph, CUgraphNode *nodes, size_t *count) {
    if (!fg_is(graph, FG_GRAPH) || !count)
        return CUDA_ERROR_INVALID_VALUE;
    struct list list = {nodes, *count, 0};
    for (size_t i = 0; i < graph->count; i++)
        put(&list, graph->nodes[i]);
    return finish_list(&list, count);
}

CUresult do_cuGraphGetRootNodes(struct fg_call *c, CUgraph graph, CUgraphNode *nodes,
                                size_t *count) {
    if (!fg_is(graph, FG_GRAPH) || !count)
        return CUDA_ERROR_INVALID_VALUE;
    struct list list = {nodes, *count, 0};
    for (size_t i = 0; i < graph->count; i++)
        if (!graph->nodes[i]->dependency_count)
            put(&list, graph->nodes[i]);
    return finish_list(&list, count);
}

CUresult do_cuGraphGetEdges(struct fg_call *c, CUgraph graph, CUgraphNode *from, CUgraphNode *to,
                            size_t *count) {
    if (!fg_is(graph, FG_GRAPH) || !count || !from != !to)
        return CUDA_ERROR_INVALID_VALUE;
    struct list first = {from, *count, 0}, second = {to, *count, 0};
    for (size_t i = 0; i < graph->count; i++)
        for (size_t d = 0; d < graph->nodes[i]->dependency_count; d++) {
            put(&first, graph->nodes[i]->dependencies[d]);
            put(&second, graph->nodes[i]);
        }
    finish_list(&first, count);
    return finish_list(&second, count);
}

CUresult do_cuGraphNodeGetDependencies(struct fg_call *c, CUgraphNode node,
                                       CUgraphNode *dependencies, size_t *count) {
    if (!fg_is(node, FG_NODE) || !count)
        return CUDA_ERROR_INVALID_VALUE;
    struct list list = {dependencies, *count, 0};
    for (size_t i = 0; i < node->dependency_count; i++)
        put(&list, node->dependencies[i]);
    return finish_list(&list, count);
}

CUresult do_cuGraphNodeGetDependentNodes(struct fg_call *c, CUgraphNode node,
                                         CUgraphNode *dependents, size_t *count) {
    if (!fg_is(node, FG_NODE) || !count)
        return CUDA_ERROR_INVALID_VALUE;
    struct list list = {dependents, *count, 0};
    for (size_t i = 0; i < node->graph->count; i++)
        for (size_t d = 0; d < node->graph->nodes[i]->dependency_count; d++)
            if (node->graph->nodes[i]->dependencies[d] == node)
                put(&list, node->graph->nodes[i]);
    return finish_list(&list, count);
}

/* The second forms also tell of each edge's ports: all are the ordinary ones, eight zero bytes. */
static CUresult with_edge_data(CUresult result, void *data, size_t room, const size_t *count) {
    if (result == CUDA_SUCCESS && data)
        memset(data, 0, (*count < room ? *count : room) * 8);
    return result;
}

CUresult do_cuGraphGetEdges_v2(struct fg_call *c, CUgraph graph, CUgraphNode *from, CUgraphNode *to,
                               void *data, size_t *count) {
    size_t room = count ? *count : 0;
    return with_edge_data(do_cuGraphGetEdges(c, graph, from, to, count), data, room, count);
}

CUresult do_cuGraphNodeGetDependencies_v2(struct fg_call *c, CUgraphNode node,
                                          CUgraphNode *dependencies, void *data, size_t *count) {
    size_t room = count ? *count : 0;
    return with_edge_data(do_cuGraphNodeGetDependencies(c, node, dependencies, count), data, room,
                          count);
}

CUresult do_cuGraphNodeGetDependentNodes_v2(struct fg_call *c, CUgraphNode node,
                                            CUgraphNode *dependents, void *data, size_t *count) {
    size_t room = count ? *count : 0;
    return with_edge_data(do_cuGraphNodeGetDependentNodes(c, node, dependents, count), data, room,
                          count);
}

static size_t edge_place(const struct fg_node *from, const struct fg_node *to) {
    size_t place = 0;
    while (place < to->dependency_count && to->dependencies[place] != from)
        place++;
    return place;
}

static bool good_edges(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                       size_t count) {
    if (!fg_is(graph, FG_GRAPH) || (count && (!from || !to)))
        return false;
    for (size_t i = 0; i < count; i++)
        if (!fg_is(from[i], FG_NODE) || !fg_is(to[i], FG_NODE) || from[i]->graph != graph ||
            to[i]->graph != graph || from[i] == to[i])
            return false;
    return true;
}

CUresult do_cuGraphAddDependencies(struct fg_call *c, CUgraph graph, const CUgraphNode *from,
                                   const CUgraphNode *to, size_t count) {
    if (!good_edges(graph, from, to, count))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (edge_place(from[i], to[i]) < to[i]->dependency_count)
            return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    for (size_t i = 0; i < count; i++) {
        struct fg_node **more =
            realloc(to[i]->dependencies, (to[i]->dependency_count + 1) * sizeof *more);
        if (!more)
            abort();
        more[to[i]->dependency_count++] = from[i];
        to[i]->dependencies = more;
    }
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuGraphRemoveDependencies(struct fg_call *c, CUgraph graph, const CUgraphNode *from,
                                      const CUgraphNode *to, size_t count) {
    if (!good_edges(graph, from, to, count))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (edge_place(from[i], to[i]) == to[i]->dependency_count)
            return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    for (size_t i = 0; i < count; i++) {
        size_t place = edge_place(from[i], to[i]);
        to[i]->dependencies[place] = to[i]->dependencies[--to[i]->dependency_count];
    }
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

/* Edges with ports other than the ordinary ones are not simulated. */
static bool ordinary_edges(const void *data, size_t count) {
    const u64 *edges = data;
    for (size_t i = 0; edges && i < count; i++)
        if (edges[i])
            return false;
    return true;
}

CUresult do_cuGraphAddDependencies_v2(struct fg_call *c, CUgraph graph, const CUgraphNode *from,
                                      const CUgraphNode *to, const void *data, size_t count) {
    if (!ordinary_edges(data, count))
        return CUDA_ERROR_NOT_SUPPORTED;
    return do_cuGraphAddDependencies(c, graph, from, to, count);
}

CUresult do_cuGraphRemoveDependencies_v2(struct fg_call *c, CUgraph graph, const CUgraphNode *from,
                                         const CUgraphNode *to, const void *data, size_t count) {
    if (!ordinary_edges(data, count))
        return CUDA_ERROR_NOT_SUPPORTED;
    return do_cuGraphRemoveDependencies(c, graph, from, to, count);
}
