/* Graphs, their nodes and their executable copies. */
#ifndef FAKEGPU_GRAPH_H
#define FAKEGPU_GRAPH_H

#include "internal.h"

/* Types of nodes, as the interface numbers them. */
enum {
    FG_NODE_KERNEL = 0,
    FG_NODE_COPY = 1,
    FG_NODE_SET = 2,
    FG_NODE_HOST = 3,
    FG_NODE_CHILD = 4,
    FG_NODE_EMPTY = 5,
    FG_NODE_EVENT_WAIT = 6,
    FG_NODE_EVENT_RECORD = 7,
    FG_NODE_ALLOC = 10,
    FG_NODE_FREE = 11,
};

/* A node. What depends on the type is in one allocation of its own, shared by nobody. */
struct fg_node {
    struct fg_head head;
    int type;
    bool disabled;
    struct fg_graph *graph;
    struct fg_node *original; /* the node that this one was copied from */
    struct fg_node **dependencies;
    size_t dependency_count;
    u32 mark;
    struct fg_context *context; /* of kernels */
    u64 context_id;
    int device;
    u64 pointer; /* of memory nodes */
    u64 bytes;
    union {
        struct fg_kernel_params kernel;
        struct fg_copy *copy;
        struct fg_set_params set;
        struct fg_host_params host;
        struct fg_graph *child;
        struct fg_event *event;
    };
};

struct fg_graph {
    struct fg_head head;
    struct fg_node **nodes;
    size_t count, room;
    struct fg_graph *original;
    bool owned; /* by a node, by an executable graph or by a capture under way */
    bool executable;
    struct {
        struct fg_user_object *object;
        unsigned count;
    } * objects;
    size_t object_count;
};

struct fg_exec {
    struct fg_head head;
    struct fg_graph *graph;
    u64 flags;
};

#pragma GCC visibility push(hidden)
CUresult fg_graph_reserve(int device, u64 bytes, u64 *base);
struct fg_graph *fg_new_graph(void);
void fg_delete_graph_locked(struct fg_graph *graph);
CUresult fg_add_node_locked(struct fg_graph *graph, struct fg_node *const *dependencies,
                            size_t count, const struct fg_node *pattern, struct fg_node **made);
bool fg_reaches_locked(struct fg_graph *graph, struct fg_node *const *from, size_t count,
                       const struct fg_node *target);
struct fg_graph *fg_clone_graph_locked(struct fg_graph *graph);
bool fg_sort_graph_locked(struct fg_graph *graph);
bool fg_sort_all_locked(struct fg_graph *graph);
bool fg_fits_locked(const struct fg_graph *old, const struct fg_graph *new);
struct fg_node *fg_node_in_exec(struct fg_exec *exec, const struct fg_node *node);
void fg_delete_exec_locked(struct fg_exec *exec);
#pragma GCC visibility pop

#endif
