/* Arrays and mipmapped arrays: rows of elements, one behind the other. */
#include "internal.h"
#include <stdlib.h>

struct fg_mipmap {
    struct fg_head head;
    int device;
    u64 bytes;
    u32 count;
    struct fg_array *levels[20];
};

_Static_assert(sizeof(struct fg_array) <= FG_CELL, "an array fits in a cell");
_Static_assert(sizeof(struct fg_mipmap) <= FG_CELL, "a mipmapped array fits in a cell");

/* The bytes of one channel, by the numbers that the interface gives to formats. */
static size_t channel_bytes(int format) {
    switch (format) {
    case 0x01:
    case 0x08:
        return 1;
    case 0x02:
    case 0x09:
    case 0x10:
        return 2;
    case 0x03:
    case 0x0a:
    case 0x20:
        return 4;
    default:
        return 0;
    }
}

static size_t at_least_one(size_t extent) { return extent ? extent : 1; }

static u64 bytes_of(const struct fg_array3d_descriptor *d) {
    return d->width * at_least_one(d->height) * at_least_one(d->depth) * d->channels *
           channel_bytes(d->format);
}

static bool good(const struct fg_array3d_descriptor *d) {
    return d->width && channel_bytes(d->format) &&
           (d->channels == 1 || d->channels == 2 || d->channels == 4);
}

static struct fg_array *new_array(struct fg_context *context,
                                  const struct fg_array3d_descriptor *descriptor) {
    struct fg_array *array = fg_new(FG_ARRAY, fg_root(context));
    array->device = context->device;
    array->descriptor = *descriptor;
    array->element = descriptor->channels * channel_bytes(descriptor->format);
    array->bytes = bytes_of(descriptor);
    array->data = calloc(1, array->bytes);
    if (!array->data) {
        fg_delete(array);
        return NULL;
    }
    return array;
}

