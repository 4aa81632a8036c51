"""What metrics are read from: a Snapshot, with what several of them need worked out once.

The functions make the readers of METRICS' rows: View -> samples. Nothing here is kept between
Snapshots. What is not known yields no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby

from gpubpf import cuda_errors, lanes
from gpubpf.model import UNKNOWN_GPU, Agent, Device, DeviceProcess, ProcessView, Snapshot
from gpubpf.symbols import SYMBOLS

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]

_SYMBOLS = {symbol.name: symbol for symbol in SYMBOLS}


class View:
    """A Snapshot with what several metrics need, worked out once. Nothing here is kept."""

    def __init__(
        self, snapshot: Snapshot, *, process_metrics: bool = False, max_processes: int = 100
    ) -> None:
        self.snapshot = snapshot
        self.functions = snapshot.functions
        self.groups = {_SYMBOLS[name].group for name in snapshot.functions}
        self._per_process = process_metrics
        self._max_processes = max_processes

    def unpack(self, vector: int) -> Sequence[int]:
        return lanes.unpack(vector, len(self.functions))

    def gpu(self, uuid: str) -> Labels:
        """The labels (gpu, uuid) of a device."""
        index = self.snapshot.indices.get(uuid)
        return (UNKNOWN_GPU, UNKNOWN_GPU) if index is None else (str(index), uuid)

    @cached_property
    def totals(self) -> list[tuple[Labels, Sequence[int]]]:
        """Counters by device, `unknown` last."""
        rows = [(self.gpu(uuid), self.unpack(v)) for uuid, v in self.snapshot.totals.items()]
        return sorted(rows, key=lambda row: (row[0][0] == UNKNOWN_GPU, row[0]))

    @cached_property
    def node(self) -> Sequence[int]:
        return [sum(column) for column in zip(*(row for _, row in self.totals), strict=True)]

    @cached_property
    def processes(self) -> list[tuple[Labels, ProcessView, Sequence[int]]]:
        """The processes that get series of their own: the longest known, up to the cap."""
        if not self._per_process:
            return []
        oldest = sorted(self.snapshot.processes, key=lambda view: (view.owner.born, view.owner.pid))
        return [
            ((str(view.owner.pid),), view, self.unpack(view.counters))
            for view in oldest[: self._max_processes]
        ]

    @property
    def processes_without_series(self) -> int:
        return max(0, len(self.snapshot.processes) - self._max_processes) * self._per_process

    def calls(self, row: Sequence[int]) -> Iterator[tuple[str, int]]:
        return zip(self.functions, row[lanes.FIRST["calls"] :], strict=True)

    @cached_property
    def by_fact(self) -> dict[str, list[int]]:
        """Fact of SYMBOLS -> the lanes of the functions that have it."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.functions):
            found.setdefault(_SYMBOLS[name].fact, []).append(lanes.FIRST["calls"] + index)
        return found

    def fact(self, row: Sequence[int], fact: str) -> int:
        return sum(row[lane] for lane in self.by_fact.get(fact, ()))


Row = tuple[Labels, Sequence[int]]


def gpus(view: View) -> Iterable[Row]:
    return view.totals


def processes(view: View) -> Iterable[Row]:
    return ((labels, row) for labels, p, row in view.processes if p.owner.born)


def sum_of(rows: Callable[[View], Iterable[Row]], fact: str) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for labels, row in rows(view):
            yield labels, view.fact(row, fact)

    return read


def launches(rows: Callable[[View], Iterable[Row]]) -> Callable[[View], Samples]:
    lane = lanes.FIRST["multi_device_launches"]

    def read(view: View) -> Samples:
        for labels, row in rows(view):
            yield labels, view.fact(row, "kernel_launch") + row[lane]

    return read


def lane(
    rows: Callable[[View], Iterable[Row]], fact: str, scale: float = 1
) -> Callable[[View], Samples]:
    lane = lanes.FIRST[fact]

    def read(view: View) -> Samples:
        for labels, row in rows(view):
            yield labels, row[lane] * scale

    return read


def variants(
    rows: Callable[[View], Iterable[Row]], fact: str, variants: Sequence[str]
) -> Callable[[View], Samples]:
    first = lanes.FIRST[fact]

    def read(view: View) -> Samples:
        for labels, row in rows(view):
            for index, variant in enumerate(variants):
                # A process has series for what it does; a device has all, so that none appears
                # in the middle of an increase().
                if row[first + index] or rows is not processes:
                    yield (*labels, variant), row[first + index]

    return read


def device(value: Callable[[Device], float | None]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for device in view.snapshot.devices or ():
            known = value(device)
            if known is not None:
                yield view.gpu(device.info.uuid), known

    return read


def device_info(view: View) -> Samples:
    for device in view.snapshot.devices or ():
        info = device.info
        labels = (info.name, info.driver_version, info.cuda_version or "", info.pci_bus_id or "")
        yield (*view.gpu(info.uuid), *labels), 1


def device_process(value: Callable[[DeviceProcess], float | None]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for labels, process, _ in view.processes:
            for uuid, on_gpu in process.gpus.items():
                known = value(on_gpu)
                if known is not None:
                    yield (*labels, *view.gpu(uuid)), known

    return read


def node_calls(view: View) -> Samples:
    return (((name,), count) for name, count in view.calls(view.node))


def node_errors(view: View) -> Samples:
    merged: dict[Labels, int] = {}
    for (function, code), count in view.snapshot.errors.items():
        labels = (function, cuda_errors.name(code))
        merged[labels] = merged.get(labels, 0) + count
    return sorted(merged.items())


def process_calls(view: View) -> Samples:
    for labels, row in processes(view):
        for name, count in view.calls(row):
            if count:
                yield (*labels, name), count


def process_info(view: View) -> Samples:
    for labels, view_, _ in view.processes:
        if view_.process is not None:
            yield (*labels, view_.process.name, view_.process.user), 1


def process_start(view: View) -> Samples:
    for labels, view_, _ in view.processes:
        if view_.process is not None:
            yield labels, view_.process.start_time


def attached(view: View) -> Samples:
    places = sorted((p.function, p.at) for p in view.snapshot.attached if p.probed)
    return ((place, len(list(same))) for place, same in groupby(places))


def by_key(value: Callable[[Snapshot], Iterable[tuple[str, float]]]) -> Callable[[View], Samples]:
    return lambda view: (((key,), number) for key, number in value(view.snapshot))


def without_series(view: View) -> Samples:
    return (((), view.processes_without_series),)


def agent(value: Callable[[Agent], float | None]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        known = value(view.snapshot.agent) if view.snapshot.agent else None
        return () if known is None else (((), known),)

    return read
