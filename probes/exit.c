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

/* A thread that execs takes the id of its process's leader: under the id that it had, the call
 * that it may have been in would wait for its return for ever. sched_process_exec(task, old_pid).
 */
int on_exec(struct bpf_raw_tracepoint_args *ctx) {
    u64 process = bpf_get_current_pid_tgid() >> 32;
    u64 thread = process << 32 | (u32)ctx->args[1];
    pending.delete(&thread);
    return 0;
}

/* `ended` is full: the process counts on the node, under no process. User space may be reading
 * meanwhile and must not see it in both places: it compares how many were begun and done. */
static __always_inline void fold(struct process *process) {
    u32 zero = 0;
    struct process *rest = overflow.lookup(&zero);
    if (!rest)
        return;
#pragma clang loop unroll(disable)
    for (u32 lane = 0; lane < LANES; lane++)
        add(rest, lane, process->lane[lane]);
}

int on_exit(struct bpf_raw_tracepoint_args *ctx) {
    u64 thread = bpf_get_current_pid_tgid();
    u32 pid = thread >> 32;
    pending.delete(&thread);
    struct process *process = processes.lookup(&pid);
    if (!process || !last_thread((void *)ctx->args[0]))
        return 0;
    struct owner owner = {.born = process->born, .pid = pid};
    if (!ended.update(&owner, process)) {
        processes.delete(&pid);
        return 0;
    }
    lose(LOST_ENDED);
    fold(process);
    processes.delete(&pid);
    lose(LOST_FOLDED);
    return 0;
}
