"""Readings and the ledger of the past become a Snapshot. Pure: no I/O, no clock.

Counters live in the kernel per process and end with it; what Prometheus sees must outlive the
process and never go back. The ledger keeps the last look at every process's part on every device,
and adds what came since to the totals of the GPU that the device is known to be at that time. The
totals of all GPUs, `unknown` included, always add up to what the kernel counted on this node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpubpf import lanes
from gpubpf.accounts import Accounts
from gpubpf.energy import Energy
from gpubpf.model import (
    UNKNOWN_GPU,
    Activity,
    Agent,
    Attached,
    Calls,
    Device,
    DeviceProcess,
    Footprint,
    Given,
    Job,
    JobKey,
    Jobs,
    NodeFacts,
    Owner,
    Part,
    Place,
    Plane,
    Process,
    ProcessView,
    Reading,
    Snapshot,
    Source,
)

if TYPE_CHECKING:
    from gpubpf.state import Saved

_MOST_ERRORS = 1000  # (function, error) that are told apart
_OTHER_ERROR = 0xFFFF  # as in probes/count.h
NOTHING = Activity(0, {})
_OVERFLOW: Place = (Owner(0, 0), None)


@dataclass(slots=True)
class Ledger:
    """What must be remembered between two looks. `join` is the only writer."""

    functions: tuple[str, ...]
    totals: dict[str, int] = field(default_factory=lambda: {UNKNOWN_GPU: 0})
    calls: int = 0
    seen: dict[Place, int] = field(default_factory=dict)
    seen_calls: dict[Owner, int] = field(default_factory=dict)
    indices: dict[str, int] = field(default_factory=dict)  # GPU UUID -> NVML index
    errors: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors_seen: dict[tuple[Owner, str, int], int] = field(default_factory=dict)
    footprints: dict[str, Footprint] = field(default_factory=dict)
    accounts: Accounts | None = None  # of the jobs, if they are on
    energy: Energy = field(default_factory=Energy)
    refused: int = 0  # additions that could not be right (see lanes.Adder)

    def restore(self, saved: Saved, at: float, time: float) -> int:
        """Goes on from what an agent before this one saved; before the first `join`. Returns how
        many jobs go on."""
        self.totals |= saved.totals
        self.indices |= saved.indices
        self.errors.update(saved.errors)
        self.energy.restore(saved.unattributed, saved.joules)
        return self.accounts.restore(saved.accounts, at, time) if self.accounts else 0

    def _sum(self, adder: lanes.Adder, total: int, new: int, old: int) -> int:
        result = adder.add(total, new, old)
        if result is None:
            self.refused += 1
            result = adder.saturate(total, new, old)
        return result

    def _add(
        self, adder: lanes.Adder, gpu: str, new: int, old: int, job: JobKey | None = None
    ) -> None:
        if new != old:
            self.totals[gpu] = self._sum(adder, self.totals.get(gpu, 0), new, old)
            if self.accounts is not None:
                self.accounts.charge(job, gpu, new, old)

    def absorb(self, calls: Calls, gpus: Mapping[Place, str], jobs: Mapping[Owner, JobKey]) -> None:
        """Adds what was counted since the last look, each part to the GPU that `gpus` names, and
        to its process's job.

        What a process that ended never freed is freed with it.
        """
        adder = lanes.Adder(len(self.functions))
        seen: dict[Place, int] = {}
        for owners, over in ((calls.ended, True), (calls.live, False)):
            for owner, activity in owners.items():
                for ordinal, part in activity.parts.items():
                    place = (owner, ordinal)
                    gpu = gpus.get(place, UNKNOWN_GPU)
                    job = jobs.get(owner)
                    self._add(adder, gpu, part.counters, self.seen.get(place, 0), job)
                    seen[place] = part.counters
                    if over:
                        self._add(adder, gpu, lanes.held(part.counters), 0, job)
                self._add_calls(adder, activity.calls, self.seen_calls.get(owner, 0))
        # Where the kernel's map of ended processes was full, what they did is in the overflow,
        # whole: what was already counted as theirs must not count again.
        folded = sum(self.seen[place] for place in self.seen.keys() - seen.keys() - {_OVERFLOW})
        known = {*calls.live, *calls.ended, _OVERFLOW[0]}
        folded_calls = sum(self.seen_calls[owner] for owner in self.seen_calls.keys() - known)
        facts, counted = lanes.split(calls.overflow)
        self._add(adder, UNKNOWN_GPU, facts, self.seen.get(_OVERFLOW, 0) + folded)
        self._add_calls(adder, counted, self.seen_calls.get(_OVERFLOW[0], 0) + folded_calls)
        live = {place: vector for place, vector in seen.items() if place[0] in calls.live}
        self.seen = {**live, _OVERFLOW: facts}
        self.seen_calls = {owner: activity.calls for owner, activity in calls.live.items()}
        self.seen_calls[_OVERFLOW[0]] = counted

        for key, count in calls.errors.items():
            owner, function, error = key
            more = count - self.errors_seen.get(key, 0)
            if self.accounts is not None and more:
                self.accounts.charge_error(jobs.get(owner), error, more)
            if (function, error) not in self.errors and len(self.errors) >= _MOST_ERRORS:
                error = _OTHER_ERROR  # a library may make up as many as it likes
            self.errors[function, error] += more
        self.errors_seen = {
            key: count for key, count in calls.errors.items() if key[0] not in calls.ended
        }

    def _add_calls(self, adder: lanes.Adder, new: int, old: int) -> None:
        if new != old:
            self.calls = self._sum(adder, self.calls, new, old)


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything the sources said this time."""

    at: float  # CLOCK_MONOTONIC seconds
    time: float  # Unix seconds
    calls: Reading[Calls] | None  # None: the BPF side is switched off
    plane: Reading[Plane] | None  # None: NVML is switched off
    processes: Mapping[Owner, Process]
    gpus: Mapping[Place, str]  # GPU UUID or UNKNOWN_GPU of each device of each process
    attached: tuple[Attached, ...]
    discovery: Reading[int] | None  # the search for library copies; its value is their number
    node: Reading[NodeFacts] | None = None
    footprints: Mapping[Place, Footprint] | None = None  # None: they weren't looked at this time
    attributions: Mapping[str, int] = field(default_factory=dict)
    agent: Agent | None = None
    jobs: Reading[dict[Owner, Job]] | None = None  # of each process that is of one; None: off
    unseen: int = 0  # processes whose job couldn't be looked at, since the start
    kept: tuple[Reading[None], ...] = ()  # how the rest that is there only with jobs is doing
    given: Mapping[str, Given] = field(default_factory=dict)  # GPUs and MIG devices, by kubelet


