"""From the agent's start to its first answer "ready"; and how long its parts take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from gpubpf.bpf import attach
from gpubpf.bpf.load import load
from gpubpf.symbols import GROUPS, chosen
from tests.bench.agent import Agent, environment, free_port
from tests.bench.bench import Bench
from tests.bench.probing import opened
from tests.bench.table import Mismatch, Row, at_most

NAME = "start"
_LIMIT = 1.5
_CASES: dict[str, tuple[str, ...]] = {"default probes": (), "all probes": ("--probe", "all")}


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    seconds: dict[str, list[float]] = defaultdict(list)
    with bench.node() as node:
        around = environment(bench.scratch, node.environment())
        more = ("--nvml-library", str(node.nvml_library), "--library", str(node.library))
        for _ in range(bench.amount(7, 2)):
            for name, options in _CASES.items():
                with Agent(*options, *more, environment=around, port=free_port()) as agent:
                    seconds[name].append(agent.seconds_to_ready())
        for name, values in seconds.items():
            yield Row(
                f"start to ready, {name}", values, "s",
                goal=f"< {_LIMIT:g} s", met=at_most(values, _LIMIT),
            )  # fmt: skip
        for loading in (("launch", "memory"), GROUPS):
            yield _loading(bench, loading)
        for multi, groups in ((True, GROUPS), (False, ("wait",))):
            yield from _attaching(bench, node.library, groups, multi=multi)


def _loading(bench: Bench, groups: tuple[str, ...]) -> Row:
    values = []
    for _ in range(bench.amount(3, 1)):
        begin = time.monotonic()
        load(groups).close()
        values.append(time.monotonic() - begin)
    return Row(f"… of which compiling and loading {', '.join(groups)}", values, "s")


def _attaching(
    bench: Bench, library: Path, groups: tuple[str, ...], *, multi: bool
) -> Iterator[Row]:
    loaded = load(groups, multi=multi)
    attaching, detaching = [], []
    probed = 0
    for _ in range(bench.amount(3, 1)):
        with opened(library) as fd:
            begin = time.monotonic()
            attachment = attach.attach(loaded, chosen(groups), fd, str(library))
            attaching.append(1e3 * (time.monotonic() - begin))
        probed = sum(probe.probed for probe in attachment.probes)
        begin = time.monotonic()
        attach.detach(attachment.links)
        detaching.append(1e3 * (time.monotonic() - begin))
    loaded.close()
    how = "uprobe.multi links" if multi else "perf events (before Linux 6.6)"
    yield Row(f"attaching to {probed} functions by {how}", attaching, "ms")
    yield Row(f"detaching from {probed} functions by {how}", detaching, "ms")
