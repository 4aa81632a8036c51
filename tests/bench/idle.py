"""The agent's CPU with nobody scraping, at its default interval of a second."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from tests.bench.agent import cpu_share
from tests.bench.bench import DEVICES, PROCESSES, Bench
from tests.bench.node_load import ALL, agent_on, busy_node
from tests.bench.table import Mismatch, Row, at_most

NAME = "idle"
_LIMIT = 0.25  # % of a CPU


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    percent: list[float] = []
    reading: dict[str, list[float]] = defaultdict(list)
    with busy_node(bench) as (node, _), agent_on(bench, node, *ALL) as agent:
        for _ in range(bench.amount(3, 2)):
            with cpu_share(agent) as share:
                time.sleep(bench.amount(12, 3))
            percent += [100 * value for value in share]
        for _ in range(bench.amount(8, 3)):
            for source, seconds in agent.read_seconds().items():
                reading[source].append(1e3 * seconds)
            time.sleep(1)
    yield Row(
        f"agent's CPU, a look each second, all probes, {DEVICES} GPUs, {PROCESSES} processes",
        percent, "% of a CPU", goal=f"≤ {_LIMIT:g} %", met=at_most(percent, _LIMIT),
    )  # fmt: skip
    for source, values in reading.items():
        yield Row(f"… a read of {source} takes", values, "ms")
