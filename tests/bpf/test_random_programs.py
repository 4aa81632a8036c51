"""Exactness over random programs of contexts, streams, captures, graphs and memory, on several
devices and in several threads: by process and device, after every call of small programs and after
whole ones, what the kernel counted is what the simulated driver did.

Launches are counted on entry, so one that fails would count: programs are tried first on a library
that no probe is in, and lose the launches that fail there (random_programs.settled). The comparison
then allows for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpubpf.symbols import DIRECTIONS, KINDS
from tests.bpf.probing import Probing, own_node, probing
from tests.bpf.random_programs import Program, programs, settled
from tests.fakegpu.node import Activity, Counts, Memory, Node
from tests.fakegpu.programs import Interpreter, run
from tests.fakegpu.small_programs import START, lines

Facts = dict[str, list[int]]
Rows = dict[int | None, Facts]
Held = dict[int | None, tuple[int, int]]

DEVICES = 3
BY_KIND = {
    "allocations": "allocations",
    "allocated_bytes": "allocated_bytes",
    "frees": "frees",
    "freed_bytes": "freed_bytes",
    "implicit_frees": "releases",
    "implicitly_freed_bytes": "released_bytes",
}
OF_A_DEVICE = {
    "kernel_launches": "launches",
    "captured_launches": "captured",
    "graph_launches": "graph_launches",
    "graph_kernels": "graph_kernels",
    "host_functions": "host_functions",
    "set_bytes": "set_bytes",
    "captured_copied_bytes": "captured_copied_bytes",
    "captured_set_bytes": "captured_set_bytes",
    "waits": "waits",
}
UNKNOWN = "unknown_graph_launches"


def observed(probes: Probing, pid: int) -> tuple[Rows, Held]:
    """What the kernel counted: facts by device, and live and peak bytes. All that this file knows
    of Probing is here."""
    return probes.devices_of(pid), probes.live_of(pid)


def of_device(counts: Counts, device: int) -> Facts:
    """The oracle's figures as the facts of one device."""
    activity = counts.activity.get(device, Activity())
    memory = {kind: counts.memory.get((device, kind), Memory()) for kind in KINDS}
    facts = {
        fact: [getattr(memory[kind], field) for kind in KINDS] for fact, field in BY_KIND.items()
    }
    facts |= {fact: [getattr(activity, field)] for fact, field in OF_A_DEVICE.items()}
    facts["copied_bytes"] = [activity.copied_bytes[direction] for direction in DIRECTIONS]
    facts["allocation_sizes"] = activity.allocation_sizes
    return facts


def without_nothing(rows: Rows) -> Rows:
    """Only what isn't 0; times are the kernel's alone."""
    some = {
        device: {f: n for f, n in facts.items() if any(n) and f != "wait_nanoseconds"}
        for device, facts in rows.items()
    }
    return {device: facts for device, facts in some.items() if facts}


def forgive(rows: Rows, truth: Rows) -> None:
    """Where a watcher says of launches that their graphs are not known, it must have counted the
    kernels of the others alone."""
    if not any(facts.get(UNKNOWN) for facts in rows.values()):
        return
    for device, facts in rows.items():
        counted = facts.pop("graph_kernels", [0])[0]
        assert counted <= truth.get(device, {}).get("graph_kernels", [0])[0]
        facts.pop(UNKNOWN, None)
    for facts in truth.values():
        facts.pop("graph_kernels", None)


def assert_same(node: Node, probes: Probing, pid: int, strange: bool) -> None:
    counts = node.process(pid).counts
    facts, live = observed(probes, pid)
    rows = without_nothing(facts)
    truth = without_nothing({device: of_device(counts, device) for device in range(DEVICES)})
    if strange:
        forgive(rows, truth)
    assert rows == truth
    if node.process(pid).alive:  # what ended holds nothing
        held = {device: (a.live_bytes, a.peak_bytes) for device, a in counts.activity.items()}
        assert {device: numbers for device, numbers in live.items() if any(numbers)} == {
            device: numbers for device, numbers in held.items() if any(numbers)
        }


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Probing]]:
    with (
        own_node(tmp_path_factory.mktemp("programs"), DEVICES) as node,
        probing(str(node.library)) as probes,
    ):
        yield node, probes
        assert probes.latest is not None
        assert not any(probes.latest.lost.values())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(least=40, most=120))
