/* What a process is told of its devices, and what belongs to one by what it was made of. */

/* cuDeviceGetUuid(out, device), cuDeviceGetPCIBusId(out, length, device): `detail` says which. */
#define ANSWER_PCI_BUS_ID 2

static __always_inline int on_ask_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct answer answer = {};
    u32 device = CALL_DETAIL(call) == ANSWER_PCI_BUS_ID ? entry.arg[2] : entry.arg[1];
    u32 size = CALL_DETAIL(call) == ANSWER_PCI_BUS_ID ? 13 : 16;
    if (!process || device >= DEVICE_UNKNOWN)
        return 0;
    if (read_user(&answer, size, (void *)entry.arg[0])) {
        lose(LOST_UNREADABLE);
        return 0;
    }
    struct name name = name_of(process, device, CALL_DETAIL(call));
    if (is_tracked(process) && answers.update(&name, &answer))
        lose(LOST_ANSWERS);
    return 0;
}

/* cuGreenCtxCreate(out, description, device, flags) */
static __always_inline int on_create_green_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct handle green = {.device = device_number(entry.arg[2])};
    if (!process)
        return 0;
    keep(process, stored(entry.arg[0]), SPACE_GREEN, &green);
    struct context *primary = primary_of(process, green.device);
    if (primary)
        __sync_fetch_and_add(&primary->uses, 1);
    settle(process, green.device);
    return 0;
}

/* (out, …): a stream, a module (detail 1) or a function (detail 2) belongs to the current context.
 */
static __always_inline int on_create_here_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    u32 detail = CALL_DETAIL(call);
    u32 space = detail == 2 ? SPACE_FUNCTION : detail ? SPACE_MODULE : SPACE_STREAM;
    if (!process)
        return 0;
    struct handle made = {.to = owner_of(process, thread_context(current_thread())),
                          .device = current_device(process)};
    keep(process, stored(entry.arg[0]), space, &made);
    return 0;
}

/* (out, of, …): cuCtxFromGreenCtx, cuGreenCtxStreamCreate (detail 1), cuModuleGetFunction (2) */
static __always_inline int on_create_of_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    u32 detail = CALL_DETAIL(call);
    if (!process)
        return 0;
    struct handle *of = handle_of(process, entry.arg[1], detail == 2 ? SPACE_MODULE : SPACE_GREEN);
    struct handle made = {.device = of ? of->device : DEVICE_UNKNOWN};
    made.to = made.device + 1; /* of a stream: the primary context */
    if (detail)
        keep(process, stored(entry.arg[0]), detail == 2 ? SPACE_FUNCTION : SPACE_STREAM, &made);
    else
        note_context(process, stored(entry.arg[0]), made.device, true);
    return 0;
}
