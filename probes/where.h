/* On which device a call works, and whether its stream is being captured.
 *
 * A process with one device that captures nothing has one answer, in its own entry. Of others, a
 * stream tells its device and its capture; without a stream, the thread's current context tells. */
#ifndef GPUBPF_WHERE_H
#define GPUBPF_WHERE_H

/* The overflow stands for many processes: what their handles mean is not kept. */
static __always_inline bool is_tracked(struct process *process) { return process->born != 0; }

static __always_inline struct name name_of(struct process *process, u64 value, u32 space) {
    struct name name = {
        .value = value, .born = process->born, .pid = current_pid(), .space = space};
    return name;
}

/* The same name in the process that this one was forked from. Asked for where a call is attributed:
 * a fork that goes on with what it inherited makes no new handles. */
static __always_inline bool inherited(struct process *process, struct name *name) {
    name->pid = process->parent;
    name->born = process->parent_born;
    return process->parent != 0;
}

static __always_inline struct handle *handle_of(struct process *process, u64 value, u32 space) {
    struct name name = name_of(process, value, space);
    return handles.lookup(&name);
}

static __always_inline struct context *context_of(struct process *process, u64 value) {
    struct name name = name_of(process, value, SPACE_CONTEXT);
    return contexts.lookup(&name);
}

static __always_inline struct graph *graph_of(struct process *process, u64 value, u32 space) {
    struct name name = name_of(process, value, space);
    return graphs.lookup(&name);
}

static __always_inline void keep(struct process *process, u64 value, u32 space,
                                 struct handle *handle) {
    struct name name = name_of(process, value, space);
    if (is_tracked(process) && handles.update(&name, handle)) {
        process->late = 1; /* it has something of which we don't know where it is */
        lose(LOST_HANDLES);
    }
}

static __always_inline void forget(struct process *process, u64 value, u32 space) {
    struct name name = name_of(process, value, space);
    handles.delete(&name);
}

static __always_inline u32 device_number(u32 ordinal) {
    return ordinal < DEVICE_UNKNOWN ? ordinal : DEVICE_UNKNOWN;
}

/* The process has a context on this device. Which one was the first is decided by an insertion:
 * of two threads that come at once, one wins, and the other sees who did. */
static __always_inline void settle(struct process *process, u32 device) {
    if (device >= DEVICE_UNKNOWN || !is_tracked(process))
        return;
    if (!process->settled) {
        struct name name = name_of(process, 0, SPACE_HOME);
        struct handle first = {.device = device};
        handles.insert(&name, &first);
        struct handle *home = handles.lookup(&name);
        if (!home) {
            process->late = 1;
            lose(LOST_HANDLES);
            return;
        }
        process->home = home->device;
        process->settled = 1;
    }
    if (device != process->home)
        process->multi = 1;
}

static __always_inline struct thread *current_thread(void) {
    u64 id = bpf_get_current_pid_tgid();
    return threads.lookup(&id);
}

static __always_inline bool has_context(struct thread *thread) {
    return thread && thread->depth > thread->floor;
}

static __always_inline u64 thread_context(struct thread *thread) {
    return has_context(thread) ? thread->context[thread->depth % MOST_CONTEXTS] : 0;
}

static __always_inline u32 device_of_context(struct process *process, u64 value) {
    struct name name = name_of(process, value, SPACE_CONTEXT);
    struct context *context = contexts.lookup(&name);
    if (!context && inherited(process, &name))
        context = contexts.lookup(&name);
    return context ? context->device : DEVICE_UNKNOWN;
}

/* Which context takes along what was made in it: itself, or of the primary one's handles their
 * device's number from 1, which is no pointer. */
static __always_inline u64 owner_of(struct process *process, u64 value) {
    struct context *context = value ? context_of(process, value) : 0;
    return context && context->primary ? context->device + 1 : value;
}

static __always_inline struct context *owner(struct process *process, u64 value) {
    bool primary = value <= DEVICES;
    struct name name =
        name_of(process, primary ? value - 1 : value, primary ? SPACE_PRIMARY : SPACE_CONTEXT);
    return value ? contexts.lookup(&name) : 0;
}

static __always_inline u32 thread_device(struct process *process) {
    struct thread *thread = current_thread();
    if (!has_context(thread))
        return DEVICE_UNKNOWN;
    u32 top = thread->depth % MOST_CONTEXTS;
    if (thread->device[top] < DEVICE_UNKNOWN)
        return thread->device[top];
    return device_of_context(process, thread->context[top]); /* known since then? */
}

/* Where a call works that has no stream. */
static __always_inline u32 current_device(struct process *process) {
    if (process->settled && !process->late && !process->multi)
        return process->home;
    return thread_device(process);
}

#define STREAM_LEGACY 1
#define STREAM_PER_THREAD 2

/* A name for a stream: its handle, or one made for the stream that a thread has in each context;
 * 0: the legacy one, or none, as synchronous calls have. Handles are aligned, so no two are alike.
 */
static __always_inline u64 stream_name(u64 call, u64 stream) {
    if (stream == STREAM_PER_THREAD || (!stream && CALL_PER_THREAD(call)))
        return (bpf_get_current_pid_tgid() << 42 ^ thread_context(current_thread()) >> 4 << 2) |
               STREAM_PER_THREAD;
    return stream == STREAM_LEGACY ? 0 : stream;
}

/* Whether a name is that of a thread's own stream. */
static __always_inline bool is_own(u64 name) { return (name & 3) == STREAM_PER_THREAD; }

static __always_inline void end_capture(struct process *process, u64 id) {
    struct name name = name_of(process, id, SPACE_CAPTURE);
    if (!graphs.delete(&name))
        __sync_fetch_and_add(&process->captures, -1);
}

/* The capture, if it is still under way: it ends with the context of the stream that it began in.
 */
static __always_inline struct graph *capture_of(struct process *process, u64 id) {
    if (!id || !process->captures)
        return 0;
    struct name name = name_of(process, id, SPACE_CAPTURE);
    struct graph *capture = graphs.lookup(&name);
    struct context *context = capture ? owner(process, capture->context) : 0;
    if (!capture || !capture->context_made || (context && context->made == capture->context_made))
        return capture;
    end_capture(process, id);
    return 0;
}

/* Where a call works, with the stream that it was given. `capture`: what it becomes a part of, or
 * NULL. */
static __always_inline u32 spot_of(struct process *process, u64 call, u64 stream,
                                   struct graph **capture) {
    *capture = 0;
    if (process->way == PLAIN_WAY)
        return process->home;
    u64 value = stream_name(call, stream);
    struct name name = name_of(process, value, SPACE_STREAM);
    struct handle *handle = name.value ? handles.lookup(&name) : 0;
    if (name.value && !handle && inherited(process, &name))
        handle = handles.lookup(&name);
    if (handle) {
        *capture = capture_of(process, handle->capture);
        if (handle->device < DEVICE_UNKNOWN)
            return handle->device;
    }
    /* A stream from before may be of any context; the legacy one and a thread's own are not. */
    if (value && !is_own(value) && process->late)
        return DEVICE_UNKNOWN;
    return current_device(process);
}

/* What the driver stored where an argument points to. */
static __always_inline u64 stored(u64 out) {
    u64 value = 0;
    if (read_user(&value, sizeof(value), (void *)out))
        lose(LOST_UNREADABLE);
    return value;
}

#endif
