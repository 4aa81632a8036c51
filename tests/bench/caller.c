/* A client of the CUDA driver that makes calls as fast as it can, or at a given rate, when told to.
 *
 *     caller LIBRARY WHAT THREADS DEVICE
 *
 * It says "ready ADDRESS" (of WHAT's first function), then reads commands, one a line:
 *     run N       every thread makes N rounds of calls; answers "ROUNDS CPU_NS": the rounds made by
 *                 all threads and the CPU time that they took
 *     pace RATE   the threads together make RATE rounds a second until the next line (0: they are
 *                 idle, -1: as many as they can); then answers in the same way
 * It ends at the end of its input. Failing calls are calls as well: the library may have no device
 * to offer. CPU time instead of time passed: other processes want the CPUs too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int (*function)();

static const char image[] = ".version 7.0\n.target sm_52\n.address_size 64\n"
                            ".visible .entry empty()\n{\nret;\n}\n";
static function launch, allocate, release, copy_in, synchronize, set_current;
static void *context, *kernel;
static unsigned long long target; /* device memory to copy to */
static int thread_count;

static void launch_once(void) { launch(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL); }

static void allocate_once(void) {
    unsigned long long pointer = 0;
    allocate(&pointer, (size_t)4096);
    release(pointer);
}

static void wait_once(void) { synchronize(); }

static void copy_once(void) {
    char bytes[64] = {0};
    copy_in(target, bytes, sizeof bytes);
}

static void all_once(void) {
    launch_once();
    allocate_once();
    copy_once();
    wait_once();
}

/* A loop for each, so that nothing but the calls is in it. */
#define LOOP(what)                                                                                 \
    static void what##_loop(uint64_t n) {                                                          \
        while (n--)                                                                                \
            what##_once();                                                                         \
    }
LOOP(launch)
LOOP(allocate)
LOOP(wait)
LOOP(copy)
LOOP(all)

static const struct {
    const char *name;
    void (*loop)(uint64_t);
    function *first;
} kinds[] = {
    {"launch", launch_loop, &launch},  {"allocate", allocate_loop, &allocate},
    {"wait", wait_loop, &synchronize}, {"copy", copy_loop, &copy_in},
    {"all", all_loop, &launch},
};

struct order {
    void (*loop)(uint64_t);
    uint64_t rounds; /* 0: at `rate` until `stop` */
    double rate;     /* of one thread */
    atomic_bool stop;
    pthread_barrier_t start;
    _Atomic uint64_t done, cpu_ns;
};

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t paced(struct order *order) {
    uint64_t begin = now(CLOCK_MONOTONIC), made = 0;
    uint64_t nap = order->rate > 0 ? (uint64_t)(1e9 / order->rate) : 100000000;
    struct timespec pause = {0, (long)(nap < 1000000     ? 1000000
                                       : nap > 100000000 ? 100000000
                                                         : nap)};
    while (!order->stop) {
        if (order->rate < 0) {
            order->loop(1000);
            made += 1000;
            continue;
        }
        uint64_t due = (uint64_t)((double)(now(CLOCK_MONOTONIC) - begin) * order->rate / 1e9);
        if (due > made) {
            order->loop(due - made);
            made = due;
        }
        nanosleep(&pause, NULL);
    }
    return made;
}

static void *work(void *argument) {
    struct order *order = argument;
    set_current(context);
    pthread_barrier_wait(&order->start);
    uint64_t begin = now(CLOCK_THREAD_CPUTIME_ID), rounds = order->rounds;
    if (rounds)
        order->loop(rounds);
    else
        rounds = paced(order);
    order->cpu_ns += now(CLOCK_THREAD_CPUTIME_ID) - begin;
    order->done += rounds;
    return NULL;
}

static void carry_out(struct order *order, char *line, int size) {
    pthread_t threads[64];
    pthread_barrier_init(&order->start, NULL, (unsigned)thread_count);
    for (int i = 0; i < thread_count; i++)
        if (pthread_create(&threads[i], NULL, work, order))
            exit(1);
    if (!order->rounds) {
        if (!fgets(line, size, stdin))
            line[0] = 0;
        order->stop = 1;
    }
    for (int i = 0; i < thread_count; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&order->start);
    printf("%llu %llu\n", (unsigned long long)order->done, (unsigned long long)order->cpu_ns);
    fflush(stdout);
}

static function find(void *library, const char *name) {
    function found = (function)dlsym(library, name);
    if (!found) {
        fprintf(stderr, "caller: %s is not in the library\n", name);
        exit(1);
    }
    return found;
}

static void prepare(const char *path, int device) {
    void *library = dlopen(path, RTLD_NOW), *module = NULL;
    if (!library) {
        fprintf(stderr, "caller: %s\n", dlerror());
        exit(1);
    }
    int handle = device;
    launch = find(library, "cuLaunchKernel");
    allocate = find(library, "cuMemAlloc_v2");
    release = find(library, "cuMemFree_v2");
    copy_in = find(library, "cuMemcpyHtoD_v2");
    synchronize = find(library, "cuCtxSynchronize");
    set_current = find(library, "cuCtxSetCurrent");
    find(library, "cuInit")(0);
    find(library, "cuDeviceGet")(&handle, device);
    find(library, "cuDevicePrimaryCtxRetain")(&context, handle);
    set_current(context);
    find(library, "cuModuleLoadData")(&module, image);
    if (module)
        find(library, "cuModuleGetFunction")(&kernel, module, "empty");
    if (kernel)
        allocate(&target, (size_t)4096);
}

int main(int count, char **arguments) {
    char line[64];
    if (count != 5 || (thread_count = atoi(arguments[3])) < 1 || thread_count > 64) {
        fprintf(stderr, "caller LIBRARY WHAT THREADS DEVICE\n");
        return 2;
    }
    size_t kind = 0;
    while (kind < sizeof kinds / sizeof *kinds && strcmp(kinds[kind].name, arguments[2]))
        kind++;
    if (kind == sizeof kinds / sizeof *kinds)
        return 2;
    prepare(arguments[1], atoi(arguments[4]));
    printf("ready %llx\n", (unsigned long long)(uintptr_t)*kinds[kind].first);
    fflush(stdout);
    line[0] = 0;
    while (line[0] || fgets(line, sizeof line, stdin)) {
        char command[16];
        double number;
        if (sscanf(line, "%15s %lf", command, &number) != 2) {
            line[0] = 0;
            continue;
        }
        struct order order = {.loop = kinds[kind].loop};
        if (!strcmp(command, "run"))
            order.rounds = (uint64_t)number;
        else
            order.rate = number < 0 ? -1 : number / thread_count;
        line[0] = 0;
        carry_out(&order, line, sizeof line);
    }
    return 0;
}
