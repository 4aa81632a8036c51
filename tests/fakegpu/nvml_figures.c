/* The simulated NVML: a device's figures as nvml_state.h sets them, else over what the simulated
 * CUDA processes do. What neither is set nor simulated isn't supported. */
#include "nvml_api.h"

#include <time.h>

#define MIB 1048576ull
#define IDLE_MILLIWATTS 60000
#define MILLIWATTS_PER_PERCENT 2400
#define HIGHEST_BIT (1ull << 63)

int decode(fgn_value value, u64 *out) {
    *out = value > 1 ? value ^ HIGHEST_BIT : 0;
    return value > 1 ? OK : value ? NOT_SUPPORTED : NO_DATA;
}

static u64 energy_mj(u32 i) {
    u64 idle = clock_ns(CLOCK_BOOTTIME) / 1000000 * (IDLE_MILLIWATTS / 1000);
    return idle + device_busy_ns(i) / 1000000 * (MILLIWATTS_PER_PERCENT * 100 / 1000);
}

/* The figure that stands in for one that isn't set; itself: none. */
static enum fgn_figure stand_in(enum fgn_figure which) {
    switch (which) {
    case F_enforced_power_limit_mw:
        return F_power_limit_mw;
    case F_ecc_corrected_aggregate:
        return F_ecc_corrected;
    case F_ecc_uncorrected_aggregate:
        return F_ecc_uncorrected;
    case F_graphics_clock_mhz:
    case F_video_clock_mhz:
        return F_sm_clock_mhz;
    case F_max_graphics_clock_mhz:
    case F_max_sm_clock_mhz:
    case F_max_memory_clock_mhz:
    case F_max_video_clock_mhz:
        return F_graphics_clock_mhz + (which - F_max_graphics_clock_mhz);
    default:
        return which;
    }
}

static int simulated(u32 i, enum fgn_figure which, u64 *out) {
    switch (which) {
    case F_utilization:
        *out = device_utilization(i);
        return OK;
    case F_memory_utilization:
        *out = figure_or(i, F_utilization, 0) / 2;
        return OK;
    case F_temperature:
        *out = 30 + figure_or(i, F_utilization, 0) / 2;
        return OK;
    case F_power_mw:
        *out = IDLE_MILLIWATTS + MILLIWATTS_PER_PERCENT * figure_or(i, F_utilization, 0);
        return OK;
    case F_energy_mj:
        *out = energy_mj(i);
        return OK;
    case F_sm_clock_mhz:
        *out = node->devices[i].clock_khz / 1000;
        return OK;
    case F_memory_clock_mhz:
        *out = node->devices[i].memory_clock_khz / 1000;
        return OK;
    default:
        return NOT_SUPPORTED;
    }
}

/* What nothing simulates, and is known all the same. */
static const struct {
    enum fgn_figure which;
    u64 value;
} constants[] = {
    {F_power_limit_mw, 300000},
    {F_fan, 30},
    {F_performance_state, 0},
    {F_throttle_reasons, 0},
    {F_compute_mode, 0},
    {F_persistence, 1},
    {F_display_active, 0},
    {F_display_mode, 0},
    {F_encoder, 0},
    {F_decoder, 0},
    {F_ecc_corrected, 0},
    {F_ecc_uncorrected, 0},
    {F_mig_capable, 1},
    {F_bar1_total_bytes, 256 * MIB},
    {F_bar1_used_bytes, MIB},
    {F_reserved_bytes, 256 * MIB},
    {F_event_types, 0x9f},
    {F_gpm_interval_ms, 100},
};

int figure(u32 device, enum fgn_figure which, u64 *out) {
    int found = decode(fg_load(&device_settings(device)->figures[which]), out);
    if (found != NO_DATA)
        return found;
    for (u32 i = 0; i < sizeof constants / sizeof *constants; i++)
        if (constants[i].which == which) {
            *out = constants[i].value;
            return OK;
        }
    if (stand_in(which) != which)
        return figure(device, stand_in(which), out);
    return simulated(device, which, out);
}

u64 figure_or(u32 device, enum fgn_figure which, u64 otherwise) {
    u64 value;
    return figure(device, which, &value) ? otherwise : value;
}

/* --- what is one figure, two, or a text --------------------------------------------------------
 */

#define INDEX(function)                                                                            \
    EXPORT int function(nvmlDevice_t h, unsigned *out) {                                           \
        ENTER_DEVICE_AS(h, out, LOST_OK);                                                          \
        *out = h->index;                                                                           \
        return OK;                                                                                 \
    }

