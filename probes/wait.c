/* Waits: how long a thread was blocked in a synchronizing call. */

/* cuCtxSynchronize; (CUcontext) (detail 1); (CUevent) (detail 2); (CUstream) as stream argument */
static __always_inline u32 device_of_wait(struct process *process, u64 call,
                                          struct pending *entry) {
    struct graph *capture;
    if (process->way == PLAIN_WAY)
        return process->home;
    if (CALL_DETAIL(call) == 1 && entry->arg[0])
        return device_of_context(process, entry->arg[0]);
    if (CALL_DETAIL(call) == 2) {
        struct handle *event = handle_of(process, entry->arg[0], SPACE_EVENT);
        if (event)
            return event->device;
        /* Recorded before there was a second device, or never; or before we watched. */
        return process->late ? DEVICE_UNKNOWN : process->home;
    }
    return spot_of(process, call, entry->stream, &capture);
}

static __always_inline int on_wait_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    u32 result = RESULT(ctx);
    if (!process)
        return 0;
    u64 blocked = bpf_ktime_get_ns() - entry.since;
    struct share *share = share_of(process, device_of_wait(process, call, &entry));
    if (share) {
        add(share, LANE_WAITS, 1);
        add(share, LANE_WAIT_NANOSECONDS, blocked);
    }
    if (result)
        failed(process, call, result);
    return 0;
}
