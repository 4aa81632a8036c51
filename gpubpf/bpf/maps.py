"""Reads the BPF maps into `Calls`. Reading ended processes takes them out of the kernel."""

from __future__ import annotations

import ctypes
import errno
import struct
import time
from collections.abc import Callable, Mapping, Sequence

from gpubpf import lanes
from gpubpf.bpf import syscalls
from gpubpf.bpf.load import Loaded
from gpubpf.bpf.program import FOLDED, LOST
from gpubpf.model import Calls, Owner
from gpubpf.symbols import Symbol

_MOST_TRIES = 8

_OWNER = struct.Struct("QQ")  # struct owner: born, pid
_FAILURE = struct.Struct("QIHH")  # struct failure: born, pid, function, error
_ADDRESS = struct.Struct("QQII")  # struct address: value, born, pid, space


class Maps:
    """`read()` is called by one thread."""

    def __init__(self, loaded: Loaded, symbols: Sequence[Symbol]) -> None:
        self._maps = loaded.maps
        self._functions = tuple(symbol.name for symbol in symbols)
        self._batches = {
            name: syscalls.Batch(m.fd, m.key_size, m.value_size)
            for name, m in loaded.maps.items()
            if name in ("processes", "ended", "allocations", "failures")
        }
        self._tells_exits = loaded.tells_exits
        self._cpus = _possible_cpus()
        self._allocations = 0  # entries, when they were last walked
        self._ended: dict[Owner, int] = {}  # taken out of the kernel and not yet handed on
        self._folded = 0  # of lost["ended"], those known of

    def read(self, lives: Callable[[Owner], bool]) -> Calls:
        """One look at everything. `lives(owner)` is asked only where the kernel can't tell exits.

        Raises OSError when the kernel refuses, which it does not while the maps are open.
        """
        start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        live, overflow, lost = self._processes()
        entries = len(live)
        if not self._tells_exits:
            self._ended |= self._take_vanished(live, lives)
        for owner in self._ended:
            live.pop(owner, None)

        def dead(owner: Owner) -> bool:
            """Born before this look and not living: nothing more comes from it."""
            return owner not in live and 0 < owner.born < start

        errors, failures = self._errors(dead)
        ended = len(self._ended)
        if ended or lost["ended"] != self._folded:
            self._allocations = self._forget_allocations(dead)
        calls = Calls(
            live=live,
            ended=self._ended,
            overflow=overflow,
            errors=errors,
            lost={name: lost[name] for name in LOST},
            entries={
                "processes": entries,
                "ended": ended,
                "failures": failures,
                "allocations": self._allocations,
            },
            capacity={name: m.capacity for name, m in self._maps.items() if m.capacity > 1},
        )
        self._ended, self._folded = {}, lost["ended"]  # last: a failed read loses none
        return calls

    def _processes(self) -> tuple[dict[Owner, int], int, dict[str, int]]:
        """The living processes, the overflow and what was lost; the ended ones are collected.

        A process that ends while this looks moves from `processes` to `ended`, which is therefore
        read second: it may show up in both, never in none. Where `ended` is full it moves to the
        overflow, and what it did can't be told from the rest: then it is all read again.
        """
        for _ in range(_MOST_TRIES):
            done = self._lost()[FOLDED]
            live: dict[Owner, int] = {}
            for key, value in self._batches["processes"].read():
                (pid,) = struct.unpack("I", key)
                live[Owner(pid, _born(value))] = lanes.pack(value[8:])
            for key, value in self._batches["ended"].read(delete=True):
                born, pid = _OWNER.unpack(key)
                self._ended[Owner(pid, born)] = lanes.pack(value[8:])
            overflow = self._overflow()
            lost = self._lost()
            if lost["ended"] == done:  # none was begun that was not done before
                break
        return live, overflow, lost

    def _overflow(self) -> int:
        m = self._maps["overflow"]
        value = ctypes.create_string_buffer(m.value_size)
        syscalls.map_lookup(m.fd, b"\0\0\0\0", value)
        return lanes.pack(value.raw[8:])

    def _lost(self) -> dict[str, int]:
        m = self._maps["lost"]
        value = ctypes.create_string_buffer(m.value_size * self._cpus)
        syscalls.map_lookup(m.fd, b"\0\0\0\0", value)
        counts = memoryview(value).cast("B").cast("Q")
        names = (*LOST, FOLDED)
        return {name: sum(counts[i :: len(names)]) for i, name in enumerate(names)}

    def _errors(
        self, dead: Callable[[Owner], bool]
    ) -> tuple[dict[tuple[Owner, str, int], int], int]:
        """The failures by (process, function, error), and how many entries they take.

        Those of dead processes are final and leave the map.
        """
        errors: dict[tuple[Owner, str, int], int] = {}
        rows = self._batches["failures"].read()
        for key, value in rows:
            born, pid, function, error = _FAILURE.unpack(key)
            owner = Owner(pid, born)
            errors[owner, self._functions[function], error] = int.from_bytes(value, "little")
            if dead(owner):
                _delete(self._maps["failures"].fd, key)
        return errors, len(rows)

    def _forget_allocations(self, dead: Callable[[Owner], bool]) -> int:
        """Drops the allocations that dead processes never freed; how many entries are left."""
        count = 0
        for key, _ in self._batches["allocations"].read():
            _, born, pid, _ = _ADDRESS.unpack(key)
            if dead(Owner(pid, born)):
                _delete(self._maps["allocations"].fd, key)
            else:
                count += 1
        return count

    def _take_vanished(
        self, live: Mapping[Owner, int], lives: Callable[[Owner], bool]
    ) -> dict[Owner, int]:
        """Without an exit program: what belongs to processes that are no more is final."""
        gone = {}
        for owner, vector in live.items():
            if not lives(owner):
                gone[owner] = vector
                _delete(self._maps["processes"].fd, struct.pack("I", owner.pid))
        return gone


def _born(value: bytes) -> int:
    return int.from_bytes(value[:8], "little")


def _delete(fd: int, key: bytes) -> None:
    try:
        syscalls.map_delete(fd, key)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _possible_cpus() -> int:
    """A per-CPU value has a slot for every CPU that could ever be there."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        last = file.read().strip().replace(",", "-").split("-")[-1]
    return int(last) + 1
