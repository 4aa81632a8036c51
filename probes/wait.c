/* Waits: how long a thread was blocked in a synchronizing call. */

static __always_inline int on_wait(struct pt_regs *ctx, u64 call) {
    struct pending entry = {.call = call, .since = bpf_ktime_get_ns()};
    if (counted(call))
        enter(&entry);
    return 0;
}

static __always_inline int on_wait_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    if (!process)
        return 0;
    add(process, LANE_WAIT_NANOSECONDS, bpf_ktime_get_ns() - entry.since);
    u32 result = RESULT(ctx);
    if (result)
        failed(process, call, result);
    return 0;
}
