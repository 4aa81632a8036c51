/* The simulated NVML: GPM. A sample is a copy of the metrics as they were set at its time; what is
 * computed from two samples is what the later one holds. */
#include "nvml_api.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAGIC 0x47504d53u
#define GET_VERSION 1
#define SUPPORT_VERSION 1
#define MILLISECOND_NS 1000000ull

#ifdef FGN_NEWER
#define METRIC_END 333 /* one greater than the last that the driver knows */
#else
#define METRIC_END 98
#endif

struct gpm_sample {
    u32 magic;
    u32 device;
    u32 instance_plus_one;
    u64 time_ns; /* 0: empty */
    struct fgn_metric metrics[FGN_METRICS];
};

struct gpm_metric {
    u32 id;
    int error;
    double value;
    const char *short_name, *long_name, *unit;
};

struct gpm_get {
    u32 version;
    u32 count;
    struct gpm_sample *older, *newer;
    struct gpm_metric metrics[];
};

struct gpm_support {
    u32 version;
    u32 supported;
};

EXPORT int nvmlGpmQueryDeviceSupport(nvmlDevice_t h, struct gpm_support *out) {
    ENTER_DEVICE_AS(h, out, MIG_OK);
    if (out->version != SUPPORT_VERSION)
        return VERSION_MISMATCH;
    out->supported = figure_or(h->index, F_gpm_supported, 0) != 0;
    return OK;
}

EXPORT int nvmlGpmSampleAlloc(struct gpm_sample **out) {
    ENTER();
    if (!out)
        return INVALID_ARGUMENT;
    *out = calloc(1, sizeof **out);
    if (!*out)
        return NO_MEMORY;
    (*out)->magic = MAGIC;
    return OK;
}

EXPORT int nvmlGpmSampleFree(struct gpm_sample *sample) {
    ENTER();
    if (!sample || sample->magic != MAGIC)
        return INVALID_ARGUMENT;
    sample->magic = 0;
    free(sample);
    return OK;
}

static int take(u32 device, u32 instance_plus_one, struct gpm_sample *out) {
    u64 supported;
    if (out->magic != MAGIC)
        return INVALID_ARGUMENT;
    RETURN_IF(figure(device, F_gpm_supported, &supported));
    if (!supported)
        return NOT_SUPPORTED;
    out->device = device;
    out->instance_plus_one = instance_plus_one;
    out->time_ns = clock_ns(CLOCK_MONOTONIC);
    memcpy(out->metrics, device_settings(device)->metrics, sizeof out->metrics);
    return OK;
}

EXPORT int nvmlGpmSampleGet(nvmlDevice_t h, struct gpm_sample *out) {
    ENTER_DEVICE(h, out);
    return take(h->index, 0, out);
}

EXPORT int nvmlGpmMigSampleGet(nvmlDevice_t h, unsigned gpu_instance, struct gpm_sample *out) {
    const struct fgn_instance *instances;
    ENTER_DEVICE(h, out);
    if (!device_of(h)->is_mig)
        return NOT_SUPPORTED;
    instances = device_settings(h->index)->instances;
    for (u32 i = 0; i < FGN_INSTANCES; i++)
        if (instances[i].used && instances[i].gpu_instance == gpu_instance)
            return take(h->index, gpu_instance + 1, out);
    return INVALID_ARGUMENT;
}

static const char *unit_of(u32 metric) {
    return (metric >= 20 && metric < 30) || metric >= 60 ? "MiB/s" : "%";
}

static void compute(const struct gpm_sample *newer, struct gpm_metric *m) {
    m->short_name = m->long_name = "simulated";
    m->unit = unit_of(m->id);
    m->value = 0;
    m->error = m->id && m->id < METRIC_END ? NOT_SUPPORTED : INVALID_ARGUMENT;
    for (u32 i = 0; m->error == NOT_SUPPORTED && i < FGN_METRICS; i++) {
        const struct fgn_metric *row = &newer->metrics[i];
        if (!row->used || row->metric != m->id ||
            row->gpu_instance_plus_one != newer->instance_plus_one)
            continue;
        memcpy(&m->value, &row->value, sizeof m->value);
        m->error = row->error;
        return;
    }
}

EXPORT int nvmlGpmMetricsGet(struct gpm_get *get) {
    ENTER();
    if (!get)
        return INVALID_ARGUMENT;
    if (get->version != GET_VERSION)
        return VERSION_MISMATCH;
    const struct gpm_sample *a = get->older, *b = get->newer;
    if (get->count > METRIC_END || !a || !b || a->magic != MAGIC || b->magic != MAGIC)
        return INVALID_ARGUMENT;
    if (!a->time_ns || a->time_ns >= b->time_ns || a->device != b->device ||
        a->instance_plus_one != b->instance_plus_one)
        return INVALID_ARGUMENT;
    u64 least = figure_or(b->device, F_gpm_interval_ms, 0) * MILLISECOND_NS;
    for (u32 i = 0; i < get->count; i++) {
        compute(b, &get->metrics[i]);
        if (b->time_ns - a->time_ns < least) /* the hardware has nothing newer yet */
            get->metrics[i].error = NO_DATA;
    }
    return OK;
}
