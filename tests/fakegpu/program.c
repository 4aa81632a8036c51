/* Runs programs of driver calls, for tests. A program is read from standard input, a line an
 * operation:
 *
 *     THREAD OPERATION ARGUMENT…
 *
 * THREAD is a number below 8; each is a thread of its own, made when it is first used. The
 * operations are done strictly in the order of the lines, each by its thread, and each prints a
 * line when it is done. An operation is the name of an export (its arguments: program_arguments.c),
 * which prints the result; -1 where an argument was never made, and nothing was called; "absent"
 * where the library lacks the function. Or it is one of
 *
 *     exit     the thread ends, prints 0; a later operation makes a new one
 *     stop     prints "stopped" and waits for a line
 *     sleep N  milliseconds, prints 0
 *     fork N   a child does the N operations that follow (and prints their lines), then ends;
 * prints "PID STATUS" when it has exec     the program starts anew, without its objects, and goes
 * on; the new one prints 0 kill     the process kills itself
 *
 * It knows nothing of the simulation and runs on a real driver as well. */
#define _GNU_SOURCE
#include "program.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 8, LINE = 4096, FUNCTIONS = 512, ABSENT = -2 };

typedef int (*function)(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64);

static struct worker {
    pthread_t thread;
    bool alive, ending;
    sem_t work, done;
    char *line;
    int result;
} workers[THREADS];

static int self = -1; /* the worker that this thread is: after a fork it reads the lines */
static void *library;
static bool by_address;
static char **waiting; /* lines for a forked child, NULL at the end; NULL: they come from outside */

_Noreturn void give_up(const char *message, const char *what) {
    fprintf(stderr, "program: %s: %s\n", message, what);
    _exit(2);
}

/* By its name, or as the driver's own look-up has it, where that gives this very form. */
static function look_up(const char *name) {
    void *known = dlsym(library, name), *found = NULL;
    if (!known || !by_address)
        return (function)known;
    function ask = (function)dlsym(library, "cuGetProcAddress_v2");
    char base[128];
    strncpy(base, name, sizeof base - 1);
    base[sizeof base - 1] = 0;
    size_t length = strlen(base);
    bool per_thread = length > 5 && !strncmp(base + length - 5, "_pt", 3);
    if (per_thread)
        base[length -= 5] = 0;
    if (length > 3 && !strncmp(base + length - 3, "_v", 2))
        base[length - 3] = 0;
    if (ask)
        ask((u64)base, (u64)&found, 13000, per_thread ? 2 : 1, 0, 0, 0, 0, 0, 0, 0, 0);
    return (function)(found == known ? found : known);
}

static function resolve(const char *name) {
    static struct {
        char *name;
        function call;
    } known[FUNCTIONS];
    int place = 0;
    while (place < FUNCTIONS - 1 && known[place].name && strcmp(known[place].name, name))
        place++;
    if (!known[place].name) {
        known[place].name = strdup(name);
        known[place].call = look_up(name);
    }
    return known[place].call;
}

static int call_driver(char *name, char *text) {
    const struct row *row = find_row(name);
    if (!row)
        give_up("no such operation", name);
    struct call call = {0};
    read_arguments(&call, row, text);
    function f = resolve(name);
    if (!f)
        return ABSENT;
    if (call.unset)
        return -1;
    const u64 *v = call.values;
    int result = f(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11]);
    for (int i = 0; i < call.result_count && result == 0; i++)
        *call.kept[i] = call.results[i];
    return result;
}

static void say(const char *format, long one, long other) {
    char text[64];
    int length = snprintf(text, sizeof text, format, one, other);
    if (write(STDOUT_FILENO, text, length) != length)
        _exit(1);
}

