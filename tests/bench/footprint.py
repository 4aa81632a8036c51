"""The agent's memory, at the start and after processes came and went; and its loader's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.agent import Agent, environment
from tests.bench.bench import DEVICES, PROCESSES, Bench
from tests.bench.machine import memory
from tests.bench.node_load import ALL, agent_on, busy_node, churn
from tests.bench.table import Mismatch, Row, at_most, ratios

NAME = "memory"
_LIMIT = 20.0  # MiB of PSS
_STEADY = 1.05


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    where = f"{DEVICES} GPUs, {PROCESSES} processes"
    with busy_node(bench) as (node, _), agent_on(bench, node, *ALL, "--process-metrics") as agent:
        agent.scrape()
        start = memory(agent.pid, node.path)
        kernel = _maps(agent.pid)
        count = 0
        for _ in range(4):  # a scrape every 15 seconds, as Prometheus may
            count += churn(node, bench.amount(15, 2))
            agent.scrape()
        time.sleep(3)
        end = memory(agent.pid, node.path)
        peak = agent.samples()["gpubpf_agent_loader_peak_bytes", ""] / 2**20
    yield Row(
        f"agent's memory (PSS), all probes, {where}", [start.pss], "MiB",
        goal=f"≤ {_LIMIT:g} MiB", met=start.pss <= _LIMIT,
    )  # fmt: skip
    yield Row("… of it private to the agent", [start.private], "MiB")
    yield Row("kernel memory of the maps, all probes", [kernel], "MiB")
    yield Row("… RSS", [start.rss], "MiB")
    grown = ratios([end.rss], [start.rss])
    yield Row(
        f"… RSS after {count:,} more processes came and went", [end.rss], "MiB",
        grown, "before", f"steady (≤ {_STEADY:g} times)", at_most(grown, _STEADY),
    )  # fmt: skip
    yield Row("loader's peak memory (a child that ends before the agent is ready)", [peak], "MiB")
    yield from _others(bench)


def _maps(pid: int) -> float:
    """Kernel memory of a process's BPF maps, MiB: it counts to its cgroup."""
    total = 0
    for about in Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = dict(line.split(":", 1) for line in about.read_text().splitlines() if ":" in line)
        total += int(fields["memlock"]) if "map_type" in fields else 0
    return total / 2**20


def _others(bench: Bench) -> Iterator[Row]:
    """Without a node: what the options cost."""
    usual = environment(bench.scratch)
    unprepared = {**environment(bench.scratch / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    for title, options, around in (
        ("default probes, without NVML", ("--no-nvml",), usual),
        ("the same, started without byte code", ("--no-nvml",), unprepared),
        ("default probes, NVIDIA's libnvidia-ml without a device", (), usual),
    ):
        with Agent(*options, environment=around) as agent:
            agent.ready()
            time.sleep(3)
            found = memory(agent.pid)
        yield Row(f"agent's memory (PSS), {title}", [found.pss], "MiB")
