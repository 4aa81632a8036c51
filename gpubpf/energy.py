"""Whose work a GPU's energy went into: by share of SM utilization. Pure: no I/O, no clock.

Between two samples of the energy counter a job's share is the mean of its processes' SM utilization
as NVML samples it. What no process used SMs for, and what NVML has no per-process utilization for
(MIG), is nobody's. What the jobs and nobody get is what the counter grew by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gpubpf.accounts import Accounts
from gpubpf.model import Device, JobKey

Shares = Mapping[str, Mapping[JobKey | None, float]]
"""By GPU UUID: the SM utilization of each job's processes, ratios."""


@dataclass(slots=True)
class _Span:
    """Since one sample of the counter."""

    joules: float
    began: float
    work: defaultdict[JobKey | None, float] = field(default_factory=lambda: defaultdict(float))


class Energy:
    """`look` once per step."""

    def __init__(self) -> None:
        self._spans: dict[str, _Span] = {}
        self._at: float | None = None
        self.unattributed: dict[str, float] = {}
        """Joules that are no job's, by GPU UUID, since the first sample."""
        self._before: dict[str, float] = {}  # what the counters had when an agent before this ended

    @property
    def joules(self) -> dict[str, float]:
        """What the counters had up to which all is charged, by GPU UUID."""
        return self._before | {uuid: span.joules for uuid, span in self._spans.items()}

    def restore(self, unattributed: Mapping[str, float], joules: Mapping[str, float]) -> None:
        """Goes on from an agent before this one. What was used in between is nobody's."""
        self.unattributed |= unattributed
        self._before |= joules

    def look(self, at: float, devices: Iterable[Device], shares: Shares, to: Accounts) -> None:
        """Charges the accounts with what the GPUs took since their last samples."""
        seconds = 0.0 if self._at is None else at - self._at
        self._at = at
        for device in devices:
            uuid = device.info.uuid
            joules = device.get("energy_joules")
            span = self._spans.get(uuid)
            if span is not None:
                for key, share in shares.get(uuid, {}).items():
                    span.work[key] += share * seconds
            if joules is None or (span is not None and joules <= span.joules):
                continue
            self.unattributed.setdefault(uuid, 0.0)
            if span is not None:
                self._charge(uuid, span, joules - span.joules, at - span.began, to)
            else:  # a counter that is lower began anew: its driver was loaded again
                self.unattributed[uuid] += max(0.0, joules - self._before.pop(uuid, joules))
            self._spans[uuid] = _Span(joules, at)

    def _charge(self, uuid: str, span: _Span, joules: float, seconds: float, to: Accounts) -> None:
        work = sum(span.work.values())
        whole = max(seconds, work)  # shares that add up to more than 1 are scaled down
        rest = joules
        for key, part in span.work.items():
            if part > 0:
                to.charge_energy(key, uuid, joules * part / whole)
                rest -= joules * part / whole
        self.unattributed[uuid] += max(0.0, rest)
