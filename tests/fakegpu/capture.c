/* Stream capture: what is issued in a capturing stream only becomes nodes of a graph. */
#include "graph.h"
#include <stdlib.h>
#include <string.h>

/* A capture may have streams of several contexts; its head's is the one it began in. */
enum { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };      /* modes */
enum { NOT_CAPTURING = 0, ACTIVE = 1, INVALIDATED = 2 }; /* states */

struct fg_capture {
    struct fg_head head;
    u64 id;
    int mode;
    bool invalid;
    bool own_graph; /* or one that the client gave */
    struct fg_graph *graph;
    struct fg_stream *origin;
    const void *thread;
};

static u32 active; /* captures under way */
static __thread int thread_mode = GLOBAL;

/* Something different in each thread. */
static const void *this_thread(void) { return &thread_mode; }

bool fg_capturing(struct fg_stream *stream) {
    return __atomic_load_n(&stream->capture, __ATOMIC_ACQUIRE) != NULL;
}

static bool any_active(void) {
    return __builtin_expect(__atomic_load_n(&active, __ATOMIC_ACQUIRE) != 0, 0);
}

static void set_last(struct fg_node ***last, size_t *count, struct fg_node *const *nodes,
                     size_t number) {
    struct fg_node **copy = malloc((number + 1) * sizeof *copy);
    if (!copy)
        abort();
    if (number)
        memcpy(copy, nodes, number * sizeof *copy);
    free(*last);
    *last = copy;
    *count = number;
}

static void add_last(struct fg_stream *stream, struct fg_node *const *nodes, size_t number) {
    for (size_t i = 0; i < number; i++) {
        size_t known = 0;
        while (known < stream->last_count && stream->last[known] != nodes[i])
            known++;
        if (known < stream->last_count)
            continue;
        stream->last = realloc(stream->last, (stream->last_count + 1) * sizeof *stream->last);
        if (!stream->last)
            abort();
        stream->last[stream->last_count++] = nodes[i];
    }
}

/* Whether there is a capture under way that a context is concerned by. */
static bool each_capture(const struct fg_context *context,
                         bool (*concerns)(const struct fg_capture *, const struct fg_context *),
                         bool invalidate) {
    struct fg_capture *capture;
    bool found = false;
    u32 place = 0;
    while ((capture = fg_next(FG_CAPTURE, NULL, &place)))
        if (concerns(capture, context)) {
            found = true;
            capture->invalid |= invalidate;
        }
    return found;
}

/* Whatever its context is. */
static bool in_its_way(const struct fg_capture *capture, const struct fg_context *context) {
    bool own = capture->thread == this_thread();
    if (thread_mode == RELAXED || capture->mode == RELAXED)
        return false;
    return own || (thread_mode == GLOBAL && capture->mode == GLOBAL);
}

static bool has_stream(const struct fg_capture *capture, const struct fg_context *context,
                       bool blocking) {
    struct fg_stream *stream;
    u32 place = 0;
    while ((stream = fg_next(FG_STREAM, context, &place)))
        if (stream->capture == capture && !(blocking && stream->flags & 1))
            return true;
    return false;
}

/* A capture with a stream of the context. */
static bool any(const struct fg_capture *capture, const struct fg_context *context) {
    return has_stream(capture, context, false);
}

/* With one that the context's legacy stream would have to wait for. */
static bool blocking(const struct fg_capture *capture, const struct fg_context *context) {
    return has_stream(capture, context, true);
}

static CUresult refuse_if(const struct fg_context *context,
                          bool (*concerns)(const struct fg_capture *, const struct fg_context *),
                          CUresult error) {
    if (!any_active())
        return CUDA_SUCCESS;
    pthread_mutex_lock(&fg_lock);
    bool found = each_capture(context, concerns, true);
    pthread_mutex_unlock(&fg_lock);
    return found ? error : CUDA_SUCCESS;
}

