"""Six processes that do what the diagnoses are about, and one that does nothing wrong; each on a
GPU of its own of a simulated node.

    .venv/bin/python -m tests.fakegpu.scenes             plays them and says what the page says
    .venv/bin/python -m tests.fakegpu.scenes --write README.md
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpubpf.diagnosis import DIAGNOSES
from tests.conftest import BUILD, Agent, Metrics, eventually
from tests.fakegpu.node import Device, Node
from tests.fakegpu.nvml_control import SIMULATED, NvmlControl
from tests.fakegpu.programs import Interpreter
from tests.fakegpu.small_programs import lines

MIB = 1 << 20
BEAT = 0.05  # seconds between two rounds of a process
WELL = "trainer"  # who does nothing wrong
JOBS = "environ:JOB"
_ROUND = "5 x 0 cuLaunchKernel 1 1\n0 cuStreamSynchronize 1"  # of 5 ms each: half of the time

THRESHOLDS = (
    "window_seconds=1,idle_seconds=2,stalled_seconds=2,growth_seconds=2,launch_bound_rate=500"
)
"""Seconds for what takes minutes: nobody waits for an example for so long."""


class Scene(NamedTuple):
    """What a process does; its lines are `gpubpf`'s test language (program.c)."""

    what: str
    begin: str = ""
    round: str = ""  # each BEAT
    end: str = ""  # before it does as WELL does
    kernel_ns: int = 5_000_000  # how long each of its kernels takes


SCENES: dict[str, Scene] = {
    WELL: Scene(
        "launches a few kernels of 5 ms each, waits for them, copies a little, and so on",
        begin="0 cuMemAlloc 2 4096",
        round=f"{_ROUND}\n0 cuMemcpy 2 2 4096",
    ),
    "idle_holder": Scene(
        "allocates 16 MiB, launches one kernel, and then nothing",
        begin=f"0 cuMemAlloc 2 {16 * MIB}\n0 cuLaunchKernel 1 1",
    ),
    "stalled": Scene(
        "allocates 16 MiB, launches a kernel that doesn't end, and nothing after it",
        begin=f"0 cuMemAlloc 2 {16 * MIB}\n0 cuLaunchKernel 1 1",
        kernel_ns=3600 * 10**9,
    ),
    "launch_bound": Scene(
        "launches kernels of 5 µs, hundreds between two waits",
        round="100 x 0 cuLaunchKernel 1 1",
        kernel_ns=5_000,
    ),
    "memory_churn": Scene(
        "trains, and allocates and frees a buffer in its inner loop",
        begin="0 cuMemAlloc 2 4096",
        round="\n".join([_ROUND, *["0 cuMemAlloc 3 4096", "0 cuMemFree 3"] * 40]),
    ),
    "memory_growth": Scene(
        "trains, and keeps 64 KiB more in each round",
        begin="0 cuMemAlloc 2 4096",
        round=f"{_ROUND}\n0 cuMemAlloc NEW {64 << 10}",
        end="0 cuMemFree ALL",
    ),
    "near_full": Scene(
        "trains in 62 of 64 MiB",
        begin=f"0 cuMemAlloc 2 {62 * MIB}",
        round=_ROUND,
        end="0 cuMemFree 2",
    ),
}
_START = """0 cuInit 0
0 cuDevicePrimaryCtxRetain 1 {gpu}
0 cuCtxSetCurrent 1
0 cuLibraryLoadData 1
0 cuLibraryGetKernel 1 1
0 cuStreamCreate 1 1"""
_FIRST_NEW, _LAST_NEW = 10, 500  # addresses of its buffers that stay


class Player(threading.Thread):
    """A process that plays a scene, until `recover`, and then does as WELL does, until `stop`."""

    def __init__(self, node: Node, gpu: int, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._node = node
        self._gpu = gpu
        self._scene = SCENES[name]
        self._recovering = threading.Event()
        self._stopping = threading.Event()
        self._kept = _FIRST_NEW
        self._inside = Interpreter(node, environment={"JOB": name})
        self._do(_START.format(gpu=gpu))

    def recover(self) -> None:
        self._recovering.set()

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)
        self._inside.__exit__(None, None, None)

    def run(self) -> None:
        self._do(self._scene.begin)
        while not self._recovering.is_set() and not self._stopping.wait(BEAT):
            self._do(self._scene.round)
        self._do(self._scene.end)
        self._node.set_kernel_time(self._gpu, SCENES[WELL].kernel_ns)
        # What a kernel without end keeps busy it keeps busy: its rounds only launch.
        stuck = self._scene.kernel_ns > 10**9
        well = _ROUND.split("\n")[0] if stuck else _ROUND
        while not self._stopping.wait(BEAT):
            self._do(well)

    def _do(self, text: str) -> None:
        program = lines(text) if text else []
        told = [line for row in program for line in self._numbered(row)]
        self._inside.tell(told)
        for line, said in zip(told, self._inside.hear(len(told)), strict=True):
            if said != "0":
                raise RuntimeError(f"{self.name}: {line} said {said}")

    def _numbered(self, line: str) -> Iterator[str]:
        if " ALL" in line:
            yield from (line.replace("ALL", str(n)) for n in range(_FIRST_NEW, self._kept))
        elif " NEW" in line:
            if self._kept == _LAST_NEW:  # it can't grow for ever
                yield from self._numbered("0 cuMemFree ALL")
                self._kept = _FIRST_NEW
            yield line.replace("NEW", str(self._kept))
            self._kept += 1
        else:
            yield line


