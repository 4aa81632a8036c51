/* The simulated NVML: what is read from a device, over what the simulated CUDA processes hold and
 * do and what nvml_state.h sets. Figures that nothing simulates have constant defaults. */
#include "nvml_api.h"

#include <time.h>

#define MIB 1048576ull
#define IDLE_MILLIWATTS 60000
#define MILLIWATTS_PER_PERCENT 2400

/* --- one figure per call --------------------------------------------------------------------- */

static u64 configured(fgn_value value, u64 otherwise) { return value ? value - 1 : otherwise; }

/* A function with one unsigned result. `s` are the device's settings, `i` its index. */
#define FIGURE(function, type, fails_if_lost, expression)                                          \
    EXPORT int function(nvmlDevice_t h, type *out) {                                               \
        ENTER_DEVICE_IF(h, out, fails_if_lost);                                                    \
        const struct fgn_device *s = device_settings(h->index);                                    \
        u32 i = h->index;                                                                          \
        (void)s, (void)i;                                                                          \
        *out = (type)(expression);                                                                 \
        return OK;                                                                                 \
    }

static u64 utilization(u32 i) {
    return configured(device_settings(i)->utilization, device_utilization(i));
}

static u64 power_mw(u32 i) {
    return configured(device_settings(i)->power_mw,
                      IDLE_MILLIWATTS + MILLIWATTS_PER_PERCENT * utilization(i));
}

static u64 energy_mj(u32 i) {
    u64 idle = clock_ns(CLOCK_BOOTTIME) / 1000000 * (IDLE_MILLIWATTS / 1000);
    u64 work = device_busy_ns(i) / 1000000 * (MILLIWATTS_PER_PERCENT * 100 / 1000);
    return configured(device_settings(i)->energy_mj, idle + work);
}

FIGURE(nvmlDeviceGetIndex, u32, 0, i)
FIGURE(nvmlDeviceGetMinorNumber, u32, 0, i)
FIGURE(nvmlDeviceGetPowerUsage, u32, 1, power_mw(i))
FIGURE(nvmlDeviceGetEnforcedPowerLimit, u32, 1, configured(s->power_limit_mw, 300000))
FIGURE(nvmlDeviceGetPowerManagementLimit, u32, 1, configured(s->power_limit_mw, 300000))
FIGURE(nvmlDeviceGetTotalEnergyConsumption, u64, 1, energy_mj(i))
FIGURE(nvmlDeviceGetFanSpeed, u32, 1, configured(s->fan, 30))
FIGURE(nvmlDeviceGetPerformanceState, u32, 1, configured(s->performance_state, 0))
FIGURE(nvmlDeviceGetCurrentClocksThrottleReasons, u64, 1, configured(s->throttle_reasons, 0))
FIGURE(nvmlDeviceGetComputeMode, u32, 1, configured(s->compute_mode, 0))
FIGURE(nvmlDeviceGetPersistenceMode, u32, 1, configured(s->persistence, 1))
FIGURE(nvmlDeviceGetDisplayActive, u32, 1, 0)
FIGURE(nvmlDeviceGetDisplayMode, u32, 1, 0)
FIGURE(nvmlDeviceIsMigDeviceHandle, u32, 0, 0)

EXPORT int nvmlDeviceGetTemperature(nvmlDevice_t h, unsigned sensor, unsigned *out) {
    ENTER_DEVICE(h, out);
    if (sensor != 0)
        return INVALID_ARGUMENT;
    *out = (u32)configured(device_settings(h->index)->temperature, 30 + utilization(h->index) / 2);
    return OK;
}

static int clock_mhz(nvmlDevice_t h, unsigned type, unsigned *out) {
    const struct fg_device *d = device_of(h);
    const struct fgn_device *s = device_settings(h->index);
    if (type > 3) /* graphics, SM, memory, video */
        return INVALID_ARGUMENT;
    *out = type == 2 ? (u32)configured(s->memory_clock_mhz, d->memory_clock_khz / 1000)
                     : (u32)configured(s->sm_clock_mhz, d->clock_khz / 1000);
    return OK;
}

EXPORT int nvmlDeviceGetClockInfo(nvmlDevice_t h, unsigned type, unsigned *out) {
    ENTER_DEVICE(h, out);
    return clock_mhz(h, type, out);
}

EXPORT int nvmlDeviceGetMaxClockInfo(nvmlDevice_t h, unsigned type, unsigned *out) {
    ENTER_DEVICE(h, out);
    return clock_mhz(h, type, out);
}

EXPORT int nvmlDeviceGetMigMode(nvmlDevice_t h, unsigned *current, unsigned *pending) {
    ENTER_DEVICE(h, current && pending ? h : NULL);
    *current = *pending = device_of(h)->is_mig != 0;
    return OK;
}

/* Windows has driver models; monitors ask everywhere. */
EXPORT int nvmlDeviceGetDriverModel(nvmlDevice_t h, unsigned *current, unsigned *pending) {
    ENTER_DEVICE(h, current && pending ? h : NULL);
    return NOT_SUPPORTED;
}

EXPORT int nvmlDeviceGetTotalEccErrors(nvmlDevice_t h, unsigned type, unsigned counter, u64 *out) {
    const struct fgn_device *s;
    ENTER_DEVICE(h, out);
    if (type > 1 || counter > 1)
        return INVALID_ARGUMENT;
    s = device_settings(h->index);
    *out = configured(type ? s->ecc_uncorrected : s->ecc_corrected, 0);
    return OK;
}

struct rates {
    u32 gpu, memory;
};

