"""What may watch a library while calls are timed: nothing, gpubpf's probes, or others' designs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpubpf.bpf import attach, elf, syscalls
from gpubpf.bpf.load import Loaded
from gpubpf.symbols import Symbol
from tests.bench.bench import ROOT
from tests.bench.caller import Caller
from tests.bench.machine import cpu_seconds


@dataclass(slots=True)
class Watch:
    """What a watcher has used and seen, once its block has ended."""

    cpu: float = 0.0  # seconds, of a process that watches
    seen: int = 0  # calls
    extra: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def nothing(library: Path, caller: Caller) -> Iterator[Watch]:
    caller.wait_until(probed=False)
    yield Watch()


@contextlib.contextmanager
def empty(
    library: Path, caller: Caller, entries: Sequence[str], returns: Sequence[str] = ()
) -> Iterator[Watch]:
    """A program that does nothing, attached as gpubpf attaches its own."""
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(opened(library))
        points = elf.probe_points(fd, {*entries, *returns})
        program = syscalls.load_nothing(syscalls.TRACE_UPROBE_MULTI)
        stack.callback(os.close, program)
        for names, back in ((returns, True), (entries, False)):
            offsets = [points[name].offset for name in names]
            if offsets:
                path = f"/proc/self/fd/{fd}".encode()
                link = syscalls.link_uprobe_multi(program, path, offsets, [], returns=back)
                stack.callback(os.close, link)
        caller.wait_until(probed=True)
        yield Watch()


@contextlib.contextmanager
def gpubpf(
    library: Path,
    caller: Caller,
    loaded: Loaded,
    symbols: Sequence[Symbol],
    plain: bool = False,
) -> Iterator[Watch]:
    """`plain`: the caller is known to have one device, and captures nothing."""
    with opened(library) as fd:
        attachment = attach.attach(loaded, symbols, fd, str(library))
        try:
            caller.wait_until(probed=True)
            caller.run(1)
            _settle(loaded, caller.pid, plain)
            yield Watch()
        finally:
            attach.detach(attachment.links)


_WAY = 16  # struct process of probes/maps.h: where `way` and `home` are
_PLAIN, _LATE = 1 << 48, 1 << 32


def _settle(loaded: Loaded, pid: int, plain: bool) -> None:
    processes = loaded.maps["processes"]
    key = struct.pack("I", pid)
    value = ctypes.create_string_buffer(processes.value_size)
    syscalls.map_lookup(processes.fd, key, value)
    struct.pack_into("QI", value, _WAY, _PLAIN if plain else _LATE, 0)
    syscalls.map_update(processes.fd, key, value.raw)


@contextlib.contextmanager
def bpftrace(library: Path, caller: Caller, function: str) -> Iterator[Watch]:
    """The one-line program that everybody would try first."""
    text = f"uprobe:{library}:{function} {{ @[pid] = count(); }}"
    process = subprocess.Popen(
        ["bpftrace", "-f", "json", "-e", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it complains of what it can do without (no tracefs)
        text=True,
    )
    watch = Watch()
    try:
        caller.wait_until(probed=True)
        before = cpu_seconds(process.pid)
        yield watch
        watch.cpu = cpu_seconds(process.pid) - before
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    for line in filter(None, said.splitlines()):
        about = json.loads(line)
        if about["type"] == "map":
            watch.seen = about["data"]["@"].get(str(caller.pid), 0)


@contextlib.contextmanager
def events(library: Path, caller: Caller, function: str) -> Iterator[Watch]:
    """An event of 64 bytes for each call through a ring buffer to a reader (event_reader.py)."""
    with opened(library) as fd:
        offset = elf.probe_points(fd, {function})[function].offset
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.event_reader", str(library), str(offset)],
        cwd=ROOT,
        env={**os.environ, "BCC_KERNEL_SOURCE": str(ROOT / "probes" / "headers")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    watch = Watch()
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the event reader ended early")
        caller.wait_until(probed=True)
        before = cpu_seconds(process.pid)
        yield watch
        assert process.stdin is not None
        process.stdin.write("drained?\n")
        process.stdin.flush()
        watch.seen = int(process.stdout.readline())
        watch.cpu = cpu_seconds(process.pid) - before
    finally:
        process.communicate(timeout=30)
