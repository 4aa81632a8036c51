"""What only both sides together can say: who holds a GPU idle, what hangs, who waits for the CPU.

A diagnosis is a condition on inputs that the two sides measured. It is given only where all of its
inputs are, and they are given beside it: it states a fact, the reader draws the conclusion. Pure:
no I/O, no clock. A new diagnosis is a row of DIAGNOSES, with its thresholds in THRESHOLDS.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gpubpf import lanes
from gpubpf.evidence import NEVER, Evidence
from gpubpf.jobs.job import label
from gpubpf.model import Finding, Scope
from gpubpf.parse import words
from gpubpf.symbols import KINDS


class Threshold(NamedTuple):
    default: float
    least: float
    most: float
    help: str


class Diagnosis(NamedTuple):
    needs: tuple[str, ...]  # inputs, without which nothing is said
    holds: Callable[[Mapping[str, float], Mapping[str, float]], bool]  # of inputs, thresholds
    help: str


_DAY = 86400.0
_RATE = 1e9

THRESHOLDS: Mapping[str, Threshold] = {
    "window_seconds": Threshold(30, 0.5, _DAY, "the time over which rates are taken"),
    "idle_seconds": Threshold(300, 0.5, _DAY, "idle_holder: so long without a launch"),
    "idle_utilization": Threshold(0.05, 0, 1, "idle_holder: utilization at most, where known"),
    "stalled_seconds": Threshold(120, 0.5, _DAY, "stalled: so long without a launch"),
    "stalled_utilization": Threshold(0.95, 0, 1, "stalled: utilization at least"),
    "launch_bound_rate": Threshold(5000, 0, _RATE, "launch_bound: launches a second at least"),
    "launch_bound_utilization": Threshold(0.5, 0, 1, "launch_bound: SM utilization below"),
    "launch_bound_wait": Threshold(0.1, 0, _RATE, "launch_bound: wait_ratio at most"),
    "churn_rate": Threshold(100, 0, _RATE, "memory_churn: allocations a second at least"),
    "growth_seconds": Threshold(600, 0.5, _DAY, "memory_growth: grows for so long"),
    "near_full_ratio": Threshold(0.95, 0, 1, "near_full: memory in use at least"),
}

INPUTS: Mapping[str, str] = {
    "held_bytes": "memory that the processes hold: what NVML says, or what they requested if more",
    "quiet_seconds": "since the last launch, or since memory is held if none was seen since",
    "since_launch_seconds": "since the last launch that was seen, or that may have been for it",
    "utilization_ratio": "share of time in which a kernel ran; of a job, its processes' sum",
    "sm_utilization_ratio": "share of the SMs that worked (GPM), else utilization_ratio",
    "launches_per_second": "kernel and graph launches over the window",
    "wait_ratio": "seconds that threads were blocked in synchronizing calls, per second",
    "allocations_per_second": "allocations over the window, without those from pools",
    "growing_seconds": "for how long live bytes grow and never fell",
    "memory_used_ratio": "memory in use, as a share of the GPU's",
}
"""Input -> what it is. Each is there where it is known."""


def _is_idle(inputs: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return (
        inputs["held_bytes"] > 0
        and inputs["quiet_seconds"] >= limits["idle_seconds"]
        and inputs.get("utilization_ratio", 0.0) <= limits["idle_utilization"]
    )


def _is_launch_bound(inputs: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return (
        inputs["launches_per_second"] >= limits["launch_bound_rate"]
        and inputs["sm_utilization_ratio"] < limits["launch_bound_utilization"]
        and inputs["wait_ratio"] <= limits["launch_bound_wait"]
    )


DIAGNOSES: Mapping[str, Diagnosis] = {
    "idle_holder": Diagnosis(
        ("held_bytes", "quiet_seconds"),
        _is_idle,
        "memory is held, and nothing was launched for a while; nor does a kernel run",
    ),
    "stalled": Diagnosis(
        # launches that were never seen can't have stopped: they may go past the probes
        ("since_launch_seconds", "utilization_ratio"),
        lambda inputs, limits: (
            inputs["since_launch_seconds"] >= limits["stalled_seconds"]
            and inputs["utilization_ratio"] >= limits["stalled_utilization"]
        ),
        "launches stopped, and a kernel runs on: a collective that hangs, or a very long kernel",
    ),
    "launch_bound": Diagnosis(
        ("launches_per_second", "sm_utilization_ratio", "wait_ratio"),
        _is_launch_bound,
        "many launches, little work, and no thread waits for the GPU: it waits for the CPU",
    ),
    "memory_churn": Diagnosis(
        ("allocations_per_second",),
        lambda inputs, limits: inputs["allocations_per_second"] >= limits["churn_rate"],
        "memory is allocated all the time, and not from a pool",
    ),
    "memory_growth": Diagnosis(
        ("growing_seconds",),
        lambda inputs, limits: inputs["growing_seconds"] >= limits["growth_seconds"],
        "live bytes only grow, in each quarter of the time",
    ),
    "near_full": Diagnosis(
        ("memory_used_ratio",),
        lambda inputs, limits: inputs["memory_used_ratio"] >= limits["near_full_ratio"],
        "little memory is left; of a job: its processes have most of it",
    ),
}


class _Counts(NamedTuple):
    launches: int
    waited: float  # seconds
    allocations: int


_NONE = _Counts(0, 0.0, 0)
_STEPS = 10  # that a window is divided into
_GROWTH_STEPS = 4  # it must grow in each quarter of `growth_seconds`


@dataclass(slots=True)
class _Past:
    """What must be remembered of one scope."""

    facts: int = 0  # of the last look
    counts: _Counts = _NONE  # what they say
    unsure: int = 0  # facts that may be another GPU's, too
    maybe: int = 0  # launches in them
    points: deque[tuple[float, _Counts]] = field(default_factory=deque)  # at least a window's
    launched: float | None = None
    quiet: float | None = None  # since when memory is held, or launches ended
    live: int = 0
    grew: float | None = None  # when it last did
    growing: float = 0.0  # since when


class Diagnoses:
    """`look` once per step."""

    def __init__(self, thresholds: Mapping[str, float], groups: tuple[str, ...]) -> None:
        """`thresholds`: those that aren't the defaults; `groups`: the probe groups that are on."""
        self.thresholds = {n: thresholds.get(n, row.default) for n, row in THRESHOLDS.items()}
        self._groups = groups
        self._past: dict[Scope, _Past] = {}

    def look(self, at: float, evidence: Mapping[Scope, Evidence]) -> dict[Scope, Finding]:
        """`at` in CLOCK_MONOTONIC seconds. A scope that isn't seen any more is forgotten."""
        self._past = {s: self._past.get(s) or _begin(seen) for s, seen in evidence.items()}
        return {scope: self._find(at, self._past[scope], seen) for scope, seen in evidence.items()}

    def _find(self, at: float, past: _Past, seen: Evidence) -> Finding:
        inputs = self._inputs(at, past, seen)
        return Finding(
            inputs,
            {
                name: row.holds(inputs, self.thresholds)
                for name, row in DIAGNOSES.items()
                if all(need in inputs for need in row.needs)
            },
        )

    def _inputs(self, at: float, past: _Past, seen: Evidence) -> dict[str, float]:
        known: dict[str, float | None] = {
            "held_bytes": seen.held,
            "utilization_ratio": seen.utilization,
            "sm_utilization_ratio": seen.sm_utilization,
            "memory_used_ratio": seen.used,
        }
        before = past.counts, past.maybe
        past.counts = past.counts if seen.facts == past.facts else _counts(seen.facts)
        if seen.unsure != past.unsure:
            past.maybe = _counts(seen.unsure).launches
        past.facts, past.unsure = seen.facts, seen.unsure
        if "launch" in self._groups:
            launched = (past.counts.launches, past.maybe) != (before[0].launches, before[1])
            known |= _quiet(at, past, launched, bool(seen.held))
        known |= self._rates(at, past)
        if "memory" in self._groups:
            known["growing_seconds"] = self._growing(at, past, seen.live)
        return {name: value for name, value in known.items() if value is not None}

    def _rates(self, at: float, past: _Past) -> dict[str, float | None]:
        """Over the window, once it has passed."""
        window = self.thresholds["window_seconds"]
        points, now = past.points, past.counts
        while len(points) > 1 and points[1][0] <= at - window:
            points.popleft()
        if not points or at - points[-1][0] >= window / _STEPS:
            points.append((at, now))
        began, first = points[0]
        seconds = at - began
        if seconds < window:
            return {}
        rates: dict[str, float | None] = {}
        if "launch" in self._groups:
            rates["launches_per_second"] = (now.launches - first.launches) / seconds
        if "wait" in self._groups:
            rates["wait_ratio"] = (now.waited - first.waited) / seconds
        if "memory" in self._groups:
            rates["allocations_per_second"] = (now.allocations - first.allocations) / seconds
        return rates

    def _growing(self, at: float, past: _Past, live: int) -> float:
        pause = self.thresholds["growth_seconds"] / _GROWTH_STEPS
        paused = past.grew is None or at - past.grew > pause
        if live < past.live:
            past.grew = None
        elif live > past.live:
            past.growing = at if paused else past.growing
            past.grew = at
        past.live = live
        return 0.0 if past.grew is None or at - past.grew > pause else at - past.growing


