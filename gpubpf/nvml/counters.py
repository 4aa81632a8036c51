"""Counters that don't go back: NVML's start anew when the driver is loaded or a board is reset."""

from __future__ import annotations

from gpubpf.model import Labels

_Key = tuple[str, str, Labels]  # GPU UUID, fact, label values


class Counters:
    """Outlives every nvmlInit. Used by one thread at a time."""

    def __init__(self) -> None:
        self._raw: dict[_Key, float] = {}
        self._before: dict[_Key, float] = {}  # what was counted before the last start

    def keep(self, uuid: str, fact: str, labels: Labels, raw: float) -> float:
        """The counter's value, given what NVML says.

        Far lower than before is a new start: what there was stays in. A little lower is none: the
        driver reads some counters from two places. Then the counter waits.
        """
        key = uuid, fact, labels
        last = self._raw.get(key, 0.0)
        if raw < last:
            if raw > last / 2:
                raw = last
            else:
                self._before[key] = self._before.get(key, 0) + last
        self._raw[key] = raw
        return raw + self._before.get(key, 0)

    def add(self, uuid: str, fact: str, labels: Labels, more: float) -> float:
        """The value of a counter that is made here."""
        key = uuid, fact, labels
        self._raw[key] = self._raw.get(key, 0.0) + more
        return self._raw[key]
