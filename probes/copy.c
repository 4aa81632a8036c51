/* Copies and sets. For the asynchronous forms, that they returned means that the work is enqueued.
 */

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

/* What of a 2D or 3D copy's description matters. */
struct measure {
    u64 width, height, depth;
    u32 src_type, dst_type;
};

/* The structures are too large for the stack: field by field. Narrow fields fill the lower half. */
#define READ_FIELD(type, from, name, to)                                                           \
    read_user(&(to), sizeof(((type *)0)->name), (void *)((from) + offsetof(type, name)))

#define READ_COPY(type, from, out)                                                                 \
    (READ_FIELD(type, from, width, (out)->width) ||                                                \
     READ_FIELD(type, from, height, (out)->height) ||                                              \
     READ_FIELD(type, from, src_type, (out)->src_type) ||                                          \
     READ_FIELD(type, from, dst_type, (out)->dst_type))

static __always_inline bool read_copy(u64 call, u64 from, struct measure *out) {
    bool narrow = CALL_NARROW(call), deep = CALL_MEASURE(call) == MEASURE_COPY_3D;
    out->depth = !deep;
    if (narrow && deep)
        return !READ_COPY(struct copy_3d_narrow, from, out) &&
               !READ_FIELD(struct copy_3d_narrow, from, depth, out->depth);
    if (deep)
        return !READ_COPY(struct copy_3d, from, out) &&
               !READ_FIELD(struct copy_3d, from, depth, out->depth);
    if (narrow)
        return !READ_COPY(struct copy_2d_narrow, from, out);
    return !READ_COPY(struct copy_2d, from, out);
}

#define MOST_IN_BATCH 256

/* cuMemcpyBatchAsync(dsts, srcs, sizes, count, …) */
static __always_inline u64 sum_sizes(u64 sizes, u64 count) {
    u64 sum = 0;
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
    return sum;
}

/* The lane that a transfer is counted in, and its bytes. */
static __always_inline u32 measure_transfer(u64 call, struct pending *entry, u64 *bytes) {
    struct measure what = {};
    u32 measure = CALL_MEASURE(call), detail = CALL_DETAIL(call);
    switch (measure) {
    case MEASURE_SET:
        *bytes = SIZE(call, entry->arg[2]) * detail;
        return LANE_SET_BYTES;
    case MEASURE_SET_2D:
        *bytes = SIZE(call, entry->arg[3]) * SIZE(call, entry->arg[4]) * detail;
        return LANE_SET_BYTES;
    case MEASURE_COPY_2D:
    case MEASURE_COPY_3D:
        if (!read_copy(call, entry->arg[0], &what))
            lose(LOST_UNREADABLE);
        *bytes = what.width * what.height * what.depth;
        return LANE_COPIED_BYTES + (detail == DIRECTION_PEER
                                        ? DIRECTION_PEER
                                        : direction_between(what.src_type, what.dst_type));
    case MEASURE_BATCH:
        *bytes = sum_sizes(entry->arg[2], entry->arg[3]);
        return LANE_COPIED_BYTES + detail;
    case MEASURE_COPY_2:
        *bytes = SIZE(call, entry->arg[2]);
        return LANE_COPIED_BYTES + detail;
    case MEASURE_COPY_3:
        *bytes = SIZE(call, entry->arg[3]);
        return LANE_COPIED_BYTES + detail;
    }
    *bytes = SIZE(call, entry->arg[4]);
    return LANE_COPIED_BYTES + detail;
}

static __always_inline int on_transfer_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct graph *capture;
    u64 bytes = 0;
    if (!process)
        return 0;
    u32 device = spot_of(process, call, entry.stream, &capture);
    u32 lane = measure_transfer(call, &entry, &bytes);
    if (capture)
        lane = lane == LANE_SET_BYTES ? LANE_CAPTURED_SET_BYTES : LANE_CAPTURED_COPIED_BYTES;
    struct share *share = share_of(process, device);
    if (share)
        add_bytes(share, lane, bytes);
    return 0;
}
