/* Finding the caller's counters and adding to them. User space reads the maps; it is told at once
 * of a process's first call only, to look at the process while it is there. One look-up and two
 * atomic adds is all that a counted call of most processes costs. */
#ifndef GPUBPF_COUNT_H
#define GPUBPF_COUNT_H

/* What a probe is told about its function: the attach cookie, or a constant where the kernel has
 * no cookies. Packed by cookie() in gpubpf/bpf/program.py. */
#define CALL_FUNCTION(call) ((u32)(call)&0xffff)
#define CALL_DETAIL(call) ((u32)((call) >> 16) & 0xff)
#define CALL_NARROW(call) ((call) >> 24 & 1)
#define CALL_STREAM(call) ((u32)((call) >> 25) & 0x1f)  /* its argument, from 1; 0: it has none */
#define CALL_PER_THREAD(call) ((call) >> 30 & 1)        /* stream 0 is the thread's own */
#define CALL_MEASURE(call) ((u32)((call) >> 32) & 0xff) /* how its bytes are found */
#define CALL_SLOT(call) ((u32)((call) >> 40) & 0xff)    /* which library it is in */
#define SIZE(call, value) (CALL_NARROW(call) ? (u64)(u32)(value) : (u64)(value))

/* A call that claims more than this (8 TiB) is a lie or a bug: it is not added up. */
#define MOST_BYTES (1ULL << 43)
#define MOST_RESULT 999 /* CUDA_ERROR_UNKNOWN; what a library returns beyond is made up */
/* A lane stops here, so that user space may add lanes without a carry between them. */
#define LANE_LIMIT (1ULL << 62)

/* The verifier wants an index checked where it is used; clang likes to check a copy of it. */
static __always_inline bool below(u64 *index, u64 end) {
    asm volatile("" : "+r"(*index));
    return *index < end;
}

static __always_inline void lose(u32 what) {
    u32 zero = 0;
    struct losses *losses = lost.lookup(&zero);
    if (losses && what < LOST_COUNT)
        __sync_fetch_and_add(&losses->count[what], 1);
}

static __always_inline void add(struct share *share, u32 lane, u64 n) {
    if (lane >= FACT_LANES)
        return;
    u64 *counter = &share->lane[lane];
    if (*counter < LANE_LIMIT)
        __sync_fetch_and_add(counter, n);
}

static __always_inline void add_bytes(struct share *share, u32 lane, u64 bytes) {
    if (bytes > MOST_BYTES)
        lose(LOST_IMPLAUSIBLE);
    else
        add(share, lane, bytes);
}

static __always_inline u32 current_pid(void) { return bpf_get_current_pid_tgid() >> 32; }

/* --- a process's first call --- */

#define READ_TASK(task, offset, to) (!read_kernel(&(to), sizeof(to), (task) + (offset)))

/* When the process began (CLOCK_BOOTTIME, ns); 0 where the kernel doesn't tell. */
static __always_inline u64 start_time(void *task) {
    u64 start = 0;
#ifdef TASK_START_BOOTTIME
    void *leader = 0;
    if (READ_TASK(task, TASK_GROUP_LEADER, leader))
        READ_TASK(leader, TASK_START_BOOTTIME, start);
#endif
    return start;
}

/* The process that this one was forked from, if that had called the driver by then, and this one
 * has not become another program since. */
static __always_inline struct process *forked_from(void *task, u32 *pid) {
#ifdef TASK_START_BOOTTIME
    void *parent = 0;
    u64 own = 0, parents = 1;
    if (!READ_TASK(task, TASK_REAL_PARENT, parent) || !READ_TASK(parent, TASK_TGID, *pid) ||
        !READ_TASK(task, TASK_SELF_EXEC_ID, own) ||
        !READ_TASK(task, TASK_PARENT_EXEC_ID, parents) || own != parents)
        return 0;
    struct process *process = processes.lookup(pid);
    return process && process->born < start_time(task) ? process : 0;
#else
    return 0;
#endif
}

static __always_inline void tell_birth(struct process *process, u32 pid) {
#ifdef BIRTH_PAGES
    struct owner owner = {.born = process->born, .pid = pid};
    if (births.ringbuf_output(&owner, sizeof(owner), 0))
        lose(LOST_BIRTHS);
#endif
}

/* If it is cuInit, and the process began after we came to its library, then no context was made
 * before we watched; a fork has what its parent had; of any other it isn't known what it did. */
