"""The agent starts after the processes: what can't be known is `unknown`, and becomes known as soon
as the process says it. Nothing is ever given to a wrong device.

A program begins before the probes are attached and goes on under them. The oracle's figures from
before are taken away from those at the end: what is left is what happened since.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpubpf.bpf.attach import Attachment, attach, detach
from gpubpf.symbols import KINDS
from tests.bpf.probing import Probing, own_node, probing
from tests.bpf.random_programs import Program, programs, settled
from tests.fakegpu.node import Activity, Counts, Memory, Node
from tests.fakegpu.programs import Interpreter
from tests.fakegpu.small_programs import START, lines

Facts = dict[str, list[int]]

DEVICES = 3


class Rig:
    """A simulated node, and programs in the kernel that are attached to its library when told."""

    def __init__(self, node: Node, probes: Probing) -> None:
        self.node = node
        self.probes = probes

    @contextmanager
    def attached(self) -> Iterator[None]:
        with self.node.library.open("rb") as library:
            attachment: Attachment = attach(
                self.probes.loaded, self.probes.symbols, library.fileno(), "the simulated library"
            )
        try:
            yield
        finally:
            detach(attachment.links)

    def devices_of(self, pid: int) -> dict[int | None, Facts]:
        return self.probes.devices_of(pid)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with own_node(tmp_path_factory.mktemp("late"), DEVICES) as node, probing() as probes:
        yield Rig(node, probes)
        probes.read()
        assert probes.latest is not None
        assert not any(probes.latest.lost.values())


def do(process: Interpreter, text: str) -> None:
    """Does the lines of a small program; all succeed."""
    program = [line for line in lines(text) if line]
    process.tell(program)
    told = process.hear(len(program))
    assert set(told) <= {"0"}, list(zip(program, told, strict=True))


def fact(rig: Rig, process: Interpreter, name: str) -> dict[int | None, int]:
    """One fact by device, zeros left out."""
    rows = rig.devices_of(process.pid)
    return {device: sum(facts[name]) for device, facts in rows.items() if sum(facts[name])}


def launches(rig: Rig, process: Interpreter) -> dict[int | None, int]:
    return fact(rig, process, "kernel_launches")


@contextmanager
def late(rig: Rig, before: str = "") -> Iterator[Interpreter]:
    """A process with contexts 1 and 2 on devices 0 and 1, streams 3 and 4 on device 0 and 5 on
    device 1, which did `before` as well; the probes come after that. Context 1 is current."""
    with Interpreter(rig.node) as process:
        do(process, START + before)
        with rig.attached():
            yield process


# --- what it says, and what is known then --------------------------------------------------------

TOLD = {
    "cuCtxGetDevice": ("0 cuCtxGetDevice", "0 cuLaunchKernel 1 0", 0),
    "cuCtxGetDevice_v2 of the current one": ("0 cuCtxGetDevice_v2 0", "0 cuLaunchKernel 1 0", 0),
    "cuCtxGetDevice_v2, then made current": (
        "0 cuCtxGetDevice_v2 2 \n 0 cuCtxSetCurrent 2",
        "0 cuLaunchKernel 1 0",
        1,
    ),
    "cuCtxGetCurrent, of a context that another thread told": (
        "0 cuCtxGetCurrent \n 1 cuCtxSetCurrent 1 \n 1 cuCtxGetDevice",
        "0 cuLaunchKernel 1 0",
        0,
    ),
    "cuCtxGetCurrent, of a primary context that is retained again": (
        "0 cuCtxGetCurrent \n 1 cuDevicePrimaryCtxRetain 3 0",
        "0 cuLaunchKernel 1 0",
        0,
    ),
    "cuCtxSetCurrent, of a context that another thread told": (
        "1 cuCtxSetCurrent 2 \n 1 cuCtxGetDevice \n 0 cuCtxSetCurrent 2",
        "0 cuLaunchKernel 1 0",
        1,
    ),
    "cuDevicePrimaryCtxRetain and made current": (
        "0 cuDevicePrimaryCtxRetain 2 1 \n 0 cuCtxSetCurrent 2",
        "0 cuLaunchKernel 1 0",
        1,
    ),
    "cuCtxCreate": ("0 cuCtxCreate_v2 7 0 2", "0 cuLaunchKernel 1 0", 2),
    "cuStreamGetDevice": ("0 cuStreamGetDevice 5", "0 cuLaunchKernel 1 5", 1),
    "cuStreamGetCtx, of a context that is known": (
        "0 cuDevicePrimaryCtxRetain 2 1 \n 0 cuStreamGetCtx 5",
        "0 cuLaunchKernel 1 5",
        1,
    ),
    "a thread's own stream": ("0 cuCtxGetDevice", "0 cuLaunchKernel 1 2", 0),
    "the legacy stream by its name": ("0 cuCtxGetDevice", "0 cuLaunchKernel_ptsz 1 1", 0),
}


@pytest.mark.parametrize(("telling", "launch", "device"), TOLD.values(), ids=TOLD)
def test_what_is_told_is_known(rig: Rig, telling: str, launch: str, device: int) -> None:
    """Before it is told, it is unknown."""
    with late(rig) as process:
        do(process, "3 x " + launch)
        assert launches(rig, process) == {None: 3}
        do(process, telling.replace(" \n ", "\n"))
        do(process, "2 x " + launch)
        assert launches(rig, process) == {None: 3, device: 2}


def test_what_one_thread_tells_is_not_known_of_another(rig: Rig) -> None:
    with late(rig, "1 cuCtxSetCurrent 2") as process:
        do(process, "0 cuCtxGetDevice\n 3 x 0 cuLaunchKernel 1 0\n 2 x 1 cuLaunchKernel 1 0")
        assert launches(rig, process) == {0: 3, None: 2}
        do(process, "1 cuCtxGetDevice\n 1 cuLaunchKernel 1 0\n 0 cuLaunchKernel 1 0")
        assert launches(rig, process) == {0: 4, 1: 1, None: 2}


def test_a_process_that_begins_after_the_probes_is_known_whole(rig: Rig) -> None:
    with rig.attached(), Interpreter(rig.node) as process:
        do(process, START + "3 x 0 cuLaunchKernel 1 0\n 2 x 0 cuLaunchKernel 1 5")
        assert launches(rig, process) == {0: 3, 1: 2}


# --- what it doesn't say is never taken for another device ---------------------------------------

NOT_TOLD = {
    "a stream from before, of another device": (
        "",
        "0 cuCtxGetDevice",
        "0 cuLaunchKernel 1 5",
        {None: 1},
    ),
    "a copy in a stream from before, of another device": (
        "0 cuMemAlloc_v2 1 4096",
        "0 cuCtxGetDevice",
        "0 cuMemcpyHtoDAsync_v2 1 1 5",
        {},
    ),
    "the device of another context than the current one": (
        "",
        "0 cuCtxSetCurrent 2\n 0 cuCtxGetDevice_v2 1\n 1 cuCtxSetCurrent 2\n 1 cuCtxGetDevice_v2 1",
        "1 cuLaunchKernel 1 0",
        {None: 1},
    ),
    "the device of another context, asked by a thread of which nothing is known": (
        "1 cuCtxSetCurrent 2",
        "1 cuCtxGetDevice_v2 1",
        "1 cuLaunchKernel 1 0",
        {None: 1},
    ),
    "a context is destroyed, and the one below is another device's": (
        "0 cuCtxSetCurrent 2\n 0 cuCtxCreate_v2 7 0 0",
        "0 cuCtxGetDevice\n 0 cuCtxDestroy_v2 7",
        "0 cuLaunchKernel 1 0",
        {None: 1},
    ),
    "a context is popped, and the one below is another device's": (
        "0 cuCtxPushCurrent_v2 2",
        "0 cuCtxGetDevice\n 0 cuCtxPopCurrent_v2",
        "0 cuLaunchKernel 1 0",
        {None: 1},
    ),
    "a thread's own stream in another context": (
        "0 cuCtxPushCurrent_v2 2",
        "0 cuStreamGetDevice 2\n 0 cuCtxPopCurrent_v2",
        "0 cuLaunchKernel 1 2",
        {None: 1},
    ),
    "cuInit once more": (
        "",
        "0 cuInit 0\n 0 cuCtxCreate_v2 7 0 2\n 0 cuCtxPopCurrent_v2",
        "0 cuLaunchKernel 1 0\n 0 cuLaunchKernel 1 5",
        {None: 2},
    ),
    "cuInit once more, by another thread": (
        "1 cuCtxSetCurrent 2",
        "0 cuInit 0\n 0 cuCtxCreate_v2 7 0 2",
        "1 cuLaunchKernel 1 0\n 0 cuLaunchKernel 1 5",
        {None: 2},
    ),
}


@pytest.mark.parametrize(("before", "telling", "rest", "expected"), NOT_TOLD.values(), ids=NOT_TOLD)
def test_what_is_not_told_is_unknown(
    rig: Rig, before: str, telling: str, rest: str, expected: dict[int | None, int]
) -> None:
    with late(rig, before) as process:
        do(process, telling)
        do(process, rest)
        assert launches(rig, process) == expected
        copied = fact(rig, process, "copied_bytes")
        assert copied.keys() <= {None}


def test_memory_from_before_of_another_device(rig: Rig) -> None:
    """Any context may free it: neither its kind nor its device is known."""
    before = """
        0 cuCtxSetCurrent 2
        0 cuMemAlloc_v2 1 4096
        0 cuMemAllocManaged 2 4096
        0 cuMemAllocAsync 3 4096 5
        0 cuMemCreate 1 2097152 1
        0 cuCtxSetCurrent 1
        """
    with late(rig, before) as process:
        do(process, "0 cuCtxGetDevice\n 0 cuMemAlloc_v2 9 1000\n 0 cuMemFree_v2 9")
        do(process, "0 cuMemFree_v2 1\n 0 cuMemFree_v2 2\n 0 cuMemFreeAsync 3 3\n 0 cuMemRelease 1")
        rows = rig.devices_of(process.pid)
        kinds = {
            device: {kind: n for kind, n in zip(KINDS, facts["frees"], strict=True) if n}
            for device, facts in rows.items()
            if any(facts["frees"])
        }
        assert kinds == {0: {"device": 1}, None: {"unknown": 4}}
        held = rig.probes.live_of(process.pid)
        assert {device: live for device, (live, _) in held.items() if live} == {}


def test_a_pool_from_before_of_another_device(rig: Rig) -> None:
    """The stream's device needn't be the pool's."""
    with late(rig, "0 cuMemPoolCreate 1 1") as process:
        do(process, "0 cuStreamGetDevice 3\n 0 cuMemAllocFromPoolAsync 1 4096 1 3")
        assert fact(rig, process, "allocations") == {None: 1}


