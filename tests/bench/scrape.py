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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.bench.agent import environment, free_port
from tests.bench.bench import PROCESSES, Bench
from tests.bench.machine import cpu_seconds
from tests.bench.node_load import ALL, agent_on, busy_node
from tests.bench.table import Mismatch, Row, at_least, ratios
from tests.fakegpu.node import Node

NAME = "scrape"
_LESS = 5.0
HEADERS = {
    "Accept": "application/openmetrics-text; version=1.0.0; charset=utf-8,text/plain;q=0.5",
    "Accept-Encoding": "gzip",
}


@dataclass(slots=True)
class Exporter:
    name: str
    pid: int
    port: int
    idle: list[float] = field(default_factory=list)  # CPU a second, milliseconds
    busy: list[float] = field(default_factory=list)
    series: int = 0
    connection: HTTPConnection | None = None

    @property
    def added(self) -> list[float]:
        return [busy - idle for busy, idle in zip(self.busy, self.idle, strict=True)]

    def page(self, headers: Mapping[str, str]) -> bytes:
        """On a connection that is kept where the exporter keeps it, as Prometheus does."""
        if self.connection is None:
            self.connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            self.connection.request("GET", "/metrics", headers=dict(headers))
            return self.connection.getresponse().read()
        except (OSError, HTTPException):  # it was closed meanwhile
            self.connection.close()
            self.connection.request("GET", "/metrics", headers=dict(headers))
            return self.connection.getresponse().read()

    def measure(self, seconds: int, *, scraped: bool) -> float:
        """Milliseconds of CPU a second."""
        begin, before = time.monotonic(), cpu_seconds(self.pid)
        for second in range(seconds):
            if scraped:
                self.page(HEADERS)
            time.sleep(max(0.0, begin + second + 1 - time.monotonic()))
        return 1e3 * (cpu_seconds(self.pid) - before) / (time.monotonic() - begin)


@contextlib.contextmanager
def _nvitop(bench: Bench, node: Node) -> Iterator[Exporter]:
    port = free_port()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("nvitop-exporter"), "--port", str(port)],
        env=environment(bench.scratch, node.environment()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    exporter = Exporter("nvitop-exporter", process.pid, port)
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
        agent_on(bench, node, "--process-metrics") as usual,
        agent_on(bench, node, "--process-metrics", *ALL) as everything,
        _nvitop(bench, node) as theirs,
    ):
        ours = Exporter("gpubpf, default probes", usual.pid, usual.port)
        most = Exporter("gpubpf, all probes", everything.pid, everything.port)
        exporters = (ours, most, theirs)
        for _ in range(bench.amount(3, 1)):
            for exporter in exporters:
                seconds = bench.amount(4, 3)
                exporter.idle.append(exporter.measure(seconds, scraped=False))
                exporter.busy.append(exporter.measure(seconds, scraped=True))
        for exporter in exporters:
            lines = exporter.page({}).splitlines()
            exporter.series = sum(not line.startswith(b"#") for line in lines)
    for what, values in (
        ("CPU that a scrape adds", {e.name: e.added for e in exporters}),
        ("CPU of a look and its scrape", {e.name: e.busy for e in exporters}),
    ):
        for exporter in exporters:
            title = f"{what}, {PROCESSES} processes, {exporter.name} ({exporter.series:,} series)"
            less = ratios(values[theirs.name], values[exporter.name])
            if exporter is theirs:
                yield Row(title, values[exporter.name], "ms")
            elif exporter is most:
                yield Row(title, values[exporter.name], "ms", less, "less than nvitop-exporter")
            else:
                yield Row(
                    title, values[exporter.name], "ms", less, "less than nvitop-exporter",
                    f"≥ {_LESS:g} times less", at_least(less, _LESS),
                )  # fmt: skip
