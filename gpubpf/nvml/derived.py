"""Figures that follow from others: each function gets two samples and the time between them."""

from __future__ import annotations

from collections.abc import Iterable

from gpubpf.model import Figures, Labels
from gpubpf.nvml.ask import Past

# Bytes per second of one lane in one direction, by PCIe generation: the signalling rate less the
# line code (8b/10b to generation 2, 128b/130b to 5, flits of 242 in 256 bytes in 6).
_GIGA = 1_000_000_000
PCIE_LANE = {
    1: 2.5 * _GIGA / 10,
    2: 5 * _GIGA / 10,
    3: 8 * _GIGA * 128 / 130 / 8,
    4: 16 * _GIGA * 128 / 130 / 8,
    5: 32 * _GIGA * 128 / 130 / 8,
    6: 64 * _GIGA * 242 / 256 / 8,
}

Derived = Iterable[tuple[Labels, float]]


def _one(figures: Figures, name: str) -> float | None:
    return figures.get(name, {}).get(())


def sm_seconds(past: Past) -> Derived:
    """Seconds of SM work since the sample before, at the mean of both samples' utilization."""
    for name in ("sm_utilization_ratio", "utilization_ratio"):
        now, before = _one(past.now, name), _one(past.before, name)
        if now is not None:
            yield (), (now if before is None else (now + before) / 2) * past.seconds
            return


def energy_per_sm_second(past: Past) -> Derived:
    """Joules per second of SM work; nothing where there was no work."""

    def grown(name: str) -> float:
        now, before = _one(past.now, name), _one(past.before, name)
        return 0.0 if now is None or before is None else now - before

    energy, work = grown("energy_joules"), grown("sm_busy_seconds")
    if energy > 0 and work > 0:
        yield (), energy / work


def pcie_utilization(past: Past) -> Derived:
    """Of the link as it is now: an idle GPU lowers its generation."""
    generation = _one(past.now, "pcie_link_generation")
    width = _one(past.now, "pcie_link_width")
    if generation is None or width is None:
        return
    limit = PCIE_LANE.get(int(generation), 0.0) * width
    rates = past.now.get("pcie_throughput_bytes_per_second")
    for labels, rate in (rates or _rates(past, "pcie_bytes")).items():
        if limit > 0:
            yield labels, rate / limit


def nvlink_utilization(past: Past) -> Derived:
    """Of all links that are up."""
    up = past.now.get("nvlink_link_up", {})
    limit = sum(
        bandwidth
        for link, bandwidth in past.now.get("nvlink_link_bandwidth_bytes_per_second", {}).items()
        if up.get(link, 1)
    )
    rates = past.now.get("nvlink_throughput_bytes_per_second")
    for labels, rate in (rates or _rates(past, "nvlink_bytes")).items():
        if limit > 0:
            yield labels, rate / limit


def _rates(past: Past, name: str) -> dict[Labels, float]:
    before = past.before.get(name, {})
    return {
        labels: (value - before[labels]) / past.seconds
        for labels, value in past.now.get(name, {}).items()
        if labels in before and value >= before[labels] and past.seconds > 0
    }
