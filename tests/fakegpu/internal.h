/* What the parts of the simulated driver share. */
#ifndef FAKEGPU_INTERNAL_H
#define FAKEGPU_INTERNAL_H

#include "cuda_types.h"
#include "functions.h"
#include <pthread.h>

/* Every parameter of the interface is declared; those without meaning for a simulation stay unused.
 */
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* The name of a function's entry: behind a stub, or (FG_PLAIN) the export itself. */
#ifdef FG_PLAIN
#define FG_ENTRY(name) name
#else
#define FG_ENTRY(name) fg_##name
#endif

_Static_assert(FN_COUNT <= FG_MAX_FUNCTIONS, "state.h has a counter for every function");

/* One call, as its wrapper hands it to the code. context is the current one where the row in
 * functions.list says C. */
struct fg_call {
    u16 function;
    bool per_thread;
    struct fg_context *context;
};

#pragma GCC visibility push(hidden)

#include "wrappers.h"

/* shared.c: the state file, this process's slot, faults. */
enum fg_needs { FG_NEEDS_NOTHING, FG_NEEDS_INIT, FG_NEEDS_CONTEXT };
extern struct fg_state *fg_state;
extern struct fg_process *fg_me;
extern int fg_initialised;
extern pthread_mutex_t fg_lock; /* guards all objects and memory but the counters and timelines */

CUresult fg_enter(struct fg_call *c, enum fg_needs needs);
CUresult fg_failed(const struct fg_call *c, CUresult result);
bool fg_charge(int device, u64 bytes);
void fg_discharge(int device, u64 bytes);

static inline struct fg_activity *fg_activity(int device) { return &fg_me->activity[device]; }

static inline struct fg_memory *fg_memory(int device, int kind) {
    return &fg_me->memory[device * FG_KINDS + kind];
}

/* objects.c: what handles point to. Every object starts with its head and fits in one cell. */
enum fg_type {
    FG_CONTEXT = 1,
    FG_STREAM,
    FG_EVENT,
    FG_MODULE,
    FG_KERNEL,
    FG_ARRAY,
    FG_MIPMAP,
    FG_POOL,
    FG_GRAPH,
    FG_NODE,
    FG_EXEC,
    FG_LINK,
    FG_USER_OBJECT,
    FG_PHYSICAL,
    FG_CAPTURE,
    FG_GREEN,
    FG_RESOURCES,
};

struct fg_head {
    u32 type;
    u32 next_free;
    struct fg_context *context;
};

#define FG_CELL 256
void *fg_new(enum fg_type type, struct fg_context *context);
void fg_delete(void *object);
bool fg_is(const void *object, enum fg_type type);
/* The objects of one type in one context (NULL: in any): call with *place 0 first, NULL at the end.
 */
void *fg_next(enum fg_type type, const struct fg_context *context, u32 *place);

/* Objects. */
struct fg_context {
    struct fg_head head;
    int device;
    unsigned flags;
    unsigned version;
    bool primary;
    bool active;
    struct fg_context *root; /* of a green context: its device's primary one */
    struct fg_green *green;
    u32 references;
    u64 id;
    u64 ready_at;          /* when all work submitted so far is done */
    u64 blocking_ready_at; /* the same, of the streams that wait for the legacy stream */
    u64 limits[16];
    u32 peers; /* a bit for each device whose memory this context may use */
    int cache_config;
    int shared_config;
    struct fg_stream *legacy;
};

struct fg_stream {
    struct fg_head head;
    unsigned flags;
    int priority;
    bool per_thread;
    u64 id;
    u64 ready_at;
    struct fg_capture *capture;
    struct fg_node **last; /* while capturing: what the next node depends on */
    size_t last_count;
};

struct fg_event {
    struct fg_head head;
    unsigned flags;
    bool recorded;
    u64 at;
    struct fg_capture *capture; /* recorded in a stream that was capturing, with these nodes */
    u64 capture_id;
    struct fg_node **last;
    size_t last_count;
};

struct fg_kernel {
    struct fg_head head;
    struct fg_module *module;
    char *name;
    int attributes[16];
    int cache_config;
    unsigned block[3]; /* set by the launch functions of CUDA 3 */
    unsigned shared;
};

struct fg_pool {
    struct fg_head head;
    int device;
    bool is_default;
    bool destroyed;  /* by the client; it goes with its last allocation */
    u64 allocations; /* that live */
    u64 threshold;
    u64 used;
    u64 used_high;
    int reuse[3];
    int access[FG_MAX_DEVICES];
};

struct fg_array {
    struct fg_head head;
    int device;
    struct fg_mipmap *mipmap;
    struct fg_array3d_descriptor descriptor;
    size_t element;
    u64 bytes;
    char *data;
};

/* context.c */
extern u64 fg_ids;
struct fg_context *fg_current(void);
bool fg_valid_device(CUdevice device);
bool fg_valid_context(const struct fg_context *context);
CUresult fg_primary_retain(int device, struct fg_context **context);
void fg_primary_release_locked(struct fg_context *context);
void fg_deactivate_locked(struct fg_context *context);

