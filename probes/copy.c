/* Copies and sets: the bytes are known on entry and true on a successful return. For the
 * asynchronous forms that is when the work is enqueued. */

static __always_inline int transfer(u64 call, u32 lane, u64 bytes) {
    struct pending entry = {.call = call, .bytes = bytes, .lane = lane};
    if (counted(call))
        enter(&entry);
    return 0;
}

static __always_inline int copied(u64 call, u32 direction, u64 bytes) {
    return transfer(call, LANE_COPIED_BYTES + direction, bytes);
}

static __always_inline int on_transfer_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    if (!process)
        return 0;
    u32 result = RESULT(ctx);
    if (result)
        failed(process, call, result);
    else
        add_bytes(process, entry.lane, entry.bytes);
    return 0;
}

static __always_inline int on_copy_2(struct pt_regs *ctx, u64 call) {
    return copied(call, CALL_DETAIL(call), SIZE(call, ARG(ctx, 2)));
}

static __always_inline int on_copy_3(struct pt_regs *ctx, u64 call) {
    return copied(call, CALL_DETAIL(call), SIZE(call, ARG(ctx, 3)));
}

static __always_inline int on_copy_4(struct pt_regs *ctx, u64 call) {
    return copied(call, CALL_DETAIL(call), SIZE(call, ARG(ctx, 4)));
}

static __always_inline bool on_device(u32 type) {
    return type == MEMORY_DEVICE || type == MEMORY_ARRAY;
}

static __always_inline u32 direction_between(u32 src, u32 dst) {
    if (on_device(src))
        return on_device(dst)       ? DIRECTION_DEVICE_TO_DEVICE
               : dst == MEMORY_HOST ? DIRECTION_DEVICE_TO_HOST
                                    : DIRECTION_UNKNOWN;
    return src == MEMORY_HOST && on_device(dst) ? DIRECTION_HOST_TO_DEVICE : DIRECTION_UNKNOWN;
}

static __always_inline int on_copy_2d(struct pt_regs *ctx, u64 call) {
    void *from = (void *)ARG(ctx, 0);
    struct copy_2d wide = {};
    struct copy_2d_narrow narrow = {};
    if (CALL_NARROW(call)) {
        if (read_user(&narrow, sizeof(narrow), from))
            lose(LOST_UNREADABLE);
        return copied(call, direction_between(narrow.src_type, narrow.dst_type),
                      (u64)narrow.width * narrow.height);
    }
    if (read_user(&wide, sizeof(wide), from))
        lose(LOST_UNREADABLE);
    return copied(call, direction_between(wide.src_type, wide.dst_type), wide.width * wide.height);
}

static __always_inline int on_copy_3d(struct pt_regs *ctx, u64 call) {
    void *from = (void *)ARG(ctx, 0);
    struct copy_3d wide = {};
    struct copy_3d_narrow narrow = {};
    if (CALL_NARROW(call)) {
        if (read_user(&narrow, sizeof(narrow), from))
            lose(LOST_UNREADABLE);
        return copied(call, direction_between(narrow.src_type, narrow.dst_type),
                      (u64)narrow.width * narrow.height * narrow.depth);
    }
    if (read_user(&wide, sizeof(wide), from))
        lose(LOST_UNREADABLE);
    u32 direction = CALL_DETAIL(call) == DIRECTION_PEER
                        ? DIRECTION_PEER
                        : direction_between(wide.src_type, wide.dst_type);
    return copied(call, direction, wide.width * wide.height * wide.depth);
}

#define MOST_IN_BATCH 256

/* cuMemcpyBatchAsync(dsts, srcs, sizes, count, …) */
static __always_inline int on_copy_batch(struct pt_regs *ctx, u64 call) {
    u64 sizes = ARG(ctx, 2), count = ARG(ctx, 3), sum = 0;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < MOST_IN_BATCH; i++) {
        u64 bytes = 0;
        if (i >= count)
            break;
        if (read_user(&bytes, sizeof(bytes), (void *)(sizes + i * sizeof(bytes)))) {
            lose(LOST_UNREADABLE);
            break;
        }
        sum += bytes;
    }
    if (count > MOST_IN_BATCH)
        lose(LOST_UNREADABLE);
    return copied(call, CALL_DETAIL(call), sum);
}

static __always_inline int was_set(u64 call, u64 elements) {
    return transfer(call, LANE_SET_BYTES, elements * CALL_DETAIL(call));
}

static __always_inline int on_set(struct pt_regs *ctx, u64 call) {
    return was_set(call, SIZE(call, ARG(ctx, 2)));
}

static __always_inline int on_set_2d(struct pt_regs *ctx, u64 call) {
    return was_set(call, SIZE(call, ARG(ctx, 3)) * SIZE(call, ARG(ctx, 4)));
}
