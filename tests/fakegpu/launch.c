/* Launches of kernels and of host functions. Simulated kernels do nothing; they take the time that
 * is configured for their device. */
#include "graph.h"
#include <string.h>

/* A device's limits, as device.c reports them. */
static bool good_shape(const unsigned *grid, const unsigned *block, unsigned shared) {
    return grid[0] && grid[1] && grid[2] && block[0] && block[1] && block[2] &&
           grid[0] <= 2147483647u && grid[1] <= 65535 && grid[2] <= 65535 && block[0] <= 1024 &&
           block[1] <= 1024 && block[2] <= 64 && (u64)block[0] * block[1] * block[2] <= 1024 &&
           shared <= 232448;
}

/* The context of a stream needn't be the current one: a CUkernel fits any, a function those of the
 * context that it was loaded in. */
static CUresult launch_in(struct fg_stream *stream, const struct fg_kernel_params *params) {
    if (!stream || !fg_is(params->function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    struct fg_context *context = stream->head.context;
    struct fg_context *owner = params->function->head.context;
    if (owner && owner != fg_root(context))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!good_shape(params->grid, params->block, params->shared))
        return CUDA_ERROR_INVALID_VALUE;
    if (params->params && params->extra)
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_activity *activity = fg_activity(context->device);
    if (__builtin_expect(fg_capturing(stream), 0)) {
        struct fg_node pattern = {.type = FG_NODE_KERNEL,
                                  .context = fg_root(context),
                                  .context_id = fg_root(context)->id,
                                  .device = context->device,
                                  .kernel = *params};
        CUresult result = fg_capture_node(stream, &pattern, NULL);
        if (result == CUDA_SUCCESS)
            fg_add(&activity->captured, 1);
        return result;
    }
    CUresult result = fg_legacy_allowed(stream);
    if (result)
        return result;
    fg_submit(stream, fg_load(&fg_state->devices[context->device].kernel_ns));
    fg_add(&activity->launches, 1);
    return CUDA_SUCCESS;
}

static CUresult launch(const struct fg_call *c, CUstream handle,
                       const struct fg_kernel_params *params) {
    struct fg_stream *stream = fg_resolve(c, handle);
    CUresult result = launch_in(stream, params);
    if (result)
        fg_add(&fg_activity(fg_device_of(c, stream))->failed_launches, 1);
    return result;
}

CUresult do_cuLaunchKernel(struct fg_call *c, CUfunction function, unsigned grid_x, unsigned grid_y,
                           unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                           unsigned shared, CUstream stream, void **params, void **extra) {
    struct fg_kernel_params all = {
        function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, params, extra};
    return launch(c, stream, &all);
}

CUresult do_cuLaunchKernelEx(struct fg_call *c, const struct fg_launch_config *config,
                             CUfunction function, void **params, void **extra) {
    if (!config || (config->attribute_count && !config->attributes))
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_kernel_params all = {.function = function, .shared = config->shared};
    memcpy(all.grid, config->grid, sizeof all.grid);
    memcpy(all.block, config->block, sizeof all.block);
    all.params = params;
    all.extra = extra;
    return launch(c, config->stream, &all);
}

CUresult do_cuLaunchCooperativeKernel(struct fg_call *c, CUfunction function, unsigned grid_x,
                                      unsigned grid_y, unsigned grid_z, unsigned block_x,
                                      unsigned block_y, unsigned block_z, unsigned shared,
                                      CUstream stream, void **params) {
    return do_cuLaunchKernel(c, function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared,
                             stream, params, NULL);
}

/* One call, a launch on each of several devices: the streams say which, and can't be default ones.
 */
CUresult do_cuLaunchCooperativeKernelMultiDevice(struct fg_call *c,
                                                 struct fg_multi_launch *launches, unsigned count,
                                                 unsigned flags) {
    u32 devices = 0;
    if (!launches || !count || flags > 3)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        CUstream stream = launches[i].stream;
        if (!fg_is(stream, FG_STREAM) || !fg_valid_context(stream->head.context) ||
            !fg_is(launches[i].function, FG_KERNEL))
            return CUDA_ERROR_INVALID_HANDLE;
        u32 bit = 1u << stream->head.context->device;
        if (devices & bit || fg_capturing(stream) ||
            !good_shape(launches[i].grid, launches[i].block, launches[i].shared))
            return CUDA_ERROR_INVALID_VALUE;
        devices |= bit;
    }
    for (unsigned i = 0; i < count; i++) {
        struct fg_call there = *c;
        struct fg_kernel_params all = {.function = launches[i].function,
                                       .shared = launches[i].shared};
        memcpy(all.grid, launches[i].grid, sizeof all.grid);
        memcpy(all.block, launches[i].block, sizeof all.block);
        there.context = launches[i].stream->head.context;
        CUresult result = launch(&there, launches[i].stream, &all);
        if (result)
            return result;
    }
    return CUDA_SUCCESS;
}

CUresult do_cuLaunchGridAsync(struct fg_call *c, CUfunction function, int width, int height,
                              CUstream stream) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (width <= 0 || height <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_kernel_params all = {.function = function, .grid = {width, height, 1}};
    memcpy(all.block, function->block, sizeof all.block);
    all.shared = function->shared;
    return launch(c, stream, &all);
}

CUresult do_cuLaunchGrid(struct fg_call *c, CUfunction function, int width, int height) {
    return do_cuLaunchGridAsync(c, function, width, height, NULL);
}

CUresult do_cuLaunch(struct fg_call *c, CUfunction function) {
    return do_cuLaunchGridAsync(c, function, 1, 1, NULL);
}

/* Host functions run at once, in the calling thread: the work before them is done by then. */
CUresult do_cuLaunchHostFunc(struct fg_call *c, CUstream handle, void (*function)(void *),
                             void *data) {
    struct fg_stream *stream = fg_resolve(c, handle);
    struct fg_activity *activity = fg_activity(fg_device_of(c, stream));
    CUresult result;
    if (!function) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else if (!stream) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (fg_capturing(stream)) {
        struct fg_node pattern = {.type = FG_NODE_HOST, .host = {function, data}};
        result = fg_capture_node(stream, &pattern, NULL);
    } else {
        result = fg_legacy_allowed(stream);
        if (result == CUDA_SUCCESS) {
            function(data);
            fg_add(&activity->host_functions, 1);
        }
    }
    if (result)
        fg_add(&activity->failed_host_functions, 1);
    return result;
}
