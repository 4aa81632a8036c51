"""What gpubpf's series cost a Prometheus, measured: `python -m tests.bench.sizing --write FILE`.

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
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.scenes import SCENES, played

NODES = 40
INTERVAL = 5  # seconds between two scrapes
SECONDS = 420
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
    given = parser.parse_args()
    text = table(measure())
    print(text, end="")
    if given.write is not None:
        old = given.write.read_text(encoding="utf-8")
        begin, end = "<!-- sizing:begin -->\n", "<!-- sizing:end -->"
        before, _, rest = old.partition(begin)
        given.write.write_text(before + begin + text + end + rest.partition(end)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