def test_whole_programs(rig: tuple[Node, Probing], program: Program) -> None:
    node, probes = rig
    program = settled(node, program)
    with Interpreter(node) as interpreter:
        interpreter.tell(program.lines)
        interpreter.hear(len(program.lines))
        assert_same(node, probes, interpreter.pid, strange=False)
    assert_same(node, probes, interpreter.pid, strange=False)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(several=st.lists(programs(least=40, most=80), min_size=2, max_size=5))
def test_several_processes_at_once(rig: tuple[Node, Probing], several: list[Program]) -> None:
    node, probes = rig
    several = [settled(node, program) for program in several]
    with ExitStack() as stack:
        running = [stack.enter_context(Interpreter(node)) for _ in several]
        for interpreter, program in zip(running, several, strict=True):
            interpreter.tell(program.lines)
        for interpreter, program in zip(running, several, strict=True):
            interpreter.hear(len(program.lines))
        for interpreter in running:
            assert_same(node, probes, interpreter.pid, strange=False)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(least=40, most=120, strange=st.just(True)))
def test_strange_programs(rig: tuple[Node, Probing], program: Program) -> None:
    node, probes = rig
    program = settled(node, program)
    result = run(node, program.lines)
    assert_same(node, probes, result.pid, strange=True)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(least=15, most=40))
def test_call_by_call(rig: tuple[Node, Probing], program: Program) -> None:
    node, probes = rig
    program = settled(node, program)
    with Interpreter(node) as interpreter:
        for number, line in enumerate(program.lines):
            interpreter.do(line)
            try:
                assert_same(node, probes, interpreter.pid, strange=False)
            except AssertionError as error:
                done = "\n".join(program.lines[: number + 1])
                raise AssertionError(f"after\n{done}\n{error}") from error


