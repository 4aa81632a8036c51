/* Copies. Every form becomes one of a few shapes; the work is then checked, and done at once or
 * made a node of the graph that its stream captures. */
#include "graph.h"
#include <string.h>

enum { SYNCHRONOUS = 1 };

/* One end of a copy: where its first byte is, and the distances of its rows and slices. */
struct end {
    char *base;
    size_t pitch;
    size_t slice;
};

static bool end_of(int type, const void *host, CUdeviceptr device, CUarray array, size_t x,
                   size_t y, size_t z, size_t pitch, size_t height, const struct fg_copy3d *shape,
                   struct end *end) {
    size_t rows = shape->height, slices = shape->depth;
    char *start = type == FG_TYPE_HOST ? (char *)host : (char *)device;
    size_t limit = 0;
    if (type == FG_TYPE_ARRAY) {
        if (!fg_is(array, FG_ARRAY))
            return false;
        const struct fg_array3d_descriptor *d = &array->descriptor;
        start = array->data;
        pitch = d->width * array->element;
        height = d->height ? d->height : 1;
        limit = pitch * height * (d->depth ? d->depth : 1);
    } else if (type != FG_TYPE_HOST && type != FG_TYPE_DEVICE && type != FG_TYPE_UNIFIED) {
        return false;
    }
    if (!pitch)
        pitch = x + shape->width;
    if (!height)
        height = y + rows;
    if (x + shape->width > pitch || (slices > 1 && y + rows > height))
        return false;
    end->pitch = pitch;
    end->slice = pitch * height;
    size_t offset = z * end->slice + y * pitch + x;
    size_t length = (slices - 1) * end->slice + (rows - 1) * pitch + shape->width;
    end->base = start + offset;
    if (type == FG_TYPE_ARRAY)
        return offset + length <= limit;
    if (type == FG_TYPE_DEVICE)
        return fg_accessible((u64)end->base, length);
    if (type == FG_TYPE_UNIFIED && fg_known((u64)end->base))
        return fg_accessible((u64)end->base, length);
    return start != NULL; /* the client's own memory */
}

static bool ends_of(const struct fg_copy3d *s, struct end *source, struct end *target) {
    return end_of(s->source_type, s->source_host, s->source_device, s->source_array, s->source_x,
                  s->source_y, s->source_z, s->source_pitch, s->source_height, s, source) &&
           end_of(s->target_type, s->target_host, s->target_device, s->target_array, s->target_x,
                  s->target_y, s->target_z, s->target_pitch, s->target_height, s, target);
}

CUresult fg_copy_check(const struct fg_copy *copy) {
    struct end source, target;
    if (!copy->bytes)
        return CUDA_SUCCESS;
    return ends_of(&copy->shape, &source, &target) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void fg_copy_run(const struct fg_copy *copy) {
    struct end source, target;
    if (!copy->bytes || !ends_of(&copy->shape, &source, &target))
        return;
    for (size_t z = 0; z < copy->shape.depth; z++)
        for (size_t y = 0; y < copy->shape.height; y++)
            memmove(target.base + z * target.slice + y * target.pitch,
                    source.base + z * source.slice + y * source.pitch, copy->shape.width);
}

static int direction_of(int source, int target) {
    if (source == FG_TYPE_UNIFIED || target == FG_TYPE_UNIFIED)
        return FG_UNKNOWN;
    if (source == FG_TYPE_HOST)
        return target == FG_TYPE_HOST ? FG_UNKNOWN : FG_HOST_TO_DEVICE;
    return target == FG_TYPE_HOST ? FG_DEVICE_TO_HOST : FG_DEVICE_TO_DEVICE;
}

CUresult fg_copy_from_3d(const struct fg_copy3d *shape, struct fg_copy *copy) {
    if (!shape)
        return CUDA_ERROR_INVALID_VALUE;
    copy->shape = *shape;
    copy->direction = direction_of(shape->source_type, shape->target_type);
    copy->bytes = (u64)shape->width * shape->height * shape->depth;
    return CUDA_SUCCESS;
}

static void count_copy(int device, const struct fg_copy *copy) {
    struct fg_activity *activity = fg_activity(device);
    fg_add(&activity->copies[copy->direction], 1);
    fg_add(&activity->copied_bytes[copy->direction], copy->bytes);
}

static CUresult copy_on(const struct fg_call *c, CUstream handle, const struct fg_copy *copy,
                        int flags) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_copy_check(copy);
    if (result)
        return result;
    int device = stream->head.context->device;
    if (fg_capturing(stream)) {
        struct fg_node pattern = {.type = FG_NODE_COPY, .copy = (struct fg_copy *)copy};
        if (flags & SYNCHRONOUS)
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        result = fg_capture_node(stream, &pattern, NULL);
        if (result == CUDA_SUCCESS)
            fg_add(&fg_activity(device)->captured_copied_bytes, copy->bytes);
        return result;
    }
    result = fg_legacy_allowed(stream);
    if (result == CUDA_SUCCESS && flags & SYNCHRONOUS)
        result = fg_capture_forbids(c);
    if (result)
        return result;
    if (flags & SYNCHRONOUS)
        fg_drain(stream);
    fg_copy_run(copy);
    count_copy(device, copy);
    return CUDA_SUCCESS;
}

