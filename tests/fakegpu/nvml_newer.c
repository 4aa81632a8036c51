/* The simulated NVML: what driver 570 exports beyond 535. */
#include "nvml_api.h"

#ifdef FGN_NEWER

#include <string.h>

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

struct pci_info_ext {
    u32 version;
    u32 domain, bus, device, device_id, subsystem_id, base_class, sub_class;
    char bus_id[32];
};

EXPORT int nvmlDeviceGetPciInfoExt(nvmlDevice_t h, struct pci_info_ext *out) {
    u64 class;
    ENTER_DEVICE_AS(h, out, LOST_OK);
    if (out->version != VERSION(struct pci_info_ext, 1))
        return VERSION_MISMATCH;
    RETURN_IF(figure(h->index, F_pci_class, &class));
    const struct fg_device *d = device_of(h);
    out->domain = d->pci_domain;
    out->bus = d->pci_bus;
    out->device = d->pci_device;
    out->device_id = (u32)figure_or(h->index, F_pci_device_id, 0);
    out->subsystem_id = (u32)figure_or(h->index, F_pci_subsystem_id, 0);
    out->base_class = class >> 8 & 255;
    out->sub_class = class & 255;
    return OK;
}

struct platform_info {
    u32 version;
    u8 guid[16];
    char chassis_serial[16];
    u8 slot, tray, host, peer, module;
};

EXPORT int nvmlDeviceGetPlatformInfo(nvmlDevice_t h, struct platform_info *out) {
    u64 guid;
    ENTER_DEVICE_AS(h, out, LOST_OK);
    if (out->version != VERSION(struct platform_info, 2))
        return VERSION_MISMATCH;
    RETURN_IF(figure(h->index, F_platform_guid, &guid));
    memset(out->guid, 0, sizeof *out - offsetof(struct platform_info, guid));
    for (int byte = 0; byte < 8; byte++)
        out->guid[byte] = (u8)(guid >> (56 - 8 * byte));
    memcpy(out->chassis_serial, device_settings(h->index)->texts[T_chassis_serial],
           sizeof out->chassis_serial); /* not terminated where it is as long */
    out->slot = (u8)figure_or(h->index, F_platform_slot, 255);
    out->tray = (u8)figure_or(h->index, F_platform_tray, 255);
    out->host = (u8)figure_or(h->index, F_platform_host, 255);
    out->module = (u8)figure_or(h->index, F_platform_module, 255);
    return OK;
}

struct encryption {
    u32 version;
    u32 state;
};

EXPORT int nvmlDeviceGetDramEncryptionMode(nvmlDevice_t h, struct encryption *out,
                                           struct encryption *pending) {
    u64 now, then;
    ENTER_DEVICE(h, pending ? out : NULL);
    if (out->version != VERSION(struct encryption, 1) || pending->version != out->version)
        return VERSION_MISMATCH;
    RETURN_IF(figure(h->index, F_dram_encryption, &now));
    RETURN_IF(figure(h->index, F_dram_encryption_pending, &then));
    out->state = (u32)now;
    pending->state = (u32)then;
    return OK;
}

ONE(nvmlDeviceGetC2cModeInfoV, u32, 0, c2c)

#endif
