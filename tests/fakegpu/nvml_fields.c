/* The simulated NVML: nvmlDeviceGetFieldValues. One table says of each field id where it is from.
 *
 * A 32-bit value leaves the rest of the union as it finds it; here that is made visible, so that a
 * client which reads another member than valueType names reads nonsense. */
#include "nvml_api.h"

#include <string.h>
#include <time.h>

#define ALL_LINKS UINT32_MAX
#define UNREAD 0xa5a5a5a500000000ull

#ifdef FGN_NEWER
#define FIELD_END 275 /* one greater than the last that the driver knows */
#else
#define FIELD_END 201
#endif

enum type { UINT = 1, ULL = 3, SINT = 5 };

/* Where a value is from: a figure (of consecutive ids: consecutive figures), a figure by power
 * scope, an NVLink's figure by id or by scope, their sum, or what link() below computes. */
enum from { FIGURE, POWER, LINK, SCOPED, SCOPED_OR_TOTAL, TOTAL, SPEED, STATE, LINK_VERSION };

struct field_row {
    u16 first, last;
    u8 type, from;
    u16 which;
    u16 first_link;
};

static const struct field_row table[] = {
    {1, 2, UINT, FIGURE, F_ecc_mode, 0},
    {3, 3, ULL, FIGURE, F_ecc_corrected, 0},
    {4, 4, ULL, FIGURE, F_ecc_uncorrected, 0},
    {5, 5, ULL, FIGURE, F_ecc_corrected_aggregate, 0},
    {6, 6, ULL, FIGURE, F_ecc_uncorrected_aggregate, 0},
    {7, 7, ULL, FIGURE, F_ecc_corrected_l1, 0},
    {8, 8, ULL, FIGURE, F_ecc_uncorrected_l1, 0},
    {9, 9, ULL, FIGURE, F_ecc_corrected_l2, 0},
    {10, 10, ULL, FIGURE, F_ecc_uncorrected_l2, 0},
    {11, 11, ULL, FIGURE, F_ecc_corrected_memory, 0},
    {12, 12, ULL, FIGURE, F_ecc_uncorrected_memory, 0},
    {13, 13, ULL, FIGURE, F_ecc_corrected_registers, 0},
    {14, 14, ULL, FIGURE, F_ecc_uncorrected_registers, 0},
    {15, 15, ULL, FIGURE, F_ecc_corrected_texture, 0},
    {16, 16, ULL, FIGURE, F_ecc_uncorrected_texture, 0},
    {17, 17, ULL, FIGURE, F_ecc_uncorrected_cbu, 0},
    {18, 18, ULL, FIGURE, F_ecc_corrected_aggregate_l1, 0},
    {19, 19, ULL, FIGURE, F_ecc_uncorrected_aggregate_l1, 0},
    {20, 20, ULL, FIGURE, F_ecc_corrected_aggregate_l2, 0},
    {21, 21, ULL, FIGURE, F_ecc_uncorrected_aggregate_l2, 0},
    {22, 22, ULL, FIGURE, F_ecc_corrected_aggregate_memory, 0},
    {23, 23, ULL, FIGURE, F_ecc_uncorrected_aggregate_memory, 0},
    {24, 24, ULL, FIGURE, F_ecc_corrected_aggregate_registers, 0},
    {25, 25, ULL, FIGURE, F_ecc_uncorrected_aggregate_registers, 0},
    {26, 26, ULL, FIGURE, F_ecc_corrected_aggregate_texture, 0},
    {27, 27, ULL, FIGURE, F_ecc_uncorrected_aggregate_texture, 0},
    {28, 28, ULL, FIGURE, F_ecc_uncorrected_aggregate_cbu, 0},
    {29, 30, ULL, FIGURE, F_retired_sbe, 0},
    {31, 31, UINT, FIGURE, F_retired_pending, 0},
    {32, 37, ULL, LINK, L_crc_flit, 0},
    {38, 38, ULL, TOTAL, L_crc_flit, 0},
    {39, 44, ULL, LINK, L_crc_data, 0},
    {45, 45, ULL, TOTAL, L_crc_data, 0},
    {46, 51, ULL, LINK, L_replays, 0},
    {52, 52, ULL, TOTAL, L_replays, 0},
    {53, 58, ULL, LINK, L_recoveries, 0},
    {59, 59, ULL, TOTAL, L_recoveries, 0},
    {74, 81, ULL, FIGURE, F_violation_power_ns, 0},
    {82, 82, UINT, FIGURE, F_memory_temperature, 0},
    {83, 83, ULL, FIGURE, F_energy_mj, 0},
    {84, 89, UINT, SPEED, 0, 0},
    {90, 90, UINT, FIGURE, F_nvlink_speed_mbps, 0},
    {91, 91, UINT, FIGURE, F_nvlinks, 0},
    {92, 93, UINT, FIGURE, F_retired_pending_sbe, 0},
    {94, 95, UINT, FIGURE, F_pcie_replays, 0},
    {96, 101, ULL, LINK, L_crc_flit, 6},
    {102, 107, ULL, LINK, L_crc_data, 6},
    {108, 113, ULL, LINK, L_replays, 6},
    {114, 119, ULL, LINK, L_recoveries, 6},
    {132, 137, UINT, SPEED, 0, 6},
    {138, 138, ULL, SCOPED_OR_TOTAL, L_data_tx_kib, 0},
    {139, 139, ULL, SCOPED_OR_TOTAL, L_data_rx_kib, 0},
    {140, 140, ULL, SCOPED_OR_TOTAL, L_raw_tx_kib, 0},
    {141, 141, ULL, SCOPED_OR_TOTAL, L_raw_rx_kib, 0},
    {142, 145, UINT, FIGURE, F_remapped_correctable, 0},
    {146, 146, UINT, SCOPED, L_remote_link, 0},
    {147, 147, UINT, FIGURE, F_nvlink_switch_links, 0},
    {148, 159, ULL, LINK, L_ecc_data, 0},
    {160, 160, ULL, TOTAL, L_ecc_data, 0},
    {161, 161, ULL, SCOPED, L_dl_replays, 0},
    {162, 162, ULL, SCOPED, L_dl_recoveries, 0},
    {163, 163, ULL, SCOPED, L_dl_crc, 0},
    {164, 164, UINT, SPEED, 0, 0},
    {165, 165, UINT, STATE, 0, 0},
    {166, 166, UINT, LINK_VERSION, 0, 0},
    {169, 169, UINT, FIGURE, F_pcie_l0_to_recovery, 0},
    {173, 183, UINT, FIGURE, F_pcie_correctable_errors, 0},
    {185, 185, UINT, POWER, F_power_average_mw, 0},
    {186, 186, UINT, POWER, F_power_instant_mw, 0},
    {187, 187, UINT, POWER, F_power_limit_min_mw, 0},
    {188, 188, UINT, POWER, F_power_limit_max_mw, 0},
    {189, 189, UINT, POWER, F_power_limit_default_mw, 0},
    {190, 190, UINT, POWER, F_power_limit_mw, 0},
    {191, 191, ULL, FIGURE, F_energy_mj, 0},
    {192, 192, UINT, POWER, F_power_limit_requested_mw, 0},
    {193, 196, SINT, FIGURE, F_tlimit_shutdown, 0},
    {197, 198, ULL, FIGURE, F_pcie_tx_bytes, 0},
    {201, 201, ULL, SCOPED, L_tx_packets, 0},
    {202, 202, ULL, SCOPED, L_tx_bytes, 0},
    {203, 203, ULL, SCOPED, L_rx_packets, 0},
    {204, 204, ULL, SCOPED, L_rx_bytes, 0},
    {230, 230, UINT, FIGURE, F_recovery_action, 0},
    {269, 271, ULL, FIGURE, F_sw_thermal_slowdown_ns, 0},
    {274, 274, UINT, FIGURE, F_edpp_multiplier, 0},
};

