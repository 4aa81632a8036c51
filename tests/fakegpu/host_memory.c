/* Host memory that the driver allocates, or that a client registers. */
#include "internal.h"

CUresult do_cuMemHostAlloc(struct fg_call *c, void **pointer, size_t bytes, unsigned flags) {
    struct fg_request request = {c->context, c->context->device, FG_KIND_HOST, bytes, 0, flags,
                                 NULL};
    u64 base;
    if (!pointer || !bytes || flags > 7)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    if (result == CUDA_SUCCESS)
        result = fg_allocate(&request, &base);
    if (result == CUDA_SUCCESS)
        *pointer = (void *)base;
    return result;
}

CUresult do_cuMemAllocHost_v2(struct fg_call *c, void **pointer, size_t bytes) {
    return do_cuMemHostAlloc(c, pointer, bytes, 0);
}

CUresult do_cuMemAllocHost(struct fg_call *c, void **pointer, unsigned bytes) {
    return do_cuMemHostAlloc(c, pointer, bytes, 0);
}

CUresult do_cuMemFreeHost(struct fg_call *c, void *pointer) {
    CUresult result = fg_capture_forbids(c);
    return result ? result : fg_free((u64)pointer, true);
}

CUresult do_cuMemHostGetDevicePointer_v2(struct fg_call *c, CUdeviceptr *pointer, void *host,
                                         unsigned flags) {
    if (!pointer || flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked((u64)host);
    bool known = a && (a->kind == FG_KIND_HOST || a->kind == FG_REGISTERED);
    pthread_mutex_unlock(&fg_lock);
    if (!known)
        return CUDA_ERROR_INVALID_VALUE;
    *pointer = (u64)host;
    return CUDA_SUCCESS;
}

/* Host memory has no addresses of 32 bits. */
CUresult do_cuMemHostGetDevicePointer(struct fg_call *c, CUdeviceptr32 *pointer, void *host,
                                      unsigned flags) {
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemHostGetFlags(struct fg_call *c, unsigned *flags, void *host) {
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked((u64)host);
    bool known = a && a->kind == FG_KIND_HOST;
    if (known)
        *flags = a->flags;
    pthread_mutex_unlock(&fg_lock);
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Registering pins memory that is the client's own: it is no allocation. */
CUresult do_cuMemHostRegister_v2(struct fg_call *c, void *host, size_t bytes, unsigned flags) {
    CUresult result = fg_capture_forbids(c);
    if (result)
        return result;
    if (!host || !bytes || flags > 15)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    if (fg_find_locked((u64)host) || fg_find_locked((u64)host + bytes - 1)) {
        result = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    } else {
        struct fg_allocation *a = fg_insert_locked((u64)host, bytes);
        a->kind = FG_REGISTERED;
        a->device = c->context->device;
        a->context = c->context;
        a->flags = flags;
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

CUresult do_cuMemHostUnregister(struct fg_call *c, void *host) {
    CUresult result = fg_capture_forbids(c);
    if (result)
        return result;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked((u64)host);
    if (a && a->base == (u64)host && a->kind == FG_REGISTERED)
        fg_remove_locked(a);
    else
        result = CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    pthread_mutex_unlock(&fg_lock);
    return result;
}
