"""SYMBOLS: which functions of the CUDA driver library are probed, one row per call signature.

A row names every export that shares a signature: the plain name, its `_v2`/`_v3` revisions and the
per-thread-default-stream forms (`_ptsz`, `_ptds`). Each export is a function of its own, with its
own probe and its own `function` label. That a library lacks one is normal (drivers differ).

`shape` names the handlers in `probes/`: `on_<name>` on entry and `on_<back>` on return; the
argument positions are part of the shape. Launches are counted on entry alone, which halves their
cost; whatever allocates, frees, copies or waits is true only once it has returned success.
`detail` is what the handler needs to know besides: the kind of memory, the direction of a copy,
the element size of a set. `narrow` marks the revisions from before CUDA 3.2, whose sizes and
device pointers are 32 bits wide.

Source of the signatures: the CUDA Driver API reference (cuda.h); of the names: the exports of
driver 535, and the reference for what came later.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = ("launch", "memory", "copy", "wait")
"""What `--probe` chooses from."""

KINDS = ("device", "managed", "pool", "virtual", "host", "array", "unknown")
"""Kinds of memory. `unknown` is only ever freed: an allocation that was not seen."""

DIRECTIONS = ("host_to_device", "device_to_host", "device_to_device", "peer", "unknown")
"""Directions of copies. `unknown`: the call names unified addresses, the driver decides."""

_DEVICE, _MANAGED, _POOL, _VIRTUAL, _HOST, _ARRAY = range(6)
_H2D, _D2H, _D2D, _PEER, _ANY = range(5)


@dataclass(frozen=True, slots=True)
class Shape:
    """The handlers of a call in `probes/`; `back` is empty where the return isn't probed."""

    name: str
    back: str = ""

    @property
    def returns(self) -> bool:
        return bool(self.back)


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str
    group: str
    shape: Shape
    fact: str = ""  # what a call of it is, for metrics that sum over functions
    detail: int = 0
    narrow: bool = False


COUNT = Shape("count")
LAUNCH_MULTI = Shape("launch_multi")  # (launchParamsList, numDevices, flags)
ALLOC = Shape("alloc", "alloc_return")  # (pointer *out, size_t bytes, …)
ALLOC_PITCH = Shape("alloc_pitch", "alloc_return")  # (pointer *out, *pitch, width, height, …)
ARRAY_2D = Shape("array_2d", "alloc_return")  # (CUarray *out, const CUDA_ARRAY_DESCRIPTOR *)
ARRAY_3D = Shape("array_3d", "alloc_return")  # (CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR *)
MIPMAP = Shape("mipmap", "alloc_return")  # (CUmipmappedArray *out, …3D_DESCRIPTOR *, levels)
FREE = Shape("free", "free_return")  # (pointer or handle, …)
COPY_2 = Shape("copy_2", "transfer_return")  # bytes are argument 2 (from 0)
COPY_3 = Shape("copy_3", "transfer_return")
COPY_4 = Shape("copy_4", "transfer_return")
COPY_2D = Shape("copy_2d", "transfer_return")  # (const CUDA_MEMCPY2D *, …)
COPY_3D = Shape("copy_3d", "transfer_return")  # (const CUDA_MEMCPY3D *, …), …PEER
COPY_BATCH = Shape("copy_batch", "transfer_return")  # (dsts, srcs, sizes, count, …)
SET = Shape("set", "transfer_return")  # (destination, value, count, …)
SET_2D = Shape("set_2d", "transfer_return")  # (destination, pitch, value, width, height, …)
WAIT = Shape("wait", "wait_return")


def _rows(
    names: str,
    group: str,
    shape: Shape,
    detail: int = 0,
    *,
    fact: str = "",
    narrow: bool = False,
) -> tuple[Symbol, ...]:
    return tuple(Symbol(name, group, shape, fact, detail, narrow) for name in names.split())


