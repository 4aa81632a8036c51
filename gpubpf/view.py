"""What metrics are read from: a Snapshot, with what several of them need worked out once.

The functions make the readers of METRICS' rows: View -> samples. Nothing here is kept between
Snapshots. What is not known yields no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple

from prometheus_client.utils import floatToGoString

from gpubpf import cuda_errors, lanes
from gpubpf.model import (
    UNKNOWN_GPU,
    Agent,
    Footprint,
    JobAccount,
    Labels,
    Part,
    ProcessView,
    Snapshot,
    Usage,
)
from gpubpf.symbols import KINDS, SYMBOLS

NOTHING_USED = Usage(0, 0.0, 0.0, 0.0, 0.0, None)
Samples = Iterable[tuple[Labels, float]]


class Histogram(NamedTuple):
    """A sample of a histogram."""

    buckets: tuple[tuple[str, int], ...]  # upper bound -> cumulative count; the last is "+Inf"
    sum: float


_SYMBOLS = {symbol.name: symbol for symbol in SYMBOLS}


class View:
    """A Snapshot with what several metrics need, worked out once. Nothing here is kept."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        process_metrics: bool = False,
        max_processes: int = 100,
        compat: Sequence[str] = (),
        hostname: str = "",
    ) -> None:
        self.snapshot = snapshot
        self.compat = compat  # whose names besides ours (gpubpf.compat.FLAVOURS)
        self.hostname = hostname
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
        """Facts by device, `unknown` last."""
        rows = [(self.gpu(uuid), self.unpack(v)) for uuid, v in self.snapshot.totals.items()]
        return sorted(rows, key=lambda row: (row[0][0] == UNKNOWN_GPU, row[0]))

    @cached_property
    def processes(self) -> list[ProcessView]:
        """The processes that get series of their own: the longest known, up to the cap."""
        if not self._per_process:
            return []
        oldest = sorted(self.snapshot.processes, key=lambda view: (view.owner.born, view.owner.pid))
        return oldest[: self._max_processes]

    @cached_property
    def parts(self) -> list[tuple[Labels, Sequence[int], Part]]:
        """What these did on each GPU: labels (pid, gpu, uuid), facts, gauges."""
        return [
            ((str(process.owner.pid), *self.gpu(uuid)), self.unpack(part.counters), part)
            for process in self.processes
            for uuid, part in process.on.items()
        ]

    @property
    def accounts(self) -> tuple[JobAccount, ...]:
        """Of the jobs; none where they are off."""
        return self.snapshot.jobs.accounts if self.snapshot.jobs else ()

    @property
    def of_jobs(self) -> tuple[ProcessView, ...]:
        """The processes, where each has a job_id."""
        return self.snapshot.processes if self.snapshot.jobs else ()

    @cached_property
    def job_parts(self) -> list[tuple[Labels, Sequence[int], Usage]]:
        """What each job did on each GPU: labels (job_id, gpu, uuid), facts, the rest. What is no
        job's own is there for every GPU from the start, at 0."""
        parts = []
        for account in self.accounts:
            on = dict(account.on)
            if account.job is None:
                on = {**dict.fromkeys(self.snapshot.totals, NOTHING_USED), **on}
            parts += [
                ((account.job_id, *self.gpu(uuid)), self.unpack(used.facts), used)
                for uuid, used in on.items()
            ]
        return parts

    @cached_property
    def created(self) -> dict[str, float]:
        """When the counters of each job_id were 0, Unix seconds."""
        return {account.job_id: account.created for account in self.accounts}

    @cached_property
    def living(self) -> list[tuple[str, Sequence[int]]]:
        """What living processes did on each GPU, by its UUID."""
        return [
            (uuid, self.unpack(part.counters))
            for process in self.snapshot.processes
            for uuid, part in process.on.items()
        ]

    @property
    def processes_without_series(self) -> int:
        return max(0, len(self.snapshot.processes) - self._max_processes) * self._per_process

    def calls(self, vector: int) -> Iterator[tuple[str, int]]:
        row = self.unpack(vector)
        return zip(self.functions, row[lanes.FIRST["calls"] :], strict=True)


Row = tuple[Labels, Sequence[int]]
Held = Callable[..., Callable[[View], Samples]]
"""Of what was made and what took it away, names of facts: what is left."""
Rows = Callable[[View], Iterable[Row]]


def gpus(view: View) -> Iterable[Row]:
    return view.totals


def processes(view: View) -> Iterable[Row]:
    """By process and GPU."""
    return ((labels, row) for labels, row, _ in view.parts)


def jobs(view: View) -> Iterable[Row]:
    """By job and GPU."""
    return ((labels, row) for labels, row, _ in view.job_parts)


def lane(rows: Rows, fact: str, scale: float = 1) -> Callable[[View], Samples]:
    lane = lanes.FIRST[fact]

    def read(view: View) -> Samples:
        for labels, row in rows(view):
            yield labels, row[lane] * scale

    return read


