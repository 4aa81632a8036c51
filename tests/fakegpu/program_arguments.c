/* The arguments of a program's operations. A row's words say in the order of the parameters what
 * each one is, and which words of the line it takes:
 *
 * a kind of object    its number; 0 is NULL; =N is a value that is no object's; addresses may be
 *                     NUMBER+OFFSET; streams 0, 1 and 2 are the default ones, as the interface has
 * it
 * + a kind            the number that a new object gets
 * int                 a number; digits in the row are that number
 * nodes, count        numbers with commas between, or -; and how many the last list had
 * +nodes              FIRST MOST: a graph's nodes get the numbers from FIRST on
 * scratch             nothing: a place for a result that is not kept
 * memory image name callback: nothing: the client's own memory, a module's image and its kernel's
 *                     name, a host function
 * number              a number, by a pointer
 *
 * and structures, by a pointer:
 *
 * kernel FUNCTION; kernel2 FUNCTION CONTEXT (as a CUkernel; - for CONTEXT: as a function);
 * config STREAM; multi FUNCTION STREAM,STREAM; copy3d, copy2d and batch TARGET SOURCE BYTES
 * (addresses, or - for the client's memory); set ADDRESS BYTES; host-of; instantiate; access,
 * memory-of, pool-of DEVICE; array2d WIDTH HEIGHT FORMAT CHANNELS; array3d WIDTH HEIGHT DEPTH
 * FORMAT CHANNELS FLAGS; node-of kernel FUNCTION CONTEXT | copy TARGET SOURCE BYTES | set ADDRESS
 * BYTES | host | child GRAPH | empty | wait EVENT | record EVENT */
#define _GNU_SOURCE
#include "program_functions.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define KINDS(X)                                                                                   \
    X(context)                                                                                     \
    X(stream)                                                                                      \
    X(event)                                                                                       \
    X(graph)                                                                                       \
    X(exec)                                                                                        \
    X(node)                                                                                        \
    X(address)                                                                                     \
    X(host)                                                                                        \
    X(array)                                                                                       \
    X(mipmap)                                                                                      \
    X(pool)                                                                                        \
    X(handle)                                                                                      \
    X(module)                                                                                      \
    X(function)                                                                                    \
    X(green)                                                                                       \
    X(description)

enum {
#define X(kind) K_##kind,
    KINDS(X)
#undef X
        KIND_COUNT
};

static const char *const kinds[] = {
#define X(kind) #kind,
    KINDS(X)
#undef X
};

static u64 objects[KIND_COUNT][SLOTS];
static struct fg_resource resources[SLOTS];

static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                            ".visible .entry work() { ret; }\n";

/* What copies from and to the client's own memory touch; not one byte of it exists until then. */
static const size_t memory_bytes = 64 << 20;

static char *own_memory(void) {
    static char *memory;
    if (!memory)
        memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory;
}

static void host_function(void *data) { (void)data; }

const struct row *find_row(const char *name) {
    size_t length = strlen(name);
    if (length > 5 && (!strcmp(name + length - 5, "_ptsz") || !strcmp(name + length - 5, "_ptds")))
        length -= 5;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strncmp(rows[i].name, name, length) && !rows[i].name[length])
            return &rows[i];
    return NULL;
}

static int kind_of(const char *word) {
    for (int kind = 0; kind < KIND_COUNT; kind++)
        if (!strcmp(kinds[kind], word))
            return kind;
    return -1;
}

static u64 number(const char *word) {
    char *end;
    u64 value = strtoull(word, &end, 0);
    if (end == word || (*end && *end != '+' && *end != ','))
        give_up("no number", word);
    return value;
}

static u64 slot(const char *word) {
    u64 place = number(word);
    if (place >= SLOTS)
        give_up("number too high", word);
    return place;
}

static char *next(char **text) {
    char *word = strsep(text, " ");
    if (!word || !*word)
        give_up("an argument is missing", "");
    return word;
}

static u64 object(struct call *call, int kind, const char *word) {
    if (*word == '=')
        return number(word + 1);
    u64 place = slot(word);
    if (!place || (kind == K_stream && place <= 2))
        return place;
    u64 value = objects[kind][place];
    call->unset |= !value;
    const char *offset = strchr(word, '+');
    return offset ? value + number(offset + 1) : value;
}

static void put(struct call *call, u64 value) {
    if (call->count == MOST_ARGUMENTS)
        give_up("too many arguments", "");
    call->values[call->count++] = value;
}

