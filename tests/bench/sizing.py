"""What gpubpf's series cost a Prometheus, measured: `python -m tests.bench.sizing --write FILE`;
with --stores, what they cost a VictoriaMetrics that it writes to.

A real Prometheus scrapes one agent, which watches seven boards of the simulated node with a job on
each, under the names of many nodes. Its memory is read from its own metrics, and what it writes to
disk from a snapshot: head chunks compressed as in any block.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import get
from tests.deploy.programs import later
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.scenes import SCENES, played

NODES = 40
INTERVAL = 5  # seconds between two scrapes
SECONDS = 420
WRITING_SECONDS = 120
GPUS = len(SCENES)
EACH_NODE = 8  # GPUs of a node in the table
DAY = 86400


class Many(Prometheus):
    """One agent as NODES instances; series of creation dropped, as in the shipped configuration."""

    def config(self, target: str) -> dict[str, Any]:
        replica = [{"targets": [target], "labels": {"node": f"n{n}"}} for n in range(NODES)]
        instance = {"source_labels": ["node"], "target_label": "instance"}
        drop = {"source_labels": ["__name__"], "regex": "gpubpf_.+_created", "action": "drop"}
        return {
            "global": {"scrape_interval": f"{INTERVAL}s"},
            "scrape_configs": [
                {
                    "job_name": "gpubpf",
                    "static_configs": replica,
                    "relabel_configs": [instance],
                    "metric_relabel_configs": [drop],
                }
            ],
        }

    def own(self, name: str) -> float:
        lines = get(f"{self.url}/metrics").splitlines()
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def snapshot(self) -> int:
        """Bytes of all that it holds, as blocks."""
        request = urllib.request.Request(f"{self.url}/api/v1/admin/tsdb/snapshot", method="POST")
        with urllib.request.urlopen(request, timeout=300) as answer:
            name = json.loads(answer.read())["data"]["name"]
        files = (self._directory / "data" / "snapshots" / name).rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())


class Writing(Many):
    def __init__(self, directory: Path, target: str, store: str) -> None:
        self._store = store
        super().__init__(directory, target)

    def config(self, target: str) -> dict[str, Any]:
        return {**super().config(target), "remote_write": [{"url": f"{self._store}/api/v1/write"}]}


class Store(Many):
    program = later("victoria-metrics")

    def command(self, address: str, *options: str) -> list[str]:
        data = f"-storageDataPath={self._directory}/data"
        return [self.program, f"-httpListenAddr={address}", data, *options]

    def flushed(self) -> int:
        """Bytes of all that it has, as it would lie there later."""
        for what in ("flush", "merge"):
            get(f"{self.url}/internal/force_{what}")
        time.sleep(10)
        files = (self._directory / "data").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())


class Written(NamedTuple):
    wire: float  # bytes a sample
    bytes_per_series: float
    bytes_per_sample: float


class Found(NamedTuple):
    per_node: float  # series
    bytes_per_series: float  # of memory
    bytes_per_sample: float  # of disk


def measure() -> Found:
    with (
        tempfile.TemporaryDirectory() as directory,
        played(Path(directory), board="hopper") as (agent, _),
    ):
        target = agent.url.removeprefix("http://")
        server = Many(Path(directory) / "prometheus", target, "--web.enable-admin-api")
        try:
            time.sleep(2)
            empty = server.own("process_resident_memory_bytes")
            time.sleep(SECONDS)
            series = server.own("prometheus_tsdb_head_series")
            samples = server.own("prometheus_tsdb_head_samples_appended_total")
            memory = server.own("process_resident_memory_bytes")
            return Found(series / NODES, (memory - empty) / series, server.snapshot() / samples)
        finally:
            server.stop()


def stores() -> Written:
    with (
        tempfile.TemporaryDirectory() as directory,
        played(Path(directory), board="hopper") as (agent, _),
    ):
        target = agent.url.removeprefix("http://")
        store = Store(Path(directory) / "store", target)
        server = Writing(Path(directory) / "prometheus", target, store.url)
        try:
            time.sleep(2)
            empty = store.own("process_resident_memory_bytes")
            time.sleep(WRITING_SECONDS)
            series = server.own("prometheus_tsdb_head_series")
            sent = server.own("prometheus_remote_storage_samples_total")
            wire = server.own("prometheus_remote_storage_bytes_total") / sent
            memory = (store.own("process_resident_memory_bytes") - empty) / series
            rows = store.own("vm_rows_inserted_total")
            return Written(wire, memory, store.flushed() / rows)
        finally:
            server.stop()
            store.stop()


def of_stores(found: Written) -> str:
    return f"""\
Measured by `python -m tests.bench.sizing --stores` over {WRITING_SECONDS} seconds, on the same:

* {found.wire:.2f} bytes a sample on the wire from a Prometheus that writes
* {found.bytes_per_series:,.0f} bytes of VictoriaMetrics' memory a series
* {found.bytes_per_sample:.2f} bytes of its disk a sample, index and all: an upper bound
"""


def table(found: Found) -> str:
    each = found.per_node / GPUS
    lines = [
        f"Measured by `python -m tests.bench.sizing` over {SECONDS // 60} minutes, on {NODES} times"
        f" {GPUS} simulated H100",
        "boards, with `--probe all` and a job on each:",
        "",
        f"* {each:,.0f} series a GPU ({found.per_node:,.0f} a node of {GPUS} GPUs and {GPUS} jobs)",
        f"* {found.bytes_per_series:,.0f} bytes of a Prometheus's memory a series",
        f"* {found.bytes_per_sample:.2f} bytes of disk a sample, index and all",
        "",
        "| GPUs | nodes | series | samples/s at 15 s | memory | disk, 30 days | at 60 s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for gpus in (10, 1_000, 100_000):
        series = each * gpus
        rate = series / 15
        disk = rate * found.bytes_per_sample * 30 * DAY
        lines.append(
            f"| {gpus:,} | {-(-gpus // EACH_NODE):,} | {series:,.0f} | {rate:,.0f} |"
            f" {_size(series * found.bytes_per_series)} | {_size(disk)} | {_size(disk / 4)} |"
        )
    return "\n".join(lines) + "\n"


def _size(number: float) -> str:
    power = min(4, max(0, int(math.log(max(number, 1), 1024))))
    return f"{number / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.sizing", description=__doc__)
    parser.add_argument("--write", type=Path, help="between the markers of this file")
    parser.add_argument("--stores", action="store_true", help="a VictoriaMetrics instead")
    given = parser.parse_args()
    text = of_stores(stores()) if given.stores else table(measure())
    print(text, end="")
    if given.write is not None:
        old = given.write.read_text(encoding="utf-8")
        name = "stores" if given.stores else "sizing"
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, _, rest = old.partition(begin)
        given.write.write_text(before + begin + text + end + rest.partition(end)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
