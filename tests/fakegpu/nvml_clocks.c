/* The simulated NVML: temperatures, fans, clocks, and why clocks were low. */
#include "nvml_api.h"

#include <time.h>

/* The figure `index` places after `first`. */
static int pick(u32 device, enum fgn_figure first, u32 index, u32 *out) {
    u64 value;
    RETURN_IF(figure(device, first + index, &value));
    *out = (u32)value;
    return OK;
}

EXPORT int nvmlDeviceGetTemperature(nvmlDevice_t h, unsigned sensor, unsigned *out) {
    ENTER_DEVICE(h, out);
    return sensor ? INVALID_ARGUMENT : pick(h->index, F_temperature, 0, out);
}

EXPORT int nvmlDeviceGetTemperatureThreshold(nvmlDevice_t h, unsigned type, unsigned *out) {
    ENTER_DEVICE(h, out);
    return type > 7 ? INVALID_ARGUMENT : pick(h->index, F_temperature_shutdown, type, out);
}

EXPORT int nvmlDeviceGetFanSpeed_v2(nvmlDevice_t h, unsigned fan, unsigned *out) {
    u64 any;
    ENTER_DEVICE(h, out);
    RETURN_IF(figure(h->index, F_fan, &any));
    if (fan > 1 || fan >= figure_or(h->index, F_fans, 1))
        return INVALID_ARGUMENT;
    return pick(h->index, F_fan, fan, out);
}

#define CLOCKS 4 /* graphics, SM, memory, video */

#define CLOCK(function, first)                                                                     \
    EXPORT int function(nvmlDevice_t h, unsigned type, unsigned *out) {                            \
        ENTER_DEVICE(h, out);                                                                      \
        return type >= CLOCKS ? INVALID_ARGUMENT : pick(h->index, F_##first, type, out);           \
    }

CLOCK(nvmlDeviceGetClockInfo, graphics_clock_mhz)
CLOCK(nvmlDeviceGetMaxClockInfo, max_graphics_clock_mhz)
CLOCK(nvmlDeviceGetApplicationsClock, app_graphics_clock_mhz)
CLOCK(nvmlDeviceGetDefaultApplicationsClock, default_graphics_clock_mhz)
CLOCK(nvmlDeviceGetMaxCustomerBoostClock, boost_graphics_clock_mhz)

EXPORT int nvmlDeviceGetClock(nvmlDevice_t h, unsigned type, unsigned id, unsigned *out) {
    static const enum fgn_figure first[] = {F_graphics_clock_mhz, F_app_graphics_clock_mhz,
                                            F_default_graphics_clock_mhz,
                                            F_boost_graphics_clock_mhz};
    ENTER_DEVICE(h, out);
    if (type >= CLOCKS || id >= sizeof first / sizeof *first)
        return INVALID_ARGUMENT;
    return pick(h->index, first[id], type, out);
}

struct violation {
    u64 reference_us, violation_ns;
};

EXPORT int nvmlDeviceGetViolationStatus(nvmlDevice_t h, unsigned policy, struct violation *out) {
    u64 value;
    ENTER_DEVICE(h, out);
    if (policy > 11 || (policy > 5 && policy < 10))
        return INVALID_ARGUMENT;
    RETURN_IF(figure(h->index, F_violation_power_ns + (policy > 5 ? policy - 4 : policy), &value));
    *out = (struct violation){clock_ns(CLOCK_REALTIME) / 1000, value};
    return OK;
}
