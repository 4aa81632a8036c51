/* Graphs: their nodes, edges, copies and ends. */
#include "graph.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(struct fg_node) <= FG_CELL, "a node fits in a cell");

struct fg_user_object {
    struct fg_head head;
    void *pointer;
    void (*destroy)(void *);
    unsigned references;
};

static u32 marks;

struct fg_graph *fg_new_graph(void) {
    return fg_new(FG_GRAPH, NULL);
}

/* The addresses that a captured or added allocation will have. */
CUresult fg_graph_reserve(int device, u64 bytes, u64 *base) {
    struct fg_request request = {NULL, device, FG_GRAPH_MEMORY, bytes, 0, 0, NULL};
    return fg_allocate(&request, base);
}

static struct fg_node **copy_list(struct fg_node *const *nodes, size_t count) {
    struct fg_node **copy = malloc((count + 1) * sizeof *copy);
    if (!copy)
        abort();
    if (count)
        memcpy(copy, nodes, count * sizeof *copy);
    return copy;
}

static struct fg_graph *clone_locked(struct fg_graph *graph);

/* A node as the pattern says, which stays its maker's: what it points to is copied. */
CUresult fg_add_node_locked(struct fg_graph *graph, struct fg_node *const *dependencies,
                            size_t count, const struct fg_node *pattern, struct fg_node **made) {
    for (size_t i = 0; i < count; i++) {
        if (!fg_is(dependencies[i], FG_NODE) || dependencies[i]->graph != graph)
            return CUDA_ERROR_INVALID_VALUE;
        for (size_t before = 0; before < i; before++)
            if (dependencies[before] == dependencies[i])
                return CUDA_ERROR_INVALID_VALUE;
    }
    struct fg_node *node = fg_new(FG_NODE, NULL);
    struct fg_head head = node->head;
    *node = *pattern;
    node->head = head;
    node->graph = graph;
    node->dependencies = copy_list(dependencies, count);
    node->dependency_count = count;
    if (node->type == FG_NODE_COPY) {
        node->copy = malloc(sizeof *node->copy);
        if (!node->copy)
            abort();
        *node->copy = *pattern->copy;
    } else if (node->type == FG_NODE_CHILD) {
        node->child = clone_locked(pattern->child);
        node->child->owned = true;
    } else if (node->type == FG_NODE_KERNEL) {
        node->kernel.params = node->kernel.extra = NULL; /* the client's, and of no use here */
    }
    if (graph->count == graph->room) {
        graph->room = graph->room * 2 + 8;
        graph->nodes = realloc(graph->nodes, graph->room * sizeof *graph->nodes);
        if (!graph->nodes)
            abort();
    }
    graph->nodes[graph->count++] = node;
    *made = node;
    return CUDA_SUCCESS;
}

static void delete_node_locked(struct fg_node *node) {
    if (node->type == FG_NODE_COPY)
        free(node->copy);
    else if (node->type == FG_NODE_CHILD)
        fg_delete_graph_locked(node->child);
    else if (node->type == FG_NODE_ALLOC && !node->original) {
        struct fg_allocation *a = fg_find_locked(node->pointer);
        if (a && a->kind == FG_GRAPH_MEMORY)
            fg_free_locked(a, false);
    }
    free(node->dependencies);
    fg_delete(node);
}

static void release_object(struct fg_user_object *object, unsigned count) {
    object->references -= count < object->references ? count : object->references;
    if (!object->references) {
        object->destroy(object->pointer);
        fg_delete(object);
    }
}

void fg_delete_graph_locked(struct fg_graph *graph) {
    for (size_t i = 0; i < graph->count; i++)
        delete_node_locked(graph->nodes[i]);
    for (size_t i = 0; i < graph->object_count; i++)
        release_object(graph->objects[i].object, graph->objects[i].count);
    free(graph->objects);
    free(graph->nodes);
    fg_delete(graph);
}

/* The copy's nodes are in the same order and know their originals. */
static struct fg_graph *clone_locked(struct fg_graph *graph) {
    struct fg_graph *clone = fg_new_graph();
    clone->original = graph;
    for (size_t i = 0; i < graph->count; i++) {
        struct fg_node *made;
        fg_add_node_locked(clone, NULL, 0, graph->nodes[i], &made);
        made->original = graph->nodes[i];
        graph->nodes[i]->mark = i;
    }
    for (size_t i = 0; i < graph->count; i++) {
        struct fg_node *from = graph->nodes[i], *to = clone->nodes[i];
        free(to->dependencies);
        to->dependencies = copy_list(from->dependencies, from->dependency_count);
        to->dependency_count = from->dependency_count;
        for (size_t d = 0; d < from->dependency_count; d++)
            to->dependencies[d] = clone->nodes[from->dependencies[d]->mark];
    }
    for (size_t i = 0; i < graph->count; i++)
        graph->nodes[i]->mark = 0;
    return clone;
}

struct fg_graph *fg_clone_graph_locked(struct fg_graph *graph) {
    return clone_locked(graph);
}

static bool reaches(const struct fg_node *from, const struct fg_node *target, u32 mark) {
    if (from == target)
        return true;
    for (size_t i = 0; i < from->dependency_count; i++) {
        struct fg_node *next = from->dependencies[i];
        if (next->mark == mark)
            continue;
        next->mark = mark;
        if (reaches(next, target, mark))
            return true;
    }
    return false;
}

/* Whether a node is among the others or before one of them. */
bool fg_reaches_locked(struct fg_graph *graph, struct fg_node *const *from, size_t count,
                       const struct fg_node *target) {
    u32 mark = ++marks;
    for (size_t i = 0; i < count; i++)
        if (reaches(from[i], target, mark))
            return true;
    return false;
}

