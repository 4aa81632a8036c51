"""What a row of another exporter's table is: its name, and which figure of ours it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from gpubpf.metric import COUNTER
from gpubpf.model import Device, Figures, Labels, MigDevice
from gpubpf.nvml.facts import FACTS
from gpubpf.view import View

BARE = "bare"
"""A counter whose name doesn't end in _total. Prometheus's text format takes it for a counter, as
its exporter says; OpenMetrics has no such counter: there its type is unknown, so that the name,
which dashboards ask for, stays."""

_MEBI = 1 << 20
_FACTS = {fact.name: fact for fact in FACTS}

Scale = Callable[[float], float]
_SAMPLE = (1 << 40) * 10**9  # a multiple of all divisors: none of it is rounded away


def times(factor: float) -> Scale:
    """To a smaller unit, of which there is a whole number: what NVML said is got back."""

    def scale(value: float) -> float:
        value *= factor
        return round(value) if math.isfinite(value) else value

    return scale


def per(divisor: float) -> Scale:
    return lambda value: math.floor(value / divisor)


def same(value: float) -> float:
    return value


MEBIBYTES = per(_MEBI)


def whole_mebibytes(value: float) -> float:
    """In bytes, rounded up."""
    return math.ceil(value / _MEBI) * _MEBI


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of ours; where a label is None, the sum over all its values, `least` of them."""

    fact: str
    labels: tuple[str | None, ...] = ()
    scale: Scale = same
    least: int = 1

    def of(self, figures: Figures) -> float | None:
        known = [v for labels, v in figures.get(self.fact, {}).items() if self._is(labels)]
        if len(known) < self.least:
            return None
        value = sum(known)
        return self.scale(value) if math.isfinite(value) else value

    def _is(self, labels: Labels) -> bool:
        return all(want in (None, has) for want, has in zip(self.labels, labels, strict=True))

    def read(self, _: View, device: Device) -> float | None:
        return self.of(device.figures)

    @property
    def ours(self) -> str:
        """Our metric and its labels; "" where FACTS has none."""
        fact = _FACTS.get(self.fact)
        if fact is None or not any(map(self._is, fact.asks)):
            return ""
        chosen = zip(fact.labels, self.labels, strict=True)
        labels = ",".join(f'{name}="{value}"' for name, value in chosen if value is not None)
        name = fact.metric + "_total" * (fact.kind == COUNTER)
        return f"{name}{{{labels}}}" if labels else name

    @property
    def query(self) -> str:
        """PromQL that gives the same of our metric, but for rounding; "" where FACTS has none."""
        query = self.ours
        if query and None in self.labels:
            query = f"sum by (instance, gpu, uuid) ({query})"
        factor = Fraction(int(self.scale(_SAMPLE)), _SAMPLE)
        if not query or factor == 1:
            return query
        return f"{query} * {factor}" if factor > 1 else f"{query} / {1 / factor}"


@dataclass(frozen=True, slots=True)
class Told:
    """What is read of a device in another way, and the metric of ours that says the same."""

    ours: str
    value: Callable[[View, Device], float | None]
    query: str = ""  # none gives the same

    def read(self, view: View, device: Device) -> float | None:
        return self.value(view, device)


@dataclass(frozen=True, slots=True)
class Row:
    """A metric of another exporter's, of each device."""

    name: str  # as it stands on the page
    kind: str
    help: str
    source: Figure | Told


def fact(name: str, *labels: str, scale: Scale = same) -> Figure:
    return Figure(name, labels, scale)


def total(name: str, *labels: str | None, scale: Scale = same, least: int = 1) -> Figure:
    return Figure(name, labels, scale, least)


def instances(device: Device) -> Iterator[tuple[int, str, MigDevice]]:
    """A device's GPU instances: (id, profile, its first MIG device). Memory and GPM are theirs;
    the compute instances of one ("1c.2g.20gb") share them."""
    seen = set()
    for mig in device.mig:
        number = mig.info.gpu_instance
        if number is not None and number not in seen:
            seen.add(number)
            yield number, re.sub(r"^\d+c\.", "", mig.info.profile), mig
