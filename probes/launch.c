/* Launches, graph launches, host functions and whatever is only counted: on entry. */

static __always_inline int on_count(struct pt_regs *ctx, u64 call) {
    counted(call);
    return 0;
}

/* cuLaunchCooperativeKernelMultiDevice(list, numDevices, flags) launches one kernel a device. */
static __always_inline int on_launch_multi(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    u32 devices = ARG(ctx, 1);
    if (process && devices <= 1024)
        add(process, LANE_MULTI_DEVICE_LAUNCHES, devices);
    return 0;
}
