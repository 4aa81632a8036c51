"""The oracle itself: small programs whose launches are known, by process and device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakegpu.node import Node
from tests.fakegpu.nvml_control import BUILD
from tests.fakegpu.programs import UNSET, run
from tests.fakegpu.small_programs import START, at, counts, lines


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(BUILD, tmp_path / "state", devices=3) as made:
        yield made


def test_captures_replays_and_direct_launches(node: Node) -> None:
    activity = at(
        counts(
            node,
            """
            0 cuStreamBeginCapture_v2 3 0
            2 x 0 cuLaunchKernel 1 3
            0 cuStreamEndCapture 3 1
            0 cuGraphInstantiateWithFlags 1 1 0
            3 x 0 cuGraphLaunch 1 3
            5 x 0 cuLaunchKernel 1 3
            """,
        ),
        0,
    )
    assert (activity.launches, activity.captured) == (5, 2)
    assert (activity.graph_launches, activity.graph_kernels) == (3, 6)


def test_every_launch_function(node: Node) -> None:
    counted = counts(
        node,
        """
        0 cuLaunchKernel 1 0
        0 cuLaunchKernel 1 1
        0 cuLaunchKernel 1 2
        0 cuLaunchKernel_ptsz 1 0
        0 cuLaunchKernelEx 3 1
        0 cuLaunchKernelEx_ptsz 4 1
        0 cuLaunchCooperativeKernel 1 5
        0 cuLaunchCooperativeKernel_ptsz 1 5
        0 cuLaunch 1
        0 cuLaunchGrid 1
        0 cuLaunchGridAsync 1 5
        0 cuLaunchCooperativeKernelMultiDevice 1 3,5
        0 cuLaunchHostFunc 3
        0 cuLaunchHostFunc_ptsz 5
        0 cuModuleLoadData 2
        0 cuModuleGetFunction 2 2
        0 cuLaunchKernel 2 3
        0 cuLaunchKernel 2 5 want 400
        0 cuCtxSetCurrent 2
        0 cuLaunchKernel 2 3
        0 cuLaunchKernel 2 0 want 400
        """,
    )
    assert [at(counted, device).launches for device in range(3)] == [11, 4, 0]
    assert [at(counted, device).host_functions for device in range(3)] == [1, 1, 0]
    assert [at(counted, device).failed_launches for device in range(3)] == [0, 2, 0]


def test_a_fork_by_events_and_its_unjoined_twin(node: Node) -> None:
    activity = at(
        counts(
            node,
            """
            0 cuStreamBeginCapture_v2 3 2
            0 cuLaunchKernel 1 3
            0 cuEventRecord 1 3
            0 cuStreamWaitEvent 4 1 0
            2 x 0 cuLaunchKernel 1 4
            0 cuLaunchKernel 1 0
            0 cuEventRecord 2 4
            0 cuStreamWaitEvent 3 2 0
            0 cuStreamEndCapture 3 1
            0 cuGraphInstantiate 1 1
            0 cuGraphLaunch 1 4
            0 cuLaunchKernel 1 4
            0 cuStreamBeginCapture_v2 3 2
            0 cuEventRecord 1 3
            0 cuStreamWaitEvent 4 1 0
            0 cuLaunchKernel 1 4
            0 cuStreamEndCapture 3 2 want 904
            0 cuLaunchKernel 1 3
            0 cuLaunchKernel 1 4
            """,
        ),
        0,
    )
    assert (activity.launches, activity.captured) == (4, 4)
    assert (activity.graph_launches, activity.graph_kernels) == (1, 3)


def test_an_external_event_joins_no_capture(node: Node) -> None:
    activity = at(
        counts(
            node,
            """
            0 cuStreamBeginCapture_v2 3 2
            0 cuEventRecordWithFlags 1 3 1
            0 cuStreamWaitEvent 4 1 0
            0 cuLaunchKernel 1 4
            0 cuEventRecord 2 4
            0 cuStreamWaitEvent 3 2 1
            0 cuStreamWaitEvent 4 2 1 want 1
            0 cuLaunchKernel 1 3
            0 cuStreamEndCapture 3 1
            """,
        ),
        0,
    )
    assert (activity.launches, activity.captured) == (1, 1)


def test_capture_on_the_threads_own_stream(node: Node) -> None:
    activity = at(
        counts(
            node,
            """
            0 cuStreamBeginCapture_v2 2 2
            0 cuLaunchKernel 1 2
            0 cuLaunchKernel_ptsz 1 0
            1 cuCtxSetCurrent 1
            1 cuLaunchKernel_ptsz 1 0
            0 cuStreamEndCapture_ptsz 0 1
            0 cuGraphInstantiateWithFlags 1 1 0
            1 cuGraphLaunch_ptsz 1 0
            """,
        ),
        0,
    )
    assert (activity.launches, activity.captured, activity.graph_kernels) == (1, 2, 2)


def test_capture_to_a_graph(node: Node) -> None:
    activity = at(
        counts(
            node,
            """
            0 cuGraphCreate 1
            0 cuGraphAddKernelNode 1 1 - 1
            0 cuGraphAddEmptyNode 2 1 1
            0 cuStreamBeginCaptureToGraph 3 1 2 2
            3 x 0 cuLaunchKernel 1 3
            0 cuStreamEndCapture 3 9
            0 cuGraphInstantiateWithParams 1 1
            0 cuGraphLaunch 1 3
            """,
        ),
        0,
    )
    assert (activity.captured, activity.graph_kernels) == (3, 4)


def test_clones_children_updates_and_disabled_nodes(node: Node) -> None:
    activity = at(
        counts(
            node,
            """
            0 cuGraphCreate 1
            0 cuGraphAddKernelNode 1 1 - 1
            0 cuGraphAddKernelNode_v2 2 1 1 1 1
            0 cuGraphAddNode 3 1 1,2 kernel 1 -
            0 cuGraphAddNode_v2 4 1 3 host
            0 cuGraphClone 2 1
            0 cuGraphAddChildGraphNode 5 2 - 1
            0 cuGraphDestroyNode 3
            0 cuGraphInstantiateWithFlags 1 2 0
            0 cuGraphLaunch 1 3
            0 cuGraphInstantiateWithFlags 2 1 0
            0 cuGraphNodeSetEnabled 2 2 0
            0 cuGraphLaunch 2 3
            0 cuGraphNodeSetEnabled 2 2 1
            0 cuGraphLaunch 2 3
            0 cuGraphChildGraphNodeGetGraph 5 3
            0 cuGraphAddKernelNode 6 3 - 1
            0 cuGraphInstantiateWithFlags 3 2 0
            0 cuGraphLaunch 3 3
            0 cuGraphExecUpdate_v2 1 2 want 910
            0 cuGraphExecUpdate_v2 2 1
            0 cuGraphLaunch 2 3
            0 cuStreamBeginCapture_v2 3 2
            0 cuGraphLaunch 2 3
            0 cuLaunchKernel 1 3
            0 cuStreamEndCapture 3 4
            0 cuGraphInstantiateWithFlags 4 4 0
            0 cuGraphLaunch 4 3
            """,
        ),
        0,
    )
    assert activity.graph_launches == 6
    assert activity.graph_kernels == 6 + 1 + 2 + 7 + 2 + 3


def test_two_devices_in_one_capture(node: Node) -> None:
    counted = counts(
        node,
        """
        0 cuStreamBeginCapture_v2 3 2
        0 cuLaunchKernel 1 3
        0 cuEventRecord 1 3
        0 cuStreamWaitEvent 5 1 0
        2 x 0 cuLaunchKernel 1 5
        0 cuEventRecord 5 5
        0 cuStreamWaitEvent 3 5 0
        0 cuStreamEndCapture 3 1
        0 cuGraphInstantiateWithFlags 1 1 0
        3 x 0 cuGraphLaunch 1 5
        0 cuGraphCreate 2
        0 cuGraphAddKernelNode_v2 1 2 - 1 2
        0 cuGraphAddKernelNode_v2 2 2 - 1 0
        0 cuGraphAddKernelNode 3 2 - 1
        0 cuGraphInstantiateWithFlags 2 2 0
        0 cuGraphLaunch 2 3
        """,
    )
    assert [at(counted, device).captured for device in range(2)] == [1, 2]
    assert [at(counted, device).graph_launches for device in range(2)] == [1, 3]
    assert [at(counted, device).graph_kernels for device in range(2)] == [3 + 2, 6 + 1]


def test_push_and_pop(node: Node) -> None:
    counted = counts(
        node,
        """
        0 cuCtxPushCurrent_v2 2
        0 cuLaunchKernel 1 0
        0 cuCtxCreate_v3 3 0 2
        0 cuLaunchKernel 1 0
        0 cuCtxPushCurrent 1
        0 cuLaunchKernel 1 0
        0 cuCtxPopCurrent
        0 cuMemAlloc_v2 1 7
        0 cuCtxDestroy_v2 3
        0 cuMemAlloc_v2 2 11
        0 cuCtxSetCurrent 0
        0 cuLaunchKernel 1 3
        0 cuCtxPopCurrent_v2
        0 cuLaunchKernel 1 3 want 201
        0 cuCtxSetCurrent 2
        0 cuLaunchKernel 1 0
        """,
    )
    assert [at(counted, device).launches for device in range(3)] == [2, 2, 1]
    assert counted.memory[2, "device"].released_bytes == 7
    assert counted.memory[1, "device"].live_bytes == 11


def test_threads_have_stacks_of_their_own_until_they_end(node: Node) -> None:
    counted = counts(
        node,
        """
        1 cuLaunchKernel 1 0 want 201
        1 cuCtxSetCurrent 2
        1 cuLaunchKernel 1 0
        0 cuLaunchKernel 1 0
        1 exit
        1 cuLaunchKernel 1 0 want 201
        7 cuCtxCreate_v2 3 0 2
        7 exit
        0 cuCtxSetCurrent 3
        0 cuLaunchKernel 1 0
        """,
    )
    assert [at(counted, device).launches for device in range(3)] == [1, 1, 1]


def test_a_stale_current_context_is_no_newer_one(node: Node) -> None:
    counts(
        node,
        """
        0 cuCtxCreate_v2 3 0 0
        1 cuCtxSetCurrent 3
        0 cuCtxDestroy_v2 3
        0 cuCtxCreate_v2 4 0 1
        1 cuMemAlloc_v2 1 7 want 709
        1 cuCtxSetCurrent 4
        1 cuMemAlloc_v2 1 7
        """,
    )


def test_green_contexts(node: Node) -> None:
    counted = counts(
        node,
        """
        0 cuDeviceGetDevResource 1 1
        0 cuDevResourceGenerateDesc 1 1
        0 cuGreenCtxCreate 1 1 1
        0 cuGreenCtxStreamCreate 6 1 0
        0 cuLaunchKernel 1 6
        0 cuCtxFromGreenCtx 3 1
        0 cuCtxPushCurrent_v2 3
        0 cuLaunchKernel 1 0
        0 cuMemAlloc_v2 1 1009
        0 cuStreamCreate 7 0
        0 cuLaunchKernel 1 7
        0 cuModuleLoadData 2
        0 cuModuleGetFunction 2 2
        0 cuLaunchKernel 2 5
        0 cuLaunchKernel 2 6
        0 cuCtxPopCurrent_v2
        0 cuDevicePrimaryCtxRelease_v2 1
        0 cuLaunchKernel 1 6
        0 cuGreenCtxDestroy 1
        0 cuCtxSynchronize_v2 3 want 201
        """,
    )
    assert [at(counted, device).launches for device in range(2)] == [0, 6]
    assert counted.memory[1, "device"].released_bytes == 1009


def test_forks_and_new_programs(node: Node) -> None:
    program = """
    1 fork 3
    1 cuInit 0
    2 cuDevicePrimaryCtxRetain 1 0
    1 cuCtxGetDevice
    0 cuInit 0
    0 cuDevicePrimaryCtxRetain 1 0
    0 cuCtxSetCurrent 1
    0 cuMemAlloc_v2 1 1009
    0 fork 1
    0 cuCtxGetDevice
    0 cuMemAlloc_v2 77 5 9
    """
    with pytest.raises(RuntimeError):
        run(node, lines(program))
    result = run(node, [*lines(program)[:-1], "0 exec", "0 cuInit 0", "0 cuMemFree_v2 1"])
    children = [int(line.split()[0]) for line in result.printed if " " in line]
    codes = [line for line in result.printed if " " not in line]
    assert codes == ["0", "0", "201", "0", "0", "0", "0", "3", "0", "0", str(UNSET)]
    assert node.process(children[0]).counts.calls["cuInit"] == 1
    assert node.process(children[1]).counts.errors == {("cuCtxGetDevice", 3): 1}
    assert node.process(result.pid).counts.memory[0, "device"].released_bytes == 1009


@pytest.mark.parametrize("by_address", [False, True])
def test_pointers_by_name_and_by_address(node: Node, by_address: bool) -> None:
    text = [*lines(START), "0 cuLaunchKernel_ptsz 1 0", "0 cuLaunchKernel 1 0", "0 cuNone"]
    with pytest.raises(RuntimeError):
        run(node, text, by_address=by_address)
    result = run(node, text[:-1], by_address=by_address)
    assert set(result.codes) == {0}
    calls = node.process(result.pid).counts.calls
    assert calls["cuLaunchKernel_ptsz"] == calls["cuLaunchKernel"] == 1
    assert ("cuGetProcAddress_v2" in calls) == by_address
