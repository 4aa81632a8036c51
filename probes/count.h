/* Finding the caller's counters and adding to them. Nothing is sent anywhere: user space reads
 * the maps. One look-up and one atomic add is all that a counted call costs. */
#ifndef GPUBPF_COUNT_H
#define GPUBPF_COUNT_H

/* What a probe is told about its function: the attach cookie, or a constant where the kernel has
 * no cookies. Packed by cookie() in gpubpf/bpf/program.py. */
#define CALL_FUNCTION(call) ((u32)(call)&0xffff)
#define CALL_DETAIL(call) ((u32)((call) >> 16) & 0xff)
#define CALL_NARROW(call) ((call) >> 24 & 1)
#define SIZE(call, value) (CALL_NARROW(call) ? (u64)(u32)(value) : (u64)(value))

/* A call that claims more than this (256 TiB) is a lie or a bug: it is not added up. */
#define MOST_BYTES (1ULL << 48)
#define MOST_RESULT 999 /* CUDA_ERROR_UNKNOWN; what a library returns beyond is made up */
/* A lane stops here, so that user space may add lanes without a carry between them. */
#define LANE_LIMIT (1ULL << 62)

static __always_inline void lose(u32 what) {
    u32 zero = 0;
    struct losses *losses = lost.lookup(&zero);
    if (losses && what < LOST_COUNT)
        __sync_fetch_and_add(&losses->count[what], 1);
}

static __always_inline void add(struct process *process, u32 lane, u64 n) {
    if (lane >= LANES)
        return;
    u64 *counter = &process->lane[lane];
    if (*counter < LANE_LIMIT)
        __sync_fetch_and_add(counter, n);
}

static __always_inline void add_bytes(struct process *process, u32 lane, u64 bytes) {
    if (bytes > MOST_BYTES)
        lose(LOST_IMPLAUSIBLE);
    else
        add(process, lane, bytes);
}

static __always_inline struct process *newcomer(u32 pid) {
    u32 zero = 0;
    struct process *process = blank.lookup(&zero);
    if (!process)
        return 0;
    /* Two newcomers may write this at the same time: either value is a time before the first
     * counted call, and (pid, born) stays unique since the pid is. */
    process->born = bpf_ktime_get_boot_ns();
    processes.insert(&pid, process);
    process = processes.lookup(&pid);
    if (process)
        return process;
    lose(LOST_PROCESSES);
    return overflow.lookup(&zero);
}

static __always_inline struct process *caller(void) {
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    struct process *process = processes.lookup(&pid);
    return process ? process : newcomer(pid);
}

static __always_inline struct process *counted(u64 call) {
    struct process *process = caller();
    if (process)
        add(process, LANE_CALLS + CALL_FUNCTION(call), 1);
    return process;
}

static __always_inline void failed(struct process *process, u64 call, u32 result) {
    struct failure key = {
        .born = process->born,
        .pid = bpf_get_current_pid_tgid() >> 32,
        .function = CALL_FUNCTION(call),
        .error = result > MOST_RESULT ? 0xffff : result,
    };
    u64 zero = 0;
    u64 *n = failures.lookup_or_try_init(&key, &zero);
    if (n)
        __sync_fetch_and_add(n, 1);
    else
        lose(LOST_FAILURES);
}

/* Remember a call until its thread returns from it. */
static __always_inline void enter(struct pending *call) {
    u64 thread = bpf_get_current_pid_tgid();
    if (pending.update(&thread, call))
        lose(LOST_PENDING);
}

/* The caller that returns from a call, and what was remembered of it on entry; NULL if its entry
 * was not seen. A nested probed call replaces the outer one: the driver's own functions do not call
 * one another's exports. */
static __always_inline struct process *leave(u64 call, struct pending *out) {
    u64 thread = bpf_get_current_pid_tgid();
    struct pending *entered = pending.lookup(&thread);
    if (!entered || entered->call != call)
        return 0;
    *out = *entered;
    pending.delete(&thread);
    return caller();
}

#endif
