"""The thresholds of alerts and dashboards: one table for both.

A row is a limit, and for how long what it is compared with must be beyond it before an alert says
so. Values are in the unit of the metric: ratios from 0 to 1, degrees Celsius, seconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Threshold(NamedTuple):
    value: float
    lasting: str  # a Prometheus duration
    what: str


THRESHOLDS: dict[str, Threshold] = {
    "sm_utilization": Threshold(0.30, "30m", "SM utilization of a GPU whose memory is held, below"),
    "held_memory": Threshold(0.05, "0s", "memory in use from which a GPU counts as held, above"),
    "fragmentation": Threshold(0.40, "10m", "fragmentation of live memory, above"),
    "memory_runs_out": Threshold(1800, "5m", "seconds until memory runs out, as it grows now"),
    "link_utilization": Threshold(0.90, "5m", "bandwidth of NVLink or PCIe in use, above"),
    "temperature": Threshold(85, "5m", "GPU temperature, above"),
    "throttled": Threshold(0.10, "10m", "share of time in which the clocks were held down, above"),
    "shared_memory": Threshold(0.90, "5m", "shared memory in use, above"),
    "trend": Threshold(0.50, "15m", "launch rate as a share of the job's own past, below"),
    "step_time": Threshold(1.50, "15m", "step time as a multiple of the job's own past, above"),
}
