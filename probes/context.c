/* Contexts: which exist, on which device, and which one is current to each thread. */

static __always_inline int on_init(struct pt_regs *ctx, u64 call) {
    u32 pid = current_pid();
    struct process *process = processes.lookup(&pid);
    if (!process)
        process = newcomer(pid, call, true);
    if (process)
        count_call(process, call);
    return 0;
}

/* --- the thread's stack of current contexts --- */

static __always_inline struct thread *thread_entry(void) {
    u64 id = bpf_get_current_pid_tgid();
    struct thread *thread = threads.lookup(&id);
    if (thread)
        return thread;
    struct thread none = {};
    threads.update(&id, &none);
    thread = threads.lookup(&id);
    if (!thread)
        lose(LOST_THREADS);
    return thread;
}

static __always_inline void set_top(struct thread *thread, u64 context, u32 device) {
    u32 depth = thread->depth, top = depth % MOST_CONTEXTS;
    thread->context[top] = context;
    thread->device[top] = device;
    if (depth <= thread->floor)
        thread->floor = depth - 1;
    else if (depth > thread->floor + MOST_CONTEXTS)
        thread->floor = depth - MOST_CONTEXTS;
}

static __always_inline void make_current(struct thread *thread, u64 context, u32 device,
                                         bool push) {
    if (push || !thread->depth)
        thread->depth++;
    set_top(thread, context, device);
}

static __always_inline void pop(void) {
    struct thread *thread = current_thread();
    if (thread && thread->depth)
        thread->depth--;
}

/* --- contexts --- */

static __always_inline struct name primary_name(struct process *process, u32 device) {
    return name_of(process, device, SPACE_PRIMARY);
}

static __always_inline struct context *primary_of(struct process *process, u32 device) {
    struct name name = primary_name(process, device);
    struct context *primary = contexts.lookup(&name);
    if (primary || !is_tracked(process))
        return primary;
    struct context none = {.made = bpf_ktime_get_ns(), .device = device};
    if (contexts.update(&name, &none))
        lose(LOST_CONTEXTS);
    return contexts.lookup(&name);
}

static __always_inline void note_context(struct process *process, u64 value, u32 device,
                                         bool primary) {
    struct name name = name_of(process, value, SPACE_CONTEXT);
    struct context *known = contexts.lookup(&name);
    if (!is_tracked(process))
        return;
    if (known && known->device == device) {
        known->primary |= primary;
        return;
    }
    struct context context = {
        .made = bpf_ktime_get_ns(), .device = device, .uses = 1, .primary = primary};
    if (contexts.update(&name, &context)) {
        process->late = 1;
        lose(LOST_CONTEXTS);
    }
    settle(process, device);
}

/* The memory that was allocated in it goes with it. */
static __always_inline void empty_context(struct process *process, struct context *context) {
    struct share *share = share_of(process, context->device);
    if (!share)
        return;
#pragma clang loop unroll(disable)
    for (u32 kind = 0; kind < KINDS; kind++) {
        add(share, LANE_IMPLICIT_FREES + kind, context->count[kind]);
        add_bytes(share, LANE_IMPLICITLY_FREED_BYTES + kind, context->bytes[kind]);
        if (kind != KIND_HOST)
            __sync_fetch_and_add(&share->live, -context->bytes[kind]);
        context->count[kind] = context->bytes[kind] = 0;
    }
    context->made = bpf_ktime_get_ns();
}

/* (CUcontext *out, …, CUdevice): the device is argument `detail`. */
static __always_inline int on_create_context_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (!process)
        return 0;
    u64 place = CALL_DETAIL(call), made = stored(entry.arg[0]);
    u32 device = below(&place, 6) ? device_number(entry.arg[place]) : DEVICE_UNKNOWN;
    /* Another context may have had this handle, and its end was not seen. */
    struct name name = name_of(process, made, SPACE_CONTEXT);
    contexts.delete(&name);
    note_context(process, made, device, false);
    struct thread *thread = thread_entry();
    if (thread)
        make_current(thread, made, device, true);
    return 0;
}

