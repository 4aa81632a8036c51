"""Random programs of driver calls over several devices and threads, mostly valid.

A program is a list of steps, each a rule and three numbers; what they become depends on what there
is then (random_world.py). So a step can be left out of a program, and the rest still means
something: Hypothesis makes small ones of those that fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from tests.bpf import random_graphs, random_memory, random_rules
from tests.bpf.random_rules import Rule
from tests.bpf.random_world import NothingError, World
from tests.fakegpu.node import Node
from tests.fakegpu.programs import run

WHATEVER_COMES = (
    *("cuLaunch", "cuGraphLaunch", "cuEventRecord", "cuStreamWaitEvent"),
    *("cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize"),
)
"""Calls that a probe takes note of whatever they return: the first on entry, where it can't see
that one fails; a wait because time passed in it all the same."""

RULES: tuple[Rule, ...] = tuple(
    rule
    for rules in (random_rules.RULES, random_graphs.RULES, random_memory.RULES)
    for weight, rule in rules
    for _ in range(weight)
)
NAMES = tuple(dict.fromkeys(rule.__name__ for rule in RULES))
MOST_NUMBERS = 480  # of one kind; the interpreter has no room for more

Step = tuple[int, int, int, int, int]  # the thread, the rule, three numbers


@dataclass(frozen=True)
class Program:
    """`strange`: it does things that leave a watcher from outside in doubt, with good reason: it
    changes captured nodes that it only knows by listing them, and ends what is being captured."""

    devices: int
    threads: int
    strange: bool
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def written(
    devices: int, threads: int, strange: bool, furnished: bool, steps: list[Step]
) -> Program:
    """The program that steps make; `furnished`: there are streams on every device to begin with."""
    world = World(devices, threads, strange)
    world.say("cuInit", 0)
    for device in range(devices):
        world.say("cuDeviceGetUuid_v2", device)
    random_rules.retain(world, 0, 1, 0)
    world.say("cuLibraryLoadData", 1)
    world.say("cuLibraryGetKernel", random_rules.KERNEL, 1)
    for device in range(devices * furnished):
        random_rules.retain(world, device, 1, 0)
        random_rules.create_stream(world, 1, 1, 0)
        random_rules.create_stream(world, device, 1, 0)
    for thread, rule, x, y, z in steps:
        world.thread = thread % threads
        for other in (0, 71, 142):  # a rule that can't be followed gives way to others
            try:
                if not world.stacks[world.thread]:
                    random_rules.set_current(world, x % 20, 0, y)
                RULES[(rule + other) % len(RULES)](world, x, y, z)
            except NothingError:
                continue
            break
    return Program(devices, threads, strange, tuple(world.lines))


numbers = st.integers(0, 255)
steps = st.tuples(st.integers(0, 3), st.integers(0, len(RULES) - 1), numbers, numbers, numbers)


def programs(
    least: int = 0, most: int = 120, strange: st.SearchStrategy[bool] | None = None
) -> st.SearchStrategy[Program]:
    """Programs of about so many operations: one or a few a step."""
    return st.builds(
        written,
        st.integers(2, 3),
        st.integers(1, 4),
        st.just(False) if strange is None else strange,
        st.booleans(),
        st.lists(steps, min_size=least, max_size=most),
    )


def settled(node: Node, program: Program, library: Path | None = None) -> Program:
    """The program without the operations of WHATEVER_COMES that fail: tried on a library without
    probes, by default the simulated driver's plain one, until all that are left succeed."""
    lines = program.lines
    while True:
        codes = run(node, lines, library or node.plain_library).printed
        kept = tuple(
            line
            for line, code in zip(lines, codes, strict=True)
            if code == "0" or not line[2:].startswith(WHATEVER_COMES)
        )
        if kept == lines:
            return Program(program.devices, program.threads, program.strange, lines)
        lines = kept
