/* Contexts: the primary ones, created ones, and each thread's stack of current ones. */
#include "graph.h"

#define DEPTH 64

/* A handle may be another context's by now: then its id is another. The primary ones come back. */
static __thread struct {
    struct fg_context *context;
    u64 id; /* 0: a primary one */
} stack[DEPTH];
static __thread int depth;
static struct fg_context gone;

static struct fg_context *primary[FG_MAX_DEVICES];
static unsigned primary_flags[FG_MAX_DEVICES];
u64 fg_ids;

static void put(int place, struct fg_context *context) {
    stack[place].context = context;
    stack[place].id = context->primary && !context->root ? 0 : context->id;
}

/* One that was destroyed isn't valid, but there. */
struct fg_context *fg_current(void) {
    if (!depth)
        return NULL;
    struct fg_context *context = stack[depth - 1].context;
    u64 id = stack[depth - 1].id;
    return !id || (fg_is(context, FG_CONTEXT) && context->id == id) ? context : &gone;
}

bool fg_valid_context(const struct fg_context *context) {
    return fg_is(context, FG_CONTEXT) && __atomic_load_n(&context->active, __ATOMIC_ACQUIRE);
}

static CUresult activate_locked(struct fg_context *context) {
    u64 overhead = fg_state->devices[context->device].context_bytes;
    if (!fg_charge(context->device, overhead))
        return CUDA_ERROR_OUT_OF_MEMORY;
    context->id = __atomic_add_fetch(&fg_ids, 1, __ATOMIC_RELAXED);
    context->limits[0] = 1024;
    context->limits[1] = 1 << 20;
    context->limits[2] = 8 << 20;
    context->limits[3] = 2;
    context->limits[4] = 2048;
    context->limits[5] = 64;
    context->legacy = fg_new_stream(context, 0, 0);
    __atomic_store_n(&context->active, true, __ATOMIC_RELEASE);
    fg_add(&fg_activity(context->device)->contexts, 1);
    fg_add(&fg_activity(context->device)->contexts_created, 1);
    return CUDA_SUCCESS;
}

static void drop_locked(enum fg_type type, void *object) {
    switch (type) {
    case FG_LINK:
        fg_delete_link(object);
        break;
    case FG_EVENT:
        fg_delete_event(object);
        break;
    case FG_MODULE:
        fg_delete_module_locked(object);
        break;
    case FG_MIPMAP:
        fg_delete_mipmap_locked(object, false);
        break;
    case FG_ARRAY:
        fg_delete_array_locked(object, false);
        break;
    default:
        fg_drop_stream_locked(object);
    }
}

/* Everything in a context goes with it. */
void fg_deactivate_locked(struct fg_context *context) {
    static const enum fg_type order[] = {FG_LINK,   FG_EVENT, FG_MODULE,
                                         FG_MIPMAP, FG_ARRAY, FG_STREAM};
    u32 other_place = 0;
    struct fg_context *other;
    if (!context->active)
        return;
    while (context->primary && (other = fg_next(FG_CONTEXT, NULL, &other_place)))
        if (other->root == context)
            fg_deactivate_locked(other);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        u32 place = 0;
        void *object;
        while ((object = fg_next(order[i], context, &place)))
            drop_locked(order[i], object);
    }
    __atomic_store_n(&context->active, false, __ATOMIC_RELEASE);
    if (context->root)
        return;
    fg_release_memory_locked(context);
    fg_discharge(context->device, fg_state->devices[context->device].context_bytes);
    fg_sub(&fg_activity(context->device)->contexts, 1);
}

