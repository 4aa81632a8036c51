/* Allocations and frees: known on entry, true on a successful return.
 *
 * A free takes its address out of the map on entry, before the driver frees it: once it has,
 * another thread may be given the same address and record it before this thread's return is
 * seen. If the free fails, the address is put back. */

/* Kinds that are kept in mind and counted nowhere: memory of a graph, of another process. */
#define KIND_UNCOUNTED (KIND_UNKNOWN + 1)

static __always_inline u32 space_of(u32 kind) {
    return kind == KIND_VIRTUAL ? SPACE_PHYSICAL : kind == KIND_ARRAY ? SPACE_ARRAY : SPACE_ADDRESS;
}

/* Up to 4 KiB, 64 KiB, 1 MiB, 2 MiB, 16 MiB, 128 MiB, 1 GiB, and more: SIZE_BOUNDS in lanes.py */
static __always_inline u32 size_class(u64 bytes) {
    u64 last = bytes ? bytes - 1 : 0;
    return (last >> 12 != 0) + (last >> 16 != 0) + (last >> 20 != 0) + (last >> 21 != 0) +
           (last >> 24 != 0) + (last >> 27 != 0) + (last >> 30 != 0);
}

/* What goes when its context is destroyed: not pools and virtual memory, which are the device's. */
static __always_inline bool is_of_context(u32 kind) {
    return kind == KIND_DEVICE || kind == KIND_MANAGED || kind == KIND_ARRAY || kind == KIND_HOST;
}

static __always_inline void grow(struct share *share, u64 bytes) {
    __sync_fetch_and_add(&share->live, bytes);
    /* Two threads may each find a new peak and write it in the wrong order: hence again. */
    for (int i = 0; i < 2; i++) {
        u64 live = share->live;
        if ((s64)live > (s64)share->peak)
            share->peak = live;
    }
}

static __always_inline void count_allocation(struct share *share, u32 kind, u64 bytes) {
    add(share, LANE_ALLOCATIONS + kind, 1);
    add_bytes(share, LANE_ALLOCATED_BYTES + kind, bytes);
    if (kind == KIND_HOST)
        return;
    add(share, LANE_ALLOCATION_SIZES + size_class(bytes), 1);
    if (bytes <= MOST_BYTES)
        grow(share, bytes);
}

static __always_inline void count_free(struct share *share, u32 kind, u64 bytes) {
    add(share, LANE_FREES + kind, 1);
    add_bytes(share, LANE_FREED_BYTES + kind, bytes);
    if (kind != KIND_HOST && kind != KIND_UNKNOWN && bytes <= MOST_BYTES)
        __sync_fetch_and_add(&share->live, -bytes);
}

/* The context that takes an allocation along, if it is still the one that it was then. */
static __always_inline struct context *context_with(struct process *process,
                                                    struct allocation *allocation) {
    struct context *context = owner(process, allocation->context);
    return context && context->made == allocation->made ? context : 0;
}

static __always_inline void charge_context(struct process *process, struct allocation *allocation,
                                           u64 count, u64 bytes) {
    struct context *context = context_with(process, allocation);
    u64 kind = allocation->kind;
    if (context && below(&kind, KINDS) && allocation->bytes <= MOST_BYTES) {
        __sync_fetch_and_add(&context->count[kind], count);
        __sync_fetch_and_add(&context->bytes[kind], bytes);
    }
}

static __always_inline void keep_allocation(struct process *process, u64 value, u32 space,
                                            struct allocation *allocation) {
    struct name name = name_of(process, value, space);
    if (space != SPACE_PHYSICAL && is_of_context(allocation->kind)) {
        allocation->context = owner_of(process, thread_context(current_thread()));
        struct context *context = owner(process, allocation->context);
        allocation->made = context ? context->made : 0;
        charge_context(process, allocation, 1, allocation->bytes);
    }
    if (allocations.update(&name, allocation))
        lose(LOST_ALLOCATIONS);
}

/* max(n, 1) without a branch: in the loop over the levels of a mipmap every branch would double
 * the paths that the kernel's verifier walks. The barrier keeps clang from making one of it. */
static __always_inline u64 at_least_1(u64 n) {
    u64 below = n - 1;
    asm volatile("" : "+r"(below));
    return n | below >> 63;
}

