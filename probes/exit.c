/* The end of a thread and of a process (raw tracepoint sched_process_exit): its counters move,
 * whole, where a new process that gets the same pid can't touch them. */

static __always_inline bool last_thread(void *task) {
#ifdef TASK_SIGNAL
    /* The offsets come from the running kernel's BTF. do_exit() has counted this thread out of
     * signal->live before the tracepoint. Two last threads may both see 0: the second finds
     * nothing left to move. */
    void *signal = 0;
    int live = 0;
    if (read_kernel(&signal, sizeof(signal), task + TASK_SIGNAL) ||
        read_kernel(&live, sizeof(live), signal + SIGNAL_LIVE))
        return false;
    return live == 0;
#else
    return false; /* no BTF: user space looks whether the process is still there */
#endif
}

/* `ended` is full: the process counts on the node, under no process. User space may be reading
 * meanwhile and must not see it in both places: it compares how many were begun and done. */
static __always_inline void fold(struct process *process) {
    u32 zero = 0;
    struct process *rest = overflow.lookup(&zero);
    if (!rest)
        return;
#pragma clang loop unroll(disable)
    for (u32 lane = 0; lane < FACT_LANES; lane++)
        add(&rest->share, lane, process->share.lane[lane]);
    /* What it never freed goes with it; there is nobody to tell that later. */
    u64 *own = process->share.lane;
#pragma clang loop unroll(disable)
    for (u32 kind = 0; kind < KINDS; kind++) {
        s64 count =
            own[LANE_ALLOCATIONS + kind] - own[LANE_FREES + kind] - own[LANE_IMPLICIT_FREES + kind];
        s64 bytes = own[LANE_ALLOCATED_BYTES + kind] - own[LANE_FREED_BYTES + kind] -
                    own[LANE_IMPLICITLY_FREED_BYTES + kind];
        add(&rest->share, LANE_IMPLICIT_FREES + kind, count > 0 ? count : 0);
        add(&rest->share, LANE_IMPLICITLY_FREED_BYTES + kind, bytes > 0 ? bytes : 0);
    }
#pragma clang loop unroll(disable)
    for (u32 function = 0; function < CALL_LANES; function++)
        __sync_fetch_and_add(&rest->calls[function], process->calls[function]);
}

static __always_inline void end_process(u32 pid, struct process *process) {
    struct owner owner = {.born = process->born, .pid = pid};
    if (!ended.update(&owner, process)) {
        processes.delete(&pid);
        return;
    }
    lose(LOST_ENDED);
    fold(process);
    processes.delete(&pid);
    lose(LOST_FOLDED);
}

static __always_inline void end_thread(u64 thread) {
    pending.delete(&thread);
    threads.delete(&thread);
}

/* sched_process_exec(task, old_pid): nothing of the driver's is left in a process that execs, it
 * starts anew under the same pid. A thread that execs takes the id of its process's leader: under
 * the id that it had, the call that it may have been in would wait for its return for ever. */
int on_exec(struct bpf_raw_tracepoint_args *ctx) {
    u64 leader = bpf_get_current_pid_tgid();
    u32 pid = leader >> 32;
    end_thread((u64)pid << 32 | (u32)ctx->args[1]);
    end_thread(leader);
    struct process *process = processes.lookup(&pid);
    if (process)
        end_process(pid, process);
    return 0;
}

int on_exit(struct bpf_raw_tracepoint_args *ctx) {
    u64 thread = bpf_get_current_pid_tgid();
    u32 pid = thread >> 32;
    end_thread(thread);
    struct process *process = processes.lookup(&pid);
    if (process && last_thread((void *)ctx->args[0]))
        end_process(pid, process);
    return 0;
}
