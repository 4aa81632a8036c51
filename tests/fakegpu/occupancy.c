/* Occupancy, computed from the limits that device.c reports: 2048 threads, 65536 registers, 228 KiB
 * of shared memory and 32 blocks a multiprocessor. */
#include "internal.h"

enum { THREADS = 2048, REGISTERS = 65536, SHARED = 233472, BLOCKS = 32, RESERVED = 1024 };

static int blocks_of(const struct fg_kernel *kernel, int block_size, size_t shared) {
    size_t all_shared = shared + kernel->attributes[1] + RESERVED;
    int threads = (block_size + 31) / 32 * 32;
    int blocks = THREADS / threads;
    if (REGISTERS / (kernel->attributes[4] * threads) < blocks)
        blocks = REGISTERS / (kernel->attributes[4] * threads);
    if ((int)(SHARED / all_shared) < blocks)
        blocks = SHARED / all_shared;
    return blocks < BLOCKS ? blocks : BLOCKS;
}

CUresult do_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(struct fg_call *c, int *blocks,
                                                                 CUfunction function,
                                                                 int block_size, size_t shared,
                                                                 unsigned flags) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!blocks || block_size <= 0 || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    *blocks = block_size > 1024 ? 0 : blocks_of(function, block_size, shared);
    return CUDA_SUCCESS;
}

CUresult do_cuOccupancyMaxActiveBlocksPerMultiprocessor(struct fg_call *c, int *blocks,
                                                        CUfunction function, int block_size,
                                                        size_t shared) {
    return do_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(c, blocks, function, block_size,
                                                                   shared, 0);
}

CUresult do_cuOccupancyMaxPotentialBlockSizeWithFlags(struct fg_call *c, int *grid, int *block,
                                                      CUfunction function, size_t (*shared_of)(int),
                                                      size_t shared, int limit, unsigned flags) {
    int best = 0;
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!grid || !block || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (limit <= 0 || limit > 1024)
        limit = 1024;
    for (int size = limit - limit % 32; size >= 32; size -= 32) {
        int blocks = blocks_of(function, size, shared_of ? shared_of(size) : shared);
        if (blocks * size > best) {
            best = blocks * size;
            *block = size;
            *grid = blocks * (int)fg_state->devices[c->context->device].multiprocessors;
        }
    }
    return best ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuOccupancyMaxPotentialBlockSize(struct fg_call *c, int *grid, int *block,
                                             CUfunction function, size_t (*shared_of)(int),
                                             size_t shared, int limit) {
    return do_cuOccupancyMaxPotentialBlockSizeWithFlags(c, grid, block, function, shared_of, shared,
                                                        limit, 0);
}

CUresult do_cuOccupancyAvailableDynamicSMemPerBlock(struct fg_call *c, size_t *bytes,
                                                    CUfunction function, int blocks,
                                                    int block_size) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!bytes || blocks <= 0 || block_size <= 0 || block_size > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    int each = SHARED / blocks - RESERVED - function->attributes[1];
    *bytes = each > 0 ? each : 0;
    return CUDA_SUCCESS;
}

CUresult do_cuOccupancyMaxPotentialClusterSize(struct fg_call *c, int *size, CUfunction function,
                                               const struct fg_launch_config *config) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!size || !config)
        return CUDA_ERROR_INVALID_VALUE;
    *size = function->attributes[14] ? 16 : 8;
    return CUDA_SUCCESS;
}

CUresult do_cuOccupancyMaxActiveClusters(struct fg_call *c, int *count, CUfunction function,
                                         const struct fg_launch_config *config) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!count || !config)
        return CUDA_ERROR_INVALID_VALUE;
    *count = (int)fg_state->devices[c->context->device].multiprocessors / 8;
    return CUDA_SUCCESS;
}
