/* Virtual memory management: reserved addresses, physical memory apart from them, and mappings.
 * Physical memory is a part of one file without a name, so that several mappings show the same. */
#define _GNU_SOURCE
#include "internal.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GRANULARITY (2ull << 20)

struct fg_physical {
    struct fg_head head;
    struct fg_allocation_properties properties;
    int device;
    u64 bytes;
    u64 offset; /* in the file */
    u32 handles;
    u32 mappings;
};

static int file = -1;
static u64 file_end;

/* What lies in reserved ranges, sorted by address. */
static struct mapping {
    u64 base;
    u64 bytes;
    int access;
    struct fg_physical *physical;
} * mappings;
static size_t count, room;

static size_t place_of(u64 address) {
    size_t place = 0;
    while (place < count && mappings[place].base + mappings[place].bytes <= address)
        place++;
    return place;
}

static struct mapping *mapping_at(u64 address) {
    size_t place = place_of(address);
    return place < count && mappings[place].base <= address ? &mappings[place] : NULL;
}

/* Whether a range is mapped without gaps, and open to a device. */
bool fg_virtual_accessible_locked(u64 address, u64 bytes) {
    u64 end = address + bytes;
    do {
        struct mapping *mapping = mapping_at(address);
        if (!mapping || mapping->access != 3)
            return false;
        address = mapping->base + mapping->bytes;
    } while (address < end);
    return true;
}

static void drop_if_unused_locked(struct fg_physical *physical) {
    if (physical->handles || physical->mappings)
        return;
    fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, physical->offset, physical->bytes);
    fg_count_free(physical->device, FG_KIND_VIRTUAL, physical->bytes, true);
    fg_discharge(physical->device, physical->bytes);
    fg_delete(physical);
}

static struct fg_physical *physical_of(CUmemGenericAllocationHandle handle) {
    struct fg_physical *physical = (struct fg_physical *)(size_t)handle;
    return fg_is(physical, FG_PHYSICAL) && physical->handles ? physical : NULL;
}

