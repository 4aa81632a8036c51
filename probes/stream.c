/* Streams and events, and the captures that they are part of. While a stream is being captured
 * nothing that is issued in it runs: it becomes part of a graph. A capture spreads to the streams
 * that wait for an event recorded in it, and ends in the stream in which it began. */

static __always_inline int on_destroy_stream_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    struct handle *stream = process ? handle_of(process, entry.arg[0], SPACE_STREAM) : 0;
    struct graph *capture = stream ? capture_of(process, stream->capture) : 0;
    if (capture && capture->origin == entry.arg[0])
        end_capture(process, stream->capture);
    if (stream)
        forget(process, entry.arg[0], SPACE_STREAM);
    return 0;
}

/* cuStreamGetCtx(stream, CUcontext *out), cuStreamGetDevice(stream, CUdevice *out) (detail 1) */
static __always_inline int on_ask_stream_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    u64 name = stream_name(call, entry.arg[0]), context = 0;
    u32 ordinal = DEVICE_UNKNOWN;
    if (!process || !process->late || !name || is_own(name))
        return 0;
    struct handle *known = handle_of(process, name, SPACE_STREAM);
    if (!CALL_DETAIL(call)) {
        context = stored(entry.arg[1]);
        ordinal = device_of_context(process, context);
    } else if (read_user(&ordinal, sizeof(ordinal), (void *)entry.arg[1])) {
        return 0;
    }
    struct handle stream = {.device = device_number(ordinal)};
    if (stream.device == DEVICE_UNKNOWN) {
        if (context && known && known->device < DEVICE_UNKNOWN)
            note_context(process, context, known->device, false);
    } else if (known) {
        known->device = stream.device;
    } else {
        keep(process, name, SPACE_STREAM, &stream);
    }
    return 0;
}

/* --- captures --- */

/* A stream that nothing is known of yet: the thread's own, or one from before we watched. */
static __always_inline void join_capture(struct process *process, u64 name, u64 id) {
    struct handle *stream = handle_of(process, name, SPACE_STREAM);
    if (stream) {
        stream->capture = id;
        return;
    }
    /* A thread's own stream is on whatever device is current to it. */
    struct handle made = {.capture = id, .device = DEVICE_UNKNOWN};
    keep(process, name, SPACE_STREAM, &made);
}

/* cuStreamBeginCapture(stream, …), cuStreamBeginCaptureToGraph(stream, graph, …) (detail 1) */
static __always_inline int on_begin_capture_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = succeeded(ctx, call, &entry);
    u64 origin = stream_name(call, entry.arg[0]);
    if (!process || !is_tracked(process))
        return 0;
    struct handle *stream = handle_of(process, origin, SPACE_STREAM);
    u64 in =
        stream && stream->to ? stream->to : owner_of(process, thread_context(current_thread()));
    struct context *context = owner(process, in);
    /* Two captures of a process may begin in the same nanosecond, but not in the same stream. */
    struct graph capture = {.made = bpf_ktime_get_ns(),
                            .parent = CALL_DETAIL(call) ? entry.arg[1] : 0,
                            .origin = origin,
                            .context = in,
                            .context_made = context ? context->made : 0};
    u64 id = capture.made + origin;
    struct name name = name_of(process, id, SPACE_CAPTURE);
    if (graphs.update(&name, &capture)) {
        lose(LOST_GRAPHS);
        return 0;
    }
    __sync_fetch_and_add(&process->captures, 1);
    join_capture(process, origin, id);
    return 0;
}

/* cuStreamEndCapture(stream, CUgraph *out) */
#define ERROR_CAPTURE_INVALIDATED 901
#define ERROR_CAPTURE_UNJOINED 904

static __always_inline int on_end_capture_return(struct pt_regs *ctx, u64 call) {
    struct pending entry = {};
    struct process *process = leave(call, &entry);
    u32 result = RESULT(ctx);
    if (!process)
        return 0;
    if (result)
        failed(process, call, result);
    /* A capture that went wrong is over; other errors are about the call. */
    if (result && result != ERROR_CAPTURE_INVALIDATED && result != ERROR_CAPTURE_UNJOINED)
        return 0;
    struct handle *stream = handle_of(process, stream_name(call, entry.arg[0]), SPACE_STREAM);
    u64 id = stream ? stream->capture : 0;
    struct graph *capture = capture_of(process, id);
    if (!capture)
        return 0; /* it began before we watched: its graph stays unknown */
    struct graph *given = capture->parent ? graph_of(process, capture->parent, SPACE_GRAPH) : 0;
    if (!result)
        finish_graph(process, capture, given, stored(entry.arg[1]));
    else if (given)
        given->unknown = 1;
    end_capture(process, id);
    return 0;
}

/* An event of a graph's own (CU_EVENT_RECORD_EXTERNAL, CU_EVENT_WAIT_EXTERNAL): a node does it, and
 * no stream joins. */
#define EXTERNAL 1

static __always_inline void record_event(struct pt_regs *ctx, u64 call, struct process *process,
                                         u64 event) {
    struct graph *capture;
    u64 name = stream_name(call, ARG(ctx, 1));
    struct handle made = {.device = spot_of(process, call, ARG(ctx, 1), &capture)};
    bool external = CALL_DETAIL(call) == 1 && ARG(ctx, 2) & EXTERNAL;
    struct handle *stream = capture && !external ? handle_of(process, name, SPACE_STREAM) : 0;
    if (stream)
        made.capture = stream->capture;
    if (made.capture || process->multi || process->late)
        keep(process, event, SPACE_EVENT, &made);
    else
        forget(process, event, SPACE_EVENT);
}

/* cuEventRecord(event, stream), with flags (detail 1); cuEventDestroy(event) (detail 2). On entry:
 * they are called often, and hardly ever fail. */
static __always_inline int on_record_event(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    u64 event = ARG(ctx, 0);
    if (process && CALL_DETAIL(call) == 2)
        forget(process, event, SPACE_EVENT);
    else if (process && process->way != PLAIN_WAY && is_tracked(process))
        record_event(ctx, call, process, event);
    return 0;
}

/* cuStreamWaitEvent(stream, event, flags), on entry */
static __always_inline int on_wait_event(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    if (!process || !process->captures || !is_tracked(process) || ARG(ctx, 2) & EXTERNAL)
        return 0;
    u64 name = stream_name(call, ARG(ctx, 0));
    struct handle *event = name ? handle_of(process, ARG(ctx, 1), SPACE_EVENT) : 0;
    if (event && capture_of(process, event->capture))
        join_capture(process, name, event->capture);
    return 0;
}
