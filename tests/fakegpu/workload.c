/* A client of the CUDA driver for tests and demonstrations: makes calls of every group in given
 * numbers, in an order that a seed decides, and prints as JSON which function it called how often.
 * It knows nothing of the simulation and runs on a real driver as well. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <getopt.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef int (*function)();
typedef unsigned long long address;

/* The functions used: how dlsym and how cuGetProcAddress know them. */
#define FUNCTIONS(X)                                                                               \
    X(cuInit, cuInit)                                                                              \
    X(cuDeviceGet, cuDeviceGet)                                                                    \
    X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)                                          \
    X(cuCtxSetCurrent, cuCtxSetCurrent)                                                            \
    X(cuModuleLoadData, cuModuleLoadData)                                                          \
    X(cuModuleGetFunction, cuModuleGetFunction)                                                    \
    X(cuStreamCreate, cuStreamCreate)                                                              \
    X(cuStreamDestroy, cuStreamDestroy_v2)                                                         \
    X(cuEventCreate, cuEventCreate)                                                                \
    X(cuEventDestroy, cuEventDestroy_v2)                                                           \
    X(cuEventRecord, cuEventRecord)                                                                \
    X(cuEventSynchronize, cuEventSynchronize)                                                      \
    X(cuStreamSynchronize, cuStreamSynchronize)                                                    \
    X(cuCtxSynchronize, cuCtxSynchronize)                                                          \
    X(cuLaunchKernel, cuLaunchKernel)                                                              \
    X(cuLaunchKernelEx, cuLaunchKernelEx)                                                          \
    X(cuLaunchCooperativeKernel, cuLaunchCooperativeKernel)                                        \
    X(cuLaunchHostFunc, cuLaunchHostFunc)                                                          \
    X(cuMemAlloc, cuMemAlloc_v2)                                                                   \
    X(cuMemAllocPitch, cuMemAllocPitch_v2)                                                         \
    X(cuMemAllocManaged, cuMemAllocManaged)                                                        \
    X(cuMemAllocAsync, cuMemAllocAsync)                                                            \
    X(cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync)                                            \
    X(cuDeviceGetDefaultMemPool, cuDeviceGetDefaultMemPool)                                        \
    X(cuMemHostAlloc, cuMemHostAlloc)                                                              \
    X(cuMemFree, cuMemFree_v2)                                                                     \
    X(cuMemFreeAsync, cuMemFreeAsync)                                                              \
    X(cuMemFreeHost, cuMemFreeHost)                                                                \
    X(cuArrayCreate, cuArrayCreate_v2)                                                             \
    X(cuArrayDestroy, cuArrayDestroy)                                                              \
    X(cuMemAddressReserve, cuMemAddressReserve)                                                    \
    X(cuMemAddressFree, cuMemAddressFree)                                                          \
    X(cuMemCreate, cuMemCreate)                                                                    \
    X(cuMemMap, cuMemMap)                                                                          \
    X(cuMemSetAccess, cuMemSetAccess)                                                              \
    X(cuMemUnmap, cuMemUnmap)                                                                      \
    X(cuMemRelease, cuMemRelease)                                                                  \
    X(cuMemcpy, cuMemcpy)                                                                          \
    X(cuMemcpyHtoD, cuMemcpyHtoD_v2)                                                               \
    X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2)                                                     \
    X(cuMemcpyDtoH, cuMemcpyDtoH_v2)                                                               \
    X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2)                                                     \
    X(cuMemcpyDtoD, cuMemcpyDtoD_v2)                                                               \
    X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2)                                                     \
    X(cuMemsetD8, cuMemsetD8_v2)                                                                   \
    X(cuMemsetD32Async, cuMemsetD32Async)                                                          \
    X(cuStreamBeginCapture, cuStreamBeginCapture_v2)                                               \
    X(cuStreamEndCapture, cuStreamEndCapture)                                                      \
    X(cuGraphInstantiate, cuGraphInstantiateWithFlags)                                             \
    X(cuGraphLaunch, cuGraphLaunch)                                                                \
    X(cuGraphDestroy, cuGraphDestroy)                                                              \
    X(cuGraphExecDestroy, cuGraphExecDestroy)

