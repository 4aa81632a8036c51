/* What the driver knows of a pointer, and advice about managed memory. */
#include "internal.h"
#include <string.h>

/* The pointer attributes, by number; false for those that the pointer or the simulation lacks. */
static bool attribute_of(const struct fg_allocation *a, int attribute, u64 pointer, void *value) {
    bool host = a->kind == FG_KIND_HOST || a->kind == FG_REGISTERED;
    switch (attribute) {
    case 1:
        *(CUcontext *)value = a->context;
        return a->context != NULL;
    case 2:
        *(unsigned *)value = host ? FG_TYPE_HOST : FG_TYPE_DEVICE;
        return true;
    case 3:
        *(CUdeviceptr *)value = pointer;
        return true;
    case 4:
        *(void **)value = (void *)pointer;
        return host || a->kind == FG_KIND_MANAGED;
    case 6: /* synchronizes memory operations: everything does */
        *(int *)value = 1;
        return true;
    case 7:
        *(u64 *)value = a->id;
        return true;
    case 8:
        *(int *)value = a->kind == FG_KIND_MANAGED;
        return true;
    case 9:
        *(int *)value = a->device;
        return true;
    case 10:
    case 15:
    case 21:
        *(int *)value = 0;
        return true;
    case 11:
        *(u64 *)value = a->base;
        return true;
    case 12:
    case 18:
        *(size_t *)value = a->span;
        return true;
    case 13:
        *(int *)value = a->kind != FG_RESERVED;
        return true;
    case 14:
        *(u64 *)value = 0;
        return true;
    case 16:
        *(int *)value = 3;
        return true;
    case 17:
        *(CUmemoryPool *)value = a->pool;
        return true;
    case 19:
        *(u64 *)value = a->base;
        return true;
    case 20:
        *(u64 *)value = a->id;
        return true;
    default:
        return false;
    }
}

CUresult do_cuPointerGetAttribute(struct fg_call *c, void *value, int attribute,
                                  CUdeviceptr pointer) {
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(pointer);
    bool known = a && attribute_of(a, attribute, pointer, value);
    pthread_mutex_unlock(&fg_lock);
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Several at once; for a pointer that isn't the driver's they are all zero, and no error. */
CUresult do_cuPointerGetAttributes(struct fg_call *c, unsigned count, int *attributes,
                                   void **values, CUdeviceptr pointer) {
    static const u8 four_bytes[32] = {
        [2] = 1, [6] = 1, [8] = 1, [9] = 1, [10] = 1, [13] = 1, [15] = 1, [16] = 1, [21] = 1};
    if (!attributes || !values)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(pointer);
    for (unsigned i = 0; i < count; i++) {
        int attribute = attributes[i];
        if (!values[i] || attribute < 1 || attribute > 21 || attribute == 5)
            continue;
        memset(values[i], 0, four_bytes[attribute] ? 4 : 8);
        if (attribute == 9)
            *(int *)values[i] = -2; /* no device */
        if (a)
            attribute_of(a, attribute, pointer, values[i]);
    }
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuPointerSetAttribute(struct fg_call *c, const void *value, int attribute,
                                  CUdeviceptr pointer) {
    return value && attribute == 6 && fg_accessible(pointer, 0) ? CUDA_SUCCESS
                                                                : CUDA_ERROR_INVALID_VALUE;
}

/* Advice and prefetching are for managed memory; with one memory for all there is nothing to do. */
static CUresult about_managed(CUdeviceptr pointer, size_t bytes) {
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(pointer);
    bool managed = a && a->kind == FG_KIND_MANAGED && bytes <= a->span - (pointer - a->base);
    pthread_mutex_unlock(&fg_lock);
    return managed && bytes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemPrefetchAsync(struct fg_call *c, CUdeviceptr pointer, size_t bytes,
                               CUdevice target, CUstream stream) {
    if (!fg_resolve(c, stream))
        return CUDA_ERROR_INVALID_HANDLE;
    if (target != -1 && !fg_valid_device(target))
        return CUDA_ERROR_INVALID_DEVICE;
    return about_managed(pointer, bytes);
}

CUresult do_cuMemPrefetchAsync_v2(struct fg_call *c, CUdeviceptr pointer, size_t bytes,
                                  struct fg_location target, unsigned flags, CUstream stream) {
    if (!fg_resolve(c, stream))
        return CUDA_ERROR_INVALID_HANDLE;
    return flags ? CUDA_ERROR_INVALID_VALUE : about_managed(pointer, bytes);
}

CUresult do_cuMemAdvise(struct fg_call *c, CUdeviceptr pointer, size_t bytes, int advice,
                        CUdevice target) {
    return advice < 1 || advice > 6 ? CUDA_ERROR_INVALID_VALUE : about_managed(pointer, bytes);
}

CUresult do_cuMemAdvise_v2(struct fg_call *c, CUdeviceptr pointer, size_t bytes, int advice,
                           struct fg_location target) {
    return advice < 1 || advice > 6 ? CUDA_ERROR_INVALID_VALUE : about_managed(pointer, bytes);
}