struct field_value {
    u32 id;
    u32 scope;
    int64_t time_us;
    int64_t latency_us;
    u32 type;
    int error;
    u64 value;
};

/* What is told of every link that there is, whether its figures are set or not. */
static int link_field(u32 device, u32 link, u32 from, u64 *out) {
    u64 up;
    RETURN_IF(link_check(device, link));
    int down = link_figure(device, link, L_active, &up);
    if (from == STATE) {
        *out = !down;
        return OK;
    }
    if (down)
        return NOT_SUPPORTED;
    return figure(device, from == SPEED ? F_nvlink_speed_mbps : F_nvlink_version, out);
}

static int read_field(u32 device, const struct field_row *row, const struct field_value *v,
                      u64 *out) {
    u32 offset = v->id - row->first;
    u32 link = row->first == row->last ? v->scope : row->first_link + offset;
    switch (row->from) {
    case FIGURE:
        return figure(device, row->which + offset, out);
    case POWER: /* of the GPU; module and memory have none */
        return v->scope > 2   ? INVALID_ARGUMENT
               : v->scope > 0 ? NOT_SUPPORTED
                              : figure(device, row->which, out);
    case TOTAL:
        return link_total(device, row->which, out);
    case SCOPED_OR_TOTAL:
        if (v->scope == ALL_LINKS)
            return link_total(device, row->which, out);
        return link_figure(device, link, row->which, out);
    case LINK:
    case SCOPED: {
        int error = link_figure(device, link, row->which, out);
        /* ids name 12 links, whether or not the board has as many */
        return error && row->from == LINK ? NOT_SUPPORTED : error;
    }
    default: {
        int error = link_field(device, link, row->from, out);
        return error && row->first != row->last ? NOT_SUPPORTED : error;
    }
    }
}

static const struct field_row *row_of(u32 id) {
    for (u32 i = 0; i < sizeof table / sizeof *table; i++)
        if (id >= table[i].first && id <= table[i].last)
            return &table[i];
    return NULL;
}

/* What control says of this field alone. */
static const struct fgn_field *told(u32 device, const struct field_value *v) {
    const struct fgn_field *fields = device_settings(device)->fields;
    for (u32 i = 0; i < FGN_FIELDS; i++)
        if (fields[i].used && fields[i].field == v->id &&
            (fields[i].any_scope || fields[i].scope == v->scope))
            return &fields[i];
    return NULL;
}

static void answer(u32 device, struct field_value *v) {
    const struct fgn_field *told_so = told(device, v);
    const struct field_row *row = row_of(v->id);
    u64 value = 0;
    if (told_so) {
        v->error = told_so->error;
        value = told_so->value;
    } else if (!v->id || v->id >= FIELD_END)
        v->error = INVALID_ARGUMENT;
    else
        v->error = row ? read_field(device, row, v, &value) : NOT_SUPPORTED;
    v->type = row ? row->type : ULL;
    v->value = v->type == ULL ? value : (value & UINT32_MAX) | UNREAD;
    v->time_us = (int64_t)(clock_ns(CLOCK_REALTIME) / 1000);
    v->latency_us = 1;
}

EXPORT int nvmlDeviceGetFieldValues(nvmlDevice_t h, int count, struct field_value *values) {
    ENTER_DEVICE(h, values);
    if (count < 1)
        return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++)
        answer(h->index, &values[i]);
    return OK;
}