EXPORT int nvmlDeviceGetUtilizationRates(nvmlDevice_t h, struct rates *out) {
    ENTER_DEVICE(h, out);
    if (device_of(h)->is_mig)
        return NOT_SUPPORTED;
    out->gpu = (u32)utilization(h->index);
    out->memory = (u32)configured(device_settings(h->index)->memory_utilization, out->gpu / 2);
    return OK;
}

EXPORT int nvmlDeviceGetEncoderUtilization(nvmlDevice_t h, unsigned *out, unsigned *period_us) {
    ENTER_DEVICE(h, out && period_us ? h : NULL);
    *out = (u32)configured(device_settings(h->index)->encoder, 0);
    *period_us = 167000;
    return OK;
}

EXPORT int nvmlDeviceGetDecoderUtilization(nvmlDevice_t h, unsigned *out, unsigned *period_us) {
    ENTER_DEVICE(h, out && period_us ? h : NULL);
    *out = (u32)configured(device_settings(h->index)->decoder, 0);
    *period_us = 167000;
    return OK;
}

/* --- memory ---------------------------------------------------------------------------------- */

#define RESERVED_BYTES (256 * MIB)

struct memory_v1 {
    u64 total, free, used;
};

struct memory_v2 {
    u32 version;
    u64 total, reserved, free, used;
};

#define MEMORY_V2 ((u32)(sizeof(struct memory_v2) | 2u << 24))

static struct memory_v2 memory_of(u32 device) {
    struct memory_v2 m = {MEMORY_V2, node->devices[device].memory_bytes, RESERVED_BYTES, 0, 0};
    m.used = device_memory_used(device);
    m.free = m.total > m.used + m.reserved ? m.total - m.used - m.reserved : 0;
    return m;
}

EXPORT int nvmlDeviceGetMemoryInfo(nvmlDevice_t h, struct memory_v1 *out) {
    ENTER_DEVICE(h, out);
    struct memory_v2 m = memory_of(h->index);
    *out = (struct memory_v1){m.total, m.free, m.total - m.free}; /* v1 counts reserved as used */
    return OK;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t h, struct memory_v2 *out) {
    ENTER_DEVICE(h, out);
    if (out->version != MEMORY_V2)
        return VERSION_MISMATCH;
    *out = memory_of(h->index);
    return OK;
}

EXPORT int nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t h, struct memory_v1 *out) {
    ENTER_DEVICE(h, out);
    *out = (struct memory_v1){256 * MIB, 255 * MIB, MIB};
    return OK;
}

/* --- processes ------------------------------------------------------------------------------- */

struct process_v1 {
    u32 pid;
    u64 memory;
};

struct process_v2 {
    u32 pid;
    u64 memory;
    u32 gpu_instance, compute_instance;
};

static int list(nvmlDevice_t h, u32 kind, u32 *count, struct process_v1 *v1,
                struct process_v2 *v2) {
    struct listed rows[FGN_PROCESSES + 256];
    u32 capacity = sizeof rows / sizeof *rows;
    u32 n = device_processes(h->index, kind, rows, capacity);
    if (n > capacity)
        n = capacity;
    if (n && (*count < n || (!v1 && !v2))) {
        *count = n;
        return INSUFFICIENT_SIZE;
    }
    for (u32 i = 0; i < n; i++) {
        if (v1)
            v1[i] = (struct process_v1){rows[i].pid, rows[i].memory};
        else
            v2[i] = (struct process_v2){rows[i].pid, rows[i].memory, ~0u, ~0u};
    }
    *count = n;
    return OK;
}

#define LISTS(function, kind)                                                                      \
    EXPORT int function(nvmlDevice_t h, unsigned *count, struct process_v1 *out) {                 \
        ENTER_DEVICE(h, count);                                                                    \
        return list(h, kind, count, out, NULL);                                                    \
    }                                                                                              \
    EXPORT int function##_v2(nvmlDevice_t h, unsigned *count, struct process_v2 *out) {            \
        ENTER_DEVICE(h, count);                                                                    \
        return list(h, kind, count, NULL, out);                                                    \
    }                                                                                              \
    EXPORT int function##_v3(nvmlDevice_t h, unsigned *count, struct process_v2 *out) {            \
        ENTER_DEVICE(h, count);                                                                    \
        return list(h, kind, count, NULL, out);                                                    \
    }

LISTS(nvmlDeviceGetComputeRunningProcesses, FGN_COMPUTE)
LISTS(nvmlDeviceGetGraphicsRunningProcesses, FGN_GRAPHICS)
LISTS(nvmlDeviceGetMPSComputeRunningProcesses, FGN_MPS)

struct process_utilization {
    u32 pid;
    u64 time_us;
    u32 sm, memory, encoder, decoder;
};

EXPORT int nvmlDeviceGetProcessUtilization(nvmlDevice_t h, struct process_utilization *out,
                                           unsigned *count, u64 last_seen_us) {
    struct fgn_sample rows[FGN_SAMPLES + 256];
    u32 capacity = sizeof rows / sizeof *rows;
    ENTER_DEVICE(h, count);
    if (device_of(h)->is_mig)
        return NOT_SUPPORTED;
    u32 n = device_samples(h->index, last_seen_us, rows, capacity);
    if (n > capacity)
        n = capacity;
    if (!n)
        return NOT_FOUND;
    if (!out || *count < n) {
        *count = n;
        return INSUFFICIENT_SIZE;
    }
    for (u32 i = 0; i < n; i++)
        out[i] = (struct process_utilization){rows[i].pid,    rows[i].time_us, rows[i].sm,
                                              rows[i].memory, rows[i].encoder, rows[i].decoder};
    *count = n;
    return OK;
}
