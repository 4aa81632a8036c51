"""`gpubpf top` on real probes: exact counts, ended processes, GPUs, and the terminal's face."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubpf.cli.activity import Activity, Span
from gpubpf.config import Options
from gpubpf.monitor import Monitor
from gpubpf.symbols import GROUPS, SYMBOLS, WAIT
from tests.conftest import GPUBPF, eventually
from tests.fakegpu.node import Counts, Node

PROBED = {symbol.name for symbol in SYMBOLS}
WORK = ("--launches", "101", "--launches_ex", "13", "--allocs", "17", "--pool", "7", "--host", "3",
        "--copies", "19", "--sets", "5", "--waits", "11", "--graphs", "2")  # fmt: skip
CLIENT = """
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
for device, size in ((0, 3 << 20), (1, 5 << 20))[int(sys.argv[1]):]:
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def monitor(node: Node) -> Iterator[Monitor]:
    """Without NVML: the simulated one is of one node as long as a process lives."""
    monitor = Monitor(Options(probe=GROUPS, nvml=False, library=(str(node.library),)))
    try:
        monitor.open()
        yield monitor
    finally:
        monitor.close()


def by_pid(activity: Activity) -> dict[int | None, Any]:
    return {row.pid: row for row in activity.rows}


def agrees(calls: dict[str, int], counts: Counts) -> bool:
    return calls == {name: n for name, n in counts.calls.items() if name in PROBED}


def test_what_a_process_did_is_exact(monitor: Monitor, node: Node) -> None:
    span = Span(monitor.step())
    work = subprocess.Popen(
        [node.workload, *WORK, "--lifetime-ms", "400"], env=node.environment(),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while work.poll() is None:
        span.add(monitor.step())
        time.sleep(0.05)
    span.add(monitor.step())
    activity = span.activity()
    truth = node.process(work.pid).counts
    row = by_pid(activity)[work.pid]
    assert row.ended
    assert row.process is not None
    assert row.process.name == "workload"
    assert agrees(row.calls, truth)
    together: Counter[str] = Counter()
    for one in activity.rows:
        together.update(one.calls)
    assert activity.node.calls == together  # others may be at work on this machine, too
    done = list(truth.activity.values())
    for key, field in (
        ("kernel_launches", "launches"), ("captured_launches", "captured"),
        ("graph_launches", "graph_launches"), ("graph_kernels", "graph_kernels"),
        ("host_functions", "host_functions"), ("set_bytes", "set_bytes"),
    ):  # fmt: skip
        assert row.counts[key] == sum(getattr(one, field) for one in done), key
    assert row.counts["kernel_launches"] + row.counts["captured_launches"] == sum(
        n for name, n in truth.calls.items() if name.startswith("cuLaunchKernel")
    )
    assert row.counts["graph_launches"] == truth.calls["cuGraphLaunch"] > 0
    assert row.counts["graph_launches_of_unknown_size"] == 0
    assert row.counts["copied_bytes"] == sum(sum(one.copied_bytes.values()) for one in done)
    assert row.counts["allocations"] == sum(m.allocations for m in truth.memory.values())
    assert row.counts["allocated_bytes"] == sum(m.allocated_bytes for m in truth.memory.values())
    assert row.counts["freed_bytes"] == sum(m.freed_bytes for m in truth.memory.values())
    assert row.counts["waits"] == sum(
        truth.calls[symbol.name] for symbol in SYMBOLS if symbol.shape is WAIT
    )
    assert activity.lost == {}


def test_what_was_done_before_the_span_is_not_in_it(monitor: Monitor, node: Node) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, "0"], env=node.environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        client.stdout.readline()
        span = Span(monitor.step())
        span.add(monitor.step())
        row = by_pid(span.activity())[client.pid]
        assert row.calls == {}
        assert row.counts["allocations"] == 0
        client.communicate()
    span.add(monitor.step())
    assert by_pid(span.activity())[client.pid].ended
    assert client.pid not in by_pid(_next_span(monitor))


def _next_span(monitor: Monitor) -> Activity:
    span = Span(monitor.step())
    span.add(monitor.step())
    return span.activity()


def start(*options: str, node: Node | None = None, **how: Any) -> subprocess.Popen[str]:
    environment = node.environment() if node else dict(os.environ)
    nvml = ("--nvml-library", str(node.nvml_library)) if node else ("--no-nvml",)
    return subprocess.Popen([GPUBPF, "top", *nvml, *options], env=environment, text=True, **how)


