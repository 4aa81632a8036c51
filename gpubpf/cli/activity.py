"""What happened between Snapshots: per process and for the node. Pure, for `gpubpf top`.

A Span starts at one Snapshot; every further one is added. Counters are differences: of a process
that was there at the start, what it did since; of one that came later, all that it did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from gpubpf import lanes
from gpubpf.model import UNKNOWN_GPU, Device, Owner, Process, ProcessView, Snapshot, Source
from gpubpf.symbols import SYMBOLS

K = TypeVar("K")

_SYMBOLS = {symbol.name: symbol for symbol in SYMBOLS}


@dataclass(frozen=True, slots=True)
class Fact:
    """A number that a process's lanes add up to. Its key says its unit, else it is a count."""

    key: str
    group: str  # the probe group without which it is not known
    help: str
    lanes: tuple[str, ...] = ()  # facts of `gpubpf.lanes`, all of their variants
    prefix: str = ""  # or: the calls of the functions of the group that begin so
    per: int = 1  # of the lanes' unit in one of ours


FACTS = (
    Fact(
        "kernels",
        "launch",
        "kernels run, directly or by graphs",
        ("kernel_launches", "graph_kernels"),
    ),
    Fact("kernel_launches", "launch", "kernels launched directly", ("kernel_launches",)),
    Fact("captured_launches", "launch", "launches that became graph nodes", ("captured_launches",)),
    Fact("graph_launches", "launch", "CUDA graphs launched", ("graph_launches",)),
    Fact("graph_kernels", "launch", "kernels that those ran", ("graph_kernels",)),
    Fact(
        "graph_launches_of_unknown_size",
        "launch",
        "graph launches whose kernels are not known",
        ("unknown_graph_launches",),
    ),
    Fact("host_functions", "launch", "host functions enqueued", ("host_functions",)),
    Fact("allocations", "memory", "successful allocations", ("allocations",)),
    Fact("allocated_bytes", "memory", "bytes that those asked for", ("allocated_bytes",)),
    Fact("frees", "memory", "successful frees", ("frees",)),
    Fact("freed_bytes", "memory", "bytes of the allocations freed", ("freed_bytes",)),
    Fact("copies", "copy", "copy calls", prefix="cuMemcpy"),
    Fact("copied_bytes", "copy", "bytes of those that succeeded", ("copied_bytes",)),
    Fact("set_bytes", "copy", "bytes of memory sets that succeeded", ("set_bytes",)),
    Fact("waits", "wait", "synchronizing calls", ("waits",)),
    Fact("wait_seconds", "wait", "host time blocked in those", ("wait_nanoseconds",), per=10**9),
)

Counts = Mapping[str, int | float | None]
"""Fact key -> its value in the span; None where it is not known."""

NOT_KNOWN: Counts = dict.fromkeys((fact.key for fact in FACTS), None)


@dataclass(frozen=True, slots=True)
class OnGpu:
    """A process on one GPU, as NVML saw it during the span."""

    index: int
    uuid: str
    sm: float | None  # mean of the looks that knew it; a ratio
    memory_used: int | None  # bytes, when last seen


