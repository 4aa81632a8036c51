/* Allocations and frees: known on entry, true on a successful return.
 *
 * A free takes its address out of the map on entry, before the driver frees it: once it has,
 * another thread may be given the same address and record it before this thread's return is
 * seen. If the free fails, the address is put back. */

static __always_inline int begin_alloc(u64 call, u64 out, u64 bytes) {
    struct pending entry = {.call = call, .out = out, .bytes = bytes};
    if (counted(call))
        enter(&entry);
    return 0;
}

static __always_inline struct address address_of(struct process *process, u64 value, u32 space) {
    struct address address = {
        .value = value,
        .born = process->born,
        .pid = bpf_get_current_pid_tgid() >> 32,
        .space = space,
    };
    return address;
}

static __always_inline u32 space_of(u32 kind) {
    return kind == KIND_VIRTUAL ? SPACE_HANDLE : kind == KIND_ARRAY ? SPACE_ARRAY : SPACE_ADDRESS;
}

static __always_inline int on_alloc_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    if (!process)
        return 0;
    u32 result = RESULT(ctx);
    if (result) {
        failed(process, call, result);
        return 0;
    }
    u32 kind = CALL_DETAIL(call);
    add(process, LANE_ALLOCATIONS + kind, 1);
    add_bytes(process, LANE_ALLOCATED_BYTES + kind, entry.bytes);

    u64 pointer = 0;
    /* Of the narrow forms only those of device memory give a narrow pointer. */
    u32 size = CALL_NARROW(call) && kind == KIND_DEVICE ? 4 : 8;
    if (read_user(&pointer, size, (void *)entry.out)) {
        lose(LOST_UNREADABLE);
        return 0;
    }
    struct address address = address_of(process, pointer, space_of(kind));
    struct allocation allocation = {.bytes = entry.bytes, .kind = kind};
    if (allocations.update(&address, &allocation))
        lose(LOST_ALLOCATIONS);
    return 0;
}

static __always_inline int on_alloc(struct pt_regs *ctx, u64 call) {
    return begin_alloc(call, ARG(ctx, 0), SIZE(call, ARG(ctx, 1)));
}

static __always_inline int on_alloc_pitch(struct pt_regs *ctx, u64 call) {
    u64 width = SIZE(call, ARG(ctx, 2)), height = SIZE(call, ARG(ctx, 3));
    return begin_alloc(call, ARG(ctx, 0), width * height);
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

static __always_inline int begin_array(u64 call, u64 out, u64 texel_count, u32 format,
                                       u32 channels) {
    u64 bytes = texel_count * channels * channel_bytes(format);
    if (texel_count && channels && !bytes)
        lose(LOST_UNREADABLE); /* a compressed or planar format: its bytes are not known */
    return begin_alloc(call, out, bytes);
}

static __always_inline int on_array_2d(struct pt_regs *ctx, u64 call) {
    struct array_2d wide = {};
    struct array_2d_narrow narrow = {};
    void *from = (void *)ARG(ctx, 1);
    if (CALL_NARROW(call)) {
        if (read_user(&narrow, sizeof(narrow), from))
            lose(LOST_UNREADABLE);
        return begin_array(call, ARG(ctx, 0), texels(narrow.width, narrow.height, 1), narrow.format,
                           narrow.channels);
    }
    if (read_user(&wide, sizeof(wide), from))
        lose(LOST_UNREADABLE);
    return begin_array(call, ARG(ctx, 0), texels(wide.width, wide.height, 1), wide.format,
                       wide.channels);
}

static __always_inline int on_array_3d(struct pt_regs *ctx, u64 call) {
    struct array_3d array = {};
    if (!read_array_3d(call, ARG(ctx, 1), &array))
        lose(LOST_UNREADABLE);
    return begin_array(call, ARG(ctx, 0), texels(array.width, array.height, array.depth),
                       array.format, array.channels);
}

#define MOST_LEVELS 24 /* an array has at most 1 + log2(131072) */

static __always_inline int on_mipmap(struct pt_regs *ctx, u64 call) {
    struct array_3d array = {};
    if (!read_array_3d(call, ARG(ctx, 1), &array))
        lose(LOST_UNREADABLE);
    u32 levels = at_least_1((u32)ARG(ctx, 2));
    /* CUDA_ARRAY3D_LAYERED: the depth counts layers and isn't halved. */
    u64 sum = 0, layered = array.flags & 1;
    /* The driver makes no level after that of extent 1; the or has as many bits as the largest. */
    u64 extents = array.width | array.height | (layered ? 0 : array.depth);
#pragma clang loop unroll(disable)
    for (u32 level = 0; level < MOST_LEVELS; level++) {
        if (level >= levels || !(extents >> level))
            break;
        sum += texels(at_least_1(array.width >> level), array.height >> level,
                      array.depth >> level * !layered);
    }
    return begin_array(call, ARG(ctx, 0), sum, array.format, array.channels);
}

static __always_inline int on_free(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    if (!process)
        return 0;
    struct pending entry = {.call = call, .address = SIZE(call, ARG(ctx, 0)), .kind = KIND_UNKNOWN};
    struct address address = address_of(process, entry.address, space_of(CALL_DETAIL(call)));
    struct allocation *allocation = allocations.lookup(&address);
    if (allocation) {
        entry.bytes = allocation->bytes;
        entry.kind = allocation->kind;
        allocations.delete(&address);
    }
    enter(&entry);
    return 0;
}

static __always_inline int on_free_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    if (!process)
        return 0;
    u32 result = RESULT(ctx), kind = entry.kind;
    if (!result) {
        if (entry.address) { /* freeing NULL succeeds and frees nothing */
            add(process, LANE_FREES + kind, 1);
            add_bytes(process, LANE_FREED_BYTES + kind, entry.bytes);
        }
        return 0;
    }
    failed(process, call, result);
    if (kind != KIND_UNKNOWN) {
        struct address address = address_of(process, entry.address, space_of(CALL_DETAIL(call)));
        struct allocation allocation = {.bytes = entry.bytes, .kind = kind};
        allocations.update(&address, &allocation);
    }
    return 0;
}