/* For calls that are unsafe while capturing, such as cuMemAlloc. */
CUresult fg_capture_forbids(const struct fg_call *c) {
    return refuse_if(NULL, in_its_way, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

/* For work in a stream that doesn't capture: in the legacy one it would depend on what does. */
CUresult fg_legacy_allowed(struct fg_stream *stream) {
    if (!any_active() || stream != stream->head.context->legacy)
        return CUDA_SUCCESS;
    return refuse_if(stream->head.context, blocking, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
}

/* For waiting for a stream, or (NULL) for a whole context. */
CUresult fg_sync_allowed(struct fg_context *context, struct fg_stream *stream) {
    if (!any_active())
        return CUDA_SUCCESS;
    if (!stream)
        return refuse_if(context, any, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (!fg_capturing(stream))
        return fg_legacy_allowed(stream);
    pthread_mutex_lock(&fg_lock);
    if (stream->capture)
        stream->capture->invalid = true;
    pthread_mutex_unlock(&fg_lock);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

/* An event last recorded while capturing can be neither queried nor waited for. */
CUresult fg_event_allowed(struct fg_event *event) {
    if (!event->capture)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&fg_lock);
    if (fg_is(event->capture, FG_CAPTURE) && event->capture->id == event->capture_id)
        event->capture->invalid = true;
    pthread_mutex_unlock(&fg_lock);
    return CUDA_ERROR_CAPTURED_EVENT;
}

CUresult fg_capture_node(struct fg_stream *stream, const struct fg_node *pattern,
                         struct fg_node **made) {
    struct fg_node *node;
    CUresult result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    pthread_mutex_lock(&fg_lock);
    struct fg_capture *capture = stream->capture;
    if (capture && !capture->invalid)
        result =
            fg_add_node_locked(capture->graph, stream->last, stream->last_count, pattern, &node);
    if (result == CUDA_SUCCESS) {
        set_last(&stream->last, &stream->last_count, &node, 1);
        if (made)
            *made = node;
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

CUresult fg_capture_event(struct fg_event *event, struct fg_stream *stream) {
    pthread_mutex_lock(&fg_lock);
    struct fg_capture *capture = stream->capture;
    bool valid = capture && !capture->invalid;
    if (valid) {
        event->capture = capture;
        event->capture_id = capture->id;
        event->recorded = false;
        set_last(&event->last, &event->last_count, stream->last, stream->last_count);
    }
    pthread_mutex_unlock(&fg_lock);
    return valid ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

/* *done: the wait was a matter of captures only. A stream that waits for an event of a capture
 * joins it. */
CUresult fg_capture_wait(struct fg_stream *stream, struct fg_event *event, bool *done) {
    CUresult result = CUDA_SUCCESS;
    if (!stream->capture && !event->capture)
        return fg_legacy_allowed(stream);
    *done = true;
    pthread_mutex_lock(&fg_lock);
    struct fg_capture *from = event->capture, *own = stream->capture;
    if (from && (!fg_is(from, FG_CAPTURE) || from->id != event->capture_id))
        from = NULL; /* that capture is over */
    if (own && own->invalid) {
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    } else if (own && from == own) {
        add_last(stream, event->last, event->last_count);
    } else if (own) {
        result = from ? CUDA_ERROR_STREAM_CAPTURE_MERGE : CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        own->invalid = true;
    } else if (from) {
        if (stream == stream->head.context->legacy) {
            result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
            from->invalid = true;
        } else if (from->invalid) {
            result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        } else {
            set_last(&stream->last, &stream->last_count, event->last, event->last_count);
            __atomic_store_n(&stream->capture, from, __ATOMIC_RELEASE);
        }
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

static CUresult begin(const struct fg_call *c, CUstream handle, int mode, struct fg_graph *graph,
                      const CUgraphNode *dependencies, size_t count) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (mode < GLOBAL || mode > RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    if (stream == stream->head.context->legacy)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    pthread_mutex_lock(&fg_lock);
    if (stream->capture) {
        pthread_mutex_unlock(&fg_lock);
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fg_capture *capture = fg_new(FG_CAPTURE, stream->head.context);
    capture->id = __atomic_add_fetch(&fg_ids, 1, __ATOMIC_RELAXED);
    capture->mode = mode;
    capture->own_graph = !graph;
    capture->graph = graph ? graph : fg_new_graph();
    capture->graph->owned = true;
    capture->origin = stream;
    capture->thread = this_thread();
    set_last(&stream->last, &stream->last_count, dependencies, count);
    __atomic_store_n(&stream->capture, capture, __ATOMIC_RELEASE);
    __atomic_add_fetch(&active, 1, __ATOMIC_ACQ_REL);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuStreamBeginCapture(struct fg_call *c, CUstream stream) {
    return begin(c, stream, GLOBAL, NULL, NULL, 0);
}

CUresult do_cuStreamBeginCapture_v2(struct fg_call *c, CUstream stream, int mode) {
    return begin(c, stream, mode, NULL, NULL, 0);
}

CUresult do_cuStreamBeginCaptureToGraph(struct fg_call *c, CUstream stream, CUgraph graph,
                                        const CUgraphNode *dependencies, const void *data,
                                        size_t count, int mode) {
    if (!fg_is(graph, FG_GRAPH) || (count && !dependencies) || data)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (!fg_is(dependencies[i], FG_NODE) || dependencies[i]->graph != graph)
            return CUDA_ERROR_INVALID_VALUE;
    return begin(c, stream, mode, graph, dependencies, count);
}

/* All streams of a capture leave it. */
static void finish_locked(struct fg_capture *capture) {
    struct fg_stream *stream;
    u32 place = 0;
    while ((stream = fg_next(FG_STREAM, NULL, &place)))
        if (stream->capture == capture) {
            set_last(&stream->last, &stream->last_count, NULL, 0);
            __atomic_store_n(&stream->capture, NULL, __ATOMIC_RELEASE);
        }
    fg_delete(capture);
    __atomic_sub_fetch(&active, 1, __ATOMIC_ACQ_REL);
}

static bool all_joined_locked(const struct fg_capture *capture) {
    struct fg_stream *origin = capture->origin, *stream;
    u32 place = 0;
    while ((stream = fg_next(FG_STREAM, NULL, &place)))
        for (size_t i = 0; stream->capture == capture && i < stream->last_count; i++)
            if (!fg_reaches_locked(capture->graph, origin->last, origin->last_count,
                                   stream->last[i]))
                return false;
    return true;
}

CUresult do_cuStreamEndCapture(struct fg_call *c, CUstream handle, CUgraph *graph) {
    struct fg_stream *stream = fg_resolve(c, handle);
    CUresult result = CUDA_SUCCESS;
    if (!graph)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    *graph = NULL;
    pthread_mutex_lock(&fg_lock);
    struct fg_capture *capture = stream->capture;
    if (!capture) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else if (capture->origin != stream) {
        result = CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    } else if (capture->mode != RELAXED && capture->thread != this_thread()) {
        result = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    } else {
        if (capture->invalid)
            result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        else if (!all_joined_locked(capture))
            result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        struct fg_graph *captured = capture->graph;
        captured->owned = false;
        if (result == CUDA_SUCCESS)
            *graph = captured;
        else if (capture->own_graph)
            fg_delete_graph_locked(captured);
        finish_locked(capture);
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

/* A context or a stream that goes takes its captures along. */
void fg_drop_captures_locked(const struct fg_stream *stream) {
    struct fg_capture *capture = stream->capture;
    if (!capture)
        return;
    if (capture->origin != stream) {
        capture->invalid = true; /* it can no longer be joined */
        return;
    }
    capture->graph->owned = false;
    if (capture->own_graph)
        fg_delete_graph_locked(capture->graph);
    finish_locked(capture);
}

static CUresult info(const struct fg_call *c, CUstream handle, int *status, u64 *id, CUgraph *graph,
                     const CUgraphNode **dependencies, size_t *count) {
    struct fg_stream *stream = fg_resolve(c, handle);
    if (!status)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream == stream->head.context->legacy) {
        if (any_active() && each_capture(stream->head.context, blocking, false))
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        *status = NOT_CAPTURING;
        return CUDA_SUCCESS;
    }
    pthread_mutex_lock(&fg_lock);
    struct fg_capture *capture = stream->capture;
    *status = !capture ? NOT_CAPTURING : capture->invalid ? INVALIDATED : ACTIVE;
    if (*status == ACTIVE) {
        if (id)
            *id = capture->id;
        if (graph)
            *graph = capture->graph;
        if (dependencies)
            *dependencies = stream->last;
        if (count)
            *count = stream->last_count;
    }
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuStreamIsCapturing(struct fg_call *c, CUstream stream, int *status) {
    return info(c, stream, status, NULL, NULL, NULL, NULL);
}

CUresult do_cuStreamGetCaptureInfo(struct fg_call *c, CUstream stream, int *status, u64 *id) {
    return info(c, stream, status, id, NULL, NULL, NULL);
}

CUresult do_cuStreamGetCaptureInfo_v2(struct fg_call *c, CUstream stream, int *status, u64 *id,
                                      CUgraph *graph, const CUgraphNode **dependencies,
                                      size_t *count) {
    return info(c, stream, status, id, graph, dependencies, count);
}

CUresult do_cuStreamGetCaptureInfo_v3(struct fg_call *c, CUstream stream, int *status, u64 *id,
                                      CUgraph *graph, const CUgraphNode **dependencies,
                                      const void **data, size_t *count) {
    if (data)
        *data = NULL;
    return info(c, stream, status, id, graph, dependencies, count);
}

CUresult do_cuStreamUpdateCaptureDependencies(struct fg_call *c, CUstream handle,
                                              CUgraphNode *dependencies, size_t count,
                                              unsigned flags) {
    struct fg_stream *stream = fg_resolve(c, handle);
    CUresult result = CUDA_SUCCESS;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (flags > 1 || (count && !dependencies))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    if (!stream->capture)
        result = CUDA_ERROR_ILLEGAL_STATE;
    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++)
        if (!fg_is(dependencies[i], FG_NODE) || dependencies[i]->graph != stream->capture->graph)
            result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS && flags == 1)
        set_last(&stream->last, &stream->last_count, dependencies, count);
    else if (result == CUDA_SUCCESS)
        add_last(stream, dependencies, count);
    pthread_mutex_unlock(&fg_lock);
    return result;
}

CUresult do_cuStreamUpdateCaptureDependencies_v2(struct fg_call *c, CUstream stream,
                                                 CUgraphNode *dependencies, const void *data,
                                                 size_t count, unsigned flags) {
    if (data)
        return CUDA_ERROR_NOT_SUPPORTED;
    return do_cuStreamUpdateCaptureDependencies(c, stream, dependencies, count, flags);
}

CUresult do_cuThreadExchangeStreamCaptureMode(struct fg_call *c, int *mode) {
    if (!mode || *mode < GLOBAL || *mode > RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    int before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}