CUresult fg_primary_retain(int device, struct fg_context **context) {
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&fg_lock);
    if (!primary[device]) {
        primary[device] = fg_new(FG_CONTEXT, NULL);
        primary[device]->device = device;
        primary[device]->primary = true;
        primary[device]->version = 3020;
    }
    if (!primary[device]->active)
        result = activate_locked(primary[device]);
    if (result == CUDA_SUCCESS) {
        primary[device]->references++;
        *context = primary[device];
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

void fg_primary_release_locked(struct fg_context *context) {
    if (--context->references == 0)
        fg_deactivate_locked(context);
}

CUresult do_cuDevicePrimaryCtxRetain(struct fg_call *c, CUcontext *context, CUdevice device) {
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    return fg_primary_retain(device, context);
}

CUresult do_cuDevicePrimaryCtxRelease_v2(struct fg_call *c, CUdevice device) {
    CUresult result = CUDA_SUCCESS;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&fg_lock);
    if (!primary[device] || !primary[device]->references) /* a reset leaves the references */
        result = CUDA_ERROR_INVALID_CONTEXT;
    else
        fg_primary_release_locked(primary[device]);
    pthread_mutex_unlock(&fg_lock);
    return result;
}

CUresult do_cuDevicePrimaryCtxReset_v2(struct fg_call *c, CUdevice device) {
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&fg_lock);
    if (primary[device])
        fg_deactivate_locked(primary[device]);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuDevicePrimaryCtxSetFlags_v2(struct fg_call *c, CUdevice device, unsigned flags) {
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    primary_flags[device] = flags;
    return CUDA_SUCCESS;
}