def test_an_event_from_before_of_another_device(rig: Rig) -> None:
    with late(rig, "0 cuEventRecord 5 5") as process:
        do(process, "0 cuCtxGetDevice\n 0 cuEventSynchronize 5")
        assert fact(rig, process, "waits") == {None: 1}


def test_an_event_recorded_in_a_stream_from_before(rig: Rig) -> None:
    with late(rig) as process:
        do(process, "0 cuCtxGetDevice\n 0 cuEventRecord 5 5\n 0 cuEventSynchronize 5")
        assert fact(rig, process, "waits") == {None: 1}
        do(process, "0 cuStreamGetDevice 5\n 0 cuEventRecord 5 5\n 0 cuEventSynchronize 5")
        assert fact(rig, process, "waits") == {None: 1, 1: 1}


def test_a_stream_stays_known(rig: Rig) -> None:
    """What is asked of it later tells no less than what is known."""
    with late(rig) as process:
        do(process, "0 cuCtxGetDevice\n 0 cuStreamCreate 9 1\n 0 cuCtxSetCurrent 2")
        do(process, "0 cuLaunchKernel 1 9\n 0 cuStreamGetCtx 9\n 2 x 0 cuLaunchKernel 1 9")
        assert launches(rig, process) == {0: 3}


# --- captures and graphs -------------------------------------------------------------------------


