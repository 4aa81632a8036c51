/* Initialisation and what devices tell about themselves. */
#include "internal.h"
#include <stdio.h>
#include <string.h>

static const struct fg_device *device_of(CUdevice device) { return &fg_state->devices[device]; }

bool fg_valid_device(CUdevice device) {
    return device >= 0 && (u32)device < fg_state->device_count;
}

CUresult do_cuInit(struct fg_call *c, unsigned flags) {
    int before = 0;
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_state->device_count)
        return CUDA_ERROR_NO_DEVICE;
    __atomic_compare_exchange_n(&fg_initialised, &before, 1, false, __ATOMIC_ACQ_REL,
                                __ATOMIC_ACQUIRE);
    if (before < 0)
        return CUDA_ERROR_NOT_INITIALIZED;
    fg_me->initialised = 1;
    return CUDA_SUCCESS;
}

CUresult do_cuDriverGetVersion(struct fg_call *c, int *version) {
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = fg_state->driver_version;
    return CUDA_SUCCESS;
}

CUresult do_cuProfilerInitialize(struct fg_call *c, const char *config, const char *output,
                                 int mode) {
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult do_cuProfilerStart(struct fg_call *c) { return CUDA_SUCCESS; }

CUresult do_cuProfilerStop(struct fg_call *c) { return CUDA_SUCCESS; }

CUresult do_cuDeviceGet(struct fg_call *c, CUdevice *device, int ordinal) {
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetCount(struct fg_call *c, int *count) {
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = fg_state->device_count;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetName(struct fg_call *c, char *name, int length, CUdevice device) {
    if (!name || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, length, "%s", device_of(device)->name);
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetUuid(struct fg_call *c, CUuuid *uuid, CUdevice device) {
    if (!uuid)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid->bytes, device_of(device)->uuid, sizeof uuid->bytes);
    return CUDA_SUCCESS;
}

/* The second form names the MIG instance where the device is one. */
CUresult do_cuDeviceGetUuid_v2(struct fg_call *c, CUuuid *uuid, CUdevice device) {
    CUresult result = do_cuDeviceGetUuid(c, uuid, device);
    if (result == CUDA_SUCCESS && device_of(device)->is_mig)
        memcpy(uuid->bytes, device_of(device)->mig_uuid, sizeof uuid->bytes);
    return result;
}

CUresult do_cuDeviceGetLuid(struct fg_call *c, char *luid, unsigned *mask, CUdevice device) {
    return CUDA_ERROR_NOT_SUPPORTED; /* identifiers of another operating system */
}

CUresult do_cuDeviceTotalMem_v2(struct fg_call *c, size_t *bytes, CUdevice device) {
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *bytes = device_of(device)->memory_bytes;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceTotalMem(struct fg_call *c, unsigned *bytes, CUdevice device) {
    size_t all;
    CUresult result = do_cuDeviceTotalMem_v2(c, bytes ? &all : NULL, device);
    if (result == CUDA_SUCCESS)
        *bytes = all > 0xffffffffu ? 0xffffffffu : all;
    return result;
}

/* The attributes that are the same for every simulated device; by number, as the interface has
 * them. Those not named are 0: features that the simulation doesn't have. */
static const struct {
    int attribute;
    int value;
} same_everywhere[] = {
    {1, 1024},                     /* threads a block */
    {2, 1024},                     /* block x */
    {3, 1024},                     /* block y */
    {4, 64},                       /* block z */
    {5, 2147483647},               /* grid x */
    {6, 65535},                    /* grid y */
    {7, 65535},                    /* grid z */
    {8, 49152},                    /* shared memory a block */
    {9, 65536},                    /* constant memory */
    {10, 32},                      /* warp */
    {11, 2147483647}, {12, 65536}, /* registers a block */
    {14, 512},                     /* texture alignment */
    {15, 1},                       /* copies overlap */
    {19, 1},                       /* maps host memory */
    {21, 131072},                  /* textures' sizes */
    {22, 131072},     {23, 65536}, {24, 16384},
    {25, 16384},      {26, 16384}, {30, 512},    /* surface alignment */
    {31, 1},                                     /* concurrent kernels */
    {39, 2048},                                  /* threads a multiprocessor */
    {40, 3},                                     /* copy engines */
    {41, 1},                                     /* unified addresses */
    {51, 32},                                    /* texture pitch alignment */
    {69, 268435456},                             /* linear texture */
    {78, 1},                                     /* stream priorities */
    {79, 1},          {80, 1},     {81, 233472}, /* shared memory a multiprocessor */
    {82, 65536},                                 /* registers a multiprocessor */
    {83, 1},                                     /* managed memory */
    {89, 1},                                     /* concurrent managed access */
    {90, 1},                                     /* compute preemption */
    {91, 1},                                     /* registered host memory by its own address */
    {95, 1},                                     /* cooperative launches */
    {96, 1},                                     /* on several devices */
    {97, 232448},                                /* shared memory a block, opted in */
    {99, 1},                                     /* host registration */
    {102, 1},                                    /* virtual memory management */
    {106, 32},                                   /* blocks a multiprocessor */
    {111, 1024},                                 /* reserved shared memory */
    {115, 1},                                    /* memory pools */
    {120, 1},                                    /* clusters */
};

CUresult do_cuDeviceGetAttribute(struct fg_call *c, int *value, int attribute, CUdevice device) {
    if (!value || attribute <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    const struct fg_device *d = device_of(device);
    *value = 0;
    switch (attribute) {
    case 13:
        *value = d->clock_khz;
        break;
    case 16:
        *value = d->multiprocessors;
        break;
    case 33:
        *value = d->pci_bus;
        break;
    case 34:
        *value = d->pci_device;
        break;
    case 36:
        *value = d->memory_clock_khz;
        break;
    case 37:
        *value = d->memory_bus_bits;
        break;
    case 38:
        *value = d->l2_bytes;
        break;
    case 50:
        *value = d->pci_domain;
        break;
    case 75:
        *value = d->compute_major;
        break;
    case 76:
        *value = d->compute_minor;
        break;
    default:
        for (size_t i = 0; i < sizeof same_everywhere / sizeof *same_everywhere; i++)
            if (same_everywhere[i].attribute == attribute)
                *value = same_everywhere[i].value;
    }
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetProperties(struct fg_call *c, struct fg_device_properties *properties,
                                  CUdevice device) {
    if (!properties)
        return CUDA_ERROR_INVALID_VALUE;
    static const int attributes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
    int *values = (int *)properties;
    _Static_assert(sizeof *properties == sizeof attributes, "one attribute a field");
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++) {
        CUresult result = do_cuDeviceGetAttribute(c, &values[i], attributes[i], device);
        if (result)
            return result;
    }
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceComputeCapability(struct fg_call *c, int *major, int *minor, CUdevice device) {
    if (!major || !minor)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *major = device_of(device)->compute_major;
    *minor = device_of(device)->compute_minor;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetByPCIBusId(struct fg_call *c, CUdevice *device, const char *id) {
    unsigned domain = 0, bus, slot;
    if (!device || !id)
        return CUDA_ERROR_INVALID_VALUE;
    if (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3) {
        domain = 0;
        if (sscanf(id, "%x:%x", &bus, &slot) != 2)
            return CUDA_ERROR_INVALID_VALUE;
    }
    for (u32 i = 0; i < fg_state->device_count; i++)
        if (device_of(i)->pci_domain == domain && device_of(i)->pci_bus == bus &&
            device_of(i)->pci_device == slot) {
            *device = i;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuDeviceGetPCIBusId(struct fg_call *c, char *id, int length, CUdevice device) {
    if (!id || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    const struct fg_device *d = device_of(device);
    snprintf(id, length, "%04x:%02x:%02x.0", d->pci_domain, d->pci_bus, d->pci_device);
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetExecAffinitySupport(struct fg_call *c, int *supported, int type,
                                           CUdevice device) {
    if (!supported)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *supported = 0;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceCanAccessPeer(struct fg_call *c, int *can, CUdevice device, CUdevice peer) {
    if (!can)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device) || !fg_valid_device(peer))
        return CUDA_ERROR_INVALID_DEVICE;
    *can = device != peer;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetP2PAttribute(struct fg_call *c, int *value, int attribute, CUdevice source,
                                    CUdevice target) {
    if (!value || attribute < 1 || attribute > 4 || source == target)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(source) || !fg_valid_device(target))
        return CUDA_ERROR_INVALID_DEVICE;
    *value = attribute == 1 ? 0 : attribute == 2 || attribute == 4;
    return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetTexture1DLinearMaxWidth(struct fg_call *c, size_t *width, int format,
                                               unsigned channels, CUdevice device) {
    if (!width || !channels)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *width = 268435456;
    return CUDA_SUCCESS;
}
