"""Counts at the highest rate, and the agent's CPU at several rates: aggregation is in the kernel,
so the agent should not notice how often something happens."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from tests.bench.agent import Agent, cpu_share, environment
from tests.bench.bench import Bench
from tests.bench.caller import Caller
from tests.bench.table import Mismatch, Row, at_most, ratios

NAME = "counting"
_FUNCTION = "cuLaunchKernel"
_RATES = {"no launches": 0, "10,000 launches/s": 1e4, "100,000 launches/s": 1e5, "the most": -1}
_SAME = 1.5  # times: noise is allowed, not a cost per launch
_THREADS = 2


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    library = bench.library()
    options = ("--probe", "launch", "--no-nvml", "--process-metrics", "--library", str(library))
    with (
        Agent(*options, environment=environment(bench.scratch)).ready() as agent,
        Caller(library, "launch", _THREADS) as caller,
    ):
        caller.wait_until(probed=True)
        made = 0
        reached: dict[str, list[float]] = defaultdict(list)
        shares: dict[str, list[float]] = defaultdict(list)
        for _ in range(bench.amount(3, 2)):
            for name, rate in _RATES.items():
                caller.pace(rate)
                begin = time.monotonic()
                with cpu_share(agent) as share:
                    time.sleep(bench.amount(5, 2))
                rounds = caller.end_pace()
                reached[name].append(rounds / (time.monotonic() - begin))
                shares[name] += share
                made += rounds
        time.sleep(1.5)  # a look at what came last
        counted = agent.calls(_FUNCTION, caller.pid)
    if counted != made:
        yield Mismatch(f"{counted:.0f} launches counted, {made} made")
    yield Row(f"launches counted, of {made:,} made", [counted], "", met=counted == made, goal="all")
    yield Row(f"the most launches a second, {_THREADS} threads", reached["the most"], "/s")
    for name, values in shares.items():
        percent = [100 * share for share in values]
        if name == "no launches":
            yield Row(f"agent's CPU, {name}", percent, "% of a CPU")
            continue
        same = ratios(values, shares["no launches"])
        yield Row(
            f"agent's CPU, {name}", percent, "% of a CPU",
            same, "no launches", f"the same (≤ {_SAME:g} times)", at_most(same, _SAME),
        )  # fmt: skip