def test_a_capture_from_before(rig: Rig) -> None:
    """It can't be seen that its launches don't run, and the graph's kernels aren't known."""
    with late(rig, "0 cuStreamBeginCapture_v2 3 2\n 0 cuLaunchKernel 1 3") as process:
        do(process, "0 cuStreamGetDevice 3\n 2 x 0 cuLaunchKernel 1 3\n 0 cuStreamEndCapture 3 1")
        assert launches(rig, process) == {0: 2}
        assert fact(rig, process, "captured_launches") == {}
        do(process, "0 cuGraphInstantiateWithFlags 1 1 0\n 3 x 0 cuGraphLaunch 1 3")
        assert fact(rig, process, "graph_launches") == {0: 3}
        assert fact(rig, process, "unknown_graph_launches") == {0: 3}
        assert fact(rig, process, "graph_kernels") == {}
        do(process, "0 cuStreamBeginCapture_v2 3 2\n 5 x 0 cuLaunchKernel 1 3")
        do(process, "0 cuStreamEndCapture 3 2\n 0 cuLaunchKernel 1 3")
        assert fact(rig, process, "captured_launches") == {0: 5}
        assert launches(rig, process) == {0: 3}


def test_an_instance_from_before_is_known_once_it_is_updated(rig: Rig) -> None:
    before = """
        0 cuStreamBeginCapture_v2 3 2
        2 x 0 cuLaunchKernel 1 3
        0 cuStreamEndCapture 3 1
        0 cuGraphInstantiateWithFlags 1 1 0
        """
    with late(rig, before) as process:
        do(process, "0 cuStreamGetDevice 3\n 3 x 0 cuGraphLaunch 1 3")
        assert fact(rig, process, "graph_launches") == {0: 3}
        assert fact(rig, process, "unknown_graph_launches") == {0: 3}
        assert fact(rig, process, "graph_kernels") == {}
        do(process, "0 cuGraphExecUpdate_v2 1 1\n 0 cuGraphLaunch 1 3")
        assert fact(rig, process, "unknown_graph_launches") == {0: 4}
        capture = "0 cuStreamBeginCapture_v2 3 2\n 2 x 0 cuLaunchKernel 1 3"
        do(process, capture + "\n 0 cuStreamEndCapture 3 2\n 0 cuGraphExecUpdate_v2 1 2")
        do(process, "5 x 0 cuGraphLaunch 1 3")
        assert fact(rig, process, "graph_launches") == {0: 9}
        assert fact(rig, process, "unknown_graph_launches") == {0: 4}
        assert fact(rig, process, "graph_kernels") == {0: 10}


