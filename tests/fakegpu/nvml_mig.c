/* The simulated NVML: MIG devices. A handle stands for a uuid: after a reconfiguration it is good
 * again only if the device with that uuid is there again. */
#include "nvml_api.h"

#include <pthread.h>
#include <string.h>
#include <strings.h>

#define HANDLES 1024
#define MOST_MIG_DEVICES 7

static struct handle mig_handles[HANDLES];
static u32 handles_used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int is_mig_handle(nvmlDevice_t h) {
    return h >= mig_handles && h < mig_handles + __atomic_load_n(&handles_used, __ATOMIC_ACQUIRE);
}

static const struct fgn_instance *by_uuid(u32 device, const u8 *uuid) {
    const struct fgn_device *settings = device_settings(device);
    for (u32 i = 0; node->devices[device].is_mig && i < FGN_INSTANCES; i++)
        if (settings->instances[i].used && memcmp(settings->instances[i].uuid, uuid, 16) == 0)
            return &settings->instances[i];
    return NULL;
}

const struct fgn_instance *instance_of(nvmlDevice_t h) { return by_uuid(h->index, h->uuid); }

static int give_handle(u32 device, const u8 *uuid, nvmlDevice_t *out) {
    u32 i = 0;
    pthread_mutex_lock(&lock);
    while (i < handles_used &&
           (mig_handles[i].index != device || memcmp(mig_handles[i].uuid, uuid, 16) != 0))
        i++;
    if (i == handles_used && i < HANDLES) {
        mig_handles[i] = (struct handle){.index = device, .is_mig = 1};
        memcpy(mig_handles[i].uuid, uuid, 16);
        __atomic_store_n(&handles_used, i + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    if (i == HANDLES)
        return NO_MEMORY;
    *out = &mig_handles[i];
    return OK;
}

int find_mig(const char *wanted, nvmlDevice_t *out) {
    char text[48];
    for (u32 device = 0; device < node->device_count; device++)
        for (u32 i = 0; node->devices[device].is_mig && i < FGN_INSTANCES; i++) {
            const struct fgn_instance *instance = &device_settings(device)->instances[i];
            uuid_text("MIG-", instance->uuid, text);
            if (!instance->used || strcasecmp(text, wanted) != 0)
                continue;
            return node->devices[device].lost ? GPU_IS_LOST
                                              : give_handle(device, instance->uuid, out);
        }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetMigMode(nvmlDevice_t h, unsigned *current, unsigned *pending) {
    u64 capable;
    ENTER_DEVICE(h, current && pending ? h : NULL);
    RETURN_IF(figure(h->index, F_mig_capable, &capable));
    *current = device_of(h)->is_mig != 0;
    *pending = (u32)figure_or(h->index, F_mig_pending, *current);
    return OK;
}

EXPORT int nvmlDeviceIsMigDeviceHandle(nvmlDevice_t h, unsigned *out) {
    ENTER_DEVICE_AS(h, out, LOST_OK | MIG_OK);
    *out = h->is_mig;
    return OK;
}

/* 0 where MIG is off, or not supported. */
EXPORT int nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t h, unsigned *out) {
    ENTER_DEVICE(h, out);
    *out = device_of(h)->is_mig ? (u32)figure_or(h->index, F_max_mig_devices, MOST_MIG_DEVICES) : 0;
    return OK;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t h, unsigned index, nvmlDevice_t *out) {
    u64 capable;
    ENTER_DEVICE(h, out);
    RETURN_IF(figure(h->index, F_mig_capable, &capable));
    if (!device_of(h)->is_mig)
        return NOT_FOUND;
    if (index >= FGN_INSTANCES || index >= figure_or(h->index, F_max_mig_devices, MOST_MIG_DEVICES))
        return INVALID_ARGUMENT;
    const struct fgn_instance *instance = &device_settings(h->index)->instances[index];
    return instance->used ? give_handle(h->index, instance->uuid, out) : NOT_FOUND;
}

/* What only a MIG device has. */
static int mig_only(nvmlDevice_t h) { return h->is_mig ? OK : NOT_SUPPORTED; }

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t h, nvmlDevice_t *out) {
    ENTER_DEVICE_AS(h, out, MIG_OK);
    if (!h->is_mig)
        return INVALID_ARGUMENT;
    *out = handle_of(h->index);
    return OK;
}

EXPORT int nvmlDeviceGetGpuInstanceId(nvmlDevice_t h, unsigned *out) {
    ENTER_DEVICE_AS(h, out, MIG_OK);
    RETURN_IF(mig_only(h));
    *out = instance_of(h)->gpu_instance;
    return OK;
}

EXPORT int nvmlDeviceGetComputeInstanceId(nvmlDevice_t h, unsigned *out) {
    ENTER_DEVICE_AS(h, out, MIG_OK);
    RETURN_IF(mig_only(h));
    *out = instance_of(h)->compute_instance;
    return OK;
}

struct attributes {
    u32 multiprocessors, copy_engines, decoders, encoders, jpeg_engines, ofa_engines;
    u32 gpu_slices, compute_slices;
    u64 memory_mb;
};

static void attributes(nvmlDevice_t h, struct attributes *out) {
    const struct fgn_instance *i = instance_of(h);
    *out = (struct attributes){i->multiprocessors, i->copy_engines,   i->decoders,
                               i->encoders,        i->jpeg_engines,   i->ofa_engines,
                               i->gpu_slices,      i->compute_slices, i->memory_bytes >> 20};
}

EXPORT int nvmlDeviceGetAttributes_v2(nvmlDevice_t h, struct attributes *out) {
    ENTER_DEVICE_AS(h, out, MIG_OK);
    RETURN_IF(mig_only(h));
    attributes(h, out);
    return OK;
}
