"""Readings and the ledger of the past become a Snapshot. Pure: no I/O, no clock.

Counters live in the kernel per process and end with it; what Prometheus sees must outlive the
process and never go back. The ledger keeps the last look at every process and adds what came since
to the totals of the GPU that the process is on at that time. The totals of all GPUs, `unknown`
included, always add up to what the kernel counted on this node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gpubpf import lanes
from gpubpf.model import (
    UNKNOWN_GPU,
    Agent,
    Attached,
    Calls,
    Device,
    DeviceProcess,
    Owner,
    Process,
    ProcessView,
    Reading,
    Snapshot,
    Source,
)

_OVERFLOW = Owner(0, 0)


@dataclass(slots=True)
class Ledger:
    """What must be remembered between two looks. `join` is the only writer."""

    functions: tuple[str, ...]
    totals: dict[str, int] = field(default_factory=lambda: {UNKNOWN_GPU: 0})
    seen: dict[Owner, int] = field(default_factory=dict)
    gpus: dict[Owner, str] = field(default_factory=dict)  # the only GPU each was last seen on
    indices: dict[str, int] = field(default_factory=dict)  # GPU UUID -> NVML index
    errors: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors_seen: dict[tuple[Owner, str, int], int] = field(default_factory=dict)
    refused: int = 0  # additions that could not be right (see lanes.Adder)

    def _add(self, adder: lanes.Adder, owner: Owner, gpu: str, vector: int) -> None:
        old = self.seen.get(owner, 0)
        if vector == old:
            return
        total = adder.add(self.totals.get(gpu, 0), vector, old)
        if total is None:
            self.refused += 1
            total = adder.saturate(self.totals.get(gpu, 0), vector, old)
        self.totals[gpu] = total

    def absorb(self, calls: Calls, listed: Mapping[int, Collection[str]]) -> None:
        """Adds what was counted since the last look, each process's to the GPU that it is on.

        `listed` are the GPUs on which NVML lists a pid. One that is listed on several, or not yet,
        counts as unknown. One that has ended is not looked up: its pid may be another's by now.
        """
        adder = lanes.Adder(len(self.functions))
        for owner, vector in calls.ended.items():
            self._add(adder, owner, self.gpus.get(owner, UNKNOWN_GPU), vector)
        gpus: dict[Owner, str] = {}
        for owner, vector in calls.live.items():
            on = listed.get(owner.pid)
            if on is None:  # not listed now: where it was before, if anywhere
                gpus[owner] = self.gpus.get(owner, UNKNOWN_GPU)
            else:
                gpus[owner] = next(iter(on)) if len(on) == 1 else UNKNOWN_GPU
            self._add(adder, owner, gpus[owner], vector)
        # Where the kernel's map of ended processes was full, what they did is in the overflow,
        # whole: what was already counted as theirs must not count again.
        gone = self.seen.keys() - calls.live.keys() - calls.ended.keys() - {_OVERFLOW}
        folded = sum(self.seen[owner] for owner in gone)
        self.seen[_OVERFLOW] = self.seen.get(_OVERFLOW, 0) + folded
        self._add(adder, _OVERFLOW, UNKNOWN_GPU, calls.overflow)
        self.seen = {**calls.live, _OVERFLOW: calls.overflow}
        self.gpus = gpus

        for key, count in calls.errors.items():
            _, function, error = key
            self.errors[function, error] += count - self.errors_seen.get(key, 0)
        self.errors_seen = {
            key: count for key, count in calls.errors.items() if key[0] not in calls.ended
        }


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything the sources said this time."""

    at: float  # CLOCK_MONOTONIC seconds
    time: float  # Unix seconds
    calls: Reading[Calls] | None  # None: the BPF side is switched off
    devices: Reading[tuple[Device, ...]] | None  # None: NVML is switched off
    processes: Mapping[Owner, Process]
    attached: tuple[Attached, ...]
    discovery: Reading[int] | None  # the search for library copies; its value is their number
    agent: Agent | None = None


def _sources(readings: Readings) -> tuple[Source, ...]:
    given = (readings.calls, readings.devices, readings.discovery)
    return tuple(
        Source(r.source, r.error is None, r.error, r.seconds) for r in given if r is not None
    )


def _gpus_by_pid(devices: tuple[Device, ...] | None) -> dict[int, dict[str, DeviceProcess]]:
    on: dict[int, dict[str, DeviceProcess]] = defaultdict(dict)
    for device in devices or ():
        for process in device.processes or ():
            on[process.pid][device.info.uuid] = process
    return on


def join(readings: Readings, ledger: Ledger) -> Snapshot:
    """The Snapshot of these readings; the ledger then includes them.

    A process is on a GPU when NVML lists it there and on no other. If a read of the maps failed
    the totals stay as they were, and the source is down.
    """
    devices = readings.devices.value if readings.devices else None
    calls = readings.calls.value if readings.calls else None
    on = _gpus_by_pid(devices)
    for device in devices or ():
        ledger.totals.setdefault(device.info.uuid, 0)
        ledger.indices[device.info.uuid] = device.info.index
    if calls is not None:
        ledger.absorb(calls, on)
    errors: dict[Owner, dict[tuple[str, int], int]] = defaultdict(dict)
    for (owner, function, code), count in (calls.errors if calls else {}).items():
        errors[owner][function, code] = count
    views = tuple(
        ProcessView(
            owner,
            readings.processes.get(owner),
            vector,
            on.get(owner.pid, {}),
            errors.get(owner, {}),
        )
        for owner, vector in (calls.live if calls else {}).items()
    )
    callers = {view.owner.pid for view in views}
    views += tuple(
        ProcessView(owner, process, 0, on[owner.pid])
        for owner, process in readings.processes.items()
        if owner.born == 0 and owner.pid in on and owner.pid not in callers
    )
    ended = tuple(
        ProcessView(owner, readings.processes.get(owner), vector, {}, errors.get(owner, {}))
        for owner, vector in (calls.ended if calls else {}).items()
    )
    return Snapshot(
        at=readings.at,
        time=readings.time,
        functions=ledger.functions,
        totals=dict(ledger.totals),
        errors=dict(ledger.errors),
        devices=devices,
        processes=views,
        indices=dict(ledger.indices),
        ended=ended,
        attached=readings.attached,
        sources=_sources(readings),
        lost={**calls.lost, "refused": ledger.refused} if calls else {},
        entries=calls.entries if calls else {},
        capacity=calls.capacity if calls else {},
        agent=readings.agent,
    )
