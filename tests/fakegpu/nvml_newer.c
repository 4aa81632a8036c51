/* The simulated NVML: what driver 570 exports beyond 535. */
#include "nvml_api.h"

#ifdef FGN_NEWER

struct utilization_row {
    u64 time_us;
    u32 pid, sm, memory, encoder, decoder, jpeg, ofa;
};

struct utilization_rows {
    u32 version;
    u32 count;
    u64 last_seen_us;
    struct utilization_row *rows;
};

EXPORT int nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t h, struct utilization_rows *out) {
    struct fgn_sample rows[FGN_SAMPLES + 256];
    u32 capacity = sizeof rows / sizeof *rows;
    ENTER_DEVICE_AS(h, out, NOT_IN_MIG);
    if (out->version != VERSION(struct utilization_rows, 1))
        return VERSION_MISMATCH;
    u32 n = device_samples(h->index, out->last_seen_us, rows, capacity);
    n = n < capacity ? n : capacity;
    if (!n)
        return NOT_FOUND;
    if (!out->rows || out->count < n) {
        out->count = n;
        return INSUFFICIENT_SIZE;
    }
    for (u32 i = 0; i < n; i++)
        out->rows[i] =
            (struct utilization_row){rows[i].time_us, rows[i].pid,     rows[i].sm,   rows[i].memory,
                                     rows[i].encoder, rows[i].decoder, rows[i].jpeg, rows[i].ofa};
    out->count = n;
    return OK;
}

struct margin {
    u32 version;
    i32 degrees;
};

EXPORT int nvmlDeviceGetMarginTemperature(nvmlDevice_t h, struct margin *out) {
    u64 value;
    ENTER_DEVICE(h, out);
    if (out->version != VERSION(struct margin, 1))
        return VERSION_MISMATCH;
    RETURN_IF(figure(h->index, F_margin_temperature, &value));
    out->degrees = (i32)value;
    return OK;
}

struct temperature {
    u32 version;
    u32 sensor;
    i32 degrees;
};

EXPORT int nvmlDeviceGetTemperatureV(nvmlDevice_t h, struct temperature *out) {
    u64 value;
    ENTER_DEVICE(h, out);
    if (out->version != VERSION(struct temperature, 1))
        return VERSION_MISMATCH;
    if (out->sensor)
        return INVALID_ARGUMENT;
    RETURN_IF(figure(h->index, F_temperature, &value));
    out->degrees = (i32)value;
    return OK;
}

struct fan_speed {
    u32 version;
    u32 fan;
    u32 rpm;
};

EXPORT int nvmlDeviceGetFanSpeedRPM(nvmlDevice_t h, struct fan_speed *out) {
    u64 value;
    ENTER_DEVICE(h, out);
    if (out->version != VERSION(struct fan_speed, 1))
        return VERSION_MISMATCH;
    if (out->fan > 1)
        return INVALID_ARGUMENT;
    RETURN_IF(figure(h->index, F_fan_rpm + out->fan, &value));
    out->rpm = (u32)value;
    return OK;
}

#endif