ODD = {
    "an event recorded by a node makes no stream join": """
        0 cuStreamBeginCapture_v2 3 2
        0 cuEventRecordWithFlags 1 3 1
        0 cuStreamWaitEvent 4 1 0
        0 cuLaunchKernel 1 4
        0 cuStreamEndCapture 3 1
        """,
    "a wait by a node makes no stream join": """
        0 cuStreamBeginCapture_v2 3 2
        0 cuStreamBeginCapture_v2 4 2
        0 cuEventRecord 1 3
        0 cuStreamWaitEvent 4 1 1
        0 cuLaunchKernel 1 4
        0 cuStreamEndCapture 3 1
        0 cuLaunchKernel 1 4
        0 cuStreamEndCapture 4 2
        0 cuGraphInstantiateWithFlags 1 2 0
        0 cuGraphLaunch 1 3
        """,
    "a new event by the handle of one that was captured": """
        0 cuStreamBeginCapture_v2 3 2
        0 cuEventRecord 1 3
        0 cuEventDestroy_v2 1
        0 cuEventCreate 9 0
        0 cuStreamWaitEvent 4 9 0
        0 cuLaunchKernel 1 4
        0 cuStreamEndCapture 3 1
        """,
    "a function runs in the context that it was loaded in": """
        0 cuModuleLoadData 2
        0 cuModuleGetFunction 2 2
        0 cuCtxSetCurrent 2
        0 cuGraphCreate 1
        0 cuGraphAddKernelNode 1 1 - 2
        0 cuGraphAddKernelNode_v2 2 1 - 2 -
        0 cuGraphInstantiateWithFlags 1 1 0
        0 cuGraphLaunch 1 3
        """,
    "a node is given another context": """
        0 cuGraphCreate 1
        0 cuGraphAddKernelNode 1 1 - 1
        0 cuGraphKernelNodeSetParams_v2 1 1 2
        0 cuGraphInstantiateWithFlags 1 1 0
        0 cuGraphLaunch 1 3
        """,
    "a reset keeps the references": """
        0 cuMemAlloc_v2 1 1000
        0 cuDevicePrimaryCtxReset_v2 0
        0 cuDevicePrimaryCtxRetain 1 0
        0 cuMemAlloc_v2 2 1000
        0 cuDevicePrimaryCtxRelease_v2 0
        0 cuMemAlloc_v2 3 1000
        0 cuDevicePrimaryCtxRelease_v2 0
        """,
    "a green context holds the primary one, whose memory it uses": """
        0 cuDeviceGetDevResource 2 3
        0 cuDevResourceGenerateDesc 3 3
        0 cuGreenCtxCreate 1 3 2
        0 cuCtxFromGreenCtx 5 1
        0 cuCtxPushCurrent_v2 5
        0 cuMemAlloc_v2 1 1000
        0 cuMemAllocManaged 2 1000
        0 cuGreenCtxDestroy 1
        0 cuCtxPopCurrent_v2
        0 cuMemAlloc_v2 3 1000
        """,
    "a pool of another device": """
        0 cuMemPoolCreate 1 1
        0 cuMemAllocFromPoolAsync 1 1000 1 3
        0 cuDeviceSetMemPool 1 1
        0 cuMemAllocAsync 2 1000 5
        0 cuMemPoolDestroy 1
        0 cuMemFreeAsync 1 3
        0 cuMemAllocAsync 3 1000 5
        """,
    "what is in a child changes, and the child goes": """
        0 cuGraphCreate 1
        0 cuGraphCreate 2
        0 cuGraphAddKernelNode 1 1 - 1
        0 cuGraphAddChildGraphNode 2 2 - 1
        0 cuGraphChildGraphNodeGetGraph 2 3
        0 cuGraphAddKernelNode 3 3 - 1
        0 cuGraphDestroyNode 1
        0 cuGraphInstantiateWithFlags 1 2 0
        0 cuGraphLaunch 1 3
        0 cuGraphDestroyNode 3
        0 cuGraphInstantiateWithFlags 2 2 0
        0 cuGraphLaunch 2 3
        0 cuGraphDestroyNode 2
        0 cuGraphInstantiateWithFlags 3 2 0
        0 cuGraphLaunch 3 3
        """,
    "two disabled nodes, the first enabled, the second disabled again": """
        0 cuGraphCreate 1
        0 cuGraphAddKernelNode 1 1 - 1
        0 cuGraphAddKernelNode 2 1 - 1
        0 cuGraphAddKernelNode 3 1 - 1
        0 cuGraphInstantiateWithFlags 1 1 0
        0 cuGraphNodeSetEnabled 1 1 0
        0 cuGraphNodeSetEnabled 1 2 0
        0 cuGraphLaunch 1 3
        0 cuGraphNodeSetEnabled 1 1 1
        2 x 0 cuGraphNodeSetEnabled 1 2 0
        2 x 0 cuGraphNodeSetEnabled 1 1 1
        0 cuGraphLaunch 1 3
        """,
    "a disabled node, an update, a graph captured in a graph": """
        0 cuGraphCreate 1
        0 cuGraphAddKernelNode 1 1 - 1
        0 cuGraphAddKernelNode 2 1 - 1
        0 cuGraphInstantiateWithFlags 1 1 0
        2 x 0 cuGraphNodeSetEnabled 1 1 0
        0 cuGraphLaunch 1 3
        0 cuGraphExecUpdate_v2 1 1
        0 cuGraphLaunch 1 3
        0 cuStreamBeginCapture_v2 3 2
        0 cuGraphLaunch 1 3
        0 cuStreamEndCapture 3 2
        0 cuGraphNodeSetEnabled 1 1 1
        0 cuGraphInstantiateWithFlags 2 2 0
        0 cuGraphLaunch 2 3
        0 cuGraphLaunch 1 3
        """,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_programs(rig: tuple[Node, Probing], text: str) -> None:
    """Small ones that random programs seldom come to."""
    node, probes = rig
    program = [*lines(START), *lines(text)]
    with Interpreter(node) as interpreter:
        interpreter.tell(program)
        assert set(interpreter.hear(len(program))) == {"0"}
        assert_same(node, probes, interpreter.pid, strange=False)
