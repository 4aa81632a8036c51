"""What the tests of the oracle by small programs share."""

from __future__ import annotations

from tests.fakegpu.node import Activity, Counts, Node
from tests.fakegpu.programs import run

START = """
0 cuInit 0
0 cuDevicePrimaryCtxRetain 1 0
0 cuDevicePrimaryCtxRetain 2 1
0 cuCtxSetCurrent 1
0 cuLibraryLoadData 1
0 cuLibraryGetKernel 1 1
0 cuStreamCreate 3 1
0 cuStreamCreate 4 1
0 cuCtxSetCurrent 2
0 cuStreamCreate 5 1
0 cuEventCreate 5 0
0 cuCtxSetCurrent 1
0 cuEventCreate 1 0
0 cuEventCreate 2 0
"""  # context 1 and streams 3, 4 on device 0; context 2, stream 5 and event 5 on device 1


def lines(text: str) -> list[str]:
    """The lines of a program: N x line is N times that line, "want N" behind one its result."""
    found: list[str] = []
    for line in text.strip().splitlines():
        times, sign, rest = line.strip().partition(" x ")
        found += [rest] * int(times) if sign else [times]
    return found


def counts(node: Node, text: str, start: str = START) -> Counts:
    """Runs a program; every call must succeed, or return what stands behind "want"."""
    program = [line.partition(" want ") for line in lines(start) + lines(text)]
    result = run(node, [line for line, _, _ in program])
    wanted = [int(want or 0) for _, _, want in program]
    told = [
        (line, code)
        for (line, _, _), code, want in zip(program, result.codes, wanted, strict=True)
        if code != want
    ]
    assert told == []
    return node.process(result.pid).counts


def at(counts: Counts, device: int) -> Activity:
    return counts.activity.get(device, Activity())
