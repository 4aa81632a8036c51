"""Reads the BPF maps into `Calls`. Reading ended processes takes them out of the kernel."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable, Container, Mapping, Sequence

from gpubpf import lanes
from gpubpf.bpf import syscalls
from gpubpf.bpf.load import Loaded
from gpubpf.bpf.program import EXIT_PROGRAM, LOST
from gpubpf.model import Calls, Owner
from gpubpf.symbols import KINDS, Symbol

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
        self._tells_exits = EXIT_PROGRAM in loaded.programs
        self._cpus = _possible_cpus()
        self._allocations = 0

    def read(self, exists: Callable[[int], bool]) -> Calls:
        """One look at everything. `exists(pid)` is asked only where the kernel can't tell exits.

        Raises OSError when the kernel refuses, which it does not while the maps are open.
        """
        # Living processes first: one that exits meanwhile then shows up in both, never in none.
        live: dict[Owner, int] = {}
        for key, value in self._batches["processes"].read():
            (pid,) = struct.unpack("I", key)
            live[Owner(pid, _born(value))] = lanes.pack(value[8:])
        entries = len(live)
        ended: dict[Owner, int] = {}
        for key, value in self._batches["ended"].read(delete=True):
            born, pid = _OWNER.unpack(key)
            ended[Owner(pid, born)] = lanes.pack(value[8:])
        if not self._tells_exits:
            ended |= self._take_vanished(live, exists)
        for owner in ended:
            live.pop(owner, None)
        errors, failures = self._errors(ended)
        return Calls(
            live=live,
            ended=ended,
            overflow=self._overflow(),
            errors=errors,
            lost=self._lost(),
            entries={
                "processes": entries,
                "ended": len(ended),
                "failures": failures,
                "allocations": self._forget_allocations(ended),
            },
            capacity={name: m.capacity for name, m in self._maps.items() if m.capacity > 1},
        )

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
        return {name: sum(counts[i :: len(LOST)]) for i, name in enumerate(LOST)}

    def _errors(self, ended: Container[Owner]) -> tuple[dict[tuple[Owner, str, int], int], int]:
        """The failures by (process, function, error), and how many entries they take.

        Those of ended processes are final and leave the map.
        """
        errors: dict[tuple[Owner, str, int], int] = {}
        rows = self._batches["failures"].read()
        for key, value in rows:
            born, pid, function, error = _FAILURE.unpack(key)
            owner = Owner(pid, born)
            errors[owner, self._functions[function], error] = int.from_bytes(value, "little")
            if owner in ended:
                _delete(self._maps["failures"].fd, key)
        return errors, len(rows)

    def _forget_allocations(self, ended: Mapping[Owner, int]) -> int:
        """Drops the allocations that ended processes never freed; how many entries are left.

        The map is only walked when there is something to drop; the count is of that walk.
        """
        if any(self._unfreed(vector) for vector in ended.values()):
            count = 0
            for key, _ in self._batches["allocations"].read():
                _, born, pid, _ = _ADDRESS.unpack(key)
                if Owner(pid, born) in ended:
                    _delete(self._maps["allocations"].fd, key)
                else:
                    count += 1
            self._allocations = count
        return self._allocations

    def _unfreed(self, vector: int) -> bool:
        row = lanes.unpack(vector, len(self._functions))
        made = lanes.FIRST["allocations"]
        freed = lanes.FIRST["frees"]
        return sum(row[made : made + len(KINDS)]) > sum(row[freed : freed + len(KINDS) - 1])

    def _take_vanished(
        self, live: Mapping[Owner, int], exists: Callable[[int], bool]
    ) -> dict[Owner, int]:
        """Without an exit program: what belongs to pids that are no more is final."""
        gone = {}
        for owner, vector in live.items():
            if not exists(owner.pid):
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
