"""How many series the jobs can have, whatever runs: a formula of GPUs, --max-jobs and probe groups.

    (max-jobs + 2) x (a + b x (GPUs + 1))

Two job_id more than there are jobs: `other` and `none`. One GPU more than there are: `unknown`. A
MIG device counts as one, also when it was taken away: totals stay. `a` is what a job has once, `b`
what it has on each GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from gpubpf.accounts import MOST_ERRORS
from gpubpf.diagnosis import DIAGNOSES, INPUTS
from gpubpf.job_metrics import JOB_METRICS
from gpubpf.metric import COUNTER, Metric
from gpubpf.symbols import DIRECTIONS, KINDS, STATE

VALUES = {
    "kind": len(KINDS),
    "direction": len(DIRECTIONS),
    "error": MOST_ERRORS + 1,  # those that are told apart, and the rest
    "diagnosis": len(DIAGNOSES),
    "input": len(INPUTS),
}
"""How many values a label of a job's series can have; others have one for each job or GPU."""


class PerJob(NamedTuple):
    """Of one job_id."""

    once: int
    on_gpu: int  # on each GPU

    def series(self, gpus: int, most: int) -> int:
        """On one page, at most."""
        return (most + 2) * (self.once + self.on_gpu * (gpus + 1))


def per_job(
    groups: Iterable[str], *, attribution: bool = True, created: bool = True, labels: int = 0
) -> PerJob:
    """`created`: with the `_created` series of OpenMetrics, which double the counters. `labels`:
    how many labels of pods are asked for."""
    values = {**VALUES, "key": labels}
    on = {*groups, *((STATE,) if attribution else ())}
    rows = [row for row in JOB_METRICS if row.labels[:1] == ("job_id",) and _is_on(row, on)]
    counts = {True: 0, False: 0}
    for row in rows:
        times = 2 if created and row.kind == COUNTER else 1
        counts["gpu" in row.labels] += times * prod(values.get(name, 1) for name in row.labels)
    return PerJob(counts[False], counts[True])


def _is_on(row: Metric, on: set[str]) -> bool:
    return on.issuperset(row.group.split())
