/* Times calls into the CUDA driver: what a caller waits for, not what the GPU takes.
 *
 *     timer THREADS
 *
 * It answers lines of the form {"do": "launch", "rounds": 1000} (launch, graph or allocate: an
 * allocation and its free) with {"answer": NANOSECONDS}, of one round of one thread; so the checks
 * talk with it as with their other programs. Calls are made in bursts, and what was enqueued is
 * waited for between them, outside of the measured time: a full queue would be measured else. */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { BURST = 200, MOST_THREADS = 16 };

typedef int (*function)();

static const char *const images[] = {
    ".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry work()\n{\nret;\n}\n",
    ".version 6.3\n.target sm_75\n.address_size 64\n.visible .entry work()\n{\nret;\n}\n",
    ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry work()\n{\nret;\n}\n",
    ".version 8.6\n.target sm_100\n.address_size 64\n.visible .entry work()\n{\nret;\n}\n",
};
static void *library, *context, *kernel, *graph;
static function launch, launch_graph, allocate, release, wait_for, set_current, make_stream;
static pthread_barrier_t start;
static unsigned long rounds;
static void (*once)(void *stream);

static void check(int code, const char *what) {
    if (code) {
        fprintf(stderr, "%s gave CUDA error %d\n", what, code);
        exit(1);
    }
}

static function find(const char *name) {
    function found = (function)dlsym(library, name);
    if (!found) {
        fprintf(stderr, "%s is not in the library\n", name);
        exit(1);
    }
    return found;
}

static void launch_once(void *stream) { launch(kernel, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL); }

static void graph_once(void *stream) { launch_graph(graph, stream); }

static void allocate_once(void *stream) {
    unsigned long long pointer = 0;
    (void)stream;
    allocate(&pointer, (size_t)4096);
    release(pointer);
}

static const struct {
    const char *name;
    void (*once)(void *);
} kinds[] = {{"launch", launch_once}, {"graph", graph_once}, {"allocate", allocate_once}};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void *work(void *result) {
    void *stream = NULL;
    double taken = 0;
    set_current(context);
    check(make_stream(&stream, 1), "cuStreamCreate");
    pthread_barrier_wait(&start);
    for (unsigned long left = rounds; left;) {
        unsigned long burst = left < BURST ? left : BURST;
        double begin = now();
        for (unsigned long i = 0; i < burst; i++)
            once(stream);
        taken += now() - begin;
        check(wait_for(stream), "cuStreamSynchronize");
        left -= burst;
    }
    find("cuStreamDestroy_v2")(stream);
    *(double *)result = taken;
    return NULL;
}

static void prepare(void) {
    int device = 0, code = 1;
    void *module = NULL, *made = NULL, *stream = NULL;
    library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    launch = find("cuLaunchKernel");
    launch_graph = find("cuGraphLaunch");
    allocate = find("cuMemAlloc_v2");
    release = find("cuMemFree_v2");
    wait_for = find("cuStreamSynchronize");
    set_current = find("cuCtxSetCurrent");
    make_stream = find("cuStreamCreate");
    check(find("cuInit")(0), "cuInit");
    check(find("cuDeviceGet")(&device, 0), "cuDeviceGet");
    check(find("cuDevicePrimaryCtxRetain")(&context, device), "cuDevicePrimaryCtxRetain");
    set_current(context);
    for (size_t i = 0; code && i < sizeof images / sizeof *images; i++)
        code = find("cuModuleLoadData")(&module, images[i]);
    check(code, "cuModuleLoadData");
    check(find("cuModuleGetFunction")(&kernel, module, "work"), "cuModuleGetFunction");
    check(make_stream(&stream, 1), "cuStreamCreate");
    check(find("cuStreamBeginCapture_v2")(stream, 1), "cuStreamBeginCapture");
    for (int i = 0; i < 7; i++)
        launch_once(stream);
    check(find("cuStreamEndCapture")(stream, &made), "cuStreamEndCapture");
    check(find("cuGraphInstantiateWithFlags")(&graph, made, 0ull), "cuGraphInstantiate");
}

int main(int count, char **arguments) {
    int threads = count == 2 ? atoi(arguments[1]) : 0;
    char line[256], name[16];
    if (threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "timer THREADS\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prepare();
    while (fgets(line, sizeof line, stdin)) {
        pthread_t handles[MOST_THREADS];
        double taken[MOST_THREADS], sum = 0;
        once = NULL;
        if (sscanf(line, "{\"do\": \"%15[a-z]\", \"rounds\": %lu", name, &rounds) == 2)
            for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
                if (!strcmp(kinds[i].name, name))
                    once = kinds[i].once;
        if (!once || !rounds) {
            fprintf(stderr, "not a command: %s", line);
            return 2;
        }
        pthread_barrier_init(&start, NULL, (unsigned)threads);
        for (int i = 0; i < threads; i++)
            if (pthread_create(&handles[i], NULL, work, &taken[i]))
                return 1;
        for (int i = 0; i < threads; i++) {
            pthread_join(handles[i], NULL);
            sum += taken[i];
        }
        pthread_barrier_destroy(&start);
        printf("{\"answer\": %.1f}\n", sum / (double)rounds / threads);
        fflush(stdout);
    }
    return 0;
}