enum {
#define X(base, name) F_##base,
    FUNCTIONS(X)
#undef X
        FUNCTION_COUNT
};

static struct {
    const char *base;
    const char *name; /* in the end the one that the pointer really is */
    function call;
} functions[] = {
#define X(base, name) {#base, #name, NULL},
    FUNCTIONS(X)
#undef X
};

/* The groups of calls: one option each, for how often each thread does it. */
#define GROUPS(X)                                                                                  \
    X(launches)                                                                                    \
    X(launches_ex)                                                                                 \
    X(cooperative)                                                                                 \
    X(host_functions)                                                                              \
    X(allocs)                                                                                      \
    X(pitches)                                                                                     \
    X(managed)                                                                                     \
    X(pool)                                                                                        \
    X(from_pool)                                                                                   \
    X(host)                                                                                        \
    X(arrays)                                                                                      \
    X(virtual)                                                                                     \
    X(copies)                                                                                      \
    X(sets)                                                                                        \
    X(waits)                                                                                       \
    X(graphs)                                                                                      \
    X(failures)

enum {
#define X(name) G_##name,
    GROUPS(X)
#undef X
        GROUP_COUNT
};

static const char *const group_names[] = {
#define X(name) #name,
    GROUPS(X)
#undef X
};

static const unsigned long primes[] = {1009, 211, 101, 53,  307, 61, 67, 199, 103,
                                       71,   59,  43,  401, 149, 97, 13, 31};
_Static_assert(sizeof primes / sizeof *primes == GROUP_COUNT, "a prime for each group");

static struct {
    unsigned long groups[GROUP_COUNT];
    unsigned long threads, forks, seed, bytes, graph_kernels, graph_launches, lifetime_ms, keep;
    double demo;
    int device;
    bool barrier, exit_barrier, by_address, per_thread, default_stream;
} wanted = {.threads = 1, .seed = 1, .bytes = 1 << 16, .graph_kernels = 7, .graph_launches = 3};

struct thread {
    pthread_t id;
    unsigned long number;
    uint64_t random;
    void *stream;
    void *pool;
    unsigned long calls[FUNCTION_COUNT];
    unsigned long failed[FUNCTION_COUNT];
};

static void *context, *kernel;
static struct thread *threads;

#define CALL(base, ...) checked(t, F_##base, functions[F_##base].call(__VA_ARGS__), true)
#define CALL_FAILING(base, ...) checked(t, F_##base, functions[F_##base].call(__VA_ARGS__), false)

static void checked(struct thread *t, int place, int result, bool must_succeed) {
    t->calls[place]++;
    if (!result)
        return;
    t->failed[place]++;
    if (must_succeed) {
        fprintf(stderr, "%s returned %d\n", functions[place].name, result);
        exit(1);
    }
}

static void resolve(const char *library) {
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    function ask = (function)dlsym(handle, "cuGetProcAddress_v2");
    for (int i = 0; i < FUNCTION_COUNT; i++) {
        void *found = NULL;
        Dl_info info;
        if (!wanted.by_address)
            found = dlsym(handle, functions[i].name);
        else if (ask)
            ask(functions[i].base, &found, 12000, (uint64_t)(wanted.per_thread ? 2 : 1), NULL);
        if (!found) {
            fprintf(stderr, "%s is not there\n", functions[i].base);
            exit(1);
        }
        functions[i].call = (function)found;
        if (dladdr(found, &info) && info.dli_sname && info.dli_saddr == found)
            functions[i].name = info.dli_sname;
    }
}

static uint64_t next_random(struct thread *t) {
    t->random ^= t->random << 13;
    t->random ^= t->random >> 7;
    t->random ^= t->random << 17;
    return t->random;
}

static size_t some_bytes(struct thread *t) { return next_random(t) % wanted.bytes / 4 * 4 + 4; }

static void host_function(void *data) { (void)data; }

static void launch(struct thread *t, void *stream) {
    CALL(cuLaunchKernel, kernel, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL);
}