static __always_inline int on_retain_primary_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (!process)
        return 0;
    u32 device = device_number(entry.arg[1]);
    struct context *primary = primary_of(process, device);
    if (primary)
        __sync_fetch_and_add(&primary->uses, 1);
    note_context(process, stored(entry.arg[0]), device, true);
    return 0;
}

/* Of a process that we came late to, it isn't known how often it retained the context: only a
 * reset ends it. A reset leaves it retained as often as it was. */
static __always_inline void release_primary(struct process *process, u32 device, bool reset) {
    struct context *primary = primary_of(process, device);
    if (!primary)
        return;
    if (!reset && primary->uses)
        __sync_fetch_and_add(&primary->uses, -1);
    if (reset || (!primary->uses && !process->late))
        empty_context(process, primary);
}

/* cuDevicePrimaryCtxRelease, …Reset (detail 1), cuGreenCtxDestroy (detail 2): a green context
 * retains the primary one. */
static __always_inline int on_release_primary_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    u32 device = device_number(entry.arg[0]);
    if (process && CALL_DETAIL(call) == 2) {
        struct handle *green = handle_of(process, entry.arg[0], SPACE_GREEN);
        device = green ? green->device : DEVICE_UNKNOWN;
        forget(process, entry.arg[0], SPACE_GREEN);
    }
    if (process && device < DEVICE_UNKNOWN)
        release_primary(process, device, CALL_DETAIL(call) == 1);
    return 0;
}

/* (CUcontext): cuCtxDestroy, and cuCtxDetach (detail 1), which destroys with the last use. */
static __always_inline int on_destroy_context_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (!process)
        return 0;
    struct name name = name_of(process, entry.arg[0], SPACE_CONTEXT);
    struct context *context = contexts.lookup(&name);
    if (context && CALL_DETAIL(call) && context->uses > 1) {
        context->uses--;
        return 0;
    }
    if (context)
        empty_context(process, context);
    contexts.delete(&name);
    struct thread *thread = current_thread();
    /* Of a current context from before, only the device may be known: it may be this one. */
    if (has_context(thread) && (!thread_context(thread) || thread_context(thread) == entry.arg[0]))
        thread->depth--;
    return 0;
}

/* cuCtxAttach(CUcontext *out, flags): one use more of the current one. */
static __always_inline int on_attach_context_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct context *context = process ? context_of(process, stored(entry.arg[0])) : 0;
    if (context)
        context->uses++;
    return 0;
}

/* (CUcontext): cuCtxSetCurrent, and cuCtxPushCurrent (detail 1). */
static __always_inline int on_set_current_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    if (!process)
        return 0;
    if (!entry.arg[0]) {
        pop(); /* cuCtxSetCurrent(NULL) */
        return 0;
    }
    struct thread *thread = thread_entry();
    if (thread)
        make_current(thread, entry.arg[0], device_of_context(process, entry.arg[0]),
                     CALL_DETAIL(call));
    return 0;
}

static __always_inline int on_pop_current_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    if (succeeded(ctx, call, &entry))
        pop();
    return 0;
}

/* --- what a process is told of its contexts: that is how those become known that it made before
 * we watched --- */

static __always_inline int on_get_current_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct thread *thread = process && process->late ? thread_entry() : 0;
    u64 context = thread ? stored(entry.arg[0]) : 0;
    if (context && thread_context(thread) != context)
        make_current(thread, context, device_of_context(process, context), false);
    return 0;
}

/* (CUdevice *out), and with the context as second argument (detail 1). */
static __always_inline int on_get_device_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct thread *thread = process && process->late ? thread_entry() : 0;
    u64 given = CALL_DETAIL(call) ? entry.arg[1] : 0;
    u32 ordinal = 0;
    if (!thread || read_user(&ordinal, sizeof(ordinal), (void *)entry.arg[0]))
        return 0;
    u32 device = device_number(ordinal);
    u64 context = given ? given : thread_context(thread);
    if (context && !context_of(process, context))
        note_context(process, context, device, false);
    settle(process, device);
    if (given && given != thread_context(thread))
        return 0;
    if (!thread->depth)
        thread->depth = 1;
    set_top(thread, context, device);
    return 0;
}