/* A copy of one row. */
static struct fg_copy line(int source_type, u64 source, int target_type, u64 target, u64 bytes) {
    struct fg_copy copy = {.bytes = bytes, .direction = direction_of(source_type, target_type)};
    copy.shape.source_type = source_type;
    copy.shape.source_host = (const void *)source;
    copy.shape.source_device = source;
    copy.shape.target_type = target_type;
    copy.shape.target_host = (void *)target;
    copy.shape.target_device = target;
    copy.shape.width = bytes;
    copy.shape.height = copy.shape.depth = 1;
    return copy;
}

/* The same with an array at one end or both, where an offset counts the bytes of its first rows. */
static CUresult array_line(const struct fg_call *c, CUstream stream, CUarray source_array,
                           u64 source, CUarray target_array, u64 target, int host_end, u64 bytes,
                           int flags) {
    struct fg_copy copy = line(source_array ? FG_TYPE_ARRAY : host_end, source,
                               target_array ? FG_TYPE_ARRAY : host_end, target, bytes);
    if (source_array) {
        if (!fg_is(source_array, FG_ARRAY))
            return CUDA_ERROR_INVALID_HANDLE;
        copy.shape.source_array = source_array;
        copy.shape.source_x = source;
    }
    if (target_array) {
        if (!fg_is(target_array, FG_ARRAY))
            return CUDA_ERROR_INVALID_HANDLE;
        copy.shape.target_array = target_array;
        copy.shape.target_x = target;
    }
    return copy_on(c, stream, &copy, flags);
}

static CUresult unified(const struct fg_call *c, CUdeviceptr target, CUdeviceptr source,
                        size_t bytes, CUstream stream, int flags) {
    struct fg_copy copy = line(FG_TYPE_UNIFIED, source, FG_TYPE_UNIFIED, target, bytes);
    return copy_on(c, stream, &copy, flags);
}

