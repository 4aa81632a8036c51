"""A round of all NVML samples of 8 GPUs, against the calls of the round by themselves.

The calls are recorded from one round and made again one after the other, with the same arguments
and nothing done with what they answer. Both sides pay Python's price for a foreign call, and the
simulated driver's, which is far less than a real one's: what is left is what gpubpf adds, at worst.
Each call made to take as long as a quick call of a real driver (20 µs) shows what that is of a
real round.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpubpf.model import CLASSES
from gpubpf.nvml import Nvml
from gpubpf.nvml.library import Library
from tests.bench.agent import cpu_share
from tests.bench.bench import DEVICES, PROCESSES, Bench
from tests.bench.node_load import agent_on, busy_node
from tests.bench.table import Mismatch, Row, at_most, ratios
from tests.fakegpu.nvml_control import NvmlControl

NAME = "sampling"
BOARD = "hopper"
_TIMES = 1.3
_CPU = 1.0  # % of a core
_REAL_US = 20

_Call = tuple[Any, tuple[Any, ...]]


class _Recording(Library):
    """Notes the calls that go through it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.calls: list[_Call] = []

    def function(self, *names: str) -> Any:
        function = super().function(*names)
        if function is None:
            return None

        def noted(*arguments: Any) -> Any:
            self.calls.append((function, arguments))
            return function(*arguments)

        return noted


def _recorded(path: str) -> tuple[Nvml, list[_Call]]:
    nvml = Nvml(path)
    library = _Recording(path)
    nvml._library = library
    nvml.read()
    time.sleep(0.11)
    library.calls.clear()
    nvml.read()
    return nvml, list(library.calls)


def _milliseconds(function: Callable[[], object]) -> float:
    time.sleep(0.11)  # GPM wants 100 ms between two samples
    begin = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - begin)


def _slowed(calls: list[_Call]) -> None:
    for function, arguments in calls:
        end = time.perf_counter() + _REAL_US / 1e6
        function(*arguments)
        while time.perf_counter() < end:
            pass


def _alone(calls: list[_Call]) -> None:
    for function, arguments in calls:
        function(*arguments)


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    with busy_node(bench) as (node, _):
        control = NvmlControl(node.path)
        for device in range(DEVICES):
            control.board(device, BOARD)
        copy = bench.scratch / "sampled" / "libnvidia-ml.so.1"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(node.nvml_library, copy)
        before = dict(os.environ)
        os.environ.update(node.environment())
        try:
            yield from _rounds(bench, copy)
        finally:
            os.environ.clear()
            os.environ.update(before)
        percent: list[float] = []
        with agent_on(bench, node) as agent:
            for _ in range(bench.amount(3, 1)):
                with cpu_share(agent) as share:
                    time.sleep(bench.amount(30, 6))  # every class has its turn
                percent += [100 * value for value in share]
    yield Row(
        f"agent's CPU, default options, {DEVICES} GPUs with GPM and NVLink, {PROCESSES} processes",
        percent, "% of a CPU", goal=f"≤ {_CPU:g} %", met=at_most(percent, _CPU),
    )  # fmt: skip


def _rounds(bench: Bench, library: Path) -> Iterator[Row]:
    recorded, calls = _recorded(str(library))
    nvml = Nvml(str(library))
    nvml.read()
    rounds: list[float] = []
    alone: list[float] = []
    slowed: list[float] = []
    for _ in range(bench.amount(40, 10)):
        rounds.append(_milliseconds(lambda: nvml.sample(CLASSES)))
        alone.append(_milliseconds(lambda: _alone(calls)))
        slowed.append(_milliseconds(lambda: _slowed(calls)))
    nvml.close()
    recorded.close()
    title = f"a round of all classes, {DEVICES} GPUs, {PROCESSES} processes, {len(calls)} calls"
    yield Row(title, rounds, "ms", ratios(rounds, alone), "the calls alone, simulated driver")
    added = [more - less for more, less in zip(rounds, alone, strict=True)]
    real = [cost + more for cost, more in zip(slowed, added, strict=True)]
    times = ratios(real, slowed)
    yield Row(
        f"… with {_REAL_US} µs a call", real, "ms", times, "the calls alone",
        f"≤ {_TIMES:g}", at_most(times, _TIMES),
    )  # fmt: skip