INDEX(nvmlDeviceGetIndex)
INDEX(nvmlDeviceGetMinorNumber)
ONE(nvmlDeviceGetPowerUsage, u32, 0, power_mw)
ONE(nvmlDeviceGetEnforcedPowerLimit, u32, 0, enforced_power_limit_mw)
ONE(nvmlDeviceGetPowerManagementLimit, u32, 0, power_limit_mw)
ONE(nvmlDeviceGetPowerManagementDefaultLimit, u32, 0, power_limit_default_mw)
TWO(nvmlDeviceGetPowerManagementLimitConstraints, u32, 0, power_limit_min_mw, power_limit_max_mw)
ONE(nvmlDeviceGetTotalEnergyConsumption, u64, 0, energy_mj)
ONE(nvmlDeviceGetPowerSource, u32, 0, power_source)
ONE(nvmlDeviceGetNumFans, u32, 0, fans)
ONE(nvmlDeviceGetFanSpeed, u32, 0, fan)
TWO(nvmlDeviceGetMinMaxFanSpeed, u32, 0, fan_min, fan_max)
ONE(nvmlDeviceGetPerformanceState, u32, 0, performance_state)
ONE(nvmlDeviceGetPowerState, u32, 0, performance_state)
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, u64, 0, throttle_reasons)
ONE(nvmlDeviceGetCurrentClocksEventReasons, u64, 0, throttle_reasons)
ONE(nvmlDeviceGetSupportedClocksThrottleReasons, u64, 0, supported_throttle_reasons)
ONE(nvmlDeviceGetSupportedClocksEventReasons, u64, 0, supported_throttle_reasons)
ONE(nvmlDeviceGetComputeMode, u32, 0, compute_mode)
ONE(nvmlDeviceGetPersistenceMode, u32, 0, persistence)
ONE(nvmlDeviceGetDisplayActive, u32, 0, display_active)
ONE(nvmlDeviceGetDisplayMode, u32, 0, display_mode)
ONE(nvmlDeviceGetAccountingMode, u32, 0, accounting_mode)
ONE(nvmlDeviceGetAccountingBufferSize, u32, 0, accounting_buffer)
ONE(nvmlDeviceGetBrand, u32, LOST_OK, brand)
ONE(nvmlDeviceGetArchitecture, u32, LOST_OK, architecture)
ONE(nvmlDeviceGetBoardId, u32, 0, board_id)
ONE(nvmlDeviceGetMultiGpuBoard, u32, 0, multi_gpu_board)
ONE(nvmlDeviceGetNumGpuCores, u32, 0, cores)
ONE(nvmlDeviceGetMemoryBusWidth, u32, 0, memory_bus_bits)
ONE(nvmlDeviceGetIrqNum, u32, 0, irq)
TWO(nvmlDeviceGetGspFirmwareMode, u32, 0, gsp_enabled, gsp_default)
ONE(nvmlDeviceGetVirtualizationMode, u32, 0, virtualization)
TEXT(nvmlDeviceGetVbiosVersion, T_vbios)
TEXT(nvmlDeviceGetSerial, T_serial)
TEXT(nvmlDeviceGetBoardPartNumber, T_board_part_number)
TEXT(nvmlDeviceGetInforomImageVersion, T_inforom_image)

EXPORT int nvmlDeviceGetInforomVersion(nvmlDevice_t h, unsigned object, char *out, unsigned size) {
    ENTER_DEVICE(h, out);
    if (object > 2) /* OEM, ECC, power */
        return INVALID_ARGUMENT;
    const char *text = device_settings(h->index)->texts[T_inforom_oem + object];
    return *text ? put_text(out, size, text) : NOT_SUPPORTED;
}

EXPORT int nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t h, char *out) {
    ENTER_DEVICE(h, out);
    const char *text = device_settings(h->index)->texts[T_gsp_firmware];
    return *text ? put_text(out, FGN_NAME, text) : NOT_SUPPORTED;
}

/* Windows has driver models; monitors ask everywhere. */
EXPORT int nvmlDeviceGetDriverModel(nvmlDevice_t h, unsigned *current, unsigned *pending) {
    ENTER_DEVICE(h, current && pending ? h : NULL);
    return NOT_SUPPORTED;
}

/* --- utilization ------------------------------------------------------------------------------ */

struct rates {
    u32 gpu, memory;
};

EXPORT int nvmlDeviceGetUtilizationRates(nvmlDevice_t h, struct rates *out) {
    u64 gpu, memory;
    ENTER_DEVICE_AS(h, out, NOT_IN_MIG);
    RETURN_IF(figure(h->index, F_utilization, &gpu));
    RETURN_IF(figure(h->index, F_memory_utilization, &memory));
    *out = (struct rates){(u32)gpu, (u32)memory};
    return OK;
}

#define ENGINE(function, which)                                                                    \
    EXPORT int function(nvmlDevice_t h, unsigned *out, unsigned *period_us) {                      \
        u64 value;                                                                                 \
        ENTER_DEVICE_AS(h, out &&period_us ? h : NULL, NOT_IN_MIG);                                \
        RETURN_IF(figure(h->index, F_##which, &value));                                            \
        *out = (u32)value;                                                                         \
        *period_us = 167000;                                                                       \
        return OK;                                                                                 \
    }

ENGINE(nvmlDeviceGetEncoderUtilization, encoder)
ENGINE(nvmlDeviceGetDecoderUtilization, decoder)
ENGINE(nvmlDeviceGetJpgUtilization, jpeg)
ENGINE(nvmlDeviceGetOfaUtilization, ofa)