def _begin(seen: Evidence) -> _Past:
    """Where there are accounts what is in them was not done just now: they may be older than the
    agent, and than the job's processes."""
    if seen.launched is None:
        return _Past()
    maybe = _counts(seen.unsure).launches
    past = _Past(seen.facts, _counts(seen.facts), seen.unsure, maybe)
    past.launched = seen.launched if seen.launched > NEVER else None
    return past


_LAUNCHES = [lanes.FIRST[fact] for fact in ("kernel_launches", "graph_launches")]
_WAITED = lanes.FIRST["wait_nanoseconds"]
_ALLOCATIONS = [lanes.FIRST["allocations"] + i for i, kind in enumerate(KINDS) if kind != "pool"]


def _counts(facts: int) -> _Counts:
    row = lanes.unpack(facts, 0)
    return _Counts(
        sum(row[lane] for lane in _LAUNCHES),
        row[_WAITED] / 1e9,
        sum(row[lane] for lane in _ALLOCATIONS),
    )


def _quiet(at: float, past: _Past, launched: bool, held: bool) -> dict[str, float | None]:
    if launched:
        past.launched = past.quiet = at
    elif not held:
        past.quiet = None
    elif past.quiet is None:
        past.quiet = at
    return {
        "since_launch_seconds": None if past.launched is None else at - past.launched,
        "quiet_seconds": None if past.quiet is None else at - past.quiet,
    }


def parse(raw: object) -> tuple[tuple[str, float], ...]:
    """`NAME=VALUE[,NAME=VALUE…]`, in the manner of `gpubpf.parse`: those that were given."""
    given: dict[str, float] = {}
    for word in words(raw):
        name, equals, text = (part.strip() for part in word.partition("="))
        row = THRESHOLDS.get(name)
        if row is not None and not equals:
            raise ValueError(f"{name}=VALUE, as in {name}={row.default:g}")
        if row is None:
            known = ", ".join(THRESHOLDS)
            raise ValueError(f"NAME=VALUE[,…] with a NAME of {known}; not {label(name, 60)}")
        with contextlib.suppress(ValueError):
            given[name] = float(text)
        if not row.least <= given.get(name, math.nan) <= row.most:
            raise ValueError(f"{name} from {row.least:g} to {row.most:g}")
    return tuple(given.items())