@contextlib.contextmanager
def played(
    directory: Path, board: str = "", spare: int = 0, jobs: str = JOBS, options: Sequence[str] = ()
) -> Iterator[tuple[Agent, dict[str, Player]]]:
    """All scenes on one node, and an agent that looks at it. `board`: one of the simulated NVML's,
    for its figures; memory and utilization are the scenes' own all the same. `spare`: so many more
    devices, which nobody uses."""
    devices = [
        Device(memory_bytes=64 * MIB, kernel_ns=scene.kernel_ns) for scene in SCENES.values()
    ]
    devices += [Device(memory_bytes=64 * MIB)] * spare
    with Node(BUILD, directory / "scenes", devices=devices) as node:
        if board:
            _give(node, board, devices)
        agent = Agent(
            "--library", str(node.library), "--nvml-library", str(node.nvml_library),
            "--control-socket", "", "--probe", "all", "--jobs", jobs,
            "--thresholds", THRESHOLDS, *options, environment=node.environment(),
        )  # fmt: skip
        players = {name: Player(node, gpu, name) for gpu, name in enumerate(SCENES)}
        try:
            for player in players.values():
                player.start()
            yield agent, players
        finally:
            for player in players.values():
                player.stop()
            agent.stop()


def _give(node: Node, board: str, devices: list[Device]) -> None:
    control = NvmlControl(node.path)
    for number, device in enumerate(devices):
        control.board(number, board)
        control.figures(number, utilization=SIMULATED)
        node.set_device(number, device)
    control.close()


def diagnosed(metrics: Metrics, name: str = "gpubpf_job_diagnosis") -> dict[str, dict[str, float]]:
    """By job: diagnosis -> 1 or 0."""
    found: dict[str, dict[str, float]] = {}
    for (sample, labels), number in metrics.items():
        of = dict(labels)
        if sample == name:
            who = of.get("job_id") or [*SCENES][int(of["gpu"])]
            found.setdefault(who, {})[of["diagnosis"]] = number
    return found


def on(metrics: Metrics, name: str = "gpubpf_job_diagnosis") -> dict[str, set[str]]:
    """By job: the diagnoses that hold."""
    return {
        job: {diagnosis for diagnosis, number in row.items() if number}
        for job, row in diagnosed(metrics, name).items()
    }


def expected() -> dict[str, set[str]]:
    return {name: {name} - {WELL} for name in SCENES}


# --- the README's examples ----------------------------------------------------------------------


def _inputs(metrics: Metrics, job: str) -> Mapping[str, float]:
    return {
        of["input"]: number
        for (sample, labels), number in metrics.items()
        if sample == "gpubpf_job_diagnosis_input" and (of := dict(labels))["job_id"] == job
    }


def _rows(metrics: Metrics) -> Iterable[tuple[str, ...]]:
    """Job, what it does, its inputs, what holds; names in backquotes."""
    holding = on(metrics)
    for name, scene in SCENES.items():
        inputs = _inputs(metrics, name)
        needs = DIAGNOSES[name].needs if name in DIAGNOSES else ("utilization_ratio", "wait_ratio")
        shown = ", ".join(f"`{need}` {_figure(inputs[need])}" for need in needs)
        held = ", ".join(f"`{d}`" for d in sorted(holding[name])) or "none"
        yield name, scene.what, shown, held


def _as_markdown(rows: Iterable[tuple[str, ...]]) -> str:
    head = ("job", "what it does", "its inputs, of those that the diagnosis needs", "holds")
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _as_text(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [
        line
        for name, *rest in rows
        for line in (
            f"{name}:",
            *(
                part
                for text in (rest[0], rest[1].replace("`", ""), f"-> {rest[2].replace('`', '')}")
                for part in textwrap.wrap(text, 78, initial_indent="  ", subsequent_indent="    ")
            ),
        )
    ]
    return "\n".join(lines) + "\n"


def _figure(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fakegpu.scenes", description=__doc__)
    parser.add_argument("--write", type=Path, help="between the markers of this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, played(Path(directory)) as (agent, _):
        seen = eventually(agent.metrics, lambda metrics: on(metrics) == expected(), 30)
        time.sleep(1)
        rows = [*_rows(agent.metrics())]
    if given.write is None:
        print(_as_text(rows), end="")
    else:
        text = given.write.read_text(encoding="utf-8")
        begin, end = "<!-- scenes:begin -->\n", "<!-- scenes:end -->"
        before, _, rest = text.partition(begin)
        given.write.write_text(before + begin + _as_markdown(rows) + end + rest.partition(end)[2])
    return int(on(seen) != expected())


if __name__ == "__main__":
    sys.exit(main())