struct launch_config {
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned count;
};

struct allocation_properties {
    int type, handle_types, location_type, location;
    void *security;
    unsigned char flags[8];
};

struct access {
    int location_type, location, flags;
};

static void use_virtual_memory(struct thread *t) {
    struct allocation_properties properties = {1, 0, 1, wanted.device, NULL, {0}};
    struct access access = {1, wanted.device, 3};
    size_t bytes = 2 << 20;
    address range, handle;
    CALL(cuMemAddressReserve, &range, bytes, (size_t)0, (address)0, (address)0);
    CALL(cuMemCreate, &handle, bytes, &properties, (address)0);
    CALL(cuMemMap, range, bytes, (size_t)0, handle, (address)0);
    CALL(cuMemSetAccess, range, bytes, &access, (size_t)1);
    CALL(cuMemUnmap, range, bytes);
    CALL(cuMemRelease, handle);
    CALL(cuMemAddressFree, range, bytes);
}

static void use_array(struct thread *t) {
    struct {
        size_t width, height;
        int format;
        unsigned channels;
    } descriptor = {next_random(t) % 61 + 1, next_random(t) % 31, 0x20, 4};
    void *array;
    CALL(cuArrayCreate, &array, &descriptor);
    CALL(cuArrayDestroy, array);
}

/* One copy in each direction, with and without a stream. */
static void copy(struct thread *t) {
    size_t bytes = some_bytes(t);
    address one, other;
    char *memory = calloc(1, bytes);
    CALL(cuMemAlloc, &one, bytes);
    CALL(cuMemAlloc, &other, bytes);
    CALL(cuMemcpyHtoD, one, memory, bytes);
    CALL(cuMemcpyHtoDAsync, one, memory, bytes, t->stream);
    CALL(cuMemcpyDtoD, other, one, bytes);
    CALL(cuMemcpyDtoDAsync, other, one, bytes, t->stream);
    CALL(cuMemcpy, other, one, bytes);
    CALL(cuMemcpyDtoH, memory, other, bytes);
    CALL(cuMemcpyDtoHAsync, memory, other, bytes, t->stream);
    CALL(cuStreamSynchronize, t->stream);
    CALL(cuMemFree, one);
    CALL(cuMemFree, other);
    free(memory);
}

static void set(struct thread *t) {
    size_t bytes = some_bytes(t);
    address pointer;
    CALL(cuMemAlloc, &pointer, bytes);
    CALL(cuMemsetD8, pointer, (unsigned char)7, bytes);
    CALL(cuMemsetD32Async, pointer, 0x01020304u, bytes / 4, t->stream);
    CALL(cuStreamSynchronize, t->stream);
    CALL(cuMemFree, pointer);
}

static void wait_for_all(struct thread *t) {
    void *event;
    CALL(cuEventCreate, &event, 0u);
    CALL(cuEventRecord, event, t->stream);
    CALL(cuEventSynchronize, event);
    CALL(cuEventDestroy, event);
    CALL(cuStreamSynchronize, t->stream);
    if (wanted.threads == 1) /* others may be capturing */
        CALL(cuCtxSynchronize);
}

static void use_graph(struct thread *t) {
    void *stream, *graph, *executable;
    CALL(cuStreamCreate, &stream, 1u);
    CALL(cuStreamBeginCapture, stream, 2);
    for (unsigned long i = 0; i < wanted.graph_kernels; i++)
        launch(t, stream);
    CALL(cuStreamEndCapture, stream, &graph);
    CALL(cuGraphInstantiate, &executable, graph, (address)0);
    for (unsigned long i = 0; i < wanted.graph_launches; i++)
        CALL(cuGraphLaunch, executable, stream);
    CALL(cuStreamSynchronize, stream);
    CALL(cuGraphExecDestroy, executable);
    CALL(cuGraphDestroy, graph);
    CALL(cuStreamDestroy, stream);
}