static __always_inline u64 texels(u64 width, u64 height, u64 depth) {
    return width * at_least_1(height) * at_least_1(depth);
}

static __always_inline bool read_array_3d(u64 call, u64 from, struct array_3d *out) {
    if (!CALL_NARROW(call))
        return !read_user(out, sizeof(*out), (void *)from);
    struct array_3d_narrow narrow = {};
    if (read_user(&narrow, sizeof(narrow), (void *)from))
        return false;
    out->width = narrow.width;
    out->height = narrow.height;
    out->depth = narrow.depth;
    out->format = narrow.format;
    out->channels = narrow.channels;
    out->flags = narrow.flags;
    return true;
}

static __always_inline u64 array_bytes(u64 texel_count, u32 format, u32 channels) {
    u64 bytes = texel_count * channels * channel_bytes(format);
    if (texel_count && channels && !bytes)
        lose(LOST_UNREADABLE); /* a compressed or planar format: its bytes are not known */
    return bytes;
}

static __always_inline bool read_array_2d(u64 call, u64 from, struct array_3d *out) {
    struct array_2d wide = {};
    struct array_2d_narrow narrow = {};
    if (CALL_NARROW(call)) {
        if (read_user(&narrow, sizeof(narrow), (void *)from))
            return false;
        out->width = narrow.width;
        out->height = narrow.height;
        out->format = narrow.format;
        out->channels = narrow.channels;
        return true;
    }
    if (read_user(&wide, sizeof(wide), (void *)from))
        return false;
    out->width = wide.width;
    out->height = wide.height;
    out->format = wide.format;
    out->channels = wide.channels;
    return true;
}

#define MOST_LEVELS 24 /* an array has at most 1 + log2(131072) */

static __always_inline u64 mipmap_texels(struct array_3d *array, u32 wanted) {
    u32 levels = at_least_1(wanted);
    /* CUDA_ARRAY3D_LAYERED: the depth counts layers and isn't halved. */
    u64 sum = 0, layered = array->flags & 1;
    /* The driver makes no level after that of extent 1; the or has as many bits as the largest. */
    u64 extents = array->width | array->height | (layered ? 0 : array->depth);
#pragma clang loop unroll(disable)
    for (u32 level = 0; level < MOST_LEVELS; level++) {
        if (level >= levels || !(extents >> level))
            break;
        sum += texels(at_least_1(array->width >> level), array->height >> level,
                      array->depth >> level * !layered);
    }
    return sum;
}

static __always_inline u64 measure_array(u64 call, struct pending *entry) {
    struct array_3d array = {};
    u32 measure = CALL_MEASURE(call);
    bool good = measure == MEASURE_ARRAY_2D ? read_array_2d(call, entry->arg[1], &array)
                                            : read_array_3d(call, entry->arg[1], &array);
    if (!good) {
        lose(LOST_UNREADABLE);
        return 0;
    }
    u64 count = measure == MEASURE_MIPMAP ? mipmap_texels(&array, entry->arg[2])
                                          : texels(array.width, array.height, array.depth);
    return array_bytes(count, array.format, array.channels);
}

static __always_inline u64 measure_allocation(u64 call, struct pending *entry) {
    switch (CALL_MEASURE(call)) {
    case MEASURE_PITCH:
        return SIZE(call, entry->arg[2]) * SIZE(call, entry->arg[3]);
    case MEASURE_ARRAY_2D:
    case MEASURE_ARRAY_3D:
    case MEASURE_MIPMAP:
        return measure_array(call, entry);
    }
    return SIZE(call, entry->arg[1]);
}

/* Where stream-ordered and virtual memory is, other than with its context; the latter may be the
 * host's. */
static __always_inline void place_memory(struct process *process, u64 call, struct pending *entry,
                                         struct allocation *allocation) {
    if (CALL_MEASURE(call) == MEASURE_PHYSICAL) {
        struct location location = {};
        if (read_user(&location, sizeof(location), (void *)(entry->arg[2] + PROPERTIES_LOCATION)))
            lose(LOST_UNREADABLE);
        if (location.type > LOCATION_DEVICE)
            allocation->kind = KIND_HOST;
        else
            allocation->device =
                location.type == LOCATION_DEVICE ? device_number(location.id) : DEVICE_UNKNOWN;
    }
    if (CALL_MEASURE(call) == MEASURE_POOL) {
        struct handle *pool = handle_of(process, entry->arg[2], SPACE_POOL);
        if (pool || process->late)
            allocation->device = pool ? pool->device : DEVICE_UNKNOWN;
    }
}

