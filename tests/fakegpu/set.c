/* Sets: memory filled with a value. */
#include "graph.h"
#include <string.h>

CUresult fg_set_check(const struct fg_set_params *set) {
    size_t row = set->width * set->element;
    if (set->element != 1 && set->element != 2 && set->element != 4)
        return CUDA_ERROR_INVALID_VALUE;
    if (!row || !set->height)
        return CUDA_SUCCESS;
    if ((set->height > 1 && set->pitch < row) || set->target % set->element)
        return CUDA_ERROR_INVALID_VALUE;
    return fg_accessible(set->target, (set->height - 1) * set->pitch + row)
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

void fg_set_run(const struct fg_set_params *set) {
    for (size_t y = 0; y < set->height; y++) {
        char *row = (char *)set->target + y * set->pitch;
        if (set->element == 1)
            memset(row, (int)set->value, set->width);
        else if (set->element == 2)
            for (size_t x = 0; x < set->width; x++)
                ((u16 *)row)[x] = set->value;
        else
            for (size_t x = 0; x < set->width; x++)
                ((u32 *)row)[x] = set->value;
    }
}

static CUresult set_on(const struct fg_call *c, CUstream handle, CUdeviceptr target, size_t pitch,
                       unsigned value, unsigned element, size_t width, size_t height) {
    struct fg_set_params set = {target, pitch, value, element, width, height};
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_set_check(&set);
    if (result)
        return result;
    struct fg_activity *activity = fg_activity(stream->head.context->device);
    u64 bytes = (u64)width * height * element;
    if (fg_capturing(stream)) {
        struct fg_node pattern = {.type = FG_NODE_SET, .set = set};
        result = fg_capture_node(stream, &pattern, NULL);
        if (result == CUDA_SUCCESS)
            fg_add(&activity->captured_set_bytes, bytes);
        return result;
    }
    result = fg_legacy_allowed(stream);
    if (result)
        return result;
    fg_set_run(&set);
    fg_add(&activity->sets, 1);
    fg_add(&activity->set_bytes, bytes);
    return CUDA_SUCCESS;
}

/* The names of the family follow one scheme, so their code does too: 8, 16 and 32 bits, one or two
 * dimensions, as of CUDA 2, of CUDA 3.2, and with a stream. */
#define SETS(bits, type)                                                                           \
    CUresult do_cuMemsetD##bits(struct fg_call *c, CUdeviceptr32 target, type value,               \
                                unsigned count) {                                                  \
        return set_on(c, NULL, target, 0, value, (bits) / 8, count, 1);                            \
    }                                                                                              \
    CUresult do_cuMemsetD##bits##_v2(struct fg_call *c, CUdeviceptr target, type value,            \
                                     size_t count) {                                               \
        return set_on(c, NULL, target, 0, value, (bits) / 8, count, 1);                            \
    }                                                                                              \
    CUresult do_cuMemsetD##bits##Async(struct fg_call *c, CUdeviceptr target, type value,          \
                                       size_t count, CUstream stream) {                            \
        return set_on(c, stream, target, 0, value, (bits) / 8, count, 1);                          \
    }                                                                                              \
    CUresult do_cuMemsetD2D##bits(struct fg_call *c, CUdeviceptr32 target, unsigned pitch,         \
                                  type value, unsigned width, unsigned height) {                   \
        return set_on(c, NULL, target, pitch, value, (bits) / 8, width, height);                   \
    }                                                                                              \
    CUresult do_cuMemsetD2D##bits##_v2(struct fg_call *c, CUdeviceptr target, size_t pitch,        \
                                       type value, size_t width, size_t height) {                  \
        return set_on(c, NULL, target, pitch, value, (bits) / 8, width, height);                   \
    }                                                                                              \
    CUresult do_cuMemsetD2D##bits##Async(struct fg_call *c, CUdeviceptr target, size_t pitch,      \
                                         type value, size_t width, size_t height,                  \
                                         CUstream stream) {                                        \
        return set_on(c, stream, target, pitch, value, (bits) / 8, width, height);                 \
    }

SETS(8, unsigned char)
SETS(16, unsigned short)
SETS(32, unsigned)