CUresult do_cuMemcpy(struct fg_call *c, CUdeviceptr target, CUdeviceptr source, size_t bytes) {
    return unified(c, target, source, bytes, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyAsync(struct fg_call *c, CUdeviceptr target, CUdeviceptr source, size_t bytes,
                          CUstream stream) {
    return unified(c, target, source, bytes, stream, 0);
}

static CUresult between_contexts(const struct fg_call *c, struct fg_copy *copy,
                                 CUcontext target_context, CUcontext source_context,
                                 CUstream stream, int flags) {
    if (!fg_valid_context(target_context) || !fg_valid_context(source_context))
        return CUDA_ERROR_INVALID_CONTEXT;
    copy->direction = FG_PEER;
    return copy_on(c, stream, copy, flags);
}

CUresult do_cuMemcpyPeer(struct fg_call *c, CUdeviceptr target, CUcontext target_context,
                         CUdeviceptr source, CUcontext source_context, size_t bytes) {
    struct fg_copy copy = line(FG_TYPE_DEVICE, source, FG_TYPE_DEVICE, target, bytes);
    return between_contexts(c, &copy, target_context, source_context, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyPeerAsync(struct fg_call *c, CUdeviceptr target, CUcontext target_context,
                              CUdeviceptr source, CUcontext source_context, size_t bytes,
                              CUstream stream) {
    struct fg_copy copy = line(FG_TYPE_DEVICE, source, FG_TYPE_DEVICE, target, bytes);
    return between_contexts(c, &copy, target_context, source_context, stream, 0);
}

static CUresult to_device(const struct fg_call *c, CUdeviceptr target, const void *source,
                          size_t bytes, CUstream stream, int flags) {
    struct fg_copy copy = line(FG_TYPE_HOST, (u64)source, FG_TYPE_DEVICE, target, bytes);
    return copy_on(c, stream, &copy, flags);
}

CUresult do_cuMemcpyHtoD_v2(struct fg_call *c, CUdeviceptr target, const void *source,
                            size_t bytes) {
    return to_device(c, target, source, bytes, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyHtoD(struct fg_call *c, CUdeviceptr32 target, const void *source,
                         unsigned bytes) {
    return to_device(c, target, source, bytes, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyHtoDAsync_v2(struct fg_call *c, CUdeviceptr target, const void *source,
                                 size_t bytes, CUstream stream) {
    return to_device(c, target, source, bytes, stream, 0);
}

CUresult do_cuMemcpyHtoDAsync(struct fg_call *c, CUdeviceptr32 target, const void *source,
                              unsigned bytes, CUstream stream) {
    return to_device(c, target, source, bytes, stream, 0);
}

static CUresult to_host(const struct fg_call *c, void *target, CUdeviceptr source, size_t bytes,
                        CUstream stream, int flags) {
    struct fg_copy copy = line(FG_TYPE_DEVICE, source, FG_TYPE_HOST, (u64)target, bytes);
    return copy_on(c, stream, &copy, flags);
}

CUresult do_cuMemcpyDtoH_v2(struct fg_call *c, void *target, CUdeviceptr source, size_t bytes) {
    return to_host(c, target, source, bytes, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyDtoH(struct fg_call *c, void *target, CUdeviceptr32 source, unsigned bytes) {
    return to_host(c, target, source, bytes, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyDtoHAsync_v2(struct fg_call *c, void *target, CUdeviceptr source, size_t bytes,
                                 CUstream stream) {
    return to_host(c, target, source, bytes, stream, 0);
}

CUresult do_cuMemcpyDtoHAsync(struct fg_call *c, void *target, CUdeviceptr32 source, unsigned bytes,
                              CUstream stream) {
    return to_host(c, target, source, bytes, stream, 0);
}

static CUresult on_device(const struct fg_call *c, CUdeviceptr target, CUdeviceptr source,
                          size_t bytes, CUstream stream, int flags) {
    struct fg_copy copy = line(FG_TYPE_DEVICE, source, FG_TYPE_DEVICE, target, bytes);
    return copy_on(c, stream, &copy, flags);
}

CUresult do_cuMemcpyDtoD_v2(struct fg_call *c, CUdeviceptr target, CUdeviceptr source,
                            size_t bytes) {
    return on_device(c, target, source, bytes, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyDtoD(struct fg_call *c, CUdeviceptr32 target, CUdeviceptr32 source,
                         unsigned bytes) {
    return on_device(c, target, source, bytes, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpyDtoDAsync_v2(struct fg_call *c, CUdeviceptr target, CUdeviceptr source,
                                 size_t bytes, CUstream stream) {
    return on_device(c, target, source, bytes, stream, 0);
}

CUresult do_cuMemcpyDtoDAsync(struct fg_call *c, CUdeviceptr32 target, CUdeviceptr32 source,
                              unsigned bytes, CUstream stream) {
    return on_device(c, target, source, bytes, stream, 0);
}

CUresult do_cuMemcpyDtoA_v2(struct fg_call *c, CUarray target, size_t offset, CUdeviceptr source,
                            size_t bytes) {
    return array_line(c, NULL, NULL, source, target, offset, FG_TYPE_DEVICE, bytes, SYNCHRONOUS);
}

CUresult do_cuMemcpyDtoA(struct fg_call *c, CUarray target, unsigned offset, CUdeviceptr32 source,
                         unsigned bytes) {
    return do_cuMemcpyDtoA_v2(c, target, offset, source, bytes);
}

CUresult do_cuMemcpyAtoD_v2(struct fg_call *c, CUdeviceptr target, CUarray source, size_t offset,
                            size_t bytes) {
    return array_line(c, NULL, source, offset, NULL, target, FG_TYPE_DEVICE, bytes, SYNCHRONOUS);
}

CUresult do_cuMemcpyAtoD(struct fg_call *c, CUdeviceptr32 target, CUarray source, unsigned offset,
                         unsigned bytes) {
    return do_cuMemcpyAtoD_v2(c, target, source, offset, bytes);
}

CUresult do_cuMemcpyHtoA_v2(struct fg_call *c, CUarray target, size_t offset, const void *source,
                            size_t bytes) {
    return array_line(c, NULL, NULL, (u64)source, target, offset, FG_TYPE_HOST, bytes, SYNCHRONOUS);
}

CUresult do_cuMemcpyHtoA(struct fg_call *c, CUarray target, unsigned offset, const void *source,
                         unsigned bytes) {
    return do_cuMemcpyHtoA_v2(c, target, offset, source, bytes);
}

CUresult do_cuMemcpyAtoH_v2(struct fg_call *c, void *target, CUarray source, size_t offset,
                            size_t bytes) {
    return array_line(c, NULL, source, offset, NULL, (u64)target, FG_TYPE_HOST, bytes, SYNCHRONOUS);
}

CUresult do_cuMemcpyAtoH(struct fg_call *c, void *target, CUarray source, unsigned offset,
                         unsigned bytes) {
    return do_cuMemcpyAtoH_v2(c, target, source, offset, bytes);
}

CUresult do_cuMemcpyAtoA_v2(struct fg_call *c, CUarray target, size_t target_offset, CUarray source,
                            size_t source_offset, size_t bytes) {
    return array_line(c, NULL, source, source_offset, target, target_offset, FG_TYPE_DEVICE, bytes,
                      SYNCHRONOUS);
}

CUresult do_cuMemcpyAtoA(struct fg_call *c, CUarray target, unsigned target_offset, CUarray source,
                         unsigned source_offset, unsigned bytes) {
    return do_cuMemcpyAtoA_v2(c, target, target_offset, source, source_offset, bytes);
}

CUresult do_cuMemcpyHtoAAsync_v2(struct fg_call *c, CUarray target, size_t offset,
                                 const void *source, size_t bytes, CUstream stream) {
    return array_line(c, stream, NULL, (u64)source, target, offset, FG_TYPE_HOST, bytes, 0);
}

CUresult do_cuMemcpyHtoAAsync(struct fg_call *c, CUarray target, unsigned offset,
                              const void *source, unsigned bytes, CUstream stream) {
    return do_cuMemcpyHtoAAsync_v2(c, target, offset, source, bytes, stream);
}

CUresult do_cuMemcpyAtoHAsync_v2(struct fg_call *c, void *target, CUarray source, size_t offset,
                                 size_t bytes, CUstream stream) {
    return array_line(c, stream, source, offset, NULL, (u64)target, FG_TYPE_HOST, bytes, 0);
}

CUresult do_cuMemcpyAtoHAsync(struct fg_call *c, void *target, CUarray source, unsigned offset,
                              unsigned bytes, CUstream stream) {
    return do_cuMemcpyAtoHAsync_v2(c, target, source, offset, bytes, stream);
}

/* The older structures have the same fields, some of them narrower. */
#define WIDEN_ENDS(to, from)                                                                       \
    (to).source_x = (from)->source_x, (to).source_y = (from)->source_y,                            \
    (to).source_type = (from)->source_type, (to).source_host = (from)->source_host,                \
    (to).source_device = (from)->source_device, (to).source_array = (from)->source_array,          \
    (to).source_pitch = (from)->source_pitch, (to).target_x = (from)->target_x,                    \
    (to).target_y = (from)->target_y, (to).target_type = (from)->target_type,                      \
    (to).target_host = (from)->target_host, (to).target_device = (from)->target_device,            \
    (to).target_array = (from)->target_array, (to).target_pitch = (from)->target_pitch,            \
    (to).width = (from)->width, (to).height = (from)->height

static CUresult shaped(const struct fg_call *c, const struct fg_copy3d *shape, CUstream stream,
                       int flags) {
    struct fg_copy copy;
    CUresult result = fg_copy_from_3d(shape, &copy);
    return result ? result : copy_on(c, stream, &copy, flags);
}

static CUresult shaped_2d(const struct fg_call *c, const struct fg_copy2d *copy, CUstream stream,
                          int flags) {
    struct fg_copy3d shape = {.depth = 1};
    if (!copy)
        return CUDA_ERROR_INVALID_VALUE;
    WIDEN_ENDS(shape, copy);
    return shaped(c, &shape, stream, flags);
}

static CUresult shaped_2d32(const struct fg_call *c, const struct fg_copy2d32 *copy,
                            CUstream stream, int flags) {
    struct fg_copy3d shape = {.depth = 1};
    if (!copy)
        return CUDA_ERROR_INVALID_VALUE;
    WIDEN_ENDS(shape, copy);
    return shaped(c, &shape, stream, flags);
}

static CUresult shaped_3d32(const struct fg_call *c, const struct fg_copy3d32 *copy,
                            CUstream stream, int flags) {
    struct fg_copy3d shape = {0};
    if (!copy)
        return CUDA_ERROR_INVALID_VALUE;
    WIDEN_ENDS(shape, copy);
    shape.source_z = copy->source_z;
    shape.target_z = copy->target_z;
    shape.source_height = copy->source_height;
    shape.target_height = copy->target_height;
    shape.depth = copy->depth;
    return shaped(c, &shape, stream, flags);
}

CUresult do_cuMemcpy2D_v2(struct fg_call *c, const struct fg_copy2d *copy) {
    return shaped_2d(c, copy, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpy2D(struct fg_call *c, const struct fg_copy2d32 *copy) {
    return shaped_2d32(c, copy, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpy2DUnaligned_v2(struct fg_call *c, const struct fg_copy2d *copy) {
    return shaped_2d(c, copy, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpy2DUnaligned(struct fg_call *c, const struct fg_copy2d32 *copy) {
    return shaped_2d32(c, copy, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpy2DAsync_v2(struct fg_call *c, const struct fg_copy2d *copy, CUstream stream) {
    return shaped_2d(c, copy, stream, 0);
}

CUresult do_cuMemcpy2DAsync(struct fg_call *c, const struct fg_copy2d32 *copy, CUstream stream) {
    return shaped_2d32(c, copy, stream, 0);
}

CUresult do_cuMemcpy3D_v2(struct fg_call *c, const struct fg_copy3d *copy) {
    return shaped(c, copy, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpy3D(struct fg_call *c, const struct fg_copy3d32 *copy) {
    return shaped_3d32(c, copy, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpy3DAsync_v2(struct fg_call *c, const struct fg_copy3d *copy, CUstream stream) {
    return shaped(c, copy, stream, 0);
}

CUresult do_cuMemcpy3DAsync(struct fg_call *c, const struct fg_copy3d32 *copy, CUstream stream) {
    return shaped_3d32(c, copy, stream, 0);
}

static CUresult shaped_peer(const struct fg_call *c, const struct fg_copy3d *shape, CUstream stream,
                            int flags) {
    struct fg_copy copy;
    CUresult result = fg_copy_from_3d(shape, &copy);
    if (result)
        return result;
    return between_contexts(c, &copy, shape->reserved1, shape->reserved0, stream, flags);
}

CUresult do_cuMemcpy3DPeer(struct fg_call *c, const struct fg_copy3d *copy) {
    return shaped_peer(c, copy, NULL, SYNCHRONOUS);
}

CUresult do_cuMemcpy3DPeerAsync(struct fg_call *c, const struct fg_copy3d *copy, CUstream stream) {
    return shaped_peer(c, copy, stream, 0);
}

/* Batches are refused on the default streams and while capturing, as documented. */
CUresult do_cuMemcpyBatchAsync_v2(struct fg_call *c, CUdeviceptr *targets, CUdeviceptr *sources,
                                  size_t *bytes, size_t count, void *attributes, size_t *indexes,
                                  size_t attribute_count, CUstream stream) {
    struct fg_stream *found = fg_resolve(c, stream);
    if (!targets || !sources || !bytes || !count || !attributes || !attribute_count)
        return CUDA_ERROR_INVALID_VALUE;
    if (!found || found == c->context->legacy)
        return CUDA_ERROR_INVALID_HANDLE;
    if (fg_capturing(found))
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    for (size_t i = 0; i < count; i++) {
        CUresult result = unified(c, targets[i], sources[i], bytes[i], stream, 0);
        if (result)
            return result;
    }
    return CUDA_SUCCESS;
}

CUresult do_cuMemcpyBatchAsync(struct fg_call *c, CUdeviceptr *targets, CUdeviceptr *sources,
                               size_t *bytes, size_t count, void *attributes, size_t *indexes,
                               size_t attribute_count, size_t *failed, CUstream stream) {
    CUresult result = do_cuMemcpyBatchAsync_v2(c, targets, sources, bytes, count, attributes,
                                               indexes, attribute_count, stream);
    if (result && failed)
        *failed = (size_t)-1; /* no particular one */
    return result;
}