static CUresult create(const struct fg_call *c, CUarray *array,
                       const struct fg_array3d_descriptor *descriptor) {
    if (!array || !good(descriptor))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    if (result)
        return result;
    if (!fg_charge(c->context->device, bytes_of(descriptor)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct fg_array *made = new_array(c->context, descriptor);
    if (!made) {
        fg_discharge(c->context->device, bytes_of(descriptor));
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    fg_count_allocation(made->device, FG_KIND_ARRAY, made->bytes);
    *array = made;
    return CUDA_SUCCESS;
}

static void forget(int device, u64 bytes, bool by_call) {
    fg_count_free(device, FG_KIND_ARRAY, bytes, by_call);
    fg_discharge(device, bytes);
}

void fg_delete_array_locked(struct fg_array *array, bool by_call) {
    if (!array->mipmap)
        forget(array->device, array->bytes, by_call);
    free(array->data);
    fg_delete(array);
}

void fg_delete_mipmap_locked(struct fg_mipmap *mipmap, bool by_call) {
    for (u32 i = 0; i < mipmap->count; i++)
        fg_delete_array_locked(mipmap->levels[i], by_call);
    forget(mipmap->device, mipmap->bytes, by_call);
    fg_delete(mipmap);
}

#define WIDEN(d)                                                                                   \
    { (d)->width, (d)->height, 0, (d)->format, (d)->channels, 0 }
#define WIDEN_3D(d)                                                                                \
    { (d)->width, (d)->height, (d)->depth, (d)->format, (d)->channels, (d)->flags }

CUresult do_cuArrayCreate_v2(struct fg_call *c, CUarray *array,
                             const struct fg_array_descriptor *descriptor) {
    if (!descriptor)
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_array3d_descriptor wide = WIDEN(descriptor);
    return create(c, array, &wide);
}

CUresult do_cuArrayCreate(struct fg_call *c, CUarray *array,
                          const struct fg_array_descriptor32 *descriptor) {
    if (!descriptor)
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_array3d_descriptor wide = WIDEN(descriptor);
    return create(c, array, &wide);
}

CUresult do_cuArray3DCreate_v2(struct fg_call *c, CUarray *array,
                               const struct fg_array3d_descriptor *descriptor) {
    return descriptor ? create(c, array, descriptor) : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuArray3DCreate(struct fg_call *c, CUarray *array,
                            const struct fg_array3d_descriptor32 *descriptor) {
    if (!descriptor)
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_array3d_descriptor wide = WIDEN_3D(descriptor);
    return create(c, array, &wide);
}

/* Both kinds of descriptors, wide and narrow, are filled from one. */
#define DESCRIBE(name, type, ...)                                                                  \
    CUresult do_##name(struct fg_call *c, type *descriptor, CUarray array) {                       \
        if (!descriptor)                                                                           \
            return CUDA_ERROR_INVALID_VALUE;                                                       \
        if (!fg_is(array, FG_ARRAY))                                                               \
            return CUDA_ERROR_INVALID_HANDLE;                                                      \
        const struct fg_array3d_descriptor *d = &array->descriptor;                                \
        *descriptor = (type){__VA_ARGS__};                                                         \
        return CUDA_SUCCESS;                                                                       \
    }

DESCRIBE(cuArrayGetDescriptor, struct fg_array_descriptor32, d->width, d->height, d->format,
         d->channels)
DESCRIBE(cuArrayGetDescriptor_v2, struct fg_array_descriptor, d->width, d->height, d->format,
         d->channels)
DESCRIBE(cuArray3DGetDescriptor, struct fg_array3d_descriptor32, d->width, d->height, d->depth,
         d->format, d->channels, d->flags)
DESCRIBE(cuArray3DGetDescriptor_v2, struct fg_array3d_descriptor, d->width, d->height, d->depth,
         d->format, d->channels, d->flags)

CUresult do_cuArrayDestroy(struct fg_call *c, CUarray array) {
    if (!fg_is(array, FG_ARRAY))
        return CUDA_ERROR_INVALID_HANDLE;
    if (array->mipmap)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    fg_delete_array_locked(array, true);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

#define FG_LAYERED 1u /* CUDA_ARRAY3D_LAYERED */

/* Each level has half the extents of the one before it. */
static struct fg_array3d_descriptor level_of(const struct fg_array3d_descriptor *d, u32 level) {
    struct fg_array3d_descriptor at = *d;
    at.width = at_least_one(d->width >> level);
    at.height = d->height ? at_least_one(d->height >> level) : 0;
    if (!(d->flags & FG_LAYERED)) /* else the depth counts layers */
        at.depth = d->depth ? at_least_one(d->depth >> level) : 0;
    return at;
}

CUresult do_cuMipmappedArrayCreate(struct fg_call *c, CUmipmappedArray *mipmap,
                                   const struct fg_array3d_descriptor *descriptor,
                                   unsigned levels) {
    if (!mipmap || !descriptor || !good(descriptor))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    if (result)
        return result;
    size_t largest = descriptor->width;
    largest = descriptor->height > largest ? descriptor->height : largest;
    if (!(descriptor->flags & FG_LAYERED) && descriptor->depth > largest)
        largest = descriptor->depth;
    u32 most = 64 - __builtin_clzll(largest);
    u32 count = at_least_one(levels < most ? levels : most);
    u64 bytes = 0;
    for (u32 i = 0; i < count; i++) {
        struct fg_array3d_descriptor level = level_of(descriptor, i);
        bytes += bytes_of(&level);
    }
    struct fg_mipmap *made = fg_new(FG_MIPMAP, fg_root(c->context));
    if (count > sizeof made->levels / sizeof *made->levels ||
        !fg_charge(c->context->device, bytes)) {
        fg_delete(made);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    made->device = c->context->device;
    made->bytes = bytes;
    fg_count_allocation(made->device, FG_KIND_ARRAY, bytes);
    for (made->count = 0; made->count < count; made->count++) {
        struct fg_array3d_descriptor level = level_of(descriptor, made->count);
        struct fg_array *array = new_array(c->context, &level);
        if (!array)
            abort();
        array->mipmap = made;
        made->levels[made->count] = array;
    }
    *mipmap = made;
    return CUDA_SUCCESS;
}

CUresult do_cuMipmappedArrayGetLevel(struct fg_call *c, CUarray *array, CUmipmappedArray mipmap,
                                     unsigned level) {
    if (!fg_is(mipmap, FG_MIPMAP))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!array || level >= mipmap->count)
        return CUDA_ERROR_INVALID_VALUE;
    *array = mipmap->levels[level];
    return CUDA_SUCCESS;
}

CUresult do_cuMipmappedArrayDestroy(struct fg_call *c, CUmipmappedArray mipmap) {
    if (!fg_is(mipmap, FG_MIPMAP))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&fg_lock);
    fg_delete_mipmap_locked(mipmap, true);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}
