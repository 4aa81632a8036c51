/* What the parts of the interpreter of programs share. */
#ifndef FAKEGPU_PROGRAM_H
#define FAKEGPU_PROGRAM_H

#include "cuda_types.h"

enum { MOST_ARGUMENTS = 12, SLOTS = 512, MOST_NODES = 256 };

/* A driver function as a row of program_functions.h has it. */
struct row {
    const char *name;
    const char *arguments; /* words, see program_arguments.c */
};

/* One call with what its arguments point to. */
struct call {
    u64 values[MOST_ARGUMENTS];
    int count;
    bool unset; /* an argument names what isn't there: nothing is called */
    u64 results[4];
    u64 *kept[4]; /* where a successful call's results go */
    int result_count;
    u64 nodes[2][MOST_NODES];
    int lists, node_count;
    struct fg_multi_launch launches[FG_MAX_DEVICES];
    size_t found;
    size_t copied_bytes, first_index;
    CUdeviceptr copied_from, copied_to;
    union {
        char bytes[512];
        struct fg_kernel_params_v2 kernel;
        struct fg_launch_config config;
        struct fg_copy2d copy2d;
        struct fg_copy3d copy3d;
        struct fg_set_params set;
        struct fg_host_params host;
        struct fg_node_params node;
        struct fg_array_descriptor array;
        struct fg_array3d_descriptor array3d;
        struct fg_allocation_properties allocation;
        struct fg_pool_properties pool;
        struct fg_access access;
        struct fg_instantiate_params instantiate;
        int number;
    } with[2];
    int with_count;
};

/* Reads the arguments from the text behind an operation; ends the program where it can't. */
void read_arguments(struct call *call, const struct row *row, char *text);
const struct row *find_row(const char *name);
_Noreturn void give_up(const char *message, const char *what);

#endif