def test_a_graph_from_before_makes_others_unknown(rig: Rig) -> None:
    before = "0 cuGraphCreate 1\n 0 cuGraphAddKernelNode 1 1 - 1"
    with late(rig, before) as process:
        do(process, "0 cuStreamGetDevice 3\n 0 cuGraphClone 2 1\n 0 cuGraphCreate 3")
        do(process, "0 cuGraphAddChildGraphNode 2 3 - 1")
        for number in (1, 2, 3):
            do(process, f"0 cuGraphInstantiateWithFlags {number} {number} 0")
            do(process, f"0 cuGraphLaunch {number} 3")
        assert fact(rig, process, "graph_launches") == {0: 3}
        assert fact(rig, process, "unknown_graph_launches") == {0: 3}


def test_a_node_of_a_function_from_before(rig: Rig) -> None:
    """It runs where its module was loaded, whatever is current and where the graph is launched."""
    before = """
        0 cuCtxSetCurrent 2
        0 cuModuleLoadData 2
        0 cuModuleGetFunction 2 2
        0 cuCtxSetCurrent 1
        """
    with late(rig, before) as process:
        do(process, "0 cuCtxGetDevice\n 0 cuStreamGetDevice 3\n 0 cuGraphCreate 1")
        do(process, "0 cuGraphAddKernelNode 1 1 - 2\n 0 cuGraphInstantiateWithFlags 1 1 0")
        do(process, "0 cuGraphLaunch 1 3")
        assert fact(rig, process, "graph_launches") == {0: 1}
        assert fact(rig, process, "graph_kernels").keys() <= {None}


def test_a_capture_that_a_stream_from_before_joins(rig: Rig) -> None:
    with late(rig) as process:
        do(process, "0 cuCtxGetDevice\n 0 cuStreamGetDevice 3\n 0 cuStreamBeginCapture_v2 3 2")
        do(process, "0 cuEventRecord 1 3\n 0 cuStreamWaitEvent 5 1 0\n 0 cuLaunchKernel 1 5")
        do(process, "0 cuEventRecord 5 5\n 0 cuStreamWaitEvent 3 5 0\n 0 cuLaunchKernel 1 3")
        do(process, "0 cuStreamEndCapture 3 1\n 0 cuGraphInstantiateWithFlags 1 1 0")
        assert fact(rig, process, "captured_launches") == {0: 1, None: 1}
        do(process, "0 cuGraphLaunch 1 3\n 0 cuLaunchKernel 1 5")
        kernels = fact(rig, process, "graph_kernels")
        assert kernels[0] == 1
        assert sum(kernels.values()) == 2
        assert launches(rig, process) == {None: 1}