SYMBOLS: tuple[Symbol, ...] = (
    # --- launch: counted on entry -------------------------------------------------------------
    *_rows(
        "cuLaunchKernel cuLaunchKernel_ptsz cuLaunchKernelEx cuLaunchKernelEx_ptsz "
        "cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz "
        "cuLaunch cuLaunchGrid cuLaunchGridAsync",
        "launch",
        COUNT,
        fact="kernel_launch",
    ),
    *_rows("cuLaunchCooperativeKernelMultiDevice", "launch", LAUNCH_MULTI),
    *_rows("cuGraphLaunch cuGraphLaunch_ptsz", "launch", COUNT, fact="graph_launch"),
    *_rows("cuLaunchHostFunc cuLaunchHostFunc_ptsz", "launch", COUNT, fact="host_function"),
    *_rows("cuLaunchHostFunc_v2 cuLaunchHostFunc_v2_ptsz", "launch", COUNT, fact="host_function"),
    # --- memory: allocations and frees, on success --------------------------------------------
    *_rows("cuMemAlloc_v2", "memory", ALLOC, _DEVICE),
    *_rows("cuMemAlloc", "memory", ALLOC, _DEVICE, narrow=True),
    *_rows("cuMemAllocPitch_v2", "memory", ALLOC_PITCH, _DEVICE),
    *_rows("cuMemAllocPitch", "memory", ALLOC_PITCH, _DEVICE, narrow=True),
    *_rows("cuMemAllocManaged", "memory", ALLOC, _MANAGED),
    *_rows(
        "cuMemAllocAsync cuMemAllocAsync_ptsz cuMemAllocFromPoolAsync cuMemAllocFromPoolAsync_ptsz",
        "memory",
        ALLOC,
        _POOL,
    ),
    *_rows("cuMemCreate", "memory", ALLOC, _VIRTUAL),
    *_rows("cuMemAllocHost_v2 cuMemHostAlloc", "memory", ALLOC, _HOST),
    *_rows("cuMemAllocHost", "memory", ALLOC, _HOST, narrow=True),
    *_rows("cuArrayCreate_v2", "memory", ARRAY_2D, _ARRAY),
    *_rows("cuArrayCreate", "memory", ARRAY_2D, _ARRAY, narrow=True),
    *_rows("cuArray3DCreate_v2", "memory", ARRAY_3D, _ARRAY),
    *_rows("cuArray3DCreate", "memory", ARRAY_3D, _ARRAY, narrow=True),
    *_rows("cuMipmappedArrayCreate", "memory", MIPMAP, _ARRAY),
    *_rows("cuMemFree_v2 cuMemFreeAsync cuMemFreeAsync_ptsz", "memory", FREE, _DEVICE),
    *_rows("cuMemFree", "memory", FREE, _DEVICE, narrow=True),
    *_rows("cuMemRelease", "memory", FREE, _VIRTUAL),
    *_rows("cuMemFreeHost", "memory", FREE, _HOST),
    *_rows("cuArrayDestroy cuMipmappedArrayDestroy", "memory", FREE, _ARRAY),
    # --- copy: bytes by direction, on success --------------------------------------------------
    *_rows("cuMemcpy cuMemcpy_ptds cuMemcpyAsync cuMemcpyAsync_ptsz", "copy", COPY_2, _ANY),
    *_rows(
        "cuMemcpyHtoD_v2 cuMemcpyHtoD_v2_ptds cuMemcpyHtoDAsync_v2 cuMemcpyHtoDAsync_v2_ptsz",
        "copy",
        COPY_2,
        _H2D,
    ),
    *_rows("cuMemcpyHtoD cuMemcpyHtoDAsync", "copy", COPY_2, _H2D, narrow=True),
    *_rows(
        "cuMemcpyDtoH_v2 cuMemcpyDtoH_v2_ptds cuMemcpyDtoHAsync_v2 cuMemcpyDtoHAsync_v2_ptsz",
        "copy",
        COPY_2,
        _D2H,
    ),
    *_rows("cuMemcpyDtoH cuMemcpyDtoHAsync", "copy", COPY_2, _D2H, narrow=True),
    *_rows(
        "cuMemcpyDtoD_v2 cuMemcpyDtoD_v2_ptds cuMemcpyDtoDAsync_v2 cuMemcpyDtoDAsync_v2_ptsz",
        "copy",
        COPY_2,
        _D2D,
    ),
    *_rows("cuMemcpyDtoD cuMemcpyDtoDAsync", "copy", COPY_2, _D2D, narrow=True),
    *_rows("cuMemcpyDtoA_v2 cuMemcpyDtoA_v2_ptds", "copy", COPY_3, _D2D),
    *_rows("cuMemcpyAtoD_v2 cuMemcpyAtoD_v2_ptds", "copy", COPY_3, _D2D),
    *_rows("cuMemcpyDtoA cuMemcpyAtoD", "copy", COPY_3, _D2D, narrow=True),
    *_rows(
        "cuMemcpyHtoA_v2 cuMemcpyHtoA_v2_ptds cuMemcpyHtoAAsync_v2 cuMemcpyHtoAAsync_v2_ptsz",
        "copy",
        COPY_3,
        _H2D,
    ),
    *_rows("cuMemcpyHtoA cuMemcpyHtoAAsync", "copy", COPY_3, _H2D, narrow=True),
    *_rows(
        "cuMemcpyAtoH_v2 cuMemcpyAtoH_v2_ptds cuMemcpyAtoHAsync_v2 cuMemcpyAtoHAsync_v2_ptsz",
        "copy",
        COPY_3,
        _D2H,
    ),
    *_rows("cuMemcpyAtoH cuMemcpyAtoHAsync", "copy", COPY_3, _D2H, narrow=True),
    *_rows("cuMemcpyAtoA_v2 cuMemcpyAtoA_v2_ptds", "copy", COPY_4, _D2D),
    *_rows("cuMemcpyAtoA", "copy", COPY_4, _D2D, narrow=True),
    *_rows(
        "cuMemcpyPeer cuMemcpyPeer_ptds cuMemcpyPeerAsync cuMemcpyPeerAsync_ptsz",
        "copy",
        COPY_4,
        _PEER,
    ),
    *_rows(
        "cuMemcpy2D_v2 cuMemcpy2D_v2_ptds cuMemcpy2DUnaligned_v2 cuMemcpy2DUnaligned_v2_ptds "
        "cuMemcpy2DAsync_v2 cuMemcpy2DAsync_v2_ptsz",
        "copy",
        COPY_2D,
    ),
    *_rows(
        "cuMemcpy2D cuMemcpy2DUnaligned cuMemcpy2DAsync",
        "copy",
        COPY_2D,
        narrow=True,
    ),
    *_rows(
        "cuMemcpy3D_v2 cuMemcpy3D_v2_ptds cuMemcpy3DAsync_v2 cuMemcpy3DAsync_v2_ptsz",
        "copy",
        COPY_3D,
        _ANY,
    ),
    *_rows("cuMemcpy3D cuMemcpy3DAsync", "copy", COPY_3D, _ANY, narrow=True),
    *_rows(
        "cuMemcpy3DPeer cuMemcpy3DPeer_ptds cuMemcpy3DPeerAsync cuMemcpy3DPeerAsync_ptsz",
        "copy",
        COPY_3D,
        _PEER,
    ),
    *_rows(
        "cuMemcpyBatchAsync cuMemcpyBatchAsync_ptsz "
        "cuMemcpyBatchAsync_v2 cuMemcpyBatchAsync_v2_ptsz",
        "copy",
        COPY_BATCH,
        _ANY,
    ),
    # The bytes of a batch of 3D copies are not added up: the calls alone are counted.
    *_rows(
        "cuMemcpy3DBatchAsync cuMemcpy3DBatchAsync_ptsz "
        "cuMemcpy3DBatchAsync_v2 cuMemcpy3DBatchAsync_v2_ptsz",
        "copy",
        COUNT,
    ),
    # --- copy: sets ---------------------------------------------------------------------------
    *_rows("cuMemsetD8_v2 cuMemsetD8_v2_ptds cuMemsetD8Async cuMemsetD8Async_ptsz", "copy", SET, 1),
    *_rows("cuMemsetD8", "copy", SET, 1, narrow=True),
    *_rows(
        "cuMemsetD16_v2 cuMemsetD16_v2_ptds cuMemsetD16Async cuMemsetD16Async_ptsz", "copy", SET, 2
    ),
    *_rows("cuMemsetD16", "copy", SET, 2, narrow=True),
    *_rows(
        "cuMemsetD32_v2 cuMemsetD32_v2_ptds cuMemsetD32Async cuMemsetD32Async_ptsz", "copy", SET, 4
    ),
    *_rows("cuMemsetD32", "copy", SET, 4, narrow=True),
    *_rows(
        "cuMemsetD2D8_v2 cuMemsetD2D8_v2_ptds cuMemsetD2D8Async cuMemsetD2D8Async_ptsz",
        "copy",
        SET_2D,
        1,
    ),
    *_rows("cuMemsetD2D8", "copy", SET_2D, 1, narrow=True),
    *_rows(
        "cuMemsetD2D16_v2 cuMemsetD2D16_v2_ptds cuMemsetD2D16Async cuMemsetD2D16Async_ptsz",
        "copy",
        SET_2D,
        2,
    ),
    *_rows("cuMemsetD2D16", "copy", SET_2D, 2, narrow=True),
    *_rows(
        "cuMemsetD2D32_v2 cuMemsetD2D32_v2_ptds cuMemsetD2D32Async cuMemsetD2D32Async_ptsz",
        "copy",
        SET_2D,
        4,
    ),
    *_rows("cuMemsetD2D32", "copy", SET_2D, 4, narrow=True),
    # --- wait: host time blocked --------------------------------------------------------------
    *_rows(
        "cuStreamSynchronize cuStreamSynchronize_ptsz "
        "cuCtxSynchronize cuCtxSynchronize_v2 cuEventSynchronize",
        "wait",
        WAIT,
        fact="wait",
    ),
)


def chosen(groups: tuple[str, ...]) -> tuple[Symbol, ...]:
    """The symbols of these groups, in table order (their position is their lane)."""
    return tuple(symbol for symbol in SYMBOLS if symbol.group in groups)
