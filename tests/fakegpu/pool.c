/* Memory pools and stream-ordered allocation. */
#include "graph.h"
#include "internal.h"

static struct fg_pool *defaults[FG_MAX_DEVICES];
static struct fg_pool *chosen[FG_MAX_DEVICES];

static struct fg_pool *new_pool(int device) {
    struct fg_pool *pool = fg_new(FG_POOL, NULL);
    pool->device = device;
    pool->reuse[0] = pool->reuse[1] = pool->reuse[2] = 1;
    pool->access[device] = 3;
    return pool;
}

static bool is_pool(const struct fg_pool *pool) { return fg_is(pool, FG_POOL) && !pool->destroyed; }

/* For an allocation that is freed. A pool that is destroyed goes with its last one. */
void fg_leave_pool_locked(struct fg_pool *pool) {
    if (--pool->allocations == 0 && pool->destroyed)
        fg_delete(pool);
}

struct fg_pool *fg_default_pool(int device) {
    pthread_mutex_lock(&fg_lock);
    if (!defaults[device]) {
        defaults[device] = new_pool(device);
        defaults[device]->is_default = true;
    }
    pthread_mutex_unlock(&fg_lock);
    return defaults[device];
}

static struct fg_pool *chosen_pool(int device) {
    return chosen[device] ? chosen[device] : fg_default_pool(device);
}