# --- memory --------------------------------------------------------------------------------------


def test_a_context_that_is_told_and_retained_keeps_its_memory(rig: Rig) -> None:
    """That a context known by another's word turns out to be a primary one makes it no other."""
    with late(rig) as process:
        do(process, "0 cuCtxGetCurrent\n 0 cuCtxGetDevice\n 0 cuMemAlloc_v2 1 3000000")
        do(process, "0 cuDevicePrimaryCtxRetain 3 0")
        footprints = {
            ordinal: footprint.live
            for (owner, ordinal), footprint in rig.probes.maps.footprints().items()
            if owner.pid == process.pid
        }
        assert footprints == {0: 3000000}
        do(process, "0 cuMemFree_v2 1")
        rows = rig.devices_of(process.pid)
        frees = dict(zip(KINDS, rows[0]["frees"], strict=True))
        assert frees["device"] == 1
        assert rig.probes.live_of(process.pid)[0][0] == 0


def test_known_before_there_is_a_home(rig: Rig) -> None:
    """Physical memory, and a stream that is told, say their devices before any context does."""
    with rig.attached(), Interpreter(rig.node) as process:
        do(process, "0 cuInit 0\n 0 cuMemCreate 1 2097152 0\n 0 cuCtxCreate_v2 1 0 0")
        do(process, "3 x 0 cuMemAlloc_v2 1 1000\n 0 cuMemRelease 1")
        assert fact(rig, process, "allocations") == {0: 4}
        assert fact(rig, process, "frees") == {0: 1}
        assert rig.probes.live_of(process.pid)[0][0] == 3000
    with late(rig) as process:
        do(process, "0 cuStreamGetDevice 3\n 2 x 0 cuLaunchKernel 1 3\n 0 cuCtxGetDevice")
        do(process, "3 x 0 cuLaunchKernel 1 3\n 0 cuLaunchKernel 1 0")
        assert launches(rig, process) == {0: 6}


# --- random programs -----------------------------------------------------------------------------

# What is compared, by the names of our facts. What is issued in a capture that began before the
# probes can't be told from what runs: launches that run and those that are captured are taken
# together, copies and sets too. While such a capture is open, launches of graphs, host functions
# and stream-ordered memory are not compared: they count though they only become nodes. Kernels of
# graphs from before aren't known, nor which memory went with a context from before, nor its size:
# there may be less. Nor is it known how often physical memory from before has to be released.
EXACT = ("launches_of_kernels", "waits", "allocations")
EXACT_BETWEEN_CAPTURES = ("graph_launches", "host_functions", "pool_allocations")
FREES = ("frees", "freed_bytes")
OF_CAPTURES = (*EXACT_BETWEEN_CAPTURES, "graph_kernels", "pool_bytes", *FREES)


POOL = KINDS.index("pool")


def of_kinds(counts: Counts, device: int, field: str, pool: bool) -> int:
    """Of all kinds of memory but pools', or of those alone."""
    rows = (counts.memory.get((device, k), Memory()) for k in KINDS if (k == "pool") == pool)
    return sum(getattr(row, field) for row in rows)


def since(now: Counts, then: Counts, device: int) -> dict[str, int]:
    """The oracle's figures of one device since the probes came."""

    def of(counts: Counts) -> dict[str, int]:
        a = counts.activity.get(device, Activity())
        return {
            "launches_of_kernels": a.launches + a.captured,
            "captured_launches": a.captured,
            "graph_launches": a.graph_launches,
            "graph_kernels": a.graph_kernels,
            "waits": a.waits,
            "host_functions": a.host_functions,
            "copied_bytes": sum(a.copied_bytes.values()) + a.captured_copied_bytes,
            "set_bytes": a.set_bytes + a.captured_set_bytes,
            "allocations": of_kinds(counts, device, "allocations", False),
            "allocated_bytes": of_kinds(counts, device, "allocated_bytes", False),
            "pool_allocations": of_kinds(counts, device, "allocations", True),
            "pool_bytes": of_kinds(counts, device, "allocated_bytes", True),
            "frees": sum(of_kinds(counts, device, "frees", pool) for pool in (True, False)),
            "freed_bytes": sum(
                of_kinds(counts, device, "freed_bytes", pool) for pool in (True, False)
            ),
            "implicit_frees": of_kinds(counts, device, "releases", False),
            "implicitly_freed_bytes": of_kinds(counts, device, "released_bytes", False),
        }

    before = of(then)
    return {name: number - before[name] for name, number in of(now).items()}


