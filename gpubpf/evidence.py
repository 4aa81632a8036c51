"""What a Snapshot says of each GPU, and of each job on it, as `gpubpf.diagnosis` asks. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from gpubpf.model import UNKNOWN_GPU, Device, Figures, ProcessView, Scope, Snapshot


class Evidence(NamedTuple):
    """None: not known."""

    facts: int  # packed: what was counted since the start
    unsure: int  # the same, of what may have been for this GPU or for another
    held: int | None  # bytes of device memory that the processes hold; None: at least a context
    live: int  # bytes of device memory that they requested and didn't free
    utilization: float | None
    sm_utilization: float | None
    used: float | None  # memory, as a share of the GPU's
    launched: float | None = None
    """When its last launch was seen, CLOCK_MONOTONIC seconds, by the accounts of jobs, which may be
    older than the agent; -inf: they know of none; None: there are no accounts."""


class _Whole(NamedTuple):
    """A GPU or MIG device, as NVML sees it."""

    utilization: float | None
    sm_utilization: float | None
    used: float | None  # bytes
    size: float | None


NEVER = float("-inf")
_UNSEEN = _Whole(None, None, None, None)


class _Holding:
    """What the processes of one scope hold."""

    def __init__(self) -> None:
        self.live = 0
        self.used: int | None = 0  # by NVML; None: it lists one, but doesn't say how much
        self.share: float | None = None  # of the SMs

    def add(self, view: ProcessView, gpu: str) -> None:
        part, row = view.on.get(gpu), view.gpus.get(gpu)
        if part is not None:
            self.live += part.live
        if row is None:
            return
        if row.memory_used is None or self.used is None:
            self.used = None
        else:
            self.used += row.memory_used
        if row.share is not None:
            self.share = (self.share or 0.0) + row.share.sm

    @property
    def held(self) -> int | None:
        if self.used is None:
            return self.live or None
        return max(self.live, self.used)


def evidence(snapshot: Snapshot) -> dict[Scope, Evidence]:
    """Of every GPU and MIG device that is known, and of every job with processes on one."""
    wholes = _wholes(snapshot.devices or ())
    holding: defaultdict[Scope, _Holding] = defaultdict(_Holding)
    on: defaultdict[str, set[str | None]] = defaultdict(set)  # GPU -> whose processes are on it
    for view in snapshot.processes:
        for gpu in view.on.keys() | view.gpus.keys():
            holding[None, gpu].add(view, gpu)
            on[gpu].add(view.job_id)
            if view.job_id is not None:
                holding[view.job_id, gpu].add(view, gpu)
    launched = _launched(snapshot)

    def last(job_id: str | None, gpu: str) -> float:
        return max(launched.get((job_id, place), NEVER) for place in (gpu, UNKNOWN_GPU))

    found: dict[Scope, Evidence] = {}
    for gpu in (wholes.keys() | snapshot.totals.keys()) - {UNKNOWN_GPU}:
        whole = wholes.get(gpu, _UNSEEN)
        held = holding[None, gpu]
        found[None, gpu] = Evidence(
            snapshot.totals.get(gpu, 0),
            snapshot.totals.get(UNKNOWN_GPU, 0),
            held.held,
            held.live,
            whole.utilization,
            whole.sm_utilization,
            _ratio(whole.used, whole.size),
            None if snapshot.jobs is None else last(None, gpu),
        )
    for account in snapshot.jobs.accounts if snapshot.jobs else ():
        if account.job is None:
            continue
        unsure = account.on[UNKNOWN_GPU].facts if UNKNOWN_GPU in account.on else 0
        for gpu, usage in account.on.items():
            scope = (account.job_id, gpu)
            if gpu == UNKNOWN_GPU or scope not in holding:
                continue
            whole, held = wholes.get(gpu, _UNSEEN), holding[scope]
            alone = whole if on[gpu] == {account.job_id} else _UNSEEN
            found[scope] = Evidence(
                usage.facts,
                unsure,
                held.held,
                held.live,
                _known(alone.utilization, held.share),
                _known(alone.sm_utilization, held.share),
                _ratio(held.used, whole.size),
                last(account.job_id, gpu),
            )
    return found


def _launched(snapshot: Snapshot) -> dict[Scope, float]:
    """When the last launch of each scope was seen."""
    found: dict[Scope, float] = {}
    for account in snapshot.jobs.accounts if snapshot.jobs else ():
        for gpu, usage in account.on.items():
            at = NEVER if usage.launched is None else usage.launched
            for scope in ((account.job_id, gpu), (None, gpu)):
                found[scope] = max(at, found.get(scope, NEVER))
    return found


def _wholes(devices: tuple[Device, ...]) -> dict[str, _Whole]:
    found = {device.info.uuid: _whole(device.figures) for device in devices}
    return found | {mig.info.uuid: _whole(mig.figures) for d in devices for mig in d.mig}


def _known(*values: float | None) -> float | None:
    """The first that is known."""
    return next((value for value in values if value is not None), None)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _whole(figures: Figures) -> _Whole:
    def get(fact: str) -> float | None:
        return figures.get(fact, {}).get(())

    busy, work = get("utilization_ratio"), get("sm_utilization_ratio")
    size, used = get("memory_size_bytes"), get("memory_used_bytes")
    return _Whole(busy, _known(work, busy), used, size)
