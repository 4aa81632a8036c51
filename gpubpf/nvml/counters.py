"""Counters that don't go back: NVML's start anew when the driver is loaded or a board is reset."""

from __future__ import annotations

from collections import defaultdict

from gpubpf.model import Labels


class Counters:
    """Outlives every nvmlInit. Used by one thread at a time."""

    def __init__(self) -> None:
        # Each by (GPU UUID, fact), then by label values.
        self._raw: defaultdict[tuple[str, str], dict[Labels, float]] = defaultdict(dict)
        # what was counted before the last start
        self._before: defaultdict[tuple[str, str], dict[Labels, float]] = defaultdict(dict)

    def keep(self, uuid: str, fact: str, series: dict[Labels, float]) -> None:
        """Puts the counters' values in the place of what NVML says.

        Far lower than before is a new start: what there was stays in. A little lower is none: the
        driver reads some counters from two places. Then the counter waits.
        """
        raws, befores = self._raw[uuid, fact], self._before[uuid, fact]
        for labels, raw in series.items():
            last = raws.get(labels, 0.0)
            if raw < last:
                if raw > last / 2:
                    raw = last
                else:
                    befores[labels] = befores.get(labels, 0.0) + last
            raws[labels] = raw
            series[labels] = raw + befores[labels] if labels in befores else raw

    def add(self, uuid: str, fact: str, labels: Labels, more: float) -> float:
        """The value of a counter that is made here."""
        raws = self._raw[uuid, fact]
        raws[labels] = raws.get(labels, 0.0) + more
        return raws[labels]