/* Byte by byte: what follows may be for another program. */
static bool read_line(char *line) {
    size_t length = 0;
    for (;;) {
        ssize_t got = read(STDIN_FILENO, line + length, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        if (line[length] == '\n')
            break;
        if (++length == LINE)
            give_up("line too long", "");
    }
    line[length] = 0;
    return true;
}

static bool next_line(char *line) {
    if (!waiting)
        return read_line(line);
    if (!*waiting)
        return false;
    strcpy(line, *waiting++);
    return true;
}

static void run_lines(void);

static int fork_child(char *line) {
    (void)line;
    pid_t child = fork();
    if (child)
        return child;
    self = -1;
    for (int i = 0; i < THREADS; i++) {
        if (workers[i].alive && pthread_equal(workers[i].thread, pthread_self()))
            self = i;
        else
            workers[i].alive = false; /* they stayed behind */
    }
    run_lines();
    exit(0);
}

static int perform(char *line) {
    char *operation = strsep(&line, " ");
    if (!strncmp(operation, "cu", 2))
        return call_driver(operation, line);
    if (!strcmp(operation, "sleep"))
        return usleep(1000 * strtoul(line ? line : "0", NULL, 10));
    if (!strcmp(operation, "fork"))
        return fork_child(line);
    if (!strcmp(operation, "kill"))
        return kill(getpid(), SIGKILL);
    give_up("no such operation", operation);
}

static void *work(void *argument) {
    struct worker *worker = argument;
    for (;;) {
        while (sem_wait(&worker->work) != 0)
            ;
        if (worker->ending)
            return NULL;
        worker->result = perform(worker->line);
        sem_post(&worker->done);
    }
}

static int hand_over(int thread, char *line) {
    struct worker *worker = &workers[thread];
    if (thread == self)
        return perform(line);
    if (!worker->alive) {
        worker->ending = false;
        sem_init(&worker->work, 0, 0);
        sem_init(&worker->done, 0, 0);
        if (pthread_create(&worker->thread, NULL, work, worker) != 0)
            give_up("no thread", "");
        worker->alive = true;
    }
    worker->line = line;
    sem_post(&worker->work);
    while (sem_wait(&worker->done) != 0)
        ;
    return worker->result;
}

static void end_thread(int thread) {
    struct worker *worker = &workers[thread];
    if (!worker->alive || thread == self)
        return;
    worker->ending = true;
    sem_post(&worker->work);
    pthread_join(worker->thread, NULL);
    worker->alive = false;
}

static void do_fork(int thread, char *line) {
    size_t count = strtoul(line + strlen("fork"), NULL, 10);
    char **before = waiting, **lines = calloc(count + 1, sizeof *lines);
    char text[LINE + 1];
    int status = 0;
    for (size_t i = 0; i < count && next_line(text); i++)
        lines[i] = strdup(text);
    before = waiting;
    waiting = lines;
    pid_t child = hand_over(thread, line);
    waiting = before;
    if (child > 0)
        waitpid(child, &status, 0);
    say("%ld %ld\n", child, status);
}

static void run_lines(void) {
    char line[LINE + 1];
    while (next_line(line)) {
        char *rest = line;
        const char *word = strsep(&rest, " ");
        int thread = *word - '0';
        if (word[0] < '0' || thread >= THREADS || word[1] || !rest)
            give_up("no operation", line);
        if (!strcmp(rest, "exit")) {
            end_thread(thread);
            say("0\n", 0, 0);
        } else if (!strcmp(rest, "stop")) {
            say("stopped\n", 0, 0);
            read_line(line);
        } else if (!strcmp(rest, "exec")) {
            if (by_address)
                setenv("PROGRAM_BY_ADDRESS", "1", 1);
            char path[4096];
            snprintf(path, sizeof path, "%s", getenv("PROGRAM_LIBRARY"));
            execl("/proc/self/exe", "program", "--again", path, NULL);
            give_up("exec", strerror(errno));
        } else if (!strncmp(rest, "fork ", 5)) {
            do_fork(thread, rest);
        } else {
            int result = hand_over(thread, rest);
            if (result == ABSENT)
                say("absent\n", 0, 0);
            else
                say("%ld\n", result, 0);
        }
    }
}

int main(int argc, char **argv) {
    const char *path = "libcuda.so.1";
    bool again = false;
    by_address = getenv("PROGRAM_BY_ADDRESS") != NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--by-address"))
            by_address = true;
        else if (!strcmp(argv[i], "--again"))
            again = true;
        else
            path = argv[i];
    }
    setenv("PROGRAM_LIBRARY", path, 1);
    library = dlopen(path, RTLD_NOW);
    if (!library)
        give_up("no library", dlerror());
    if (again)
        say("0\n", 0, 0);
    run_lines();
    return 0;
}