static __always_inline struct process *newcomer(u32 pid, u64 call, bool init) {
    u32 zero = 0, parent_pid = 0, slot = CALL_SLOT(call);
    struct process *template = blank.lookup(&zero);
    u64 *attached = since.lookup(&slot);
    if (!template || !attached)
        return 0;
    /* Two newcomers may write this at the same time: either value is a time before the first
     * counted call, and (pid, born) stays unique since the pid is. What follows the insertion is
     * set before this thread's call goes on; one that comes meanwhile finds nothing settled. */
    template->born = bpf_ktime_get_boot_ns();
    bool first = !processes.insert(&pid, template);
    struct process *process = processes.lookup(&pid);
    if (!process) {
        lose(LOST_PROCESSES);
        return overflow.lookup(&zero);
    }
    if (!first)
        return process;
    tell_birth(process, pid);
    void *task = (void *)bpf_get_current_task();
    struct process *parent = init ? 0 : forked_from(task, &parent_pid);
    asm volatile("" : "+r"(parent)); /* else clang forgets to look whether it is NULL */
    process->late = !init || start_time(task) <= *attached;
    if (parent && parent != process) {
        process->parent_born = parent->born;
        process->parent = parent_pid;
        process->home = parent->home;
        process->multi = parent->multi;
        process->late = parent->late;
        process->settled = parent->settled;
    }
    return process;
}

static __always_inline struct process *caller(u64 call) {
    u32 pid = current_pid();
    struct process *process = processes.lookup(&pid);
    return process ? process : newcomer(pid, call, false);
}

static __always_inline void count_call(struct process *process, u64 call) {
    u32 function = CALL_FUNCTION(call);
    if (function >= CALL_LANES)
        return;
    u64 *counter = &process->calls[function];
    if (*counter < LANE_LIMIT)
        __sync_fetch_and_add(counter, 1);
}

static __always_inline struct process *counted(u64 call) {
    struct process *process = caller(call);
    if (process)
        count_call(process, call);
    return process;
}

/* The counters of what a process does on a device. */
static __always_inline struct share *share_of(struct process *process, u32 device) {
    if (!process->born || (device == process->home && process->settled))
        return &process->share; /* born 0: the overflow, where nobody is told apart */
    struct place place = {.born = process->born, .pid = current_pid(), .device = device};
    struct share *share = shares.lookup(&place);
    if (share)
        return share;
    u32 zero = 0;
    struct process *zeros = blank.lookup(&zero);
    if (!zeros)
        return 0;
    shares.insert(&place, &zeros->share);
    share = shares.lookup(&place);
    if (share)
        return share;
    lose(LOST_SHARES);
    struct process *rest = overflow.lookup(&zero);
    return rest ? &rest->share : 0;
}

static __always_inline void failed(struct process *process, u64 call, u32 result) {
    struct failure key = {
        .born = process->born,
        .pid = current_pid(),
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

static __always_inline u64 stream_argument(struct pt_regs *ctx, u64 call) {
    u32 n = CALL_STREAM(call);
    return n ? argument(ctx, n - 1) : 0;
}

/* Remember a call until its thread returns from it. */
static __always_inline int enter(struct pending *call) {
    u64 thread = bpf_get_current_pid_tgid();
    if (pending.update(&thread, call))
        lose(LOST_PENDING);
    return 0;
}

/* The entry of a call that is looked at when it returns: by then it is known that it succeeded,
 * and what its arguments point to is in memory, where a probe may not wait for it to be. */
static __always_inline int on_enter(struct pt_regs *ctx, u64 call) {
    struct process *process = counted(call);
    struct pending entry = {
        .call = call,
        .since = bpf_ktime_get_ns(),
        .stream = stream_argument(ctx, call),
        .arg = {REG_0(ctx), REG_1(ctx), REG_2(ctx), REG_3(ctx), REG_4(ctx), REG_5(ctx)},
    };
    return process ? enter(&entry) : 0;
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
    u32 pid = current_pid(), zero = 0;
    struct process *process = processes.lookup(&pid);
    return process ? process : overflow.lookup(&zero);
}

/* The same, where only success matters: a failure is counted as one. */
static __always_inline struct process *succeeded(struct pt_regs *ctx, u64 call,
                                                 struct pending *out) {
    struct process *process = leave(call, out);
    u32 result = RESULT(ctx);
    if (!process || !result)
        return process;
    failed(process, call, result);
    return 0;
}

#endif