/* Puts the nodes behind all they depend on; false where they go in a circle. */
bool fg_sort_graph_locked(struct fg_graph *graph) {
    u32 mark = ++marks;
    size_t done = 0;
    for (bool moved = true; moved && done < graph->count;) {
        moved = false;
        for (size_t i = done; i < graph->count; i++) {
            struct fg_node *node = graph->nodes[i];
            size_t ready = 0;
            while (ready < node->dependency_count && node->dependencies[ready]->mark == mark)
                ready++;
            if (ready < node->dependency_count)
                continue;
            memmove(graph->nodes + done + 1, graph->nodes + done,
                    (i - done) * sizeof *graph->nodes);
            graph->nodes[done++] = node;
            node->mark = mark;
            moved = true;
        }
    }
    return done == graph->count;
}

CUresult do_cuGraphCreate(struct fg_call *c, CUgraph *graph, unsigned flags) {
    if (!graph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    *graph = fg_new_graph();
    return CUDA_SUCCESS;
}

CUresult do_cuGraphDestroy(struct fg_call *c, CUgraph graph) {
    if (!fg_is(graph, FG_GRAPH) || graph->owned)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    fg_delete_graph_locked(graph);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuGraphClone(struct fg_call *c, CUgraph *clone, CUgraph graph) {
    if (!clone || !fg_is(graph, FG_GRAPH))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    *clone = clone_locked(graph);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuGraphNodeFindInClone(struct fg_call *c, CUgraphNode *node, CUgraphNode original,
                                   CUgraph clone) {
    if (!node || !fg_is(clone, FG_GRAPH) || !fg_is(original, FG_NODE))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < clone->count; i++)
        if (clone->nodes[i]->original == original) {
            *node = clone->nodes[i];
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuGraphDestroyNode(struct fg_call *c, CUgraphNode node) {
    if (!fg_is(node, FG_NODE))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_graph *graph = node->graph;
    size_t kept = 0;
    for (size_t i = 0; i < graph->count; i++) {
        struct fg_node *other = graph->nodes[i];
        size_t left = 0;
        for (size_t d = 0; d < other->dependency_count; d++)
            if (other->dependencies[d] != node)
                other->dependencies[left++] = other->dependencies[d];
        other->dependency_count = left;
        if (other != node)
            graph->nodes[kept++] = other;
    }
    graph->count = kept;
    delete_node_locked(node);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuGraphDebugDotPrint(struct fg_call *c, CUgraph graph, const char *path,
                                 unsigned flags) {
    if (!fg_is(graph, FG_GRAPH) || !path)
        return CUDA_ERROR_INVALID_VALUE;
    FILE *file = fopen(path, "w");
    if (!file)
        return CUDA_ERROR_INVALID_VALUE;
    fprintf(file, "digraph simulated {\n");
    for (size_t i = 0; i < graph->count; i++) {
        struct fg_node *node = graph->nodes[i];
        fprintf(file, "  n%p [label=\"type %d\"];\n", (void *)node, node->type);
        for (size_t d = 0; d < node->dependency_count; d++)
            fprintf(file, "  n%p -> n%p;\n", (void *)node->dependencies[d], (void *)node);
    }
    fprintf(file, "}\n");
    fclose(file);
    return CUDA_SUCCESS;
}

CUresult do_cuUserObjectCreate(struct fg_call *c, CUuserObject *object, void *pointer,
                               void (*destroy)(void *), unsigned references, unsigned flags) {
    if (!object || !destroy || !references || flags != 1)
        return CUDA_ERROR_INVALID_VALUE;
    *object = fg_new(FG_USER_OBJECT, NULL);
    (*object)->pointer = pointer;
    (*object)->destroy = destroy;
    (*object)->references = references;
    return CUDA_SUCCESS;
}

CUresult do_cuUserObjectRetain(struct fg_call *c, CUuserObject object, unsigned count) {
    if (!fg_is(object, FG_USER_OBJECT) || !count)
        return CUDA_ERROR_INVALID_VALUE;
    object->references += count;
    return CUDA_SUCCESS;
}

CUresult do_cuUserObjectRelease(struct fg_call *c, CUuserObject object, unsigned count) {
    if (!fg_is(object, FG_USER_OBJECT) || !count)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    release_object(object, count);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuGraphRetainUserObject(struct fg_call *c, CUgraph graph, CUuserObject object,
                                    unsigned count, unsigned flags) {
    enum { MOVE = 1 };
    if (!fg_is(graph, FG_GRAPH) || !fg_is(object, FG_USER_OBJECT) || !count || flags > MOVE)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    graph->objects = realloc(graph->objects, (graph->object_count + 1) * sizeof *graph->objects);
    if (!graph->objects)
        abort();
    graph->objects[graph->object_count].object = object;
    graph->objects[graph->object_count++].count = count;
    if (!(flags & MOVE))
        object->references += count;
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuGraphReleaseUserObject(struct fg_call *c, CUgraph graph, CUuserObject object,
                                     unsigned count) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(graph, FG_GRAPH) || !fg_is(object, FG_USER_OBJECT) || !count)
        return result;
    pthread_mutex_lock(&fg_lock);
    for (size_t i = 0; i < graph->object_count && result; i++)
        if (graph->objects[i].object == object && graph->objects[i].count >= count) {
            graph->objects[i].count -= count;
            if (!graph->objects[i].count)
                graph->objects[i] = graph->objects[--graph->object_count];
            release_object(object, count);
            result = CUDA_SUCCESS;
        }
    pthread_mutex_unlock(&fg_lock);
    return result;
}
