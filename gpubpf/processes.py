"""Processes as the operating system knows them, from /proc. The only importer of psutil.

A process is (pid, start time). psutil is asked once per process; a process already known costs a
dictionary look-up. What a process says of itself (its name, its command line) is hostile: it may be
any bytes of any length, and is made short, printable text here.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import psutil

from gpubpf.model import Process

T = TypeVar("T")

TICKS = os.sysconf("SC_CLK_TCK")  # the unit of /proc/PID/stat's start time, per second
TICK_NS = 1_000_000_000 // TICKS
NAME_LENGTH = 15  # TASK_COMM_LEN without its terminator
COMMAND_LENGTH = 256
CAPACITY = 8192  # processes remembered; the oldest go first

# psutil parses what it reads without expecting the worst of it.
UNREADABLE = (psutil.Error, OSError, ValueError, LookupError)

_psutil_root = threading.RLock()  # psutil's /proc root is global


class _Stat(NamedTuple):
    start: int  # ticks since boot
    name: bytes
    zombie: bool


class Processes:
    """The processes under one /proc.

    `proc_root` is the node's /proc as seen from here; its pids are those of the initial namespace
    if it is the initial namespace's /proc.
    """

    def __init__(self, proc_root: str = "/proc", capacity: int = CAPACITY) -> None:
        self._root = proc_root
        self._capacity = capacity
        self._boot_time = self._read_boot_time()
        self._by_birth: dict[tuple[int, int], Process | None] = {}
        self._by_start: dict[tuple[int, int], Process] = {}

    def lookup(self, pid: int, born_ns: int) -> Process | None:
        """The process that had `pid` at `born_ns` (CLOCK_BOOTTIME, nanoseconds): the BPF side's
        identity of it, its first CUDA call.

        None where it is gone, another process has its pid now, or /proc does not show it. The
        answer is remembered: a (pid, born) that is gone does not come back. Never raises.
        """
        key = (pid, born_ns)
        try:
            return self._by_birth[key]
        except KeyError:
            pass
        process = self._find(pid, born_ns)
        _remember(self._by_birth, key, process, self._capacity)
        return process

    def current(self, pid: int) -> Process | None:
        """The process that has `pid` now, for who knows no birth. None where there is none, or only
        a zombie. Reads one file where the process is known. Never raises."""
        stat = self._stat(pid)
        return None if stat is None or stat.zombie else self._identify(pid, stat)

    def alive(self, pid: int, start_time: float) -> bool:
        """Whether the process of that start time (seconds since the epoch, as in Process) still
        lives. A zombie doesn't: it holds neither memory nor GPU. Never raises."""
        stat = self._stat(pid)
        if stat is None or stat.zombie:
            return False
        return abs(self._boot_time + stat.start / TICKS - start_time) < 0.5 / TICKS

    def forget(self, owners: Iterable[tuple[int, int]]) -> None:
        """Drops what is remembered of these (pid, born_ns)."""
        for key in owners:
            process = self._by_birth.pop(key, None)
            if process is not None:
                ticks = round((process.start_time - self._boot_time) * TICKS)
                self._by_start.pop((process.pid, ticks), None)

    def _find(self, pid: int, born_ns: int) -> Process | None:
        stat = self._stat(pid)
        if pid <= 0 or stat is None:
            return None
        # /proc rounds the start down to a tick. One more tick for clocks read apart.
        if stat.start * TICK_NS > born_ns + TICK_NS:
            return None
        return self._identify(pid, stat)

    def _identify(self, pid: int, stat: _Stat) -> Process | None:
        ticks = stat.start
        known = self._by_start.get((pid, ticks))
        if known is not None:
            return known
        user, command = self._ask_psutil(pid)
        again = self._stat(pid)
        if again is None or again.start != ticks:
            return None  # gone meanwhile: what psutil said may be of another process
        name = _printable(stat.name, NAME_LENGTH)
        process = Process(pid, self._boot_time + ticks / TICKS, name, user, command)
        _remember(self._by_start, (pid, ticks), process, self._capacity)
        return process

    def _ask_psutil(self, pid: int) -> tuple[str, str]:
        """User and command line; "" for what can't be read."""
        user = command = ""
        with self._psutil_at_root(), contextlib.suppress(*UNREADABLE):
            process = psutil.Process(pid)
            with contextlib.suppress(*UNREADABLE):
                user = _printable(process.username(), NAME_LENGTH * 4)
            with contextlib.suppress(*UNREADABLE):
                # psutil's file system encoding hides odd bytes in surrogates
                command = _printable(" ".join(process.cmdline()), COMMAND_LENGTH)
        return user, command

    @contextlib.contextmanager
    def _psutil_at_root(self) -> Iterator[None]:
        with _psutil_root:
            before = psutil.PROCFS_PATH
            psutil.PROCFS_PATH = self._root
            try:
                yield
            finally:
                psutil.PROCFS_PATH = before

    def _stat(self, pid: int) -> _Stat | None:
        """What /proc/PID/stat says; None where it is gone or not a process's.

        The name stands between the first "(" and the last ")", and may itself hold both.
        """
        try:
            descriptor = os.open(f"{self._root}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
            try:
                text = os.read(descriptor, 4096)
            finally:
                os.close(descriptor)
            end = text.rindex(b")")
            fields = text[end + 2 :].split()
            # a process whose first thread ended while others run is not a zombie, though it says so
            zombie = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
            return _Stat(int(fields[19]), text[text.index(b"(") + 1 : end], zombie)
        except (OSError, ValueError, IndexError):
            return None

    def _read_boot_time(self) -> int:
        """Seconds since the epoch; read once, so that a stepped clock renames nobody."""
        try:
            with open(f"{self._root}/stat", "rb") as file:
                for line in file:
                    if line.startswith(b"btime "):
                        return int(line.split()[1])
        except (OSError, ValueError, IndexError):
            pass
        return 0


def _printable(text: bytes | str, length: int) -> str:
    """Text without control characters and undecodable bytes, cut to `length` characters."""
    if isinstance(text, str):
        text = text[: 4 * length].encode("utf-8", "surrogateescape")
    decoded = text[: 4 * length].decode("utf-8", "replace")
    clean = "".join(c if c.isprintable() else " " for c in decoded).strip()
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def _remember(cache: dict[tuple[int, int], T], key: tuple[int, int], value: T, limit: int) -> None:
    while len(cache) >= limit:
        del cache[next(iter(cache))]
    cache[key] = value
