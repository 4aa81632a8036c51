"""What a row of METRICS is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpubpf.model import Labels
from gpubpf.view import Histogram, Samples, View

Value = float | Histogram

COUNTER, GAUGE, HISTOGRAM, INFO = "counter", "gauge", "histogram", "info"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, and how it is read from a Snapshot."""

    name: str  # without _total or _info
    kind: str
    help: str
    labels: Labels
    read: Callable[[View], Samples | Iterable[tuple[Labels, Histogram]]]
    unit: str = ""
    group: str = ""  # the probe groups it needs

    @property
    def sample_name(self) -> str:
        return self.name + {COUNTER: "_total", INFO: "_info"}.get(self.kind, "")


GPU = ("gpu", "uuid")
PID = ("pid",)
ON = ("pid", *GPU)
JOB = ("job_id",)
"""The account that a job is charged to (`gpubpf.accounts`)."""
JOB_ON = (*JOB, *GPU)
