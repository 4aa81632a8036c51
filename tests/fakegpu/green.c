/* Green contexts: parts of a device's primary context, with streams of their own. What a client
 * makes while one is current is the primary context's, streams apart. */
#include "internal.h"

enum { MULTIPROCESSORS = 1, DEFAULT_STREAM = 1, NON_BLOCKING = 1 };

struct fg_green {
    struct fg_head head;
    struct fg_context *context;
};

struct fg_resources {
    struct fg_head head;
    int device;
};

static struct fg_context *context_of(const struct fg_green *green) {
    return fg_is(green, FG_GREEN) ? green->context : NULL;
}

static CUresult all_of(int device, struct fg_resource *resource, int type) {
    if (!resource)
        return CUDA_ERROR_INVALID_VALUE;
    if (type != MULTIPROCESSORS)
        return CUDA_ERROR_INVALID_RESOURCE_TYPE;
    *resource = (struct fg_resource){.type = type, .device = device};
    resource->multiprocessors.count = fg_state->devices[device].multiprocessors;
    resource->multiprocessors.least = resource->multiprocessors.alignment = 8;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetDevResource(struct fg_call *c, CUdevice device, struct fg_resource *resource,
                                   int type) {
    return fg_valid_device(device) ? all_of(device, resource, type) : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuCtxGetDevResource(struct fg_call *c, CUcontext context, struct fg_resource *resource,
                                int type) {
    struct fg_context *found = context ? context : fg_current();
    return fg_valid_context(found) ? all_of(found->device, resource, type)
                                   : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult do_cuGreenCtxGetDevResource(struct fg_call *c, CUgreenCtx green,
                                     struct fg_resource *resource, int type) {
    struct fg_context *context = context_of(green);
    return context ? all_of(context->device, resource, type) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult do_cuDevSmResourceSplitByCount(struct fg_call *c, struct fg_resource *result,
                                        unsigned *groups, const struct fg_resource *input,
                                        struct fg_resource *remaining, unsigned flags,
                                        unsigned least) {
    if (!groups || !input)
        return CUDA_ERROR_INVALID_VALUE;
    if (input->type != MULTIPROCESSORS)
        return CUDA_ERROR_INVALID_RESOURCE_TYPE;
    unsigned size = least ? (least + 7) / 8 * 8 : 8;
    unsigned most = input->multiprocessors.count / size;
    if (!result || *groups > most)
        *groups = most;
    if (!result)
        return CUDA_SUCCESS;
    for (unsigned i = 0; i < *groups; i++) {
        result[i] = *input;
        result[i].multiprocessors.count = size;
    }
    if (remaining) {
        *remaining = *input;
        remaining->multiprocessors.count -= *groups * size;
    }
    return CUDA_SUCCESS;
}

CUresult do_cuDevResourceGenerateDesc(struct fg_call *c, CUdevResourceDesc *description,
                                      struct fg_resource *resources, unsigned count) {
    if (!description || !resources || !count)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        if (resources[i].type != MULTIPROCESSORS || !fg_valid_device(resources[i].device))
            return CUDA_ERROR_INVALID_RESOURCE_TYPE;
        if (resources[i].device != resources[0].device)
            return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    }
    *description = fg_new(FG_RESOURCES, NULL);
    (*description)->device = resources[0].device;
    return CUDA_SUCCESS;
}

/* It holds the primary context as long as it lives. */
CUresult do_cuGreenCtxCreate(struct fg_call *c, CUgreenCtx *green, CUdevResourceDesc description,
                             CUdevice device, unsigned flags) {
    struct fg_context *root;
    if (!green || !fg_is(description, FG_RESOURCES) || flags != DEFAULT_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (description->device != device)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fg_primary_retain(device, &root);
    if (result)
        return result;
    struct fg_context *context = fg_new(FG_CONTEXT, NULL);
    *green = fg_new(FG_GREEN, NULL);
    (*green)->context = context;
    pthread_mutex_lock(&fg_lock);
    context->device = device;
    context->primary = true;
    context->version = root->version;
    context->root = root;
    context->green = *green;
    context->id = __atomic_add_fetch(&fg_ids, 1, __ATOMIC_RELAXED);
    context->legacy = fg_new_stream(context, 0, 0);
    __atomic_store_n(&context->active, true, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuGreenCtxDestroy(struct fg_call *c, CUgreenCtx green) {
    struct fg_context *context = context_of(green);
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&fg_lock);
    bool active = context->active; /* not where the primary one was reset */
    struct fg_context *root = context->root;
    fg_deactivate_locked(context);
    fg_delete(context);
    fg_delete(green);
    fg_primary_release_locked(root);
    pthread_mutex_unlock(&fg_lock);
    return active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult do_cuCtxFromGreenCtx(struct fg_call *c, CUcontext *context, CUgreenCtx green) {
    struct fg_context *found = context_of(green);
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_context(found))
        return CUDA_ERROR_INVALID_CONTEXT;
    *context = found;
    return CUDA_SUCCESS;
}

CUresult do_cuGreenCtxStreamCreate(struct fg_call *c, CUstream *stream, CUgreenCtx green,
                                   unsigned flags, int priority) {
    struct fg_context *context = context_of(green);
    if (!stream || flags != NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_context(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    *stream = fg_new_stream(context, flags, priority > 0 ? 0 : priority < -5 ? -5 : priority);
    return CUDA_SUCCESS;
}

/* An event of all the work in a green context, and all of it behind an event. */
CUresult do_cuGreenCtxRecordEvent(struct fg_call *c, CUgreenCtx green, CUevent event) {
    struct fg_context *context = context_of(green);
    if (!fg_valid_context(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!fg_is(event, FG_EVENT) || event->head.context != context->root)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_sync_allowed(context, NULL);
    if (result)
        return result;
    u64 now = fg_now(), end = fg_load(&context->ready_at);
    event->capture = NULL;
    __atomic_store_n(&event->at, end > now ? end : now, __ATOMIC_RELEASE);
    event->recorded = true;
    return CUDA_SUCCESS;
}

CUresult do_cuGreenCtxWaitEvent(struct fg_call *c, CUgreenCtx green, CUevent event) {
    struct fg_context *context = context_of(green);
    if (!fg_valid_context(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!fg_is(event, FG_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = fg_event_allowed(event);
    if (result == CUDA_SUCCESS)
        result = fg_sync_allowed(context, NULL);
    if (result == CUDA_SUCCESS && event->recorded)
        fg_raise(&context->ready_at, fg_load(&event->at));
    return result;
}

CUresult do_cuStreamGetGreenCtx(struct fg_call *c, CUstream stream, CUgreenCtx *green) {
    if (!green)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(stream, FG_STREAM) || !fg_valid_context(stream->head.context))
        return CUDA_ERROR_INVALID_HANDLE;
    *green = stream->head.context->green;
    return CUDA_SUCCESS;
}
