"""A scrape with jobs: 100 of them, each with a process on each of 8 GPUs, with and without a file
that keeps their totals. Each scrape is of a new look, so that a page is made for each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.bench.bench import DEVICES, Bench
from tests.bench.caller import Caller
from tests.bench.node_load import agent_on
from tests.bench.scrape import HEADERS, Exporter
from tests.bench.table import Mismatch, Row, ratios
from tests.fakegpu.node import Node

NAME = "jobs"
JOBS = 100
RATE = 0.5  # rounds a second of each process


@contextlib.contextmanager
def _jobs(bench: Bench, node: Node) -> Iterator[int]:
    """Their processes; how many jobs there are."""
    count = bench.amount(JOBS, 10)
    with contextlib.ExitStack() as stack:
        for number in range(count * DEVICES):
            environment = {**node.environment(), "JOB": str(number // DEVICES)}
            caller = Caller(node.library, "all", 1, number % DEVICES, environment)
            stack.enter_context(caller).pace(RATE)
        yield count


def _page_times(exporter: Exporter, times: int) -> list[float]:
    found = []
    for _ in range(times):
        time.sleep(1)
        begin = time.monotonic()
        exporter.page(HEADERS)
        found.append(1e3 * (time.monotonic() - begin))
    return found


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    options = ("--jobs", "environ:JOB")
    state = ("--state", str(bench.scratch / "jobs.json"))
    with (
        bench.node() as node,
        _jobs(bench, node) as count,
        agent_on(bench, node) as without,
        agent_on(bench, node, *options) as usual,
        agent_on(bench, node, *options, *state) as keeping,
    ):
        exporters = [
            Exporter("without --jobs", without.pid, without.port),
            Exporter("--jobs", usual.pid, usual.port),
            Exporter("--jobs --state", keeping.pid, keeping.port),
        ]
        times: dict[str, list[float]] = {exporter.name: [] for exporter in exporters}
        for _ in range(bench.amount(3, 1)):
            for exporter in exporters:
                seconds = bench.amount(5, 3)
                exporter.idle.append(exporter.measure(seconds, scraped=False))
                exporter.busy.append(exporter.measure(seconds, scraped=True))
                times[exporter.name] += _page_times(exporter, seconds)
        for exporter in exporters:
            lines = exporter.page(HEADERS | {"Accept-Encoding": ""}).splitlines()
            exporter.series = sum(not line.startswith(b"#") for line in lines)
    base = exporters[0]
    for what, values in (
        ("CPU that a scrape adds", {e.name: e.added for e in exporters}),
        ("CPU of a look", {e.name: e.idle for e in exporters}),
        ("time of a scrape", times),
    ):
        for exporter in exporters:
            title = (
                f"{what}, {count} jobs on {DEVICES} GPUs, {count * DEVICES} processes, "
                f"{exporter.name} ({exporter.series:,} series)"
            )
            if exporter is base:
                yield Row(title, values[exporter.name], "ms")
            else:
                more = ratios(values[exporter.name], values[base.name])
                yield Row(title, values[exporter.name], "ms", more, "that without --jobs")