def of_facts(facts: Facts) -> dict[str, int]:
    """What was counted, by the same names."""
    row = {name: sum(numbers) for name, numbers in facts.items()}
    row["launches_of_kernels"] = row.pop("kernel_launches") + row["captured_launches"]
    row["copied_bytes"] += row["captured_copied_bytes"]
    row["set_bytes"] += row["captured_set_bytes"]
    for pool, every in (("pool_allocations", "allocations"), ("pool_bytes", "allocated_bytes")):
        row[pool] = facts[every][POOL]
        row[every] -= row[pool]
    return row


def compare(
    rig: Rig, process: Interpreter, then: Counts, *, in_capture: bool, physical: bool
) -> None:
    """`in_capture`: one may be out of sight; `physical`: there was such memory before."""
    now = rig.node.process(process.pid).counts
    truth = {device: since(now, then, device) for device in range(DEVICES)}
    counted = {device: of_facts(facts) for device, facts in rig.devices_of(process.pid).items()}
    names = [name for name in truth[0] if not (in_capture and name in OF_CAPTURES)]
    if physical:
        names = [name for name in names if name not in FREES]
    for device, row in counted.items():
        if device is not None:
            above = {
                name: (row[name], truth[device][name])
                for name in names
                if row[name] > truth[device][name]
            }
            assert above == {}, f"on device {device}: counted, and all that there was"
    for name in names:
        total = sum(row[name] for row in counted.values())
        every = sum(row[name] for row in truth.values())
        exact = name in (*EXACT, *EXACT_BETWEEN_CAPTURES) or name == "frees"
        assert (total == every) if exact else (total <= every), f"{name}: {total} of {every}"


ENDED = ("0", "901", "904")  # a capture is over, even if it went wrong


OWN_STREAM = re.compile(r"\d cuStreamBeginCapture\w* (?:(?<=_ptsz )0|2) ")
"""A capture in a thread's own stream. It is out of sight once the thread's context becomes known,
if it was not when the capture began: the stream is then another one, as far as is known."""


def captures(lines: tuple[str, ...], codes: list[str]) -> int:
    """How many may be under way after these calls."""
    done = list(zip(lines, codes, strict=True))
    begun = sum("cuStreamBeginCapture" in line and code == "0" for line, code in done)
    return begun - sum("cuStreamEndCapture" in line and code in ENDED for line, code in done)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(least=40, most=100), at=st.integers(0, 1000))
def test_random_programs(rig: Rig, program: Program, at: int) -> None:
    program = settled(rig.node, program)
    cut = 1 + at * len(program.lines) // 1001  # cuInit, at the least, is before
    with Interpreter(rig.node) as process:
        process.tell(program.lines[:cut])
        codes = process.hear(cut)
        in_capture = captures(program.lines[:cut], codes) > 0
        in_capture |= any(OWN_STREAM.match(line + " ") for line in program.lines[cut:])
        physical = any("cuMemCreate" in line for line in program.lines[:cut])
        then = rig.node.process(process.pid).counts
        with rig.attached():
            process.tell(program.lines[cut:])
            process.hear(len(program.lines) - cut)
            try:
                compare(rig, process, then, in_capture=in_capture, physical=physical)
            except AssertionError as error:
                text = "\n".join(
                    (*program.lines[:cut], "--- the probes come", *program.lines[cut:])
                )
                raise AssertionError(f"{error}\n{text}") from error


def test_two_at_once_of_which_one_is_late(rig: Rig) -> None:
    """That one is late says nothing of others."""
    with late(rig) as old, Interpreter(rig.node) as new:
        do(new, START + "3 x 0 cuLaunchKernel 1 0\n 2 x 0 cuLaunchKernel 1 5")
        do(old, "3 x 0 cuLaunchKernel 1 0\n 2 x 0 cuLaunchKernel 1 5")
        assert launches(rig, new) == {0: 3, 1: 2}
        assert launches(rig, old) == {None: 5}