static void put_result(struct call *call, u64 *kept) {
    call->kept[call->result_count] = kept;
    put(call, (u64)&call->results[call->result_count++]);
}

static void put_nodes(struct call *call, char *list) {
    u64 *nodes = call->nodes[call->lists++];
    call->node_count = 0;
    while (list && strcmp(list, "-")) {
        if (call->node_count == MOST_NODES)
            give_up("too many nodes", list);
        nodes[call->node_count++] = object(call, K_node, strsep(&list, ","));
    }
    put(call, call->node_count ? (u64)nodes : 0);
}

static void *get(struct call *call, int kind, char **text) {
    return (void *)object(call, kind, next(text));
}

static void fill_kernel(struct call *call, struct fg_kernel_params_v2 *kernel, char **text,
                        bool second) {
    static const unsigned grid[3] = {1, 1, 1}, block[3] = {32, 1, 1};
    void *function = get(call, K_function, text);
    memcpy(kernel->common.grid, grid, sizeof grid);
    memcpy(kernel->common.block, block, sizeof block);
    char *context = second ? next(text) : "-";
    if (!strcmp(context, "-")) {
        kernel->common.function = function;
    } else {
        kernel->kernel = function;
        kernel->context = (CUcontext)object(call, K_context, context);
    }
}

static u64 own_bytes(char **text) {
    u64 bytes = number(next(text));
    if (bytes > memory_bytes)
        give_up("more than the client's memory", "");
    return bytes;
}

#define FILL_ENDS(copy)                                                                            \
    do {                                                                                           \
        char *target = next(text), *source = next(text);                                           \
        bool to_host = !strcmp(target, "-"), from_host = !strcmp(source, "-");                     \
        (copy)->target_type = to_host ? FG_TYPE_HOST : FG_TYPE_DEVICE;                             \
        (copy)->source_type = from_host ? FG_TYPE_HOST : FG_TYPE_DEVICE;                           \
        (copy)->source_host = (copy)->target_host = own_memory();                                  \
        (copy)->target_device = to_host ? 0 : object(call, K_address, target);                     \
        (copy)->source_device = from_host ? 0 : object(call, K_address, source);                   \
        (copy)->width = own_bytes(text);                                                           \
        (copy)->height = 1;                                                                        \
    } while (0)

static void fill_copy(struct call *call, struct fg_copy3d *copy, char **text) {
    FILL_ENDS(copy);
    copy->depth = 1;
}

static void fill_set(struct call *call, struct fg_set_params *set, char **text) {
    *set = (struct fg_set_params){.element = 1, .height = 1, .value = 7};
    set->target = (CUdeviceptr)get(call, K_address, text);
    set->width = number(next(text));
}

static void fill_node(struct call *call, struct fg_node_params *node, char **text) {
    static const char *const types[] = {"kernel", "copy",  "set",  "host",
                                        "child",  "empty", "wait", "record"};
    char *type = next(text);
    while (node->type < 8 && strcmp(types[node->type], type))
        node->type++;
    switch (node->type) {
    case 0:
        fill_kernel(call, &node->kernel, text, true);
        break;
    case 1:
        fill_copy(call, &node->copy.copy, text);
        break;
    case 2:
        fill_set(call, &node->set.set, text);
        break;
    case 3:
        node->host.function = host_function;
        break;
    case 4:
        node->child.graph = get(call, K_graph, text);
        break;
    case 5:
        break;
    case 6:
    case 7:
        node->event.event = get(call, K_event, text);
        break;
    default:
        give_up("no type of node", type);
    }
}

static void put_multi(struct call *call, char **text) {
    void *function = get(call, K_function, text);
    char *list = next(text);
    int count = 0;
    while (list && count < FG_MAX_DEVICES) {
        struct fg_multi_launch *launch = &call->launches[count++];
        *launch = (struct fg_multi_launch){function, {1, 1, 1}, {32, 1, 1}, 0, NULL, NULL};
        launch->stream = (CUstream)object(call, K_stream, strsep(&list, ","));
    }
    put(call, (u64)call->launches);
    put(call, count);
}

/* Arrays of one: targets, sources, sizes, their count, attributes, indexes. */
static void put_batch(struct call *call, char **text) {
    call->copied_to = (CUdeviceptr)get(call, K_address, text);
    call->copied_from = (CUdeviceptr)get(call, K_address, text);
    call->copied_bytes = number(next(text));
    put(call, (u64)&call->copied_to);
    put(call, (u64)&call->copied_from);
    put(call, (u64)&call->copied_bytes);
    put(call, 1);
    put(call, (u64)&call->with[0]);
    put(call, (u64)&call->first_index);
}

