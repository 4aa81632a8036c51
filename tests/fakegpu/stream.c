/* Streams, events, and waiting for simulated work. Work is done when it is submitted; what takes
 * time is only the clock of each stream, which the configured time of kernels moves on. */
#define _GNU_SOURCE
#include "graph.h"
#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum { NON_BLOCKING = 1, EVENT_NO_TIMING = 2, EXTERNAL = 1 };

static const CUstream legacy_handle = (CUstream)1, per_thread_handle = (CUstream)2;

/* This thread's own default stream in each context it has used. */
static __thread struct {
    u64 context_id;
    struct fg_stream *stream;
} own[FG_MAX_DEVICES];
static __thread u32 own_next;

u64 fg_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (u64)time.tv_sec * 1000000000 + time.tv_nsec;
}

void fg_sleep_until(u64 when) {
    struct timespec time = {when / 1000000000, when % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

struct fg_stream *fg_new_stream(struct fg_context *context, unsigned flags, int priority) {
    struct fg_stream *stream = fg_new(FG_STREAM, context);
    stream->flags = flags;
    stream->priority = priority;
    stream->id = __atomic_add_fetch(&fg_ids, 1, __ATOMIC_RELAXED);
    return stream;
}

void fg_drop_stream_locked(struct fg_stream *stream) {
    fg_drop_captures_locked(stream);
    free(stream->last);
    fg_delete(stream);
}

static struct fg_stream *own_stream(struct fg_context *context) {
    for (u32 i = 0; i < FG_MAX_DEVICES; i++)
        if (own[i].context_id == context->id)
            return own[i].stream;
    u32 place = own_next++ % FG_MAX_DEVICES;
    own[place].stream = fg_new_stream(context, 0, 0);
    own[place].stream->per_thread = true;
    own[place].context_id = context->id;
    return own[place].stream;
}

/* The stream that a handle means in this call; NULL where it is none. */
struct fg_stream *fg_resolve(const struct fg_call *c, CUstream handle) {
    if (!handle)
        return c->per_thread ? own_stream(c->context) : c->context->legacy;
    if (handle == legacy_handle)
        return c->context->legacy;
    if (handle == per_thread_handle)
        return own_stream(c->context);
    return fg_is(handle, FG_STREAM) && fg_valid_context(handle->head.context) ? handle : NULL;
}

/* Puts work of some length at the end of a stream, and charges its device with it. */
void fg_submit(struct fg_stream *stream, u64 nanoseconds) {
    if (!nanoseconds)
        return;
    struct fg_context *context = stream->head.context;
    struct fg_device *device = &fg_state->devices[context->device];
    struct fg_activity *activity = fg_activity(context->device);
    u64 start = fg_now();
    u64 after = fg_load(&stream->ready_at);
    if (stream == context->legacy && fg_load(&context->blocking_ready_at) > after)
        after = fg_load(&context->blocking_ready_at);
    if (!(stream->flags & NON_BLOCKING) && fg_load(&context->legacy->ready_at) > after)
        after = fg_load(&context->legacy->ready_at);
    u64 end = (after > start ? after : start) + nanoseconds;
    fg_raise(&stream->ready_at, end);
    if (!(stream->flags & NON_BLOCKING))
        fg_raise(&context->blocking_ready_at, end);
    fg_raise(&context->ready_at, end);
    fg_add(&activity->busy_ns, nanoseconds);
    fg_raise(&activity->busy_until_ns, end);
    fg_add(&device->busy_ns, nanoseconds);
    fg_raise(&device->busy_until_ns, end);
}

/* Work that a stream of another device gives to this one. */
void fg_submit_elsewhere(int device, u64 nanoseconds) {
    if (!nanoseconds)
        return;
    u64 end = fg_now() + nanoseconds;
    fg_add(&fg_activity(device)->busy_ns, nanoseconds);
    fg_raise(&fg_activity(device)->busy_until_ns, end);
    fg_add(&fg_state->devices[device].busy_ns, nanoseconds);
    fg_raise(&fg_state->devices[device].busy_until_ns, end);
}

/* Blocks until a stream's work is done: what calls without "Async" do before they return. */
void fg_drain(struct fg_stream *stream) {
    u64 end = fg_load(&stream->ready_at);
    if (end && stream == stream->head.context->legacy)
        end = fg_load(&stream->head.context->blocking_ready_at);
    if (end && end > fg_now())
        fg_sleep_until(end);
}

/* A synchronizing call: at least the configured time, and the time it took is counted. */
static CUresult wait_until(struct fg_context *context, u64 end) {
    struct fg_activity *activity = fg_activity(context->device);
    u64 start = fg_now();
    u64 least = start + fg_load(&fg_state->wait_ns);
    if (end < least)
        end = least;
    if (end > start)
        fg_sleep_until(end);
    fg_add(&activity->waits, 1);
    fg_add(&activity->wait_ns, fg_now() - start);
    return CUDA_SUCCESS;
}

CUresult do_cuCtxSynchronize(struct fg_call *c) {
    CUresult result = fg_sync_allowed(c->context, NULL);
    return result ? result : wait_until(c->context, fg_load(&c->context->ready_at));
}

CUresult do_cuCtxSynchronize_v2(struct fg_call *c, CUcontext context) {
    c->context = context ? context : fg_current();
    return fg_valid_context(c->context) ? do_cuCtxSynchronize(c) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult do_cuStreamSynchronize(struct fg_call *c, CUstream handle) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_sync_allowed(stream->head.context, stream);
    if (result)
        return result;
    bool legacy = stream == stream->head.context->legacy;
    return wait_until(
        stream->head.context,
        fg_load(legacy ? &stream->head.context->blocking_ready_at : &stream->ready_at));
}

CUresult do_cuStreamQuery(struct fg_call *c, CUstream handle) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_sync_allowed(stream->head.context, stream);
    if (result)
        return result;
    u64 end = fg_load(&stream->ready_at);
    return end && end > fg_now() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

CUresult do_cuStreamCreateWithPriority(struct fg_call *c, CUstream *stream, unsigned flags,
                                       int priority) {
    if (!stream || flags > NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
    *stream = fg_new_stream(c->context, flags, priority);
    return CUDA_SUCCESS;
}

CUresult do_cuStreamCreate(struct fg_call *c, CUstream *stream, unsigned flags) {
    return do_cuStreamCreateWithPriority(c, stream, flags, 0);
}

CUresult do_cuStreamDestroy_v2(struct fg_call *c, CUstream stream) {
    if (!fg_is(stream, FG_STREAM) || stream->per_thread || stream == stream->head.context->legacy)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&fg_lock);
    fg_drop_stream_locked(stream);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuStreamGetPriority(struct fg_call *c, CUstream handle, int *priority) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!priority)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

CUresult do_cuStreamGetFlags(struct fg_call *c, CUstream handle, unsigned *flags) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

CUresult do_cuStreamGetId(struct fg_call *c, CUstream handle, u64 *id) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!id)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    *id = stream->id;
    return CUDA_SUCCESS;
}