static void fail(struct thread *t) {
    address pointer;
    CALL_FAILING(cuLaunchKernel, NULL, 1, 1, 1, 1, 1, 1, 0, t->stream, NULL, NULL);
    CALL_FAILING(cuMemAlloc, &pointer, (size_t)1 << 50);
    CALL_FAILING(cuMemFree, (address)12345);
}

static void allocate(struct thread *t, int group) {
    size_t bytes = some_bytes(t), pitch;
    address pointer;
    void *host;
    switch (group) {
    case G_allocs:
        CALL(cuMemAlloc, &pointer, bytes);
        break;
    case G_pitches:
        CALL(cuMemAllocPitch, &pointer, &pitch, bytes, (size_t)3, 4u);
        break;
    case G_managed:
        CALL(cuMemAllocManaged, &pointer, bytes, 1u);
        break;
    case G_host:
        CALL(cuMemHostAlloc, &host, bytes, 0u);
        CALL(cuMemFreeHost, host);
        return;
    case G_pool:
        CALL(cuMemAllocAsync, &pointer, bytes, t->stream);
        CALL(cuMemFreeAsync, pointer, t->stream);
        return;
    default:
        if (!t->pool)
            CALL(cuDeviceGetDefaultMemPool, &t->pool, wanted.device);
        CALL(cuMemAllocFromPoolAsync, &pointer, bytes, t->pool, t->stream);
        CALL(cuMemFreeAsync, pointer, t->stream);
        return;
    }
    CALL(cuMemFree, pointer);
}

static void do_one(struct thread *t, int group) {
    struct launch_config config = {{1, 1, 1}, {32, 1, 1}, 0, t->stream, NULL, 0};
    switch (group) {
    case G_launches:
        launch(t, t->stream);
        break;
    case G_launches_ex:
        CALL(cuLaunchKernelEx, &config, kernel, NULL, NULL);
        break;
    case G_cooperative:
        CALL(cuLaunchCooperativeKernel, kernel, 1, 1, 1, 32, 1, 1, 0, t->stream, NULL);
        break;
    case G_host_functions:
        CALL(cuLaunchHostFunc, t->stream, host_function, NULL);
        break;
    case G_arrays:
        use_array(t);
        break;
    case G_virtual:
        use_virtual_memory(t);
        break;
    case G_copies:
        copy(t);
        break;
    case G_sets:
        set(t);
        break;
    case G_waits:
        wait_for_all(t);
        break;
    case G_graphs:
        use_graph(t);
        break;
    case G_failures:
        fail(t);
        break;
    default:
        allocate(t, group);
    }
}

