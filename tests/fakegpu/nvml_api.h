/* What the simulated NVML's exports share: error codes, handles and every call's way in. */
#ifndef FAKEGPU_NVML_API_H
#define FAKEGPU_NVML_API_H

#include "nvml_node.h"

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

#define EXPORT __attribute__((visibility("default")))

struct handle {
    u32 index;
};

typedef struct handle *nvmlDevice_t;

/* Both return the NVML error that the call is to return, 0 to go on. A device that is lost still
 * tells what the library remembers (fails_if_lost = 0). */
int enter(const char *function, i32 device);
int enter_device(const char *function, nvmlDevice_t h, const void *out, int fails_if_lost);

static inline struct fg_device *device_of(nvmlDevice_t h) { return &node->devices[h->index]; }

#define ENTER()                                                                                    \
    do {                                                                                           \
        int fault = enter(__func__, -1);                                                           \
        if (fault)                                                                                 \
            return fault;                                                                          \
    } while (0)

#define ENTER_DEVICE_IF(h, out, fails_if_lost)                                                     \
    do {                                                                                           \
        int fault = enter_device(__func__, h, out, fails_if_lost);                                 \
        if (fault)                                                                                 \
            return fault;                                                                          \
    } while (0)

#define ENTER_DEVICE(h, out) ENTER_DEVICE_IF(h, out, 1)

#endif