def _sources(readings: Readings) -> tuple[Source, ...]:
    given = (
        readings.calls,
        readings.plane,
        readings.discovery,
        readings.node,
        readings.jobs,
        *readings.kept,
    )
    return tuple(
        Source(r.source, r.error is None, r.error, r.seconds, r.reason)
        for r in given
        if r is not None
    )


def _gpus_by_pid(devices: tuple[Device, ...] | None) -> dict[int, dict[str, DeviceProcess]]:
    on: dict[int, dict[str, DeviceProcess]] = defaultdict(dict)
    for device in devices or ():
        for process in device.processes or ():
            on[process.pid][process.mig or device.info.uuid] = process
    return on


def _on(activity: Activity, owner: Owner, gpus: Mapping[Place, str]) -> dict[str, Part]:
    """A process's parts by GPU; several of its devices may be unknown."""
    on: dict[str, Part] = {}
    for ordinal, part in activity.parts.items():
        gpu = gpus.get((owner, ordinal), UNKNOWN_GPU)
        there = on.get(gpu)
        on[gpu] = part if there is None else Part(*map(sum, zip(there, part, strict=True)))
    return on


def _footprints(
    found: Mapping[Place, Footprint], gpus: Mapping[Place, str]
) -> dict[str, Footprint]:
    by_gpu: dict[str, Footprint] = {gpu: Footprint(0, 0) for gpu in gpus.values()}
    for place, print_ in found.items():
        before = by_gpu.get(gpus.get(place, UNKNOWN_GPU), Footprint(0, 0))
        by_gpu[gpus.get(place, UNKNOWN_GPU)] = Footprint(
            *map(sum, zip(before, print_, strict=True))
        )
    return by_gpu