def variants(rows: Rows, fact: str, variants: Sequence[str]) -> Callable[[View], Samples]:
    first = lanes.FIRST[fact]

    def read(view: View) -> Samples:
        for labels, row in rows(view):
            for index, variant in enumerate(variants):
                # A process or a job has series for what it does; a device has all, so that none
                # appears in the middle of an increase().
                if row[first + index] or rows is gpus:
                    yield (*labels, variant), row[first + index]

    return read


def _left(row: Sequence[int], made: str, gone: Sequence[str]) -> list[int]:
    """By kind of memory, what was made and isn't gone. Of a process alone: one that frees more than
    it made must not hide what others hold."""
    return [
        max(0, row[lanes.FIRST[made] + i] - sum(row[lanes.FIRST[name] + i] for name in gone))
        for i in range(len(KINDS) - 1)
    ]


def held_by_process(made: str, *gone: str) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for labels, row, _ in view.parts:
            for i, value in enumerate(_left(row, made, gone)):
                if row[lanes.FIRST[made] + i]:  # it once had some: 0 is 0, not absent
                    yield (*labels, KINDS[i]), value

    return read


def held_by_job(made: str, *gone: str) -> Callable[[View], Samples]:
    first = lanes.FIRST[made]

    def read(view: View) -> Samples:
        sums: dict[Labels, int] = {}
        for process in view.of_jobs:
            for uuid, part in process.on.items():
                row = view.unpack(part.counters)
                labels = (process.job_id or "", *view.gpu(uuid))
                for i, value in enumerate(_left(row, made, gone)):
                    if row[first + i]:  # it once had some: 0 is 0, not absent
                        key = (*labels, KINDS[i])
                        sums[key] = min(sums.get(key, 0) + value, 2**63 - 1)
        return sums.items()

    return read


def held(made: str, *gone: str) -> Callable[[View], Samples]:
    """What living processes hold, by GPU."""

    def read(view: View) -> Samples:
        sums = {uuid: [0] * (len(KINDS) - 1) for uuid in view.snapshot.totals}
        for uuid, row in view.living:
            before = sums.get(uuid, [0] * (len(KINDS) - 1))
            more = _left(row, made, gone)
            sums[uuid] = [min(a + b, 2**63 - 1) for a, b in zip(before, more, strict=True)]
        for labels, values in sorted((view.gpu(uuid), values) for uuid, values in sums.items()):
            for kind, value in zip(KINDS, values, strict=False):
                yield (*labels, kind), value

    return read


def sizes(rows: Rows) -> Callable[[View], Iterable[tuple[Labels, Histogram]]]:
    """Allocation sizes, of all but host memory."""
    bounds = (*(floatToGoString(bound) for bound in lanes.SIZE_BOUNDS), "+Inf")  # type: ignore[no-untyped-call]
    first, bytes_ = lanes.FIRST["allocation_sizes"], lanes.FIRST["allocated_bytes"]
    counted = [bytes_ + i for i, kind in enumerate(KINDS[:-1]) if kind != "host"]

    def read(view: View) -> Iterable[tuple[Labels, Histogram]]:
        for labels, row in rows(view):
            buckets = accumulate(row[first : first + len(bounds)])
            total = sum(row[lane] for lane in counted)
            yield labels, Histogram(tuple(zip(bounds, buckets, strict=True)), total)

    return read


def peaks(view: View) -> Samples:
    return ((labels, part.peak) for labels, _, part in view.parts if part.peak)


def fragmentation(view: View) -> Samples:
    for uuid, footprint in view.snapshot.footprints.items():
        if footprint.granules:
            # Live allocations overlap where a free was missed, or a process claims them to.
            yield view.gpu(uuid), max(0.0, 1 - footprint.live / footprint.granules)


def unattributed(view: View) -> Samples:
    for device in view.snapshot.devices or ():
        footprint = view.snapshot.footprints.get(device.info.uuid, Footprint(0, 0))
        used = device.get("memory_used_bytes")
        if used is not None:
            yield view.gpu(device.info.uuid), used - footprint.granules


def node_calls(view: View) -> Samples:
    return (((name,), count) for name, count in view.calls(view.snapshot.calls))


def node_errors(view: View) -> Samples:
    merged: dict[Labels, int] = {}
    for (function, code), count in view.snapshot.errors.items():
        labels = (function, cuda_errors.name(code))
        merged[labels] = merged.get(labels, 0) + count
    return sorted(merged.items())


def process_calls(view: View) -> Samples:
    for process in view.processes:
        if process.owner.born:
            for name, count in view.calls(process.counters):
                if count:
                    yield (str(process.owner.pid), name), count


def process_info(view: View) -> Samples:
    for view_ in view.processes:
        if view_.process is not None:
            yield (str(view_.owner.pid), view_.process.name, view_.process.user), 1


def process_start(view: View) -> Samples:
    for view_ in view.processes:
        if view_.process is not None:
            yield (str(view_.owner.pid),), view_.process.start_time


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
