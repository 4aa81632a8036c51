/* What a process holds of a device's memory, in figures: by kind, all together, by size, and the
 * granules that it takes. */
#include "internal.h"
#include <stdlib.h>

static u64 rounded_up(u64 bytes) { return (bytes + FG_GRANULE - 1) / FG_GRANULE * FG_GRANULE; }

static int size_of(u64 bytes) {
    static const u64 most[FG_SIZES - 1] = {4 << 10,  64 << 10,  1 << 20, 2 << 20,
                                           16 << 20, 128 << 20, 1 << 30};
    int size = 0;
    while (size < FG_SIZES - 1 && bytes > most[size])
        size++;
    return size;
}

static bool rounded(int kind) { return kind == FG_KIND_VIRTUAL || kind == FG_KIND_ARRAY; }

void fg_count_allocation(int device, int kind, u64 bytes) {
    struct fg_memory *memory = fg_memory(device, kind);
    struct fg_activity *activity = fg_activity(device);
    fg_add(&memory->allocations, 1);
    fg_add(&memory->allocated_bytes, bytes);
    if (kind == FG_KIND_HOST)
        return;
    fg_add(&activity->allocation_sizes[size_of(bytes)], 1);
    fg_raise(&activity->peak_bytes,
             __atomic_add_fetch(&activity->live_bytes, bytes, __ATOMIC_RELAXED));
    if (rounded(kind))
        fg_add(&activity->granule_bytes, rounded_up(bytes));
}

void fg_count_free(int device, int kind, u64 bytes, bool by_call) {
    struct fg_memory *memory = fg_memory(device, kind);
    struct fg_activity *activity = fg_activity(device);
    fg_add(by_call ? &memory->frees : &memory->releases, 1);
    fg_add(by_call ? &memory->freed_bytes : &memory->released_bytes, bytes);
    if (kind != FG_KIND_HOST)
        fg_sub(&activity->live_bytes, bytes);
    if (rounded(kind))
        fg_sub(&activity->granule_bytes, rounded_up(bytes));
}

/* The granules of which allocations take only a part, and by how many of them. */
#define BUCKETS 4096

static struct shared {
    u64 granule;
    int device;
    u32 users;
    struct shared *next;
} * buckets[BUCKETS];

/* Whether nobody used the granule before, or nobody does any more. */
static bool count_shared(int device, u64 granule, bool live) {
    struct shared **place = &buckets[granule % BUCKETS];
    while (*place && ((*place)->granule != granule || (*place)->device != device))
        place = &(*place)->next;
    struct shared *found = *place;
    if (live && found)
        return found->users++ == 0;
    if (live) {
        *place = found = calloc(1, sizeof *found);
        if (!found)
            abort();
        *found = (struct shared){granule, device, 1, NULL};
        return true;
    }
    if (!found || --found->users)
        return false;
    *place = found->next;
    free(found);
    return true;
}

void fg_count_granules_locked(const struct fg_allocation *a, bool live) {
    if (a->kind != FG_KIND_DEVICE && a->kind != FG_KIND_POOL)
        return;
    u64 end = a->base + a->bytes;
    u64 first = a->base / FG_GRANULE, last = (end - 1) / FG_GRANULE;
    u64 changed = last - first + 1;
    if (a->base % FG_GRANULE || first * FG_GRANULE + FG_GRANULE > end)
        changed -= !count_shared(a->device, first, live);
    if (last != first && end % FG_GRANULE)
        changed -= !count_shared(a->device, last, live);
    u64 *bytes = &fg_activity(a->device)->granule_bytes;
    if (live)
        fg_add(bytes, changed * FG_GRANULE);
    else
        fg_sub(bytes, changed * FG_GRANULE);
}
