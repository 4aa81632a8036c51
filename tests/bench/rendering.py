"""A page from a Snapshot: gpubpf's renderer against prometheus_client's encoders, whose output is
the same to the byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client.exposition import generate_latest as as_text
from prometheus_client.openmetrics.exposition import generate_latest as as_openmetrics
from prometheus_client.registry import CollectorRegistry

from gpubpf import lanes
from gpubpf.model import Owner, Part, Process, ProcessView, Snapshot
from gpubpf.render import Renderer, families
from gpubpf.symbols import GROUPS, chosen
from gpubpf.view import View
from tests.bench.bench import Bench
from tests.bench.table import Mismatch, Row, ratios

NAME = "rendering"
_SIZES = (100, 1_000, 10_000)


def _snapshot(processes: int, turn: int) -> Snapshot:
    """Processes with calls in every function; more in each turn, as counters are."""
    groups = GROUPS if processes > 10 else GROUPS[:1]
    functions = tuple(symbol.name for symbol in chosen(groups))
    row = ((turn * 7919 + i).to_bytes(8, "little") for i in range(lanes.count(len(functions))))
    vector = int.from_bytes(b"".join(row), "little")
    facts, calls = lanes.split(vector)
    on = {"unknown": Part(facts, turn, turn)}
    views = tuple(
        ProcessView(Owner(pid, pid), Process(pid, 1.7e9 + pid, "python", "somebody"), vector, on)
        for pid in range(1000, 1000 + processes)
    )
    return Snapshot(
        at=0.0, time=0.0, functions=functions, totals={"unknown": facts}, calls=calls, errors={},
        plane=None, processes=views,
    )  # fmt: skip


def _milliseconds(work: Callable[..., object], *arguments: object) -> float:
    begin = time.process_time()
    work(*arguments)
    return 1e3 * (time.process_time() - begin)


class _Collector:
    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[object]:
        return iter(families(self._view))


def _reference(view: View, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(view))  # type: ignore[arg-type]
    return encode(registry)


def _processes_for(series: int) -> int:
    """How many processes make a page of about so many series."""
    low, high = 0, series
    while low < high:
        middle = (low + high) // 2
        _, count = Renderer().page(_view(middle, 1), openmetrics=False)
        low, high = (middle + 1, high) if count < series else (low, middle)
    return low


def _view(processes: int, turn: int) -> View:
    return View(_snapshot(processes, turn), process_metrics=True, max_processes=processes)


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    for size in _SIZES:
        processes = _processes_for(size)
        for name, encode, openmetrics in (
            ("text", as_text, False),
            ("OpenMetrics", as_openmetrics, True),
        ):
            page = partial(Renderer().page, openmetrics=openmetrics)
            _, series = page(_view(processes, 0))
            ours: list[float] = []
            theirs: list[float] = []
            for turn in range(bench.amount(7, 3)):
                ours.append(_milliseconds(page, _view(processes, turn)))
                theirs.append(_milliseconds(_reference, _view(processes, turn), encode))
            yield Row(
                f"rendering {series:,} series as {name}, CPU", ours, "ms",
                ratios(ours, theirs), "prometheus_client's encoder",
            )  # fmt: skip
