/* The addresses of simulated device memory: ranges of the process's own address space, reserved
 * once and without cost, so that a device pointer is never a host pointer of the client. */
#define _GNU_SOURCE
#include "internal.h"
#include <stdlib.h>
#include <sys/mman.h>

#define CLASSES (64 * 8)

static struct {
    u64 base;
    u64 size;
    u64 next;
    struct {
        u64 *bases;
        size_t count, room;
    } unused[CLASSES];
} arenas[FG_ARENAS];

/* What is tried for each arena: the first size that the system gives. Each device has one of its
 * own, behind those of the devices before it, so that no two devices share a granule. The low one
 * serves the functions of CUDA 2 and 3.0, whose device pointers have 32 bits. */
static const struct {
    u64 hint;
    u64 largest;
    u64 smallest;
    u64 granule;
} plan[FG_ARENAS] = {
    [FG_ARENA_LOW] = {0x40000000, 1ull << 28, 1ull << 24, 512},
    [FG_ARENA_RESERVED] = {0x400000000000, 1ull << 42, 1ull << 32, 2 << 20},
    [FG_ARENA_DEVICE... FG_ARENAS - 1] = {0x300000000000, 1ull << 40, 1ull << 32, 512},
};

static bool open_arena(enum fg_arena arena) {
    for (u64 size = plan[arena].largest; size >= plan[arena].smallest; size /= 2) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        u64 hint = plan[arena].hint;
        if (arena >= FG_ARENA_DEVICE)
            hint += (arena - FG_ARENA_DEVICE) * plan[arena].largest;
#ifdef MAP_32BIT
        if (arena == FG_ARENA_LOW)
            flags |= MAP_32BIT;
#endif
        void *range =
            mmap((void *)hint, size + plan[arena].granule, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (range == MAP_FAILED)
            continue;
        if (arena == FG_ARENA_LOW && (u64)range + size > 0xffffffffu) {
            munmap(range, size + plan[arena].granule);
            continue;
        }
        madvise(range, size, MADV_DONTDUMP);
        u64 granule = plan[arena].granule;
        arenas[arena].base = arenas[arena].next = ((u64)range + granule - 1) / granule * granule;
        arenas[arena].size = size;
        return true;
    }
    return false;
}

/* Ranges come in classes, eight a power of two, so that a freed one fits the next of its class. */
static u64 extent_of(u64 bytes, u64 granule) {
    int power = 63 - __builtin_clzll(bytes | 1);
    u64 step = power > 3 ? 1ull << (power - 3) : 1;
    if (step < granule)
        step = granule;
    return (bytes + step - 1) / step * step;
}

static int class_of(u64 extent) {
    int power = 63 - __builtin_clzll(extent);
    return power * 8 + ((extent >> (power - 3)) & 7);
}

/* 0: no addresses left. */
u64 fg_take_addresses_locked(enum fg_arena arena, u64 bytes, u64 *extent) {
    if (!arenas[arena].base && !open_arena(arena))
        return 0;
    if (bytes > arenas[arena].size)
        return 0;
    *extent = extent_of(bytes ? bytes : 1, plan[arena].granule);
    int class = class_of(*extent);
    if (arenas[arena].unused[class].count)
        return arenas[arena].unused[class].bases[--arenas[arena].unused[class].count];
    u64 base = arenas[arena].next;
    if (base + *extent > arenas[arena].base + arenas[arena].size)
        return 0;
    arenas[arena].next += *extent;
    return base;
}

void fg_give_addresses_locked(u64 base, u64 extent) {
    int arena = 0;
    while (base - arenas[arena].base >= arenas[arena].size)
        arena++;
    int class = class_of(extent);
    u64 first = (base + 4095) / 4096 * 4096, end = (base + extent) / 4096 * 4096;
    if (end > first)
        madvise((void *)first, end - first, MADV_DONTNEED);
    if (arenas[arena].unused[class].count == arenas[arena].unused[class].room) {
        size_t room = arenas[arena].unused[class].room * 2 + 16;
        u64 *bases = realloc(arenas[arena].unused[class].bases, room * sizeof *bases);
        if (!bases)
            return; /* the range is lost, nothing else */
        arenas[arena].unused[class].bases = bases;
        arenas[arena].unused[class].room = room;
    }
    arenas[arena].unused[class].bases[arenas[arena].unused[class].count++] = base;
}
