"""The load that the agent is measured under: the simulated node with 8 GPUs and 64 processes."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

from tests.bench.agent import Agent, environment
from tests.bench.bench import DEVICES, PROCESSES, Bench, program
from tests.bench.caller import Caller, callers
from tests.fakegpu.node import Node

RATE = 20.0  # rounds a second of each process: a launch, an allocation, a free, a copy, a wait
ALL = ("--probe", "all")


@contextlib.contextmanager
def busy_node(bench: Bench, rate: float = RATE) -> Iterator[tuple[Node, list[Caller]]]:
    with (
        bench.node() as node,
        callers(PROCESSES, node.library, node.environment(), DEVICES, rate) as running,
    ):
        yield node, running


@contextlib.contextmanager
def agent_on(bench: Bench, node: Node, *options: str) -> Iterator[Agent]:
    """An agent that has seen everybody: it has looked a few times."""
    given = ("--nvml-library", str(node.nvml_library), "--library", str(node.library), *options)
    with Agent(*given, environment=environment(bench.scratch, node.environment())) as agent:
        agent.ready()
        time.sleep(5)
        yield agent


def churn(node: Node, seconds: float) -> int:
    """Processes that come, make a few calls and go, about 20 a second; how many there were."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        subprocess.run(
            [program("caller"), node.library, "all", "1", str(count % DEVICES)],
            env=node.environment(),
            input="run 7\n",
            stdout=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        count += 1
        time.sleep(0.05)
    return count