CUresult do_cuMemAddressReserve(struct fg_call *c, CUdeviceptr *pointer, size_t bytes,
                                size_t alignment, CUdeviceptr hint, u64 flags) {
    u64 extent;
    if (!pointer || !bytes || bytes % GRANULARITY || flags ||
        (alignment && (alignment & (alignment - 1))))
        return CUDA_ERROR_INVALID_VALUE;
    if (alignment > GRANULARITY)
        return CUDA_ERROR_NOT_SUPPORTED;
    pthread_mutex_lock(&fg_lock);
    u64 base = fg_take_addresses_locked(FG_ARENA_RESERVED, bytes, &extent);
    if (base) {
        struct fg_allocation *a = fg_insert_locked(base, bytes);
        a->kind = FG_RESERVED;
        a->extent = extent;
        *pointer = base;
    }
    pthread_mutex_unlock(&fg_lock);
    return base ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuMemAddressFree(struct fg_call *c, CUdeviceptr pointer, size_t bytes) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(pointer);
    size_t first = place_of(pointer);
    if (a && a->kind == FG_RESERVED && a->base == pointer && a->span == bytes &&
        (first == count || mappings[first].base >= pointer + bytes)) {
        fg_give_addresses_locked(a->base, a->extent);
        fg_remove_locked(a);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

static CUresult check(const struct fg_allocation_properties *properties) {
    if (!properties || properties->type != 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->location.type != FG_LOCATION_DEVICE || properties->requested_handle_types)
        return CUDA_ERROR_NOT_SUPPORTED; /* host memory, and sharing between processes */
    return fg_valid_device(properties->location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuMemCreate(struct fg_call *c, CUmemGenericAllocationHandle *handle, size_t bytes,
                        const struct fg_allocation_properties *properties, u64 flags) {
    if (!handle || !bytes || bytes % GRANULARITY || flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check(properties);
    if (result)
        return result;
    int device = properties->location.id;
    if (!fg_charge(device, bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&fg_lock);
    if (file < 0)
        file = memfd_create("simulated device memory", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, file_end + bytes) != 0) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
        fg_discharge(device, bytes);
    } else {
        struct fg_physical *physical = fg_new(FG_PHYSICAL, NULL);
        physical->properties = *properties;
        physical->device = device;
        physical->bytes = bytes;
        physical->offset = file_end;
        physical->handles = 1;
        file_end += bytes;
        fg_count_allocation(device, FG_KIND_VIRTUAL, bytes);
        *handle = (size_t)physical;
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

CUresult do_cuMemRelease(struct fg_call *c, CUmemGenericAllocationHandle handle) {
    struct fg_physical *physical = physical_of(handle);
    if (!physical)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    physical->handles--;
    drop_if_unused_locked(physical);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuMemRetainAllocationHandle(struct fg_call *c, CUmemGenericAllocationHandle *handle,
                                        void *address) {
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct mapping *mapping = mapping_at((u64)address);
    if (mapping) {
        mapping->physical->handles++;
        *handle = (size_t)mapping->physical;
    }
    pthread_mutex_unlock(&fg_lock);
    return mapping ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemMap(struct fg_call *c, CUdeviceptr pointer, size_t bytes, size_t offset,
                     CUmemGenericAllocationHandle handle, u64 flags) {
    struct fg_physical *physical = physical_of(handle);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (!physical || !bytes || bytes % GRANULARITY || pointer % GRANULARITY || offset || flags ||
        bytes > physical->bytes)
        return result;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(pointer);
    size_t place = place_of(pointer);
    if (a && a->kind == FG_RESERVED && pointer + bytes <= a->base + a->span &&
        (place == count || mappings[place].base >= pointer + bytes) &&
        mmap((void *)pointer, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file, physical->offset) !=
            MAP_FAILED) {
        if (count == room) {
            room = room * 2 + 16;
            mappings = realloc(mappings, room * sizeof *mappings);
            if (!mappings)
                abort();
        }
        memmove(mappings + place + 1, mappings + place, (count - place) * sizeof *mappings);
        mappings[place] = (struct mapping){pointer, bytes, 0, physical};
        count++;
        physical->mappings++;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

/* Whether a range is whole mappings, from the first at *place to before *end. */
static bool whole_locked(u64 pointer, u64 bytes, size_t *place, size_t *end) {
    u64 at = pointer;
    *place = *end = place_of(pointer);
    while (at < pointer + bytes && *end < count && mappings[*end].base == at)
        at += mappings[(*end)++].bytes;
    return bytes && at == pointer + bytes;
}

CUresult do_cuMemUnmap(struct fg_call *c, CUdeviceptr pointer, size_t bytes) {
    size_t place, end;
    pthread_mutex_lock(&fg_lock);
    bool whole = whole_locked(pointer, bytes, &place, &end);
    if (whole) {
        mmap((void *)pointer, bytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        for (size_t i = place; i < end; i++) {
            mappings[i].physical->mappings--;
            drop_if_unused_locked(mappings[i].physical);
        }
        memmove(mappings + place, mappings + end, (count - end) * sizeof *mappings);
        count -= end - place;
    }
    pthread_mutex_unlock(&fg_lock);
    return whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemSetAccess(struct fg_call *c, CUdeviceptr pointer, size_t bytes,
                           const struct fg_access *access, size_t accesses) {
    size_t place, end;
    if (!access || !accesses)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < accesses; i++)
        if (access[i].location.type != FG_LOCATION_DEVICE ||
            !fg_valid_device(access[i].location.id) || access[i].flags < 0 || access[i].flags > 3)
            return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    bool whole = whole_locked(pointer, bytes, &place, &end);
    if (whole) {
        int flags = access[accesses - 1].flags;
        for (size_t i = place; i < end; i++)
            mappings[i].access = flags;
        mprotect((void *)pointer, bytes, flags == 3 ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
    pthread_mutex_unlock(&fg_lock);
    return whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemGetAccess(struct fg_call *c, u64 *flags, const struct fg_location *location,
                           CUdeviceptr pointer) {
    if (!flags || !location || location->type != FG_LOCATION_DEVICE ||
        !fg_valid_device(location->id))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    struct mapping *mapping = mapping_at(pointer);
    if (mapping)
        *flags = mapping->access;
    pthread_mutex_unlock(&fg_lock);
    return mapping ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemGetAllocationGranularity(struct fg_call *c, size_t *granularity,
                                          const struct fg_allocation_properties *properties,
                                          int option) {
    if (!granularity || option < 0 || option > 1)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check(properties);
    if (result == CUDA_SUCCESS)
        *granularity = GRANULARITY;
    return result;
}

CUresult do_cuMemGetAllocationPropertiesFromHandle(struct fg_call *c,
                                                   struct fg_allocation_properties *properties,
                                                   CUmemGenericAllocationHandle handle) {
    struct fg_physical *physical = physical_of(handle);
    if (!properties || !physical)
        return CUDA_ERROR_INVALID_VALUE;
    *properties = physical->properties;
    return CUDA_SUCCESS;
}