CUresult do_cuDevicePrimaryCtxGetState(struct fg_call *c, CUdevice device, unsigned *flags,
                                       int *active) {
    if (!flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *flags = primary_flags[device];
    *active = primary[device] && primary[device]->active;
    return CUDA_SUCCESS;
}

static CUresult create(CUcontext *context, unsigned flags, CUdevice device, unsigned version) {
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (depth == DEPTH)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct fg_context *made = fg_new(FG_CONTEXT, NULL);
    made->device = device;
    made->flags = flags;
    made->version = version;
    made->references = 1;
    pthread_mutex_lock(&fg_lock);
    CUresult result = activate_locked(made);
    pthread_mutex_unlock(&fg_lock);
    if (result) {
        fg_delete(made);
        return result;
    }
    put(depth++, made);
    *context = made;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxCreate_v2(struct fg_call *c, CUcontext *context, unsigned flags, CUdevice device) {
    return create(context, flags, device, 3020);
}

CUresult do_cuCtxCreate_v3(struct fg_call *c, CUcontext *context, void *affinity, int affinities,
                           unsigned flags, CUdevice device) {
    return affinities ? CUDA_ERROR_NOT_SUPPORTED : create(context, flags, device, 3020);
}

CUresult do_cuCtxCreate_v4(struct fg_call *c, CUcontext *context, void *parameters, unsigned flags,
                           CUdevice device) {
    return parameters ? CUDA_ERROR_NOT_SUPPORTED : create(context, flags, device, 3020);
}

static CUresult destroy(struct fg_context *context) {
    if (!fg_valid_context(context) || context->primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (fg_current() == context)
        depth--;
    pthread_mutex_lock(&fg_lock);
    fg_deactivate_locked(context);
    fg_delete(context);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuCtxDestroy_v2(struct fg_call *c, CUcontext context) { return destroy(context); }

CUresult do_cuCtxAttach(struct fg_call *c, CUcontext *context, unsigned flags) {
    if (!context || flags)
        return CUDA_ERROR_INVALID_VALUE;
    c->context->references++;
    *context = c->context;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxDetach(struct fg_call *c, CUcontext context) {
    if (!fg_valid_context(context) || context->primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    return --context->references ? CUDA_SUCCESS : destroy(context);
}

CUresult do_cuCtxPushCurrent_v2(struct fg_call *c, CUcontext context) {
    if (!fg_valid_context(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == DEPTH)
        return CUDA_ERROR_INVALID_VALUE;
    put(depth++, context);
    return CUDA_SUCCESS;
}

CUresult do_cuCtxPopCurrent_v2(struct fg_call *c, CUcontext *context) {
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (context)
        *context = stack[depth].context;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxSetCurrent(struct fg_call *c, CUcontext context) {
    if (!context) {
        if (depth)
            depth--;
        return CUDA_SUCCESS;
    }
    if (!fg_valid_context(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!depth)
        depth = 1;
    put(depth - 1, context);
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetCurrent(struct fg_call *c, CUcontext *context) {
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    *context = depth ? stack[depth - 1].context : NULL;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetDevice(struct fg_call *c, CUdevice *device) {
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    *device = c->context->device;
    return CUDA_SUCCESS;
}

/* The context an argument names, or the current one where it names none. */
static struct fg_context *named(struct fg_context *context) {
    struct fg_context *found = context ? context : fg_current();
    return fg_valid_context(found) ? found : NULL;
}

CUresult do_cuCtxGetDevice_v2(struct fg_call *c, CUdevice *device, CUcontext context) {
    struct fg_context *found = named(context);
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!found)
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = found->device;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetId(struct fg_call *c, CUcontext context, u64 *id) {
    struct fg_context *found = named(context);
    if (!id)
        return CUDA_ERROR_INVALID_VALUE;
    if (!found)
        return CUDA_ERROR_INVALID_CONTEXT;
    *id = found->id;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetFlags(struct fg_call *c, unsigned *flags) {
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = c->context->primary ? primary_flags[c->context->device] : c->context->flags;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxSetFlags(struct fg_call *c, unsigned flags) {
    if (c->context->primary)
        primary_flags[c->context->device] = flags;
    c->context->flags = flags;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetApiVersion(struct fg_call *c, CUcontext context, unsigned *version) {
    struct fg_context *found = named(context);
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    if (!found)
        return CUDA_ERROR_INVALID_CONTEXT;
    *version = found->version;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetLimit(struct fg_call *c, size_t *value, int limit) {
    if (!value || limit < 0 || limit > 6)
        return CUDA_ERROR_INVALID_VALUE;
    *value = c->context->limits[limit];
    return CUDA_SUCCESS;
}

CUresult do_cuCtxSetLimit(struct fg_call *c, int limit, size_t value) {
    if (limit < 0 || limit > 6)
        return CUDA_ERROR_INVALID_VALUE;
    c->context->limits[limit] = value;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetCacheConfig(struct fg_call *c, int *config) {
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    *config = c->context->cache_config;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxSetCacheConfig(struct fg_call *c, int config) {
    if (config < 0 || config > 3)
        return CUDA_ERROR_INVALID_VALUE;
    c->context->cache_config = config;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetSharedMemConfig(struct fg_call *c, int *config) {
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    *config = c->context->shared_config;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxSetSharedMemConfig(struct fg_call *c, int config) {
    if (config < 0 || config > 2)
        return CUDA_ERROR_INVALID_VALUE;
    c->context->shared_config = config;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxGetStreamPriorityRange(struct fg_call *c, int *least, int *greatest) {
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxResetPersistingL2Cache(struct fg_call *c) { return CUDA_SUCCESS; }

CUresult do_cuCtxGetExecAffinity(struct fg_call *c, void *affinity, int type) {
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult do_cuCtxEnablePeerAccess(struct fg_call *c, CUcontext peer, unsigned flags) {
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_context(peer))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (peer->device == c->context->device)
        return peer == c->context ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    u32 bit = 1u << peer->device;
    if (__atomic_fetch_or(&c->context->peers, bit, __ATOMIC_ACQ_REL) & bit)
        return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    return CUDA_SUCCESS;
}

CUresult do_cuCtxDisablePeerAccess(struct fg_call *c, CUcontext peer) {
    if (!fg_valid_context(peer))
        return CUDA_ERROR_INVALID_CONTEXT;
    u32 bit = 1u << peer->device;
    if (!(__atomic_fetch_and(&c->context->peers, ~bit, __ATOMIC_ACQ_REL) & bit))
        return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    return CUDA_SUCCESS;
}
