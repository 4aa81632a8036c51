/* Virtual memory management. Physical memory has a handle, may have several, and is mapped at any
 * number of addresses; it is freed when the last handle is released and the last mapping undone,
 * whichever comes last. */

#define GRANULE (2ULL << 20) /* mappings are multiples of it */
#define MOST_UNMAPPED 128    /* mappings that one call undoes */

static __always_inline struct allocation *physical(struct process *process, u64 value) {
    struct name name = name_of(process, value, SPACE_PHYSICAL);
    return allocations.lookup(&name);
}

static __always_inline void free_if_unused(struct process *process, u64 value,
                                           struct allocation *memory) {
    if (memory->handles || memory->mappings)
        return;
    struct share *share = share_of(process, memory->device);
    if (share && memory->kind < KINDS)
        count_free(share, memory->kind, memory->bytes);
    struct name name = name_of(process, value, SPACE_PHYSICAL);
    allocations.delete(&name);
}

/* cuMemRelease(handle): taken back on entry, for the handle's value may be given anew as soon as
 * the driver has it; if the call fails, it is put right. `taken.handles` is then what is left. */
static __always_inline int on_release_memory(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    struct pending entry = {.call = call, .address = ARG(ctx, 0)};
    if (!process)
        return 0;
    struct allocation *memory = is_tracked(process) ? physical(process, entry.address) : 0;
    if (memory && memory->handles) {
        memory->handles--;
        entry.taken = *memory;
        struct name name = name_of(process, entry.address, SPACE_PHYSICAL);
        if (!memory->handles && !memory->mappings)
            allocations.delete(&name);
    } else {
        entry.taken.kind = KIND_UNKNOWN;
        entry.taken.device = device_of_unknown(process);
    }
    return enter(&entry);
}

static __always_inline int on_release_memory_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    u32 result = RESULT(ctx), kind = entry.taken.kind;
    bool rest = entry.taken.handles || entry.taken.mappings;
    if (!process)
        return 0;
    if (!result) {
        struct share *share = share_of(process, entry.taken.device);
        if (share && !rest && kind != KIND_UNCOUNTED)
            count_free(share, kind, entry.taken.bytes);
        return 0;
    }
    failed(process, call, result);
    if (kind == KIND_UNKNOWN)
        return 0;
    struct allocation *memory = rest ? physical(process, entry.address) : 0;
    struct name name = name_of(process, entry.address, SPACE_PHYSICAL);
    entry.taken.handles++;
    if (memory)
        memory->handles++;
    else
        allocations.update(&name, &entry.taken);
    return 0;
}

/* (handle *out, …): one handle more, of memory that is mapped (cuMemRetainAllocationHandle) or of
 * another process (cuMemImportFromShareableHandle, detail 1), who allocated it; cuMulticastCreate
 * allocates none. */
static __always_inline int on_retain_memory_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (!process)
        return 0;
    u64 value = stored(entry.arg[0]);
    struct allocation *memory = physical(process, value);
    if (memory) {
        __sync_fetch_and_add(&memory->handles, 1);
        return 0;
    }
    struct name name = name_of(process, value, SPACE_PHYSICAL);
    struct allocation other = {.kind = KIND_UNCOUNTED, .device = DEVICE_UNKNOWN, .handles = 1};
    if (CALL_DETAIL(call) && is_tracked(process) && allocations.update(&name, &other))
        lose(LOST_ALLOCATIONS);
    return 0;
}

/* cuMemMap(address, bytes, offset, handle, flags) */
static __always_inline int on_map_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct allocation *memory = process ? physical(process, entry.arg[3]) : 0;
    if (!memory)
        return 0;
    __sync_fetch_and_add(&memory->mappings, 1);
    struct handle mapping = {.to = entry.arg[3], .capture = entry.arg[1]};
    keep(process, entry.arg[0], SPACE_MAPPING, &mapping);
    return 0;
}

/* cuMemUnmap(address, bytes): whole mappings, one or many */
static __always_inline int on_unmap_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (!process)
        return 0;
    u64 at = entry.arg[0], end = at + entry.arg[1];
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < MOST_UNMAPPED && at < end; i++) {
        struct handle *mapping = handle_of(process, at, SPACE_MAPPING);
        u64 bytes = mapping ? mapping->capture : GRANULE;
        if (mapping) {
            u64 value = mapping->to;
            struct allocation *memory = physical(process, value);
            forget(process, at, SPACE_MAPPING);
            if (memory && memory->mappings) {
                __sync_fetch_and_add(&memory->mappings, -1);
                free_if_unused(process, value, memory);
            }
        }
        at += bytes ? bytes : GRANULE;
    }
    if (at < end)
        lose(LOST_UNMAPPED);
    return 0;
}