CUresult do_cuStreamGetCtx(struct fg_call *c, CUstream handle, CUcontext *context) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    *context = stream->head.context;
    return CUDA_SUCCESS;
}

CUresult do_cuStreamGetCtx_v2(struct fg_call *c, CUstream handle, CUcontext *context,
                              CUgreenCtx *green) {
    CUresult result = do_cuStreamGetCtx(c, handle, context);
    if (green)
        *green = NULL;
    if (result == CUDA_SUCCESS && green && (*context)->green) {
        *green = (*context)->green;
        *context = NULL;
    }
    return result;
}

CUresult do_cuStreamGetDevice(struct fg_call *c, CUstream handle, CUdevice *device) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    *device = stream->head.context->device;
    return CUDA_SUCCESS;
}

CUresult do_cuStreamAddCallback(struct fg_call *c, CUstream handle,
                                void (*callback)(CUstream, CUresult, void *), void *data,
                                unsigned flags) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!callback || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (fg_capturing(stream))
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    callback(handle, CUDA_SUCCESS, data);
    return CUDA_SUCCESS;
}

CUresult do_cuStreamAttachMemAsync(struct fg_call *c, CUstream handle, CUdeviceptr pointer,
                                   size_t bytes, unsigned flags) {
    if (!fg_resolve(c, handle))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&fg_lock);
    struct fg_allocation *a = fg_find_locked(pointer);
    bool managed = a && a->kind == FG_KIND_MANAGED;
    pthread_mutex_unlock(&fg_lock);
    return managed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* No attribute has an effect on a simulated stream; those that can be set are accepted. */
CUresult do_cuStreamCopyAttributes(struct fg_call *c, CUstream target, CUstream source) {
    return fg_resolve(c, target) && fg_resolve(c, source) ? CUDA_SUCCESS
                                                          : CUDA_ERROR_INVALID_HANDLE;
}

