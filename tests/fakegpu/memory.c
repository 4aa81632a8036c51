/* Device and managed memory, and the ranges of addresses that the driver knows. */
#define _GNU_SOURCE
#include "internal.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Every range that the driver knows, sorted by its base. */
static struct fg_allocation **ranges;
static size_t range_count, range_room;

static size_t place_after(u64 address) {
    size_t low = 0, high = range_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ranges[middle]->base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The range that an address lies in. */
struct fg_allocation *fg_find_locked(u64 address) {
    size_t place = place_after(address);
    if (!place)
        return NULL;
    struct fg_allocation *a = ranges[place - 1];
    return address - a->base < a->span || address == a->base ? a : NULL;
}

struct fg_allocation *fg_insert_locked(u64 base, u64 span) {
    struct fg_allocation *a = calloc(1, sizeof *a);
    if (range_count == range_room) {
        range_room = range_room * 2 + 64;
        ranges = realloc(ranges, range_room * sizeof *ranges);
    }
    if (!a || !ranges)
        abort();
    size_t place = place_after(base);
    memmove(ranges + place + 1, ranges + place, (range_count - place) * sizeof *ranges);
    ranges[place] = a;
    range_count++;
    a->base = base;
    a->span = a->bytes = span;
    a->id = __atomic_add_fetch(&fg_ids, 1, __ATOMIC_RELAXED);
    return a;
}

void fg_remove_locked(struct fg_allocation *a) {
    size_t place = place_after(a->base) - 1;
    memmove(ranges + place, ranges + place + 1, (range_count - place - 1) * sizeof *ranges);
    range_count--;
    free(a);
}

CUresult fg_allocate_locked(const struct fg_request *request, u64 *base) {
    u64 span = request->span ? request->span : request->bytes;
    u64 extent = 0;
    bool host = request->kind == FG_KIND_HOST;
    if (!host && !fg_charge(request->device, request->bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (host) {
        void *range = mmap(NULL, span, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        *base = range == MAP_FAILED ? 0 : (u64)range;
    } else {
        *base = fg_take_addresses_locked(FG_ARENA_DEVICE + request->device, span, &extent);
    }
    if (!*base) {
        if (!host)
            fg_discharge(request->device, request->bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct fg_allocation *a = fg_insert_locked(*base, span);
    a->bytes = request->bytes;
    a->extent = extent;
    a->kind = request->kind;
    a->device = request->device;
    a->flags = request->flags;
    a->context = fg_root(request->context);
    a->pool = request->pool;
    if (a->pool) {
        a->pool->allocations++;
        a->pool->used += a->bytes;
        if (a->pool->used_high < a->pool->used)
            a->pool->used_high = a->pool->used;
    }
    if (a->kind >= 0)
        fg_count_allocation(a->device, a->kind, a->bytes);
    fg_count_granules_locked(a, true);
    return CUDA_SUCCESS;
}

CUresult fg_allocate(const struct fg_request *request, u64 *base) {
    pthread_mutex_lock(&fg_lock);
    CUresult result = fg_allocate_locked(request, base);
    pthread_mutex_unlock(&fg_lock);
    return result;
}

void fg_free_locked(struct fg_allocation *a, bool by_call) {
    if (a->kind >= 0)
        fg_count_free(a->device, a->kind, a->bytes, by_call);
    fg_count_granules_locked(a, false);
    if (a->pool) {
        a->pool->used -= a->bytes;
        fg_leave_pool_locked(a->pool);
    }
    if (a->kind == FG_KIND_HOST)
        munmap((void *)a->base, a->span);
    else if (a->extent)
        fg_discharge(a->device, a->bytes);
    if (a->extent)
        fg_give_addresses_locked(a->base, a->extent);
    fg_remove_locked(a);
}

CUresult fg_free(u64 base, bool host) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(base);
    if (a && a->base == base && a->kind >= 0 && (a->kind == FG_KIND_HOST) == host) {
        fg_free_locked(a, true);
        result = CUDA_SUCCESS;
    } else if (a && a->base == base && a->kind == FG_GRAPH_MEMORY) {
        result = CUDA_SUCCESS; /* it stays the graph's, for its next launch */
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

/* What a context held goes with it; pools and virtual memory are the device's. */
void fg_release_memory_locked(const struct fg_context *context) {
    for (size_t place = range_count; place--;)
        if (ranges[place]->context == context && !ranges[place]->pool)
            fg_free_locked(ranges[place], false);
}

static bool accessible_locked(u64 address, u64 bytes) {
    struct fg_allocation *a = fg_find_locked(address);
    if (!a)
        return false;
    if (a->kind == FG_RESERVED || a->kind == FG_MAPPED)
        return fg_virtual_accessible_locked(address, bytes);
    return bytes <= a->span - (address - a->base);
}

bool fg_accessible(u64 address, u64 bytes) {
    pthread_mutex_lock(&fg_lock);
    bool accessible = accessible_locked(address, bytes);
    pthread_mutex_unlock(&fg_lock);
    return accessible;
}

bool fg_known(u64 address) {
    pthread_mutex_lock(&fg_lock);
    bool known = fg_find_locked(address) != NULL;
    pthread_mutex_unlock(&fg_lock);
    return known;
}

CUresult do_cuMemGetInfo_v2(struct fg_call *c, size_t *free_bytes, size_t *total) {
    const struct fg_device *device = &fg_state->devices[c->context->device];
    u64 used = fg_load(&device->memory_used);
    if (!free_bytes || !total)
        return CUDA_ERROR_INVALID_VALUE;
    *total = device->memory_bytes;
    *free_bytes = used < device->memory_bytes ? device->memory_bytes - used : 0;
    return CUDA_SUCCESS;
}

CUresult do_cuMemGetInfo(struct fg_call *c, unsigned *free_bytes, unsigned *total) {
    size_t long_free, long_total;
    CUresult result =
        do_cuMemGetInfo_v2(c, free_bytes ? &long_free : NULL, total ? &long_total : NULL);
    if (result == CUDA_SUCCESS) {
        *free_bytes = long_free > 0xffffffffu ? 0xffffffffu : long_free;
        *total = long_total > 0xffffffffu ? 0xffffffffu : long_total;
    }
    return result;
}

/* A CUDA call with 32-bit pointers asks for memory below 4 GiB. */
static CUresult allocate_low(struct fg_context *context, u64 bytes, u64 span,
                             CUdeviceptr32 *pointer) {
    u64 extent, base = 0;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&fg_lock);
    if (fg_charge(context->device, bytes)) {
        base = fg_take_addresses_locked(FG_ARENA_LOW, span, &extent);
        if (!base)
            fg_discharge(context->device, bytes);
    }
    if (base) {
        struct fg_allocation *a = fg_insert_locked(base, span);
        a->bytes = bytes;
        a->extent = extent;
        a->kind = FG_KIND_DEVICE;
        a->device = context->device;
        a->context = fg_root(context);
        fg_count_allocation(a->device, a->kind, bytes);
        fg_count_granules_locked(a, true);
        *pointer = base;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

CUresult do_cuMemAlloc(struct fg_call *c, CUdeviceptr32 *pointer, unsigned bytes) {
    if (!pointer || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    return result ? result : allocate_low(c->context, bytes, bytes, pointer);
}

CUresult do_cuMemAlloc_v2(struct fg_call *c, CUdeviceptr *pointer, size_t bytes) {
    struct fg_request request = {c->context, c->context->device, FG_KIND_DEVICE, bytes, 0, 0, NULL};
    u64 base;
    if (!pointer || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    if (result == CUDA_SUCCESS)
        result = fg_allocate(&request, &base);
    if (result == CUDA_SUCCESS)
        *pointer = base;
    return result;
}

static bool good_pitch(size_t width, size_t height, unsigned element) {
    return width && height && (element == 4 || element == 8 || element == 16);
}

CUresult do_cuMemAllocPitch(struct fg_call *c, CUdeviceptr32 *pointer, unsigned *pitch,
                            unsigned width, unsigned height, unsigned element) {
    if (!pointer || !pitch || !good_pitch(width, height, element))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    if (result)
        return result;
    *pitch = (width + 511) / 512 * 512;
    return allocate_low(c->context, (u64)width * height, (u64)*pitch * height, pointer);
}

CUresult do_cuMemAllocPitch_v2(struct fg_call *c, CUdeviceptr *pointer, size_t *pitch, size_t width,
                               size_t height, unsigned element) {
    if (!pointer || !pitch || !good_pitch(width, height, element))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    if (result)
        return result;
    size_t row = (width + 511) / 512 * 512;
    struct fg_request request = {
        c->context, c->context->device, FG_KIND_DEVICE, width * height, row * height, 0, NULL};
    u64 base;
    result = fg_allocate(&request, &base);
    if (result == CUDA_SUCCESS) {
        *pointer = base;
        *pitch = row;
    }
    return result;
}

CUresult do_cuMemAllocManaged(struct fg_call *c, CUdeviceptr *pointer, size_t bytes,
                              unsigned flags) {
    struct fg_request request = {c->context, c->context->device, FG_KIND_MANAGED, bytes, 0, flags,
                                 NULL};
    u64 base;
    if (!pointer || !bytes || (flags != 1 && flags != 2))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_capture_forbids(c);
    if (result == CUDA_SUCCESS)
        result = fg_allocate(&request, &base);
    if (result == CUDA_SUCCESS)
        *pointer = base;
    return result;
}

CUresult do_cuMemFree_v2(struct fg_call *c, CUdeviceptr pointer) {
    if (!pointer)
        return CUDA_SUCCESS;
    CUresult result = fg_capture_forbids(c);
    if (result)
        return result;
    u64 end = fg_load(&c->context->ready_at); /* a free waits for the work before it */
    if (end && end > fg_now())
        fg_sleep_until(end);
    return fg_free(pointer, false);
}

CUresult do_cuMemFree(struct fg_call *c, CUdeviceptr32 pointer) {
    return do_cuMemFree_v2(c, pointer);
}

CUresult do_cuMemGetAddressRange_v2(struct fg_call *c, CUdeviceptr *base, size_t *bytes,
                                    CUdeviceptr pointer) {
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(pointer);
    if (a && base)
        *base = a->base;
    if (a && bytes)
        *bytes = a->span;
    pthread_mutex_unlock(&fg_lock);
    return a ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult do_cuMemGetAddressRange(struct fg_call *c, CUdeviceptr32 *base, unsigned *bytes,
                                 CUdeviceptr32 pointer) {
    CUdeviceptr long_base;
    size_t long_bytes;
    CUresult result = do_cuMemGetAddressRange_v2(c, &long_base, &long_bytes, pointer);
    if (result == CUDA_SUCCESS && base)
        *base = long_base;
    if (result == CUDA_SUCCESS && bytes)
        *bytes = long_bytes;
    return result;
}