/* What a context's streams may share: a green context is a part of the primary one. */
static inline struct fg_context *fg_root(struct fg_context *context) {
    return context && context->root ? context->root : context;
}

/* memory.c: device, managed and host memory. Call with fg_lock held where the name ends in _locked.
 */
struct fg_allocation {
    u64 base;
    u64 bytes;  /* as requested */
    u64 span;   /* what may be touched: more than requested where rows are padded */
    u64 extent; /* as taken from the address space; 0 for addresses that are the client's own */
    int kind;   /* FG_KIND_*, or less for what is not counted as memory */
    int device;
    unsigned flags;
    u64 id;
    struct fg_context *context;
    struct fg_pool *pool;
    struct fg_physical *physical;
};

enum { FG_RESERVED = -1, FG_REGISTERED = -2, FG_GLOBAL = -3, FG_GRAPH_MEMORY = -4, FG_MAPPED = -5 };

struct fg_request {
    struct fg_context *context;
    int device;
    int kind;
    u64 bytes;
    u64 span; /* 0: bytes */
    unsigned flags;
    struct fg_pool *pool;
};

CUresult fg_allocate(const struct fg_request *request, u64 *base);
CUresult fg_allocate_locked(const struct fg_request *request, u64 *base);
CUresult fg_free(u64 base, bool host);
void fg_free_locked(struct fg_allocation *a, bool by_call);
void fg_release_memory_locked(const struct fg_context *context);
bool fg_accessible(u64 address, u64 bytes);
bool fg_known(u64 address);
struct fg_allocation *fg_find_locked(u64 address);
struct fg_allocation *fg_insert_locked(u64 base, u64 span);
void fg_remove_locked(struct fg_allocation *a);

/* addresses.c: where simulated device memory lies in the process. */
enum fg_arena {
    FG_ARENA_LOW,
    FG_ARENA_RESERVED,
    FG_ARENA_DEVICE, /* the first device's; those of the others follow */
    FG_ARENAS = FG_ARENA_DEVICE + FG_MAX_DEVICES
};
u64 fg_take_addresses_locked(enum fg_arena arena, u64 bytes, u64 *extent);
void fg_give_addresses_locked(u64 base, u64 extent);

/* figures.c: what a process holds of a device's memory, in figures. */
void fg_count_allocation(int device, int kind, u64 bytes);
void fg_count_free(int device, int kind, u64 bytes, bool by_call);
void fg_count_granules_locked(const struct fg_allocation *a, bool live);

/* pool.c, virtual.c */
struct fg_pool *fg_default_pool(int device);
void fg_leave_pool_locked(struct fg_pool *pool);
bool fg_virtual_accessible_locked(u64 address, u64 bytes);

/* stream.c: timelines, default streams, waits. */
u64 fg_now(void);
void fg_sleep_until(u64 when);
struct fg_stream *fg_resolve(const struct fg_call *c, CUstream handle);
struct fg_stream *fg_new_stream(struct fg_context *context, unsigned flags, int priority);
/* The device that a call with a stream is about: the current context's where there is no such
 * stream.
 */
static inline int fg_device_of(const struct fg_call *c, const struct fg_stream *stream) {
    return stream ? stream->head.context->device : c->context->device;
}

void fg_submit(struct fg_stream *stream, u64 nanoseconds);
void fg_submit_elsewhere(int device, u64 nanoseconds);
void fg_drain(struct fg_stream *stream);
void fg_drop_stream_locked(struct fg_stream *stream);
void fg_delete_event(struct fg_event *event);

/* capture.c */
struct fg_capture;
bool fg_capturing(struct fg_stream *stream);
CUresult fg_capture_node(struct fg_stream *stream, const struct fg_node *pattern,
                         struct fg_node **made);
CUresult fg_capture_event(struct fg_event *event, struct fg_stream *stream);
CUresult fg_capture_wait(struct fg_stream *stream, struct fg_event *event, bool *done);
CUresult fg_capture_forbids(const struct fg_call *c);
CUresult fg_legacy_allowed(struct fg_stream *stream);
CUresult fg_sync_allowed(struct fg_context *context, struct fg_stream *stream);
CUresult fg_event_allowed(struct fg_event *event);
void fg_drop_captures_locked(const struct fg_stream *stream);

/* copy.c: the work of copies and sets, also run by graphs. */
struct fg_copy {
    struct fg_copy3d shape;
    int direction;
    u64 bytes;
};

CUresult fg_copy_check(const struct fg_copy *copy);
void fg_copy_run(const struct fg_copy *copy);
CUresult fg_copy_from_3d(const struct fg_copy3d *shape, struct fg_copy *copy);
CUresult fg_set_check(const struct fg_set_params *set);
void fg_set_run(const struct fg_set_params *set);

/* array.c, module.c, link.c */
void fg_delete_array_locked(struct fg_array *array, bool by_call);
void fg_delete_mipmap_locked(struct fg_mipmap *mipmap, bool by_call);
void fg_delete_module_locked(struct fg_module *module);
void fg_delete_link(struct fg_link *link);

#pragma GCC visibility pop

#endif