CUresult do_cuDeviceGetDefaultMemPool(struct fg_call *c, CUmemoryPool *pool, CUdevice device) {
    if (!pool)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *pool = fg_default_pool(device);
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetMemPool(struct fg_call *c, CUmemoryPool *pool, CUdevice device) {
    if (!pool)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *pool = chosen_pool(device);
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceSetMemPool(struct fg_call *c, CUdevice device, CUmemoryPool pool) {
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!is_pool(pool) || pool->device != device)
        return CUDA_ERROR_INVALID_VALUE;
    chosen[device] = pool;
    return CUDA_SUCCESS;
}

static bool is_device(const struct fg_location *location) {
    return location && location->type == FG_LOCATION_DEVICE && fg_valid_device(location->id);
}

CUresult do_cuMemGetDefaultMemPool(struct fg_call *c, CUmemoryPool *pool,
                                   struct fg_location *location, int type) {
    if (!is_device(location) || type != 1)
        return location && location->type == FG_LOCATION_DEVICE ? CUDA_ERROR_INVALID_VALUE
                                                                : CUDA_ERROR_NOT_SUPPORTED;
    return do_cuDeviceGetDefaultMemPool(c, pool, location->id);
}

CUresult do_cuMemGetMemPool(struct fg_call *c, CUmemoryPool *pool, struct fg_location *location,
                            int type) {
    if (!is_device(location) || type != 1)
        return CUDA_ERROR_INVALID_VALUE;
    return do_cuDeviceGetMemPool(c, pool, location->id);
}

CUresult do_cuMemSetMemPool(struct fg_call *c, struct fg_location *location, int type,
                            CUmemoryPool pool) {
    if (!is_device(location) || type != 1)
        return CUDA_ERROR_INVALID_VALUE;
    return do_cuDeviceSetMemPool(c, location->id, pool);
}

CUresult do_cuMemPoolCreate(struct fg_call *c, CUmemoryPool *pool,
                            const struct fg_pool_properties *properties) {
    if (!pool || !properties || properties->allocation_type != 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->handle_types || !is_device(&properties->location))
        return CUDA_ERROR_NOT_SUPPORTED;
    *pool = new_pool(properties->location.id);
    return CUDA_SUCCESS;
}

CUresult do_cuMemPoolDestroy(struct fg_call *c, CUmemoryPool pool) {
    if (!is_pool(pool) || pool->is_default)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    for (int device = 0; device < FG_MAX_DEVICES; device++)
        if (chosen[device] == pool)
            chosen[device] = NULL;
    pool->destroyed = true;
    if (!pool->allocations)
        fg_delete(pool);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

/* A simulated pool keeps nothing that is freed. */
CUresult do_cuMemPoolTrimTo(struct fg_call *c, CUmemoryPool pool, size_t keep) {
    return is_pool(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemPoolSetAttribute(struct fg_call *c, CUmemoryPool pool, int attribute,
                                  void *value) {
    if (!is_pool(pool) || !value)
        return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case 1:
    case 2:
    case 3:
        pool->reuse[attribute - 1] = *(int *)value;
        return CUDA_SUCCESS;
    case 4:
        pool->threshold = *(u64 *)value;
        return CUDA_SUCCESS;
    case 6:
    case 8: /* the high-water marks can only be reset */
        if (*(u64 *)value)
            return CUDA_ERROR_INVALID_VALUE;
        pool->used_high = pool->used;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult do_cuMemPoolGetAttribute(struct fg_call *c, CUmemoryPool pool, int attribute,
                                  void *value) {
    if (!is_pool(pool) || !value)
        return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case 1:
    case 2:
    case 3:
        *(int *)value = pool->reuse[attribute - 1];
        return CUDA_SUCCESS;
    case 4:
        *(u64 *)value = pool->threshold;
        return CUDA_SUCCESS;
    case 5:
    case 7:
        *(u64 *)value = pool->used;
        return CUDA_SUCCESS;
    case 6:
    case 8:
        *(u64 *)value = pool->used_high;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult do_cuMemPoolSetAccess(struct fg_call *c, CUmemoryPool pool, const struct fg_access *access,
                               size_t count) {
    if (!is_pool(pool) || (count && !access))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        if (!is_device(&access[i].location))
            return CUDA_ERROR_INVALID_DEVICE;
        pool->access[access[i].location.id] = access[i].flags;
    }
    return CUDA_SUCCESS;
}

CUresult do_cuMemPoolGetAccess(struct fg_call *c, int *flags, CUmemoryPool pool,
                               struct fg_location *location) {
    if (!flags || !is_pool(pool) || !is_device(location))
        return CUDA_ERROR_INVALID_VALUE;
    *flags = pool->access[location->id];
    return CUDA_SUCCESS;
}

/* While its stream captures, an allocation only becomes a node of the graph: its addresses are
 * known now, its memory is there when the graph runs. */
static CUresult allocate(struct fg_stream *stream, struct fg_pool *pool, size_t bytes,
                         CUdeviceptr *pointer) {
    struct fg_request request = {
        stream->head.context, pool->device, FG_KIND_POOL, bytes, 0, 0, pool};
    u64 base;
    CUresult result;
    if (fg_capturing(stream)) {
        result = fg_graph_reserve(pool->device, bytes, &base);
        if (result == CUDA_SUCCESS) {
            struct fg_node pattern = {.type = FG_NODE_ALLOC, .pointer = base, .bytes = bytes};
            result = fg_capture_node(stream, &pattern, NULL);
        }
    } else {
        result = fg_legacy_allowed(stream);
        if (result == CUDA_SUCCESS)
            result = fg_allocate(&request, &base);
    }
    if (result == CUDA_SUCCESS)
        *pointer = base;
    return result;
}

CUresult do_cuMemAllocAsync(struct fg_call *c, CUdeviceptr *pointer, size_t bytes,
                            CUstream handle) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!pointer || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate(stream, chosen_pool(stream->head.context->device), bytes, pointer);
}

CUresult do_cuMemAllocFromPoolAsync(struct fg_call *c, CUdeviceptr *pointer, size_t bytes,
                                    CUmemoryPool pool, CUstream handle) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!pointer || !bytes || !is_pool(pool))
        return CUDA_ERROR_INVALID_VALUE;
    return allocate(stream, pool, bytes, pointer);
}

CUresult do_cuMemFreeAsync(struct fg_call *c, CUdeviceptr pointer, CUstream handle) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!pointer)
        return CUDA_SUCCESS;
    if (fg_capturing(stream)) {
        struct fg_node pattern = {.type = FG_NODE_FREE, .pointer = pointer};
        return fg_capture_node(stream, &pattern, NULL);
    }
    CUresult result = fg_legacy_allowed(stream);
    return result ? result : fg_free(pointer, false);
}
