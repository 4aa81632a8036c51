"""The design that gpubpf avoids: an event for each call, read by Python. `probing.events` runs it.

    event_reader LIBRARY OFFSET

It says "ready"; asked by a line of input, it answers with the number of events read, once no more
come. It ends at the end of its input.
"""

from __future__ import annotations

import sys
import threading

from bcc import BPF

from gpubpf.bpf import syscalls

_PROGRAM = """
#include <uapi/linux/ptrace.h>
#define PAGE_SIZE 4096
struct event { u64 time, pid_tgid, cookie; char name[16]; u64 rest[3]; };
BPF_RINGBUF_OUTPUT(events, 256); /* pages: 1 MiB */
int on_call(struct pt_regs *ctx) {
    struct event event = {.time = bpf_ktime_get_ns(), .pid_tgid = bpf_get_current_pid_tgid()};
    bpf_get_current_comm(&event.name, sizeof(event.name));
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""


def main() -> None:
    bpf = BPF(text=_PROGRAM)
    function = bpf.load_func(b"on_call", BPF.KPROBE, attach_type=syscalls.TRACE_UPROBE_MULTI)
    seen = 0
    stop = threading.Event()

    def on_event(*_: object) -> None:
        nonlocal seen
        seen += 1

    def answer() -> None:
        for _ in sys.stdin:
            before = -1
            while before != seen:
                before = seen
                stop.wait(0.3)
            print(seen, flush=True)
        stop.set()

    bpf[b"events"].open_ring_buffer(on_event)
    link = syscalls.link_uprobe_multi(
        function.fd, sys.argv[1].encode(), [int(sys.argv[2])], [], returns=False
    )
    assert link
    threading.Thread(target=answer, daemon=True).start()
    print("ready", flush=True)
    while not stop.is_set():
        bpf.ring_buffer_poll(timeout=100)


if __name__ == "__main__":
    main()
