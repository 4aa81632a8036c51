/* Launches of kernels and host functions, on entry: a return would double their cost. */

static __always_inline int on_count(struct pt_regs *ctx, u64 call) {
    counted(call);
    return 0;
}

static __always_inline void launched(struct process *process, u64 call, u64 stream, u32 lane) {
    struct graph *capture;
    u32 device = spot_of(process, call, stream, &capture);
    if (capture && lane == LANE_KERNEL_LAUNCHES) {
        lane = LANE_CAPTURED_LAUNCHES;
        change_kernels(capture, device, 1);
    } else if (capture) {
        return;
    }
    struct share *share = share_of(process, device);
    if (share)
        add(share, lane, 1);
}

/* What is launched; cuLaunchKernelEx has its stream in CUlaunchConfig, its first argument. */
#define LAUNCH_KERNEL 0
#define LAUNCH_HOST_FUNCTION 1
#define LAUNCH_CONFIG 2
#define CONFIG_STREAM 32

static __always_inline int on_launch(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    u32 detail = CALL_DETAIL(call);
    if (!process)
        return 0;
    u32 lane = detail == LAUNCH_HOST_FUNCTION ? LANE_HOST_FUNCTIONS : LANE_KERNEL_LAUNCHES;
    if (process->way == PLAIN_WAY) {
        add(&process->share, lane, 1);
        return 0;
    }
    u64 stream = 0;
    if (detail != LAUNCH_CONFIG)
        stream = stream_argument(ctx, call);
    else if (read_user(&stream, sizeof(stream), (void *)(ARG(ctx, 0) + CONFIG_STREAM)))
        lose(LOST_UNREADABLE);
    launched(process, call, stream, lane);
    return 0;
}

/* cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *, numDevices, flags): a kernel on each
 * of several devices, which their streams tell. */
#define MULTI_BYTES 56
#define MULTI_STREAM 40

static __always_inline int on_launch_multi(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    u32 devices = ARG(ctx, 1);
    if (!process || devices > DEVICES)
        return 0;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < DEVICES && i < devices; i++) {
        u64 stream = 0;
        if (read_user(&stream, sizeof(stream),
                      (void *)(ARG(ctx, 0) + i * MULTI_BYTES + MULTI_STREAM)))
            lose(LOST_UNREADABLE);
        launched(process, call, stream, LANE_KERNEL_LAUNCHES);
    }
    return 0;
}
