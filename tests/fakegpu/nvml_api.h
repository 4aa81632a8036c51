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
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    NO_MEMORY = 20,
    NO_DATA = 21,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

#define EXPORT __attribute__((visibility("default")))

/* The version of structure `type` that its size is part of. */
#define VERSION(type, number) ((u32)(sizeof(type) | (u32)(number) << 24))

/* A device, or a MIG device: one that has a uuid of its own. */
struct handle {
    u32 index;
    u32 is_mig;
    u8 uuid[16];
};

typedef struct handle *nvmlDevice_t;

/* How a call takes what it is asked about; without any: a device that is there. */
enum {
    LOST_OK = 1,   /* the library remembers it */
    MIG_OK = 2,    /* a MIG device tells it, too */
    NOT_IN_MIG = 4 /* a device in MIG mode doesn't */
};

/* Both return the NVML error that the call is to return, 0 to go on. */
int enter(const char *function, i32 device);
int enter_device(const char *function, nvmlDevice_t h, const void *out, int how);

int driver_went_away(void); /* whoever initialised before it did gets errors */
nvmlDevice_t handle_of(u32 device);
int put_text(char *out, u32 size, const char *text);
void uuid_text(const char *prefix, const u8 *uuid, char text[48]);

static inline struct fg_device *device_of(nvmlDevice_t h) { return &node->devices[h->index]; }

/* The MIG device's row, NULL where there is none (any more). */
const struct fgn_instance *instance_of(nvmlDevice_t h);
int is_mig_handle(nvmlDevice_t h);
int find_mig(const char *uuid, nvmlDevice_t *out);

/* A device's figure: OK or NOT_SUPPORTED, 0 in *out where it isn't. */
int figure(u32 device, enum fgn_figure which, u64 *out);
u64 figure_or(u32 device, enum fgn_figure which, u64 otherwise);
int decode(fgn_value value, u64 *out); /* OK, NOT_SUPPORTED, or NO_DATA: as simulated */

/* A figure of one NVLink that is up, and the sum over all that are. */
int link_figure(u32 device, u32 link, enum fgn_link_figure which, u64 *out);
int link_total(u32 device, enum fgn_link_figure which, u64 *out);
int link_check(u32 device, u32 link); /* INVALID_ARGUMENT past the last */

/* The processes of a device, or of a MIG device alone; returns how many. */
u32 listed_processes(nvmlDevice_t h, u32 kind, struct listed *rows, u32 capacity);

#define LISTED_MOST (FGN_PROCESSES + 256)

#define RETURN_IF(error)                                                                           \
    do {                                                                                           \
        int failed = (error);                                                                      \
        if (failed)                                                                                \
            return failed;                                                                         \
    } while (0)

#define ENTER() RETURN_IF(enter(__func__, -1))
#define ENTER_DEVICE_AS(h, out, how) RETURN_IF(enter_device(__func__, h, out, how))
#define ENTER_DEVICE(h, out) ENTER_DEVICE_AS(h, out, 0)

/* A function with one figure of type `type`, with two, and with a text. */
#define ONE(function, type, how, which)                                                            \
    EXPORT int function(nvmlDevice_t h, type *out) {                                               \
        u64 value;                                                                                 \
        ENTER_DEVICE_AS(h, out, how);                                                              \
        RETURN_IF(figure(h->index, F_##which, &value));                                            \
        *out = (type)value;                                                                        \
        return OK;                                                                                 \
    }

#define TWO(function, type, how, which, other)                                                     \
    EXPORT int function(nvmlDevice_t h, type *out, type *second) {                                 \
        u64 value, more;                                                                           \
        ENTER_DEVICE_AS(h, out &&second ? h : NULL, how);                                          \
        RETURN_IF(figure(h->index, F_##which, &value));                                            \
        RETURN_IF(figure(h->index, F_##other, &more));                                             \
        *out = (type)value;                                                                        \
        *second = (type)more;                                                                      \
        return OK;                                                                                 \
    }

#define TEXT(function, which)                                                                      \
    EXPORT int function(nvmlDevice_t h, char *out, unsigned size) {                                \
        ENTER_DEVICE_AS(h, out, LOST_OK);                                                          \
        const char *text = device_settings(h->index)->texts[which];                                \
        return *text ? put_text(out, size, text) : NOT_SUPPORTED;                                  \
    }

#endif