def join(readings: Readings, ledger: Ledger) -> Snapshot:
    """The Snapshot of these readings; the ledger then includes them.

    If a read of the maps failed the totals stay as they were, and the source is down.
    """
    plane = readings.plane.value if readings.plane else None
    devices = plane.devices if plane else None
    calls = readings.calls.value if readings.calls else None
    listed = _gpus_by_pid(devices)
    for device in devices or ():
        ledger.totals.setdefault(device.info.uuid, 0)
        for uuid in (device.info.uuid, *device.info.children):
            ledger.indices[uuid] = device.info.index
    named = readings.jobs.value or {} if readings.jobs else {}
    jobs = {owner: job.key for owner, job in named.items()}
    if ledger.accounts is not None:
        ledger.accounts.look(readings.at, readings.time, named.values())
    if calls is not None:
        ledger.absorb(calls, readings.gpus, jobs)
    if readings.footprints is not None:
        ledger.footprints = _footprints(readings.footprints, readings.gpus)
    errors: dict[Owner, dict[tuple[str, int], int]] = defaultdict(dict)
    for (owner, function, code), count in (calls.errors if calls else {}).items():
        errors[owner][function, code] = count

    def view(owner: Owner, activity: Activity, listed_on: dict[str, DeviceProcess]) -> ProcessView:
        return ProcessView(
            owner,
            readings.processes.get(owner),
            activity.counters,
            _on(activity, owner, readings.gpus),
            listed_on,
            errors.get(owner, {}),
            ledger.accounts.job_id(jobs.get(owner)) if ledger.accounts else None,
        )

    views = tuple(
        view(owner, activity, listed.get(owner.pid, {}))
        for owner, activity in (calls.live if calls else {}).items()
    )
    callers = {view.owner.pid for view in views}
    views += tuple(
        view(owner, NOTHING, listed[owner.pid])
        for owner in readings.processes
        if owner.born == 0 and owner.pid in listed and owner.pid not in callers
    )
    ended = tuple(
        view(owner, activity, {}) for owner, activity in (calls.ended if calls else {}).items()
    )
    if ledger.accounts is not None:
        _charge(ledger.accounts, ledger.energy, readings, views, jobs)
    return Snapshot(
        at=readings.at,
        time=readings.time,
        functions=ledger.functions,
        totals=dict(ledger.totals),
        calls=ledger.calls,
        errors=dict(ledger.errors),
        plane=plane,
        node=readings.node.value if readings.node else None,
        processes=views,
        indices=dict(ledger.indices),
        ended=ended,
        attached=readings.attached,
        sources=_sources(readings),
        footprints=dict(ledger.footprints),
        attributions=readings.attributions,
        lost={**calls.lost, "refused": ledger.refused} if calls else {},
        entries=calls.entries if calls else {},
        capacity=calls.capacity if calls else {},
        agent=readings.agent,
        jobs=_told(readings, ledger),
        given=readings.given,
    )


def _told(readings: Readings, ledger: Ledger) -> Jobs | None:
    if ledger.accounts is None:
        return None
    energy = ledger.energy
    return ledger.accounts.told(energy.unattributed, energy.joules, readings.unseen)


def _charge(
    accounts: Accounts,
    energy: Energy,
    readings: Readings,
    views: Iterable[ProcessView],
    jobs: Mapping[Owner, JobKey],
) -> None:
    """The jobs with what follows from who is there: time and energy."""
    plane = readings.plane.value if readings.plane else None
    devices = plane.devices if plane else ()
    # Where NVML lists processes it knows who has a context; elsewhere who ever called has.
    lists = {
        gpu
        for device in devices
        if device.processes is not None
        for gpu in (device.info.uuid, *device.info.children, UNKNOWN_GPU)
    }
    held: set[tuple[JobKey | None, str]] = set()
    shares: dict[str, dict[JobKey | None, float]] = defaultdict(lambda: defaultdict(float))
    for view in views:
        job = jobs.get(view.owner)
        held |= {(job, gpu) for gpu in view.gpus}
        held |= {(job, gpu) for gpu, part in view.on.items() if part.live or gpu not in lists}
        for gpu, process in view.gpus.items():
            if process.share is not None and process.share.sm > 0:
                shares[gpu][job] += process.share.sm
    working = {(job, gpu) for gpu, by_job in shares.items() for job in by_job}
    accounts.charge_time(readings.at, held, working)
    energy.look(readings.at, devices, shares, accounts)
