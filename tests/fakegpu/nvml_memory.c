/* The simulated NVML: memory, and the processes that hold it, of devices and of MIG devices. */
#include "nvml_api.h"

struct memory_v1 {
    u64 total, free, used;
};

struct memory_v2 {
    u32 version;
    u64 total, reserved, free, used;
};

/* As listed, but of a MIG device those in it only. */
u32 listed_processes(nvmlDevice_t h, u32 kind, struct listed *rows, u32 capacity) {
    const struct fgn_instance *instance = h->is_mig ? instance_of(h) : NULL;
    u32 kept = 0, n = device_processes(h->index, kind, rows, capacity);
    n = n < capacity ? n : capacity;
    if (!h->is_mig)
        return n;
    for (u32 i = 0; instance && i < n; i++)
        if (rows[i].gpu_instance == instance->gpu_instance &&
            rows[i].compute_instance == instance->compute_instance)
            rows[kept++] = rows[i];
    return kept;
}

static u64 used_in_instance(nvmlDevice_t h) {
    struct listed rows[LISTED_MOST];
    u64 used = 0;
    for (u32 kind = 0; kind < 3; kind++)
        for (u32 i = listed_processes(h, kind, rows, LISTED_MOST); i-- > 0;)
            used += rows[i].memory == NOT_AVAILABLE ? 0 : rows[i].memory;
    return used;
}

static struct memory_v2 memory_of(nvmlDevice_t h) {
    const struct fgn_instance *instance = h->is_mig ? instance_of(h) : NULL;
    struct memory_v2 m = {VERSION(struct memory_v2, 2), device_of(h)->memory_bytes,
                          figure_or(h->index, F_reserved_bytes, 0), 0, 0};
    if (instance) {
        m.total = instance->memory_bytes;
        m.reserved = 0;
        m.used = used_in_instance(h);
    } else
        m.used = device_memory_used(h->index);
    m.free = m.total > m.used + m.reserved ? m.total - m.used - m.reserved : 0;
    return m;
}

EXPORT int nvmlDeviceGetMemoryInfo(nvmlDevice_t h, struct memory_v1 *out) {
    ENTER_DEVICE_AS(h, out, MIG_OK);
    struct memory_v2 m = memory_of(h);
    *out = (struct memory_v1){m.total, m.free, m.total - m.free}; /* v1 counts reserved as used */
    return OK;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t h, struct memory_v2 *out) {
    ENTER_DEVICE_AS(h, out, MIG_OK);
    if (out->version != VERSION(struct memory_v2, 2))
        return VERSION_MISMATCH;
    *out = memory_of(h);
    return OK;
}

/* Of a MIG device the API reference says: its parent's. */
EXPORT int nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t h, struct memory_v1 *out) {
    u64 total, used;
    ENTER_DEVICE_AS(h, out, MIG_OK);
    RETURN_IF(figure(h->index, F_bar1_total_bytes, &total));
    RETURN_IF(figure(h->index, F_bar1_used_bytes, &used));
    *out = (struct memory_v1){total, total > used ? total - used : 0, used};
    return OK;
}

EXPORT int nvmlDeviceGetConfComputeProtectedMemoryUsage(nvmlDevice_t h, struct memory_v1 *out) {
    u64 total, used;
    ENTER_DEVICE(h, out);
    RETURN_IF(figure(h->index, F_protected_total_bytes, &total));
    RETURN_IF(figure(h->index, F_protected_used_bytes, &used));
    *out = (struct memory_v1){total, total > used ? total - used : 0, used};
    return OK;
}

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
    struct listed rows[LISTED_MOST];
    u32 n = listed_processes(h, kind, rows, LISTED_MOST);
    if (n && (*count < n || (!v1 && !v2))) {
        *count = n;
        return INSUFFICIENT_SIZE;
    }
    for (u32 i = 0; i < n; i++) {
        if (v1)
            v1[i] = (struct process_v1){rows[i].pid, rows[i].memory};
        else
            v2[i] = (struct process_v2){rows[i].pid, rows[i].memory, rows[i].gpu_instance,
                                        rows[i].compute_instance};
    }
    *count = n;
    return OK;
}

#define LISTS(function, kind)                                                                      \
    EXPORT int function(nvmlDevice_t h, unsigned *count, struct process_v1 *out) {                 \
        ENTER_DEVICE_AS(h, count, MIG_OK);                                                         \
        return list(h, kind, count, out, NULL);                                                    \
    }                                                                                              \
    EXPORT int function##_v2(nvmlDevice_t h, unsigned *count, struct process_v2 *out) {            \
        ENTER_DEVICE_AS(h, count, MIG_OK);                                                         \
        return list(h, kind, count, NULL, out);                                                    \
    }                                                                                              \
    EXPORT int function##_v3(nvmlDevice_t h, unsigned *count, struct process_v2 *out) {            \
        ENTER_DEVICE_AS(h, count, MIG_OK);                                                         \
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
    ENTER_DEVICE_AS(h, count, NOT_IN_MIG);
    u32 n = device_samples(h->index, last_seen_us, rows, capacity);
    n = n < capacity ? n : capacity;
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