static void *run_thread(void *argument) {
    struct thread *t = argument;
    unsigned long left[GROUP_COUNT], all = 0;
    CALL(cuCtxSetCurrent, context);
    if (!wanted.default_stream)
        CALL(cuStreamCreate, &t->stream, 0u);
    memcpy(left, wanted.groups, sizeof left);
    for (int i = 0; i < GROUP_COUNT; i++)
        all += left[i];
    while (all) { /* bursts of one group, more often of those with more left */
        uint64_t pick = next_random(t) % all;
        int group = 0;
        while (pick >= left[group])
            pick -= left[group++];
        unsigned long burst = next_random(t) % 16 + 1;
        burst = burst < left[group] ? burst : left[group];
        for (unsigned long i = 0; i < burst; i++)
            do_one(t, group);
        left[group] -= burst;
        all -= burst;
    }
    for (unsigned long i = 0; i < wanted.keep; i++) {
        address pointer;
        CALL(cuMemAlloc, &pointer, wanted.bytes);
    }
    return NULL;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void sleep_seconds(double time) {
    struct timespec rest = {(time_t)time, (long)((time - (time_t)time) * 1e9)};
    if (time > 0)
        nanosleep(&rest, NULL);
}

/* What a small training job looks like: a model and its optimizer's state held all the time, steps
 * of some launches with a batch copied in, activations allocated and freed, a loss read back. */
static void run_demo(struct thread *t, double length) {
    enum { STEP_LAUNCHES = 12, BATCH = 1 << 20 };
    double start = seconds();
    address model, state, batch, activations;
    char *host = calloc(1, BATCH);
    CALL(cuCtxSetCurrent, context);
    CALL(cuStreamCreate, &t->stream, 1u);
    CALL(cuMemAlloc, &model, (size_t)1 << 30);
    CALL(cuMemAlloc, &state, (size_t)2 << 30);
    CALL(cuMemAlloc, &batch, (size_t)BATCH);
    for (unsigned long step = 0; seconds() - start < length; step++) {
        size_t bytes = (64 + next_random(t) % 64) << 20;
        CALL(cuMemAllocAsync, &activations, bytes, t->stream);
        CALL(cuMemcpyHtoDAsync, batch, host, (size_t)BATCH, t->stream);
        for (int i = 0; i < STEP_LAUNCHES; i++)
            launch(t, t->stream);
        CALL(cuMemsetD32Async, batch, 0u, (size_t)1024, t->stream);
        CALL(cuMemFreeAsync, activations, t->stream);
        if (step % 8 == 7) {
            CALL(cuMemcpyDtoHAsync, host, batch, (size_t)4, t->stream);
            CALL(cuStreamSynchronize, t->stream);
        }
        if (step % 40 == 39)
            use_graph(t);
        sleep_seconds(0.03);
    }
    CALL(cuMemFree, batch);
    CALL(cuMemFree, state);
    CALL(cuMemFree, model);
    free(host);
}

static void prepare(struct thread *t) {
    static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                                ".visible .entry work() { ret; }\n";
    int device;
    void *module;
    CALL(cuInit, 0u);
    CALL(cuDeviceGet, &device, wanted.device);
    CALL(cuDevicePrimaryCtxRetain, &context, device);
    CALL(cuCtxSetCurrent, context);
    CALL(cuModuleLoadData, &module, image);
    CALL(cuModuleGetFunction, &kernel, module, "work");
}

/* One line, written at once, so that those of several processes don't mix. */
static void report(double elapsed, const pid_t *children) {
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    fprintf(out, "{\"pid\": %d, \"seconds\": %.6f, \"children\": [", getpid(), elapsed);
    for (unsigned long i = 0; children && i < wanted.forks; i++)
        fprintf(out, "%s%d", i ? ", " : "", children[i]);
    for (int failures = 0; failures < 2; failures++) {
        const char *separator = "";
        fprintf(out, failures ? "}, \"failed\": {" : "], \"calls\": {");
        for (int i = 0; i < FUNCTION_COUNT; i++) {
            unsigned long sum = 0;
            for (unsigned long thread = 0; thread < wanted.threads; thread++)
                sum += failures ? threads[thread].failed[i] : threads[thread].calls[i];
            if (!sum)
                continue;
            fprintf(out, "%s\"%s\": %lu", separator, functions[i].name, sum);
            separator = ", ";
        }
    }
    fprintf(out, "}}\n");
    fclose(out);
    if (write(STDOUT_FILENO, text, size) != (ssize_t)size)
        exit(1);
    free(text);
}

static void run(const pid_t *children) {
    double start = seconds();
    prepare(&threads[0]);
    double begun = seconds();
    if (wanted.demo > 0) {
        run_demo(&threads[0], wanted.demo);
    } else if (wanted.threads == 1) {
        run_thread(&threads[0]);
    } else {
        for (unsigned long i = 0; i < wanted.threads; i++)
            pthread_create(&threads[i].id, NULL, run_thread, &threads[i]);
        for (unsigned long i = 0; i < wanted.threads; i++)
            pthread_join(threads[i].id, NULL);
    }
    double elapsed = seconds() - begun;
    sleep_seconds(wanted.lifetime_ms / 1e3 - (seconds() - start));
    if (!children || wanted.forks == 0)
        report(elapsed, NULL);
    else
        report(elapsed, children);
}

static void usage(void) {
    fprintf(stderr, "usage: workload [--library PATH] [--device N] [--threads N] [--fork N]\n"
                    "    [--seed N] [--bytes N] [--keep N] [--lifetime-ms N] [--start-barrier]\n"
                    "    [--exit-barrier] [--by-address] [--per-thread] [--default-stream]\n"
                    "    [--graph-kernels N] [--graph-launches N] [--demo SECONDS] [--primes]\n"
                    "and, how often each thread uses a group of calls:\n   ");
    for (int i = 0; i < GROUP_COUNT; i++)
        fprintf(stderr, " --%s N", group_names[i]);
    fprintf(stderr, "\n");
    exit(2);
}

int main(int argc, char **argv) {
    enum { LIBRARY = 1000, DEVICE, DEMO, PRIMES, NUMBER };
    static struct {
        const char *name;
        unsigned long *value;
    } numbers[] = {
        {"threads", &wanted.threads},
        {"fork", &wanted.forks},
        {"seed", &wanted.seed},
        {"bytes", &wanted.bytes},
        {"keep", &wanted.keep},
        {"lifetime-ms", &wanted.lifetime_ms},
        {"graph-kernels", &wanted.graph_kernels},
        {"graph-launches", &wanted.graph_launches},
    };
    static struct {
        const char *name;
        bool *value;
    } switches[] = {
        {"start-barrier", &wanted.barrier},         {"exit-barrier", &wanted.exit_barrier},
        {"by-address", &wanted.by_address},         {"per-thread", &wanted.per_thread},
        {"default-stream", &wanted.default_stream},
    };
    enum {
        NUMBERS = sizeof numbers / sizeof *numbers,
        SWITCHES = sizeof switches / sizeof *switches
    };
    struct option options[4 + NUMBERS + SWITCHES + GROUP_COUNT + 1] = {
        {"library", required_argument, NULL, LIBRARY},
        {"device", required_argument, NULL, DEVICE},
        {"demo", required_argument, NULL, DEMO},
        {"primes", no_argument, NULL, PRIMES},
    };
    struct option *option = options + 4;
    for (int i = 0; i < NUMBERS; i++)
        *option++ = (struct option){numbers[i].name, required_argument, NULL, NUMBER + i};
    for (int i = 0; i < SWITCHES; i++)
        *option++ = (struct option){switches[i].name, no_argument, NULL, NUMBER + NUMBERS + i};
    for (int i = 0; i < GROUP_COUNT; i++)
        *option++ = (struct option){group_names[i], required_argument, NULL, i};

    const char *library = "libcuda.so.1";
    for (int found; (found = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (found == '?')
            usage();
        else if (found < GROUP_COUNT)
            wanted.groups[found] = strtoul(optarg, NULL, 0);
        else if (found == LIBRARY)
            library = optarg;
        else if (found == DEVICE)
            wanted.device = atoi(optarg);
        else if (found == DEMO)
            wanted.demo = strtod(optarg, NULL);
        else if (found == PRIMES)
            memcpy(wanted.groups, primes, sizeof primes);
        else if (found < NUMBER + NUMBERS)
            *numbers[found - NUMBER].value = strtoul(optarg, NULL, 0);
        else
            *switches[found - NUMBER - NUMBERS].value = true;
    }
    if (optind != argc || !wanted.threads || wanted.bytes < 4)
        usage();

    resolve(library);
    threads = calloc(wanted.threads, sizeof *threads);
    pid_t *children = calloc(wanted.forks + 1, sizeof *children);
    if (!threads || !children)
        return 1;
    char byte;
    if (wanted.barrier && read(STDIN_FILENO, &byte, 1) != 1)
        return 1;
    bool child = false;
    for (unsigned long i = 0; i < wanted.forks && !child; i++) {
        children[i] = fork();
        child = children[i] == 0;
        wanted.seed += child ? i + 1 : 0;
    }
    for (unsigned long i = 0; i < wanted.threads; i++) {
        threads[i].number = i;
        threads[i].random = (wanted.seed * 1000003 + i) * 0x9e3779b97f4a7c15u + 1;
    }
    run(child ? NULL : children);
    int status, failed = 0;
    while (!child && wait(&status) > 0)
        failed |= status != 0;
    if (!child && wanted.exit_barrier && read(STDIN_FILENO, &byte, 1) != 1)
        return 1;
    return failed;
}