/* A structure; false where the word means none. */
static bool put_structure(struct call *call, const char *word, char **text) {
    if (call->with_count == 2)
        give_up("too many structures", word);
    typeof(*call->with) *with = &call->with[call->with_count];
    if (!strcmp(word, "kernel") || !strcmp(word, "kernel2")) {
        fill_kernel(call, &with->kernel, text, word[6]);
    } else if (!strcmp(word, "config")) {
        with->config = (struct fg_launch_config){{1, 1, 1}, {32, 1, 1}, 0, NULL, NULL, 0};
        with->config.stream = get(call, K_stream, text);
    } else if (!strcmp(word, "copy2d")) {
        FILL_ENDS(&with->copy2d);
    } else if (!strcmp(word, "copy3d")) {
        fill_copy(call, &with->copy3d, text);
    } else if (!strcmp(word, "set")) {
        fill_set(call, &with->set, text);
    } else if (!strcmp(word, "node-of")) {
        fill_node(call, &with->node, text);
    } else if (!strcmp(word, "host-of")) {
        with->host.function = host_function;
    } else if (!strcmp(word, "array2d")) {
        with->array.width = number(next(text));
        with->array.height = number(next(text));
        with->array.format = number(next(text));
        with->array.channels = number(next(text));
    } else if (!strcmp(word, "array3d")) {
        with->array3d.width = number(next(text));
        with->array3d.height = number(next(text));
        with->array3d.depth = number(next(text));
        with->array3d.format = number(next(text));
        with->array3d.channels = number(next(text));
        with->array3d.flags = number(next(text));
    } else if (!strcmp(word, "memory-of")) {
        with->allocation.type = with->allocation.location.type = 1;
        with->allocation.location.id = number(next(text));
    } else if (!strcmp(word, "pool-of")) {
        with->pool.allocation_type = with->pool.location.type = 1;
        with->pool.location.id = number(next(text));
    } else if (!strcmp(word, "access")) {
        with->access = (struct fg_access){{1, number(next(text))}, 3};
    } else if (!strcmp(word, "number")) {
        with->number = number(next(text));
    } else if (strcmp(word, "instantiate") && strcmp(word, "scratch")) {
        return false;
    }
    call->with_count++;
    put(call, (u64)with);
    return true;
}

static void put_argument(struct call *call, const char *word, char **text) {
    int kind = kind_of(word + (*word == '+'));
    if (!strcmp(word, "+nodes")) {
        u64 first = slot(next(text));
        call->found = number(next(text));
        if (call->found > SLOTS - first)
            give_up("too many nodes", "");
        put(call, (u64)&objects[K_node][first]);
        put(call, (u64)&call->found);
    } else if (*word == '+') {
        put_result(call, &objects[kind][slot(next(text))]);
    } else if (kind >= 0) {
        put(call, object(call, kind, next(text)));
    } else if (*word >= '0' && *word <= '9') {
        put(call, number(word));
    } else if (!strcmp(word, "int")) {
        put(call, number(next(text)));
    } else if (!strcmp(word, "nodes")) {
        put_nodes(call, next(text));
    } else if (!strcmp(word, "count")) {
        put(call, call->node_count);
    } else if (!strcmp(word, "resource")) {
        put(call, (u64)&resources[slot(next(text))]);
    } else if (!strcmp(word, "memory")) {
        put(call, (u64)own_memory());
    } else if (!strcmp(word, "image")) {
        put(call, (u64)image);
    } else if (!strcmp(word, "name")) {
        put(call, (u64) "work");
    } else if (!strcmp(word, "callback")) {
        put(call, (u64)host_function);
    } else if (!strcmp(word, "multi")) {
        put_multi(call, text);
    } else if (!strcmp(word, "batch")) {
        put_batch(call, text);
    } else if (!put_structure(call, word, text)) {
        give_up("no kind of argument", word);
    }
}

void read_arguments(struct call *call, const struct row *row, char *text) {
    char words[256], *rest = words;
    strncpy(words, row->arguments, sizeof words - 1);
    words[sizeof words - 1] = 0;
    while (rest && *rest)
        put_argument(call, strsep(&rest, " "), &text);
    if (text && *text)
        give_up("too many words", text);
}
