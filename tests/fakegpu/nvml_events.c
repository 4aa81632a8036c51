/* The simulated NVML: events. The node has one bounded queue; each event set reads it from where it
 * was created, and takes of it what was registered before it happened. */
#define _GNU_SOURCE
#include "nvml_api.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KNOWN_TYPES 0xffffull
#define POLL_NS 1000000
#define MAGIC 0x45564e54u

struct event_set {
    u32 magic;
    u64 position;              /* the number of the next event to look at */
    u64 from[FG_MAX_DEVICES];  /* the first event after the registration */
    u64 types[FG_MAX_DEVICES]; /* 0: not registered */
};

struct event_data {
    nvmlDevice_t device;
    u64 type, data;
    u32 gpu_instance, compute_instance;
};

ONE(nvmlDeviceGetSupportedEventTypes, u64, 0, event_types)

static u64 written(void) {
    return __atomic_load_n(&node_settings()->events_written, __ATOMIC_ACQUIRE);
}

EXPORT int nvmlEventSetCreate(struct event_set **out) {
    ENTER();
    struct event_set *set = out ? calloc(1, sizeof *set) : NULL;
    if (!set)
        return out ? NO_MEMORY : INVALID_ARGUMENT;
    set->magic = MAGIC;
    set->position = written();
    *out = set;
    return OK;
}

EXPORT int nvmlEventSetFree(struct event_set *set) {
    ENTER();
    if (!set || set->magic != MAGIC)
        return INVALID_ARGUMENT;
    set->magic = 0;
    free(set);
    return OK;
}

EXPORT int nvmlDeviceRegisterEvents(nvmlDevice_t h, u64 types, struct event_set *set) {
    u64 supported;
    ENTER_DEVICE(h, set);
    if (set->magic != MAGIC || types & ~KNOWN_TYPES)
        return INVALID_ARGUMENT;
    RETURN_IF(figure(h->index, F_event_types, &supported));
    if (types & ~supported)
        return NOT_SUPPORTED;
    if (!set->types[h->index])
        set->from[h->index] = written();
    set->types[h->index] |= types;
    return OK;
}

/* The set's next event: whether there is one. What the queue has lost since is skipped. */
static int next_event(struct event_set *set, struct event_data *out) {
    for (u64 end = written(); set->position < end; end = written()) {
        if (end - set->position > FGN_EVENTS)
            set->position = end - FGN_EVENTS;
        u64 number = set->position++;
        struct fgn_event e = node_settings()->events[number % FGN_EVENTS];
        if (e.device >= node->device_count || !(set->types[e.device] & e.type) ||
            number < set->from[e.device])
            continue;
        *out = (struct event_data){handle_of(e.device), e.type, e.data, e.gpu_instance,
                                   e.compute_instance};
        return 1;
    }
    return 0;
}

static int a_device_is_lost(const struct event_set *set) {
    for (u32 i = 0; i < node->device_count; i++)
        if (set->types[i] && __atomic_load_n(&node->devices[i].lost, __ATOMIC_RELAXED))
            return 1;
    return 0;
}

static int wait_for(struct event_set *set, struct event_data *out, u32 timeout_ms) {
    u64 until = clock_ns(CLOCK_MONOTONIC) + timeout_ms * 1000000ull;
    struct timespec poll = {0, POLL_NS};
    if (!set || set->magic != MAGIC || !out)
        return INVALID_ARGUMENT;
    for (;;) {
        if (next_event(set, out))
            return OK;
        if (driver_went_away())
            return UNKNOWN;
        if (a_device_is_lost(set))
            return GPU_IS_LOST;
        if (clock_ns(CLOCK_MONOTONIC) >= until)
            return TIMEOUT;
        nanosleep(&poll, NULL);
    }
}

EXPORT int nvmlEventSetWait_v2(struct event_set *set, struct event_data *out, unsigned timeout_ms) {
    ENTER();
    return wait_for(set, out, timeout_ms);
}

/* The first version knows no instances. */
EXPORT int nvmlEventSetWait(struct event_set *set, struct event_data *out, unsigned timeout_ms) {
    ENTER();
    RETURN_IF(wait_for(set, out, timeout_ms));
    out->gpu_instance = out->compute_instance = NO_INSTANCE;
    return OK;
}
