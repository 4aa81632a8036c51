"""A scrape against nvitop-exporter's: the same simulated NVML, the same 64 processes, both looking
at their sources each second whether somebody scrapes or not.

"A scrape adds" is the exporter's CPU while it is scraped once a second, less its CPU while it is
not: making and sending the page. "A look and its scrape" is all of its CPU while it is scraped once
a second: gpubpf then reads the BPF maps, searches for libraries and reads NVML, nvitop-exporter
reads NVML and /proc. Requests are Prometheus's: OpenMetrics, gzip. The driver's cost is that of the
simulation, which is small; the real one's would come on top of both.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.agent import environment, free_port
from tests.bench.bench import PROCESSES, Bench
from tests.bench.machine import cpu_seconds
from tests.bench.node_load import ALL, agent_on, busy_node
from tests.bench.table import Mismatch, Row, at_least, ratios
from tests.fakegpu.node import Node

NAME = "scrape"
_LESS = 5.0
_HEADERS = {
    "Accept": "application/openmetrics-text; version=1.0.0; charset=utf-8,text/plain;q=0.5",
    "Accept-Encoding": "gzip",
}


@dataclass(slots=True)
class _Exporter:
    name: str
    pid: int
    port: int
    idle: list[float] = field(default_factory=list)  # CPU a second, milliseconds
    busy: list[float] = field(default_factory=list)
    series: int = 0

    @property
    def added(self) -> list[float]:
        return [busy - idle for busy, idle in zip(self.busy, self.idle, strict=True)]

    def page(self, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def measure(self, seconds: int, *, scraped: bool) -> float:
        """Milliseconds of CPU a second."""
        begin, before = time.monotonic(), cpu_seconds(self.pid)
        for second in range(seconds):
            if scraped:
                self.page(_HEADERS)
            time.sleep(max(0.0, begin + second + 1 - time.monotonic()))
        return 1e3 * (cpu_seconds(self.pid) - before) / (time.monotonic() - begin)


@contextlib.contextmanager
def _nvitop(bench: Bench, node: Node) -> Iterator[_Exporter]:
    port = free_port()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("nvitop-exporter"), "--port", str(port)],
        env=environment(bench.scratch, node.environment()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    exporter = _Exporter("nvitop-exporter", process.pid, port)
    try:
        end = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                exporter.page({})
                break
            time.sleep(0.2)
        time.sleep(5)  # its first pages have no processes yet
        yield exporter
    finally:
        process.kill()
        process.wait()


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    with (
        busy_node(bench) as (node, _),
        agent_on(bench, node, *ALL, "--process-metrics") as agent,
        _nvitop(bench, node) as theirs,
    ):
        ours = _Exporter("gpubpf", agent.pid, agent.port)
        for _ in range(bench.amount(3, 1)):
            for exporter in (ours, theirs):
                seconds = bench.amount(5, 4)
                exporter.idle.append(exporter.measure(seconds, scraped=False))
                exporter.busy.append(exporter.measure(seconds, scraped=True))
        for exporter in (ours, theirs):
            lines = exporter.page({}).splitlines()
            exporter.series = sum(not line.startswith(b"#") for line in lines)
    for what, values in (
        ("CPU that a scrape adds", (ours.added, theirs.added)),
        ("CPU of a look and its scrape", (ours.busy, theirs.busy)),
    ):
        less = ratios(values[1], values[0])
        yield Row(
            f"{what}, gpubpf ({ours.series:,} series, {PROCESSES} processes)", values[0], "ms"
        )
        yield Row(
            f"{what}, nvitop-exporter ({theirs.series:,} series)", values[1], "ms",
            less, "gpubpf's", f"≥ {_LESS:g} times", at_least(less, _LESS),
        )  # fmt: skip