@dataclass(frozen=True, slots=True)
class Row:
    """One process. `pid` is None for all those together that didn't fit into the kernel's map."""

    pid: int | None
    process: Process | None
    ended: bool
    counts: Counts
    calls: Mapping[str, int]  # function -> calls, where there were any
    gpus: tuple[OnGpu, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened in a span."""

    time: float  # Unix seconds of its start
    seconds: float
    functions: tuple[str, ...]
    rows: tuple[Row, ...]  # the busiest first
    node: Row
    errors: Mapping[tuple[str, int], int]  # (function, CUresult) -> failed calls
    lost: Mapping[str, int]  # map or reason -> what could not be kept
    devices: tuple[Device, ...] | None
    sources: tuple[Source, ...]
    libraries: int  # libcuda files probed


@dataclass(slots=True)
class _Seen:
    """What is remembered of a process during a span."""

    start: int
    now: int
    process: Process | None = None
    ended: bool = False
    sm: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)

    def look(self, view: ProcessView) -> None:
        self.now = max(self.now, view.counters)
        self.process = view.process or self.process
        for uuid in view.on.keys() - view.gpus.keys() - {UNKNOWN_GPU}:  # not listed there by NVML
            self.memory.setdefault(uuid, None)
            self.sm.setdefault(uuid, [])
        for uuid, on in view.gpus.items():
            self.memory[uuid] = on.memory_used
            samples = self.sm.setdefault(uuid, [])
            if on.share is not None:
                samples.append(on.share.sm)


class Span:
    """Collects Snapshots. The first is the start; `activity()` needs at least one more."""

    def __init__(self, first: Snapshot) -> None:
        self._first = self._last = first
        self._seen: dict[Owner, _Seen] = {}
        self._indices = dict(first.indices)
        for view in first.processes:
            self._seen[view.owner] = _Seen(view.counters, view.counters)
            self._seen[view.owner].look(view)

    def add(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        self._indices.update(snapshot.indices)
        for view in snapshot.processes:
            self._seen.setdefault(view.owner, _Seen(0, 0)).look(view)
        for view in snapshot.ended:
            seen = self._seen.setdefault(view.owner, _Seen(0, 0))
            seen.look(view)
            seen.ended = True
        self._merge_listed()

    def _merge_listed(self) -> None:
        """One that NVML listed before its first call (born 0) is the caller of the same pid now;
        one that is listed no more without ever having called has ended."""
        callers = {owner.pid: seen for owner, seen in self._seen.items() if owner.born}
        present = {view.owner for view in self._last.processes}
        for owner in [owner for owner in self._seen if not owner.born]:
            caller = callers.get(owner.pid)
            if caller is not None:
                listed = self._seen.pop(owner)
                caller.sm = {**listed.sm, **caller.sm}
                caller.memory = {**listed.memory, **caller.memory}
            elif owner not in present and self._last.devices is not None:
                self._seen[owner].ended = True

    def activity(self) -> Activity:
        first, last = self._first, self._last
        functions = last.functions
        counting = any(source.name == "bpf" and source.up for source in last.sources)
        rows = []
        rest = node = self._node_lanes()
        for owner, seen in self._seen.items():
            row = lanes.unpack(seen.now - seen.start, len(functions))
            rest = [left - taken for left, taken in zip(rest, row, strict=True)]
            counts = _counts(functions, row) if counting or owner.born else NOT_KNOWN
            calls = dict(_calls(functions, row))
            gpus = tuple(self._gpus(seen))
            rows.append(Row(owner.pid, seen.process, seen.ended, counts, calls, gpus))
        # What is left may also be memory that went with its process: no fact, and nobody's doing.
        counts, calls = _counts(functions, rest), dict(_calls(functions, rest))
        if min(rest) >= 0 and (calls or any(counts.values())):
            rows.append(Row(None, None, False, counts, calls, ()))
        errors = _difference(last.errors, first.errors)
        return Activity(
            time=first.time,
            seconds=last.at - first.at,
            functions=functions,
            rows=tuple(sorted(rows, key=_busiest)),
            node=Row(
                None,
                None,
                False,
                _counts(functions, node) if counting else NOT_KNOWN,
                dict(_calls(functions, node)),
                (),
            ),
            errors=errors,
            lost=_difference(last.lost, first.lost),
            devices=last.devices,
            sources=last.sources,
            libraries=len({probe.library for probe in last.attached}),
        )

    def _node_lanes(self) -> list[int]:
        functions = len(self._last.functions)
        total = list(lanes.unpack(self._last.calls - self._first.calls, functions))
        for gpu, vector in self._last.totals.items():
            row = lanes.unpack(vector - self._first.totals.get(gpu, 0), functions)
            total = [a + b for a, b in zip(total, row, strict=True)]
        return total

    def _gpus(self, seen: _Seen) -> Iterator[OnGpu]:
        for uuid in sorted(seen.memory, key=lambda uuid: self._indices.get(uuid, -1)):
            samples = seen.sm[uuid]
            sm = sum(samples) / len(samples) if samples else None
            yield OnGpu(self._indices.get(uuid, -1), uuid, sm, seen.memory[uuid])


def _difference(new: Mapping[K, int], old: Mapping[K, int]) -> dict[K, int]:
    return {key: n - old.get(key, 0) for key, n in new.items() if n > old.get(key, 0)}


def _calls(functions: Sequence[str], row: Sequence[int]) -> Iterator[tuple[str, int]]:
    for name, count in zip(functions, row[lanes.FIRST["calls"] :], strict=True):
        if count:
            yield name, count


def _counts(functions: Sequence[str], row: Sequence[int]) -> Counts:
    groups = {_SYMBOLS[name].group for name in functions}
    return {
        fact.key: _value(fact, functions, row) if fact.group in groups else None for fact in FACTS
    }


def _value(fact: Fact, functions: Sequence[str], row: Sequence[int]) -> int | float:
    variants = dict(lanes.FACTS)
    total = 0
    for name in fact.lanes:
        at = lanes.FIRST[name]
        total += sum(row[at : at + len(variants[name])])
    for name, count in _calls(functions, row):
        symbol = _SYMBOLS[name]
        if fact.prefix and symbol.group == fact.group and name.startswith(fact.prefix):
            total += count
    return total if fact.per == 1 else total / fact.per


def _busiest(row: Row) -> tuple[float, int, int]:
    launches = (row.counts["kernels"] or 0) + (row.counts["graph_launches"] or 0)
    memory = sum(gpu.memory_used or 0 for gpu in row.gpus)
    return -launches, -memory, row.pid or 0