static __always_inline int on_alloc_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct graph *capture = 0;
    if (!process)
        return 0;
    struct allocation allocation = {.kind = CALL_DETAIL(call), .handles = 1};
    allocation.device = spot_of(process, call, entry.stream, &capture);
    place_memory(process, call, &entry, &allocation);
    allocation.bytes = measure_allocation(call, &entry);
    struct share *share = share_of(process, allocation.device);
    if (capture) /* a node of a graph: the memory will be the graph's */
        allocation.kind = KIND_UNCOUNTED;
    else if (share)
        count_allocation(share, allocation.kind, allocation.bytes);
    u64 pointer = 0;
    /* Of the narrow forms only those of device memory give a narrow pointer. */
    u32 size = CALL_NARROW(call) && allocation.kind == KIND_DEVICE ? 4 : 8;
    if (read_user(&pointer, size, (void *)entry.arg[0]))
        lose(LOST_UNREADABLE);
    else if (is_tracked(process))
        keep_allocation(process, pointer, space_of(CALL_DETAIL(call)), &allocation);
    return 0;
}

/* (CUmemoryPool *out, CUdevice), (…, const CUmemPoolProps *) (detail 1), (…, CUmemLocation *)
 * (detail 2): which device a pool is on. */
static __always_inline int on_get_pool_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct location location = {.type = LOCATION_DEVICE, .id = entry.arg[1]};
    if (!process)
        return 0;
    u64 offset = CALL_DETAIL(call) == 1 ? PROPERTIES_LOCATION : 0;
    if (CALL_DETAIL(call) &&
        read_user(&location, sizeof(location), (void *)(entry.arg[1] + offset)))
        lose(LOST_UNREADABLE);
    struct handle pool = {.device = location.type == LOCATION_DEVICE ? device_number(location.id)
                                                                     : DEVICE_UNKNOWN};
    keep(process, stored(entry.arg[0]), SPACE_POOL, &pool);
    return 0;
}

/* Memory of any device may be freed in any context: where it was isn't known. */
static __always_inline u32 device_of_unknown(struct process *process) {
    return process->late || process->multi || !process->settled ? DEVICE_UNKNOWN : process->home;
}

/* Whether it went with its context already. */
static __always_inline bool is_gone(struct process *process, struct allocation *allocation) {
    return allocation->context && allocation->made && !context_with(process, allocation);
}

static __always_inline int on_free(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    struct graph *capture;
    if (!process)
        return 0;
    struct pending entry = {.call = call, .address = SIZE(call, ARG(ctx, 0))};
    spot_of(process, call, stream_argument(ctx, call), &capture);
    if (capture) /* frees nothing now */
        return 0;
    struct name name = name_of(process, entry.address, space_of(CALL_DETAIL(call)));
    struct allocation *allocation = is_tracked(process) ? allocations.lookup(&name) : 0;
    entry.taken.kind = KIND_UNKNOWN;
    entry.taken.device = device_of_unknown(process);
    if (allocation) {
        if (!is_gone(process, allocation))
            entry.taken = *allocation;
        allocations.delete(&name);
    }
    return enter(&entry);
}

static __always_inline int on_free_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    u32 result = RESULT(ctx), kind = entry.taken.kind;
    if (!process)
        return 0;
    if (result) {
        failed(process, call, result);
        struct name name = name_of(process, entry.address, space_of(CALL_DETAIL(call)));
        if (kind != KIND_UNKNOWN)
            allocations.update(&name, &entry.taken);
        return 0;
    }
    struct share *share = share_of(process, entry.taken.device);
    /* Freeing NULL succeeds and frees nothing. */
    if (!share || !entry.address || kind == KIND_UNCOUNTED)
        return 0;
    count_free(share, kind, entry.taken.bytes);
    charge_context(process, &entry.taken, -1, -entry.taken.bytes);
    return 0;
}