CUresult do_cuStreamGetAttribute(struct fg_call *c, CUstream handle, int attribute, void *value) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!value || attribute != 8) /* the priority */
        return CUDA_ERROR_INVALID_VALUE;
    *(int *)value = stream->priority;
    return CUDA_SUCCESS;
}

CUresult do_cuStreamSetAttribute(struct fg_call *c, CUstream handle, int attribute,
                                 const void *value) {
    if (!fg_resolve(c, handle))
        return CUDA_ERROR_INVALID_HANDLE;
    return value ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuEventCreate(struct fg_call *c, CUevent *event, unsigned flags) {
    if (!event || flags > 7)
        return CUDA_ERROR_INVALID_VALUE;
    *event = fg_new(FG_EVENT, fg_root(c->context));
    (*event)->flags = flags;
    return CUDA_SUCCESS;
}

void fg_delete_event(struct fg_event *event) {
    free(event->last);
    fg_delete(event);
}

CUresult do_cuEventDestroy_v2(struct fg_call *c, CUevent event) {
    if (!fg_is(event, FG_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    fg_delete_event(event);
    return CUDA_SUCCESS;
}

CUresult do_cuEventRecord(struct fg_call *c, CUevent event, CUstream handle) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream || !fg_is(event, FG_EVENT) || event->head.context != fg_root(stream->head.context))
        return CUDA_ERROR_INVALID_HANDLE;
    if (fg_capturing(stream))
        return fg_capture_event(event, stream);
    CUresult result = fg_legacy_allowed(stream);
    if (result)
        return result;
    u64 now = fg_now();
    u64 end = fg_load(&stream->ready_at);
    event->capture = NULL;
    __atomic_store_n(&event->at, end > now ? end : now, __ATOMIC_RELEASE);
    event->recorded = true;
    return CUDA_SUCCESS;
}

/* While capturing, an event can be recorded or waited for from outside of the capture: a node. */
static CUresult external(const struct fg_call *c, CUstream handle, struct fg_event *event,
                         int type) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream || !fg_is(event, FG_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!fg_capturing(stream))
        return CUDA_ERROR_INVALID_VALUE;
    struct fg_node pattern = {.type = type, .event = event};
    return fg_capture_node(stream, &pattern, NULL);
}

CUresult do_cuEventRecordWithFlags(struct fg_call *c, CUevent event, CUstream stream,
                                   unsigned flags) {
    if (flags > EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    return flags ? external(c, stream, event, FG_NODE_EVENT_RECORD)
                 : do_cuEventRecord(c, event, stream);
}

CUresult do_cuStreamWaitEvent(struct fg_call *c, CUstream handle, CUevent event, unsigned flags) {
    struct fg_stream *stream = fg_resolve(c, handle);
    bool done = false;
    if (!stream || !fg_is(event, FG_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    if (flags > EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags)
        return external(c, handle, event, FG_NODE_EVENT_WAIT);
    CUresult result = fg_capture_wait(stream, event, &done);
    if (result || done)
        return result;
    if (event->recorded) {
        fg_raise(&stream->ready_at, fg_load(&event->at));
        fg_raise(&stream->head.context->ready_at, fg_load(&event->at));
    }
    return CUDA_SUCCESS;
}

CUresult do_cuEventQuery(struct fg_call *c, CUevent event) {
    if (!fg_is(event, FG_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_event_allowed(event);
    if (result)
        return result;
    return event->recorded && fg_load(&event->at) > fg_now() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

CUresult do_cuEventSynchronize(struct fg_call *c, CUevent event) {
    if (!fg_is(event, FG_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_event_allowed(event);
    if (result)
        return result;
    return wait_until(event->head.context, event->recorded ? fg_load(&event->at) : 0);
}

CUresult do_cuEventElapsedTime_v2(struct fg_call *c, float *milliseconds, CUevent start,
                                  CUevent end) {
    if (!milliseconds)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(start, FG_EVENT) || !fg_is(end, FG_EVENT) || !start->recorded || !end->recorded ||
        (start->flags | end->flags) & EVENT_NO_TIMING)
        return CUDA_ERROR_INVALID_HANDLE;
    if (start->at > fg_now() || end->at > fg_now())
        return CUDA_ERROR_NOT_READY;
    *milliseconds = ((double)end->at - (double)start->at) / 1e6;
    return CUDA_SUCCESS;
}

CUresult do_cuEventElapsedTime(struct fg_call *c, float *milliseconds, CUevent start, CUevent end) {
    return do_cuEventElapsedTime_v2(c, milliseconds, start, end);
}