def test_gpus_and_memory_of_each_process(node: Node) -> None:
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, first], env=node.environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for first in ("0", "1")
    ]  # fmt: skip
    try:
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        top = start("--format", "json", "--duration", "0.2", node=node, stdout=subprocess.PIPE)
        out, _ = top.communicate(timeout=60)
    finally:
        for client in clients:
            client.communicate()
    rows = {row["pid"]: row for row in json.loads(out)["processes"]}
    both, second = (
        {(on["gpu"], on["uuid"]): on["memory_used_bytes"] for on in rows[client.pid]["gpus"]}
        for client in clients
    )
    assert both == {(0, node.uuid(0)): 3 << 20, (1, node.uuid(1)): 5 << 20}
    assert second == {(1, node.uuid(1)): 5 << 20}
    assert rows[clients[0].pid]["allocations"] == 0  # they were made before; known, so not null
    assert rows[clients[0].pid]["name"].startswith("python")


def test_json_of_a_span(node: Node) -> None:
    with subprocess.Popen(
        [node.workload, "--demo", "30", "--device", "1"],
        env=node.environment(),
        stdout=subprocess.DEVNULL,
    ) as work:
        try:
            top = start("--format", "json", "--duration", "1", "--interval", "0.2", node=node,
                        stdout=subprocess.PIPE)  # fmt: skip
            out, _ = top.communicate(timeout=60)
        finally:
            work.kill()
    assert top.returncode == 0
    document = json.loads(out)
    (row,) = [row for row in document["processes"] if row["pid"] == work.pid]
    assert row["name"] == "workload"
    assert row["kernel_launches"] + row["captured_launches"] == sum(
        n for name, n in row["calls"].items() if name.startswith("cuLaunchK")
    )
    assert row["kernel_launches"] > 0
    assert row["copied_bytes"] is None
    assert [on["gpu"] for on in row["gpus"]] == [1]
    assert document["span_seconds"] >= 1
    assert [gpu["uuid"] for gpu in document["gpus"]] == [node.uuid(0), node.uuid(1)]


def test_text_where_there_is_no_terminal() -> None:
    """The real libcuda: its calls count, though they fail."""
    loop = (
        "import ctypes, time\n"
        "cuda = ctypes.CDLL('libcuda.so.1')\n"
        "while True: cuda.cuMemFree_v2(0); cuda.cuGraphLaunch(0, 0); time.sleep(0.001)"
    )
    with subprocess.Popen([sys.executable, "-c", loop]) as client:
        try:
            top = start("--duration", "1", stdout=subprocess.PIPE)
            out, _ = top.communicate(timeout=60)
        finally:
            client.kill()
    lines = out.splitlines()
    assert top.returncode == 0
    assert max(map(len, lines)) <= 80
    (row,) = [line.split() for line in lines if line.split()[:1] == [str(client.pid)]]
    assert row[2:5] == ["-", "-", "-"]  # no GPU is known, and none is made up
    assert float(row[6]) > 0  # graph launches
    assert any("cuMemFree_v2" in line for line in lines)
    assert "\x1b" not in out


def test_nothing_to_watch() -> None:
    top = start("--probe", "none", stderr=subprocess.PIPE)
    _, error = top.communicate(timeout=60)
    assert top.returncode == 1
    assert error.startswith("gpubpf: nothing to watch")
    assert error.count("\n") == 1


def attached(pid: int) -> bool:
    """Whether the process holds links of BPF programs."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        return any("bpf" in os.readlink(fd) for fd in folder.iterdir())
    except OSError:
        return False


def test_interrupted() -> None:
    top = start("--once", "--duration", "60", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert eventually(lambda: attached(top.pid), bool, 30)
    top.send_signal(signal.SIGINT)
    assert top.communicate(timeout=30) == ("", "")
    assert top.returncode == 130


class Terminal:
    """`gpubpf top` on a pseudo-terminal of 24 lines of 80 columns."""

    def __init__(self, node: Node) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.top = start("--interval", "0.2", node=node, stdin=self.slave, stdout=self.slave,
                         stderr=self.slave)  # fmt: skip
        self.shown = ""

    def read_until(self, text: str, seconds: float = 30.0) -> bool:
        end = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                self.shown += os.read(self.master, 65536).decode(errors="replace")
        return text in self.shown

    def close(self) -> None:
        self.top.kill()
        self.top.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(node: Node) -> Iterator[Terminal]:
    terminal = Terminal(node)
    yield terminal
    terminal.close()


def test_refreshing_until_q(terminal: Terminal) -> None:
    assert terminal.read_until("q quits")
    terminal.shown = ""
    assert terminal.read_until("q quits")  # again, in place
    assert "\x1b[H" in terminal.shown
    assert "\n\n\n" not in terminal.shown
    os.write(terminal.master, b"xq")
    assert terminal.top.wait(30) == 0
    assert terminal.read_until("\x1b[?1049l")
    assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_refreshing_until_a_signal(terminal: Terminal, number: signal.Signals) -> None:
    assert terminal.read_until("q quits")
    terminal.top.send_signal(number)
    assert terminal.top.wait(30) == 0
    assert terminal.read_until("\x1b[?1049l")
    assert "Traceback" not in terminal.shown
    assert termios.tcgetattr(terminal.slave) == terminal.before
