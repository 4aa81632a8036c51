/* The objects that handles point to. They lie in cells of one size in one reserved range, so that
 * any value a client passes can be told from a handle without touching it. */
#define _GNU_SOURCE
#include "internal.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CELLS (4u << 20)

_Static_assert(sizeof(struct fg_context) <= FG_CELL, "a context fits in a cell");
_Static_assert(sizeof(struct fg_stream) <= FG_CELL, "a stream fits in a cell");
_Static_assert(sizeof(struct fg_kernel) <= FG_CELL, "a kernel fits in a cell");
_Static_assert(sizeof(struct fg_pool) <= FG_CELL, "a pool fits in a cell");

static char *cells;
static u32 used = 1; /* cell 0 ends the list of free cells */
static u32 first_free;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void *fg_new(enum fg_type type, struct fg_context *context) {
    struct fg_head *head = NULL;
    pthread_mutex_lock(&lock);
    if (!cells) {
        void *range = mmap(NULL, (size_t)CELLS * FG_CELL, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED)
            abort();
        __atomic_store_n(&cells, range, __ATOMIC_RELEASE);
    }
    if (first_free) {
        head = (struct fg_head *)(cells + (size_t)first_free * FG_CELL);
        first_free = head->next_free;
    } else if (used < CELLS) {
        head = (struct fg_head *)(cells + (size_t)used * FG_CELL);
        __atomic_store_n(&used, used + 1, __ATOMIC_RELEASE);
    } else {
        abort();
    }
    memset(head, 0, FG_CELL);
    head->context = context;
    __atomic_store_n(&head->type, type, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
    return head;
}

void fg_delete(void *object) {
    struct fg_head *head = object;
    pthread_mutex_lock(&lock);
    __atomic_store_n(&head->type, 0, __ATOMIC_RELEASE);
    head->next_free = first_free;
    first_free = ((char *)object - cells) / FG_CELL;
    pthread_mutex_unlock(&lock);
}

bool fg_is(const void *object, enum fg_type type) {
    const char *base = __atomic_load_n(&cells, __ATOMIC_ACQUIRE);
    size_t offset = (size_t)object - (size_t)base;
    if (!base || offset >= (size_t)CELLS * FG_CELL || offset % FG_CELL)
        return false;
    return __atomic_load_n(&((const struct fg_head *)object)->type, __ATOMIC_ACQUIRE) == type;
}

void *fg_next(enum fg_type type, const struct fg_context *context, u32 *place) {
    u32 end = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
    for (u32 cell = *place + 1; cells && cell < end; cell++) {
        struct fg_head *head = (struct fg_head *)(cells + (size_t)cell * FG_CELL);
        if (head->type == type && (!context || head->context == context)) {
            *place = cell;
            return head;
        }
    }
    return NULL;
}
