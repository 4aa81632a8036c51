"""The oracle itself: small programs whose memory and copies are known, by process and device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakegpu.node import Memory, Node
from tests.fakegpu.nvml_control import BUILD
from tests.fakegpu.programs import Interpreter
from tests.fakegpu.small_programs import START, at, counts, lines

MIB = 1 << 20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(BUILD, tmp_path / "state", devices=3) as made:
        yield made


def test_a_context_takes_its_memory_along(node: Node) -> None:
    counted = counts(
        node,
        f"""
        0 cuCtxCreate_v2 3 0 2
        0 cuStreamCreate 6 0
        0 cuMemAlloc_v2 1 1009
        0 cuMemAllocPitch_v2 2 100 7
        0 cuMemAllocManaged 3 2003
        0 cuMemAllocAsync 4 3001 6
        0 cuMemCreate 1 {2 * MIB} 2
        0 cuMemHostAlloc 1 4001 0
        0 cuMemAllocHost_v2 2 11
        0 cuArrayCreate_v2 1 8 8 32 4
        0 cuArray3DCreate_v2 2 4 4 4 8 1 0
        0 cuMipmappedArrayCreate 1 8 8 0 8 1 0 4
        1 cuCtxSetCurrent 3
        0 cuCtxDestroy_v2 3
        1 cuCtxSynchronize want 709
        0 cuMemFree_v2 4
        0 cuCtxSynchronize
        """,
    )
    released = {k: m.released_bytes for (d, k), m in counted.memory.items() if d == 2}
    array = 8 * 8 * 16 + 64 + (64 + 16 + 4 + 1)
    wanted = {"device": 1709, "managed": 2003, "host": 4012, "array": array}
    assert released == {**wanted, "pool": 0, "virtual": 0}
    assert counted.memory[2, "pool"] == Memory(1, 3001, 1, 3001)
    assert counted.memory[2, "virtual"].live_bytes == 2 * MIB
    activity = at(counted, 2)
    assert activity.live_bytes == 2 * MIB
    assert activity.peak_bytes == 2 * MIB + 1709 + 2003 + 3001 + array
    assert activity.allocation_sizes == [7, 0, 0, 1, 0, 0, 0, 0]


def test_a_pool_goes_with_its_last_allocation(node: Node) -> None:
    counted = counts(
        node,
        """
        0 cuMemPoolCreate 1 1
        0 cuMemAllocFromPoolAsync 1 1009 1 5
        0 cuMemAllocFromPoolAsync 2 2003 1 3
        0 cuMemPoolDestroy 1
        0 cuMemAllocFromPoolAsync 3 1 1 3 want 1
        0 cuMemPoolDestroy 1 want 1
        0 cuMemFreeAsync 1 3
        0 cuMemFreeAsync 2 3
        0 cuMemPoolCreate 2 1
        """,
    )
    assert counted.memory[1, "pool"] == Memory(2, 3012, 2, 3012)


def test_a_reset_keeps_the_references(node: Node) -> None:
    counted = counts(
        node,
        """
        0 cuMemAlloc_v2 1 1009
        0 cuMemAllocAsync 2 53 3
        0 cuDevicePrimaryCtxReset_v2 0
        0 cuMemAlloc_v2 3 1 want 709
        0 cuDevicePrimaryCtxRetain 3 0
        0 cuMemAlloc_v2 4 2003
        0 cuDevicePrimaryCtxRelease_v2 0
        0 cuMemAlloc_v2 5 101
        0 cuDevicePrimaryCtxRelease_v2 0
        0 cuDevicePrimaryCtxRelease_v2 0 want 201
        """,
    )
    memory = counted.memory[0, "device"]
    assert (memory.releases, memory.released_bytes, memory.live_bytes) == (3, 3113, 0)
    assert counted.memory[0, "pool"].live_bytes == 53


HANDLES = ("0 cuMemRelease 1", "0 cuMemRelease 2", "0 cuMemUnmap 1 {0}", "0 cuMemUnmap 2 {0}")


def test_physical_memory_goes_with_its_last_handle_and_mapping(node: Node) -> None:
    size = 4 * MIB
    for order in itertools.permutations(range(4)):
        with Interpreter(node) as program:
            for line in lines(START) + lines(
                f"""
                0 cuMemCreate 1 {size} 1
                0 cuMemAddressReserve 1 {size}
                0 cuMemAddressReserve 2 {size}
                0 cuMemMap 1 {size} 1
                0 cuMemMap 2 {size} 1
                0 cuMemRetainAllocationHandle 2 1+2097152
                0 cuMemSetAccess 1 {size} 1
                0 cuMemsetD8_v2 1+1 1009
                """
            ):
                assert program.do(line) == "0", line
            for left, step in zip((3, 2, 1, 0), order, strict=True):
                memory = node.process(program.pid).counts.memory[1, "virtual"]
                assert memory == Memory(1, size, 0, 0)
                assert node.granules(1) == size
                line = HANDLES[step].format(size)
                assert program.do(line) == "0", (order, left, line)
            assert node.process(program.pid).counts.memory[1, "virtual"] == Memory(1, size, 1, size)
            assert node.granules(1) == 0


def test_work_counts_where_its_stream_is(node: Node) -> None:
    counted = counts(
        node,
        """
        0 cuMemAllocAsync 1 1009 5
        0 cuMemAlloc_v2 2 1009
        0 cuMemcpyHtoDAsync_v2 1 101 5
        0 cuMemcpyHtoD_v2 1 53
        0 cuMemcpyDtoHAsync_v2 1 7 3
        0 cuMemcpyPeerAsync 1 2 2 1 11 5
        0 cuMemsetD8Async 1 13 5
        0 cuMemsetD8_v2 1 17
        0 cuMemcpy2DAsync_v2 - 1 19 5
        0 cuMemcpy3D_v2 1 - 23
        0 cuMemcpyBatchAsync 1 2 29 5
        0 cuStreamSynchronize 5
        0 cuCtxSynchronize
        0 cuEventSynchronize 5
        0 cuStreamBeginCapture_v2 5 2
        0 cuMemcpyDtoHAsync_v2 1 31 5
        0 cuMemsetD32Async 1 3 5
        0 cuStreamEndCapture 5 1
        """,
    )
    first, second = at(counted, 0), at(counted, 1)
    assert counted.memory[1, "pool"].allocated_bytes == 1009
    assert first.copied_bytes == {"host_to_device": 53 + 23, "device_to_host": 7}
    assert second.copied_bytes == {
        "host_to_device": 101,
        "device_to_host": 19,
        "peer": 11,
        "unknown": 29,
    }
    assert (first.set_bytes, second.set_bytes) == (17, 13)
    assert (first.waits, second.waits) == (1, 2)
    assert (second.captured_copied_bytes, second.captured_set_bytes) == (31, 12)


def test_granules(node: Node) -> None:
    with Interpreter(node) as program:

        def do(text: str) -> int:
            for line in lines(text):
                assert program.do(line) == "0", line
            return node.granules(0) // (2 * MIB)

        assert do(START) == 0
        assert do("0 cuMemAlloc_v2 1 1000") == 1
        assert do("0 cuMemAlloc_v2 2 1000") == 1
        assert do(f"0 cuMemAlloc_v2 3 {6 * MIB}") == 4
        assert do("0 cuMemAllocAsync 4 1000 3") == 4
        assert do(f"0 cuMemAllocAsync 5 {MIB} 3") == 4
        assert do(f"0 cuMemAllocManaged 6 {10 * MIB}") == 4
        assert do("0 cuMemHostAlloc 1 1000 0") == 4
        assert do("0 cuArrayCreate_v2 1 8 8 8 1") == 5
        assert do("0 cuMemFree_v2 1") == 5
        assert do("0 cuMemFree_v2 3") == 3
        assert do("0 cuMemFree_v2 2") == 2
        assert do("0 cuArrayDestroy 1") == 1
        assert do("0 cuMemFree_v2 4") == 1
        assert do("0 cuMemFree_v2 5") == 0
        assert node.granules(1) == 0
        assert do("0 cuMemAlloc_v2 1 1000") == 1
    assert node.granules(0) == 0
