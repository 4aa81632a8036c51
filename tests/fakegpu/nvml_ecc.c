/* The simulated NVML: memory errors, and the pages and rows that they cost. */
#include "nvml_api.h"

#define LOCATIONS 8
#define RETIRED_AT_S 1600000000ull
#define PAGE_BYTES 4096

TWO(nvmlDeviceGetEccMode, u32, 0, ecc_mode, ecc_pending)
ONE(nvmlDeviceGetDefaultEccMode, u32, 0, ecc_default)
ONE(nvmlDeviceGetRetiredPagesPendingStatus, u32, 0, retired_pending)

EXPORT int nvmlDeviceGetTotalEccErrors(nvmlDevice_t h, unsigned type, unsigned counter, u64 *out) {
    static const enum fgn_figure totals[2][2] = {{F_ecc_corrected, F_ecc_corrected_aggregate},
                                                 {F_ecc_uncorrected, F_ecc_uncorrected_aggregate}};
    ENTER_DEVICE(h, out);
    return type > 1 || counter > 1 ? INVALID_ARGUMENT
                                   : figure(h->index, totals[type][counter], out);
}

EXPORT int nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t h, unsigned type, unsigned counter,
                                           unsigned location, u64 *out) {
    ENTER_DEVICE(h, out);
    if (type > 1 || counter > 1 || location >= LOCATIONS)
        return INVALID_ARGUMENT;
    return figure(h->index, F_ecc_corrected_l1 + (type * 2 + counter) * LOCATIONS + location, out);
}

struct ecc_counts {
    u64 l1, l2, memory, registers;
};

EXPORT int nvmlDeviceGetDetailedEccErrors(nvmlDevice_t h, unsigned type, unsigned counter,
                                          struct ecc_counts *out) {
    ENTER_DEVICE(h, out);
    if (type > 1 || counter > 1)
        return INVALID_ARGUMENT;
    enum fgn_figure first = F_ecc_corrected_l1 + (type * 2 + counter) * LOCATIONS;
    struct ecc_counts found = {0, 0, 0, 0};
    RETURN_IF(figure(h->index, first + 2, &found.memory));
    found.l1 = figure_or(h->index, first, 0);
    found.l2 = figure_or(h->index, first + 1, 0);
    found.registers = figure_or(h->index, first + 3, 0);
    *out = found;
    return OK;
}

static int pages(nvmlDevice_t h, unsigned cause, u32 *count, u64 *addresses, u64 *times) {
    u64 n;
    if (cause > 1)
        return INVALID_ARGUMENT;
    RETURN_IF(figure(h->index, F_retired_sbe + cause, &n));
    if (n && (*count < n || !addresses)) {
        *count = (u32)n;
        return INSUFFICIENT_SIZE;
    }
    for (u32 i = 0; i < n; i++) {
        addresses[i] = (1 + cause + 2 * i) * PAGE_BYTES;
        if (times)
            times[i] = RETIRED_AT_S + i;
    }
    *count = (u32)n;
    return OK;
}

EXPORT int nvmlDeviceGetRetiredPages(nvmlDevice_t h, unsigned cause, unsigned *count, u64 *out) {
    ENTER_DEVICE(h, count);
    return pages(h, cause, count, out, NULL);
}

EXPORT int nvmlDeviceGetRetiredPages_v2(nvmlDevice_t h, unsigned cause, unsigned *count, u64 *out,
                                        u64 *times) {
    ENTER_DEVICE(h, count);
    return pages(h, cause, count, out, times);
}

static int row_figures(u32 device, enum fgn_figure first, u32 n, u32 *const *out) {
    for (u32 i = 0; i < n; i++) {
        u64 value;
        RETURN_IF(figure(device, first + i, &value));
        *out[i] = (u32)value;
    }
    return OK;
}

EXPORT int nvmlDeviceGetRemappedRows(nvmlDevice_t h, unsigned *corrected, unsigned *uncorrected,
                                     unsigned *pending, unsigned *failure) {
    u32 *const out[] = {corrected, uncorrected, pending, failure};
    ENTER_DEVICE(h, corrected && uncorrected && pending && failure ? h : NULL);
    return row_figures(h->index, F_remapped_correctable, 4, out);
}

EXPORT int nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t h, u32 *values) {
    u32 *const out[] = {values, values + 1, values + 2, values + 3, values + 4};
    ENTER_DEVICE(h, values);
    return row_figures(h->index, F_remap_banks_max, 5, out);
}

struct sram_status {
    u32 version;
    u64 counts[11];
    u32 threshold_exceeded;
};

EXPORT int nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t h, struct sram_status *out) {
    struct sram_status found = {.version = VERSION(struct sram_status, 1)};
    u64 exceeded;
    ENTER_DEVICE(h, out);
    if (out->version != found.version)
        return VERSION_MISMATCH;
    for (u32 i = 0; i < 11; i++)
        RETURN_IF(figure(h->index, F_sram_aggregate_parity + i, &found.counts[i]));
    RETURN_IF(figure(h->index, F_sram_threshold_exceeded, &exceeded));
    found.threshold_exceeded = (u32)exceeded;
    *out = found;
    return OK;
}
