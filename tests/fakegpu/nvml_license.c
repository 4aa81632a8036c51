/* The simulated NVML: vGPU licences, and the sessions of encoder and frame capture. */
#include "nvml_api.h"

#include <string.h>

#define FEATURES 3

struct expiry {
    u32 year;
    u16 month, day, hour, minute, second;
    u8 status;
};

/* Each version's row is the beginning of the next one's. */
struct feature {
    u32 code, state; /* state: a licence can be had */
    char info[128];
    char product[128]; /* from version 2 */
    u32 enabled;       /* from version 3 */
    struct expiry expiry;
};

#define V1_BYTES 136
#define V2_BYTES 264
#define V3_BYTES 268
#define V4_BYTES sizeof(struct feature)

struct features {
    int supported;
    u32 count;
    char rows[];
};

static int features(nvmlDevice_t h, struct features *out, u64 row_bytes) {
    const struct fgn_device *settings = device_settings(h->index);
    u32 device = h->index;
    u64 supported, count = figure_or(device, F_license_features, 0);
    RETURN_IF(figure(device, F_license_supported, &supported));
    count = count < FEATURES ? count : FEATURES;
    memset(out, 0, sizeof *out + FEATURES * row_bytes);
    out->supported = supported != 0;
    out->count = (u32)count;
    for (u32 i = 0; i < count; i++) {
        struct feature row = {.code = (u32)figure_or(device, F_license_code, 0) + i,
                              .state = (u32)figure_or(device, F_license_state, 0),
                              .enabled = (u32)figure_or(device, F_license_enabled, 0)};
        memcpy(row.info, settings->texts[T_license_info], FGN_NAME);
        memcpy(row.product, settings->texts[T_license_product], FGN_NAME);
        row.expiry.year = (u32)figure_or(device, F_license_expiry_year, 0);
        row.expiry.month = row.expiry.day = row.expiry.year ? 1 : 0;
        row.expiry.status = (u8)figure_or(device, F_license_expiry_status, 0);
        memcpy(out->rows + i * row_bytes, &row, row_bytes);
    }
    return OK;
}

#define FEATURES_GET(function, bytes)                                                              \
    EXPORT int function(nvmlDevice_t h, struct features *out) {                                    \
        ENTER_DEVICE(h, out);                                                                      \
        return features(h, out, bytes);                                                            \
    }

FEATURES_GET(nvmlDeviceGetGridLicensableFeatures, V1_BYTES)
FEATURES_GET(nvmlDeviceGetGridLicensableFeatures_v2, V2_BYTES)
FEATURES_GET(nvmlDeviceGetGridLicensableFeatures_v3, V3_BYTES)
FEATURES_GET(nvmlDeviceGetGridLicensableFeatures_v4, V4_BYTES)

static int three(u32 device, enum fgn_figure first, u32 *const out[3]) {
    for (u32 i = 0; i < 3; i++) {
        u64 value;
        RETURN_IF(figure(device, first + i, &value));
        *out[i] = (u32)value;
    }
    return OK;
}

EXPORT int nvmlDeviceGetEncoderStats(nvmlDevice_t h, unsigned *sessions, unsigned *fps,
                                     unsigned *latency_us) {
    u32 *const out[] = {sessions, fps, latency_us};
    ENTER_DEVICE_AS(h, sessions && fps && latency_us ? h : NULL, NOT_IN_MIG);
    return three(h->index, F_encoder_sessions, out);
}

EXPORT int nvmlDeviceGetFBCStats(nvmlDevice_t h, u32 *values) {
    u32 *const out[] = {values, values + 1, values + 2};
    ENTER_DEVICE_AS(h, values, NOT_IN_MIG);
    return three(h->index, F_fbc_sessions, out);
}
