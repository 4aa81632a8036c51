"""For tests: probes a library file and says what was counted, without the rest of the agent."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gpubpf import lanes
from gpubpf.bpf import elf
from gpubpf.bpf.attach import attach, attach_tracepoints, detach
from gpubpf.bpf.load import Loaded, load
from gpubpf.bpf.maps import Maps
from gpubpf.bpf.program import Sizes
from gpubpf.bpf.syscalls import Batch
from gpubpf.join import Ledger
from gpubpf.model import Activity, Calls, Ordinal, Owner
from gpubpf.symbols import GROUPS, KINDS, Symbol, chosen
from tests.conftest import BUILD
from tests.fakegpu.node import Node, copy_build

REAL_LIBCUDA = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"

Find = Callable[[int, Collection[str]], Mapping[str, elf.ProbePoint]]


@dataclass
class Counted:
    """What one process, or all of them, did, by name."""

    calls: dict[str, int]
    facts: dict[str, list[int]]

    def by_kind(self, fact: str) -> dict[str, int]:
        return {kind: n for kind, n in zip(KINDS, self.facts[fact], strict=True) if n}


class Probing:
    """An attached set of programs. `read` looks once; `total` adds up all looks."""

    def __init__(self, loaded: Loaded, symbols: tuple[Symbol, ...]) -> None:
        self.symbols = symbols
        self.loaded = loaded
        self.ledger = Ledger(tuple(symbol.name for symbol in symbols))
        self.ended: dict[Owner, Activity] = {}
        self.latest: Calls | None = None
        self.maps = Maps(loaded, symbols)

    def read(self) -> Calls:
        calls = self.maps.read(lambda owner: os.path.exists(f"/proc/{owner.pid}"))
        self.ledger.absorb(calls, {}, {})
        self.ended |= calls.ended
        self.latest = calls
        return calls

    def _counted(self, vector: int) -> Counted:
        row = lanes.unpack(vector, len(self.symbols))
        first = lanes.FIRST["calls"]
        calls = {s.name: row[first + i] for i, s in enumerate(self.symbols) if row[first + i]}
        return Counted(calls, _facts(row))

    def total(self) -> Counted:
        """Everything counted on this machine since the probes were attached."""
        self.read()
        return self._counted(self.ledger.totals["unknown"] + self.ledger.calls)

    def _of(self, pid: int) -> list[Activity]:
        calls = self.read()
        return [a for owner, a in {**self.ended, **calls.live}.items() if owner.pid == pid]

    def of(self, pid: int) -> Counted:
        """What the processes that had this pid did, living or ended."""
        return self._counted(sum(activity.counters for activity in self._of(pid)))

    def devices_of(self, pid: int) -> dict[Ordinal, dict[str, list[int]]]:
        """The same by CUDA device; None: it isn't known on which."""
        vectors: dict[Ordinal, int] = {}
        for activity in self._of(pid):
            for ordinal, part in activity.parts.items():
                vectors[ordinal] = vectors.get(ordinal, 0) + part.counters
        return {
            ordinal: _facts(lanes.unpack(vector, len(self.symbols)))
            for ordinal, vector in vectors.items()
        }

    def live_of(self, pid: int) -> dict[Ordinal, tuple[int, int]]:
        """The bytes of device memory that a living process holds, and the most that it held."""
        calls = self.read()
        return {
            ordinal: (part.live, part.peak)
            for owner, activity in calls.live.items()
            if owner.pid == pid
            for ordinal, part in activity.parts.items()
        }

    def pending(self) -> int:
        """Calls that threads are inside of, as far as the kernel side remembers."""
        m = self.loaded.maps["pending"]
        return len(Batch(m.fd, m.key_size, m.value_size).read())

    def errors(self) -> dict[tuple[str, int], int]:
        return dict(self.ledger.errors)


def _facts(row: Sequence[int]) -> dict[str, list[int]]:
    return {
        name: list(row[lanes.FIRST[name] : lanes.FIRST[name] + len(variants)])
        for name, variants in lanes.FACTS
    }


@contextmanager
def probing(
    *libraries: str,
    groups: tuple[str, ...] = GROUPS,
    sizes: Sizes | None = None,
    multi: bool | None = None,
    find: Find = elf.probe_points,
    exits: bool = True,
) -> Iterator[Probing]:
    """`exits` False: as on a kernel without BTF, nothing says when a process ends."""
    loaded = load(groups, sizes, multi=multi)
    if not exits:
        loaded = replace(loaded, tells_exits=False)
    symbols = chosen(groups)
    attachments = []
    tracepoints = attach_tracepoints(loaded) if exits else []
    try:
        for path in libraries:
            fd = os.open(path, os.O_RDONLY)
            try:
                attachments.append(attach(loaded, symbols, fd, path, find))
            finally:
                os.close(fd)
        yield Probing(loaded, symbols)
    finally:
        for attachment in attachments:
            detach(attachment.links)
        detach(tracepoints)
        loaded.close()


def own_node(place: Path, devices: int = 1) -> Node:
    """A simulated node on libraries of its own: other tests may run clients of the shared ones at
    the same time."""
    copy_build(BUILD, place / "build")
    return Node(place / "build", place / "state", devices)


def at_entry(fd: int, names: Collection[str]) -> Mapping[str, elf.ProbePoint]:
    """As if no function were a known stub: every probe at the first instruction."""
    return {
        name: elf.ProbePoint(point.offset - (10 if point.at == "stub+10" else 0), "entry")
        for name, point in elf.probe_points(fd, names).items()
    }
