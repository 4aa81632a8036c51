"""METRICS × Snapshot as a page, in Prometheus's text format and in OpenMetrics.

The same rows also become prometheus_client families (`families`), whose encoders are the
reference: the tests compare the pages byte for byte. This renderer exists for its cost: it joins
label sets that it has built before, at a fraction of the encoders' time (tests/bench).
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.utils import floatToGoString

from gpubpf.compat.row import BARE
from gpubpf.metric import COUNTER, HISTOGRAM, INFO
from gpubpf.metric import Metric as Row
from gpubpf.metrics import SERIES, SNAPSHOT_AGE, present
from gpubpf.model import Labels
from gpubpf.view import Histogram, View

_MOST_LABEL_SETS = 1000  # that are kept besides those of the page


def families(view: View, *, created: bool = False) -> Iterator[Metric]:
    """The page's rows as prometheus_client families, for its encoders or another registry.

    `created`: with the times at which the jobs' counters were 0, as OpenMetrics has them.
    """
    for row, samples in present(view):
        names = row.labels
        if row.kind == INFO:
            info = InfoMetricFamily(row.name, row.help, labels=())
            for labels, _ in samples:
                info.add_metric((), dict(zip(names, labels, strict=True)))
            yield info
        elif row.kind == HISTOGRAM:
            histogram = HistogramMetricFamily(row.name, row.help, labels=names, unit=row.unit)
            for labels, value in samples:
                assert isinstance(value, Histogram)
                histogram.add_metric(labels, list(value.buckets), value.sum)
            yield histogram
        else:
            kind = {COUNTER: CounterMetricFamily, BARE: UnknownMetricFamily}.get(row.kind)
            family = (kind or GaugeMetricFamily)(row.name, row.help, labels=names, unit=row.unit)
            dated = created and by_job(row)
            for labels, value in samples:
                assert not isinstance(value, Histogram)
                family.add_metric(labels, value, *([view.created[labels[0]]] if dated else []))
            yield family


def by_job(row: Row) -> bool:
    """Its counters come and go, so that it matters when they were 0."""
    return row.kind == COUNTER and row.labels[:1] == ("job_id",)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    # Most values are small counts; floatToGoString goes through repr and a search.
    if type(value) is int and -1_000_000 < value < 1_000_000:
        return f"{value}.0"
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


class Renderer:
    """Keeps the label sets of earlier pages. Used by one thread at a time."""

    def __init__(self) -> None:
        self._starts: dict[str, dict[Labels, str]] = {}  # by metric

    def page(self, view: View, *, openmetrics: bool) -> tuple[str, int]:
        """The page without its last families, and how many series are on it."""
        parts: list[str] = []
        count = 0
        for row, samples in present(view):
            parts.append(header(row, openmetrics=openmetrics))
            starts = self._starts.setdefault(row.name, {})
            dated = openmetrics and by_job(row)
            for labels, value in samples:
                if isinstance(value, Histogram):
                    parts += _histogram(row, labels, value)
                    count += len(value.buckets) + 1
                    continue
                start = starts.get(labels)
                if start is None:
                    start = starts[labels] = _start(row, labels)
                parts.append(start + _number(value))
                if dated:
                    at = floatToGoString(view.created[labels[0]])  # type: ignore[no-untyped-call]
                    parts.append(f"{row.name}_created{start[len(row.sample_name) :]}{at}")
            count += len(samples) * (1 + dated)
        if sum(map(len, self._starts.values())) > 2 * count + _MOST_LABEL_SETS:
            self._starts.clear()  # most are of processes long gone
        return "\n".join((*parts, "")), count


def header(row: Row, *, openmetrics: bool) -> str:
    text = row.help.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
        unit = f"\n# UNIT {row.name} {row.unit}" if row.unit else ""
        kind = "unknown" if row.kind == BARE else row.kind
        return f"# HELP {row.name} {text}\n# TYPE {row.name} {kind}{unit}"
    kind = {INFO: "gauge", BARE: "counter"}.get(row.kind, row.kind)
    return f"# HELP {row.sample_name} {text}\n# TYPE {row.sample_name} {kind}"


def _start(row: Row, labels: Labels) -> str:
    if not labels:
        return f"{row.sample_name} "
    pairs = sorted(zip(row.labels, labels, strict=True))
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{row.sample_name}{{{inner}}} "


def _histogram(row: Row, labels: Labels, value: Histogram) -> list[str]:
    pairs = [f'{n}="{_escaped(v)}"' for n, v in zip(row.labels, labels, strict=True)]

    def line(suffix: str, number: float, *bound: str) -> str:
        return f"{row.name}{suffix}{{{','.join(sorted((*pairs, *bound)))}}} {_number(number)}"

    return [
        *(line("_bucket", count, f'le="{bound}"') for bound, count in value.buckets),
        line("_count", value.buckets[-1][1]),
        line("_sum", value.sum),
    ]


def tail(series: int, age: float, *, openmetrics: bool) -> str:
    """What is only known when the page is served: its size and its age."""
    lines = []
    for row, value in ((SERIES, series + 2), (SNAPSHOT_AGE, age)):
        lines += [header(row, openmetrics=openmetrics), f"{row.sample_name} {_number(value)}"]
    if openmetrics:
        lines.append("# EOF")
    return "\n".join((*lines, ""))


class Page:
    """One snapshot in one format, rendered and compressed once, finished for each request."""

    def __init__(self, body: str, series: int, taken_at: float, *, openmetrics: bool) -> None:
        self._body = body.encode()
        self._series = series
        self._taken_at = taken_at
        self._openmetrics = openmetrics
        self._packed: bytes | None = None
        self._packing = threading.Lock()
        self._packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

    def _tail(self, now: float) -> bytes:
        age = max(0.0, now - self._taken_at)
        return tail(self._series, age, openmetrics=self._openmetrics).encode()

    def plain(self, now: float) -> bytes:
        """The whole page; `now` on the clock that `taken_at` was read from."""
        return self._body + self._tail(now)

    def gzipped(self, now: float) -> bytes:
        """The same as gzip. The body's compression is kept, a copy of its state finishes."""
        with self._packing:
            if self._packed is None:
                self._packed = self._packer.compress(self._body)
            packer = self._packer.copy()
        return self._packed + packer.compress(self._tail(now)) + packer.flush()
