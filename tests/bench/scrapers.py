"""Eight scrapers at once, each asking again as soon as it has its page."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterator

from tests.bench.bench import PROCESSES, Bench, program
from tests.bench.node_load import ALL, agent_on, busy_node
from tests.bench.table import Mismatch, Row

NAME = "scrapers"
_SCRAPERS = 8


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    found: dict[str, list[float]] = defaultdict(list)
    size = 0
    options = (*ALL, "--process-metrics")
    with busy_node(bench) as (node, _), agent_on(bench, node, *options) as agent:
        series = agent.samples()["gpubpf_agent_series", ""]
        for _ in range(bench.amount(3, 2)):
            before = agent.cpu()
            seconds = bench.amount(4, 2)
            said = subprocess.run(
                [program("scraper"), str(agent.port), str(_SCRAPERS), str(seconds)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            requests, failed, p50, p99, size = map(int, said.split())
            found["rate"].append(requests / seconds)
            found["failed"].append(failed)
            found["p50"].append(p50 / 1e3)
            found["p99"].append(p99 / 1e3)
            found["cpu"].append(1e3 * (agent.cpu() - before) / requests)
    what = f"{_SCRAPERS} scrapers at once ({series:.0f} series, {PROCESSES} processes, gzip)"
    yield Row(f"{what}: pages of {size / 1024:.0f} KiB a second", found["rate"], "/s")
    yield Row("… median time of a page", found["p50"], "ms")
    yield Row("… 99th percentile", found["p99"], "ms")
    yield Row("… agent's CPU per page", found["cpu"], "ms")
    failed_ones = found["failed"]
    yield Row("… failed", failed_ones, "", goal="0", met=not any(failed_ones))
