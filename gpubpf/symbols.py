"""SYMBOLS: which functions of the CUDA driver library are probed, one row per call signature.

A row names every export that shares a signature: the plain name, its `_v2`/`_v3` revisions and the
per-thread-default-stream forms (`_ptsz`, `_ptds`). Each export is a function of its own, with its
own probe and its own `function` label. That a library lacks one is normal (drivers differ).

`shape` names the handlers in `probes/`; the argument positions are part of the shape. Launches are
counted on entry alone, which halves their cost; whatever allocates, frees, copies, waits or makes
something is true only once it has returned success.
`detail` is what the handler needs to know besides: the kind of memory, the direction of a copy,
the element size of a set. `stream` is the position of the stream among the arguments (from 0): it
says on which GPU the work runs, and whether it is being captured. `narrow` marks the revisions from
before CUDA 3.2, whose sizes and device pointers are 32 bits wide.

The group `state` goes with any other: what these functions make and say (contexts, streams,
captures, graphs) is what the others' calls are attributed by.

Source of the signatures: the CUDA Driver API reference (cuda.h); of the names: the exports of
driver 535, and the reference for what came later.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = ("launch", "memory", "copy", "wait")
"""What `--probe` chooses from."""

STATE = "state"
"""The group that goes with any other."""

KINDS = ("device", "managed", "pool", "virtual", "host", "array", "unknown")
"""Kinds of memory. `unknown` is only ever freed: an allocation that was not seen."""

DIRECTIONS = ("host_to_device", "device_to_host", "device_to_device", "peer", "unknown")
"""Directions of copies. `unknown`: the call names unified addresses, the driver decides."""

DEVICES = 16
"""Device ordinals that are told apart in a process; of a board with more, the rest is unknown."""

ANSWERS = ("uuid", "uuid_v2", "pci_bus_id")
"""What the driver tells a process of a device; on MIG only the v2 form names the instance."""

_DEVICE, _MANAGED, _POOL, _VIRTUAL, _HOST, _ARRAY = range(6)
_H2D, _D2H, _D2D, _PEER, _ANY = range(5)


MEASURES = (
    "bytes",  # argument 1 (from 0)
    "pitch",  # arguments 2 times 3
    "pool",  # argument 1; argument 2 is the pool
    "physical",  # argument 1; argument 2 points to CUmemAllocationProp
    "array_2d",  # argument 1 points to CUDA_ARRAY_DESCRIPTOR
    "array_3d",  # … to CUDA_ARRAY3D_DESCRIPTOR
    "mipmap",  # the same, with the number of levels as argument 2
    "copy_2",  # argument 2
    "copy_3",
    "copy_4",
    "copy_2d",  # argument 0 points to CUDA_MEMCPY2D
    "copy_3d",  # … to CUDA_MEMCPY3D or …PEER
    "batch",  # argument 2 points to sizes, argument 3 is their number
    "set",  # argument 2, elements
    "set_2d",  # arguments 3 times 4, elements
)
"""How the handler finds out how many bytes a call is about."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A call's handlers in `probes/`, by name: `on_<entry>` and `on_<back>_return`.

    Without `back` the return isn't probed. Where nothing depends on it, the entry is `enter`: it
    keeps the arguments until the call returns.
    """

    back: str = ""
    entry: str = "enter"
    measure: str = "bytes"
    stream: int | None = None  # where the asynchronous forms have their stream
    late: bool = False  # it only tells of what was made before the function was probed

    @property
    def returns(self) -> bool:
        return bool(self.back)


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str
    group: str
    shape: Shape
    detail: int = 0
    narrow: bool = False
    stream: int | None = None  # position of the stream argument

    @property
    def per_thread(self) -> bool:
        """Whether stream 0 is the thread's own."""
        return self.name.endswith(("_ptsz", "_ptds"))


COUNT = Shape(entry="count")
LAUNCH = Shape(entry="launch")  # detail: 1 a host function, 2 (const CUlaunchConfig *, …)
LAUNCH_MULTI = Shape(entry="launch_multi")  # (launchParamsList, numDevices, flags)
LAUNCH_GRAPH = Shape(entry="launch_graph")  # (CUgraphExec, CUstream)

ALLOC = Shape("alloc")  # (pointer *out, …)
ALLOC_PITCH = Shape("alloc", measure="pitch")
ALLOC_FROM_POOL = Shape("alloc", measure="pool")
CREATE_MEMORY = Shape("alloc", measure="physical")
ARRAY_2D = Shape("alloc", measure="array_2d")
ARRAY_3D = Shape("alloc", measure="array_3d")
MIPMAP = Shape("alloc", measure="mipmap")
FREE = Shape("free", entry="free")  # (pointer or handle, …)
RELEASE_MEMORY = Shape("release_memory", entry="release_memory")  # (handle)
RETAIN_MEMORY = Shape("retain_memory")  # (handle *out, …)
MAP = Shape("map")  # (address, bytes, offset, handle, flags)
UNMAP = Shape("unmap")  # (address, bytes)
GET_POOL = Shape("get_pool")  # (CUmemoryPool *out, device or location, …)

COPY_2 = Shape("transfer", measure="copy_2", stream=3)
COPY_3 = Shape("transfer", measure="copy_3", stream=4)
COPY_4 = Shape("transfer", measure="copy_4", stream=5)
COPY_2D = Shape("transfer", measure="copy_2d", stream=1)
COPY_3D = Shape("transfer", measure="copy_3d", stream=1)
COPY_BATCH = Shape("transfer", measure="batch")
SET = Shape("transfer", measure="set", stream=3)
SET_2D = Shape("transfer", measure="set_2d", stream=5)
WAIT = Shape("wait")

INIT = Shape(entry="init")
CREATE_CONTEXT = Shape("create_context")  # (CUcontext *out, …); detail: the device's position
RETAIN_PRIMARY = Shape("retain_primary")  # (CUcontext *out, CUdevice)
RELEASE_PRIMARY = Shape("release_primary")  # (CUdevice)
DESTROY_CONTEXT = Shape("destroy_context")  # (CUcontext)
ATTACH_CONTEXT = Shape("attach_context")  # (CUcontext *out, flags)
SET_CURRENT = Shape("set_current")  # (CUcontext)
POP_CURRENT = Shape("pop_current")
GET_CURRENT = Shape("get_current", late=True)  # (CUcontext *out)
GET_DEVICE = Shape("get_device", late=True)  # (CUdevice *out[, CUcontext])
ASK = Shape("ask")  # (out, CUdevice), (out, length, CUdevice)
CREATE_GREEN = Shape("create_green")  # (CUgreenCtx *out, description, CUdevice, flags)
CREATE_OF = Shape("create_of")  # (out, what it is made of, …)
CREATE_HERE = Shape("create_here")  # (out, …), in the current context

DESTROY_STREAM = Shape("destroy_stream")  # (CUstream)
ASK_STREAM = Shape("ask_stream", late=True)  # (CUstream, out, …)
BEGIN_CAPTURE = Shape("begin_capture")  # (CUstream[, CUgraph], …)
END_CAPTURE = Shape("end_capture")  # (CUstream, CUgraph *out)
RECORD_EVENT = Shape(entry="record_event")  # (CUevent, CUstream, …)
WAIT_EVENT = Shape(entry="wait_event")  # (CUstream, CUevent, …)

CREATE_GRAPH = Shape("create_graph")  # (CUgraph *out, flags)
COPY_GRAPH = Shape("copy_graph")  # (out, CUgraph, …)
UPDATE_INSTANCE = Shape("update_instance")  # (CUgraphExec, CUgraph, …)
DESTROY_GRAPH = Shape("destroy_graph")  # (CUgraph or CUgraphExec)
ADD_NODE = Shape("add_node")  # (CUgraphNode *out, CUgraph, …)
SET_NODE = Shape("set_node")  # (CUgraphNode, params)
DESTROY_NODE = Shape("destroy_node")  # (CUgraphNode)
GET_CHILD = Shape("get_child")  # (CUgraphNode, CUgraph *out)
ENABLE_NODE = Shape("enable_node")  # (CUgraphExec, CUgraphNode, enabled)


def _rows(
    names: str,
    group: str,
    shape: Shape,
    detail: int = 0,
    *,
    stream: int | None = None,
    narrow: bool = False,
) -> tuple[Symbol, ...]:
    """A row per name. Without `stream`, the forms called Async have it where the shape says."""

    def position(name: str) -> int | None:
        return shape.stream if stream is None and "Async" in name else stream

    return tuple(
        Symbol(name, group, shape, detail, narrow, position(name)) for name in names.split()
    )


SYMBOLS: tuple[Symbol, ...] = (
    # --- launch: counted on entry -------------------------------------------------------------
    *_rows(
        "cuLaunchKernel cuLaunchKernel_ptsz "
        "cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz",
        "launch",
        LAUNCH,
        stream=8,
    ),
    *_rows("cuLaunchKernelEx cuLaunchKernelEx_ptsz", "launch", LAUNCH, 2),
    *_rows("cuLaunch cuLaunchGrid", "launch", LAUNCH),
    *_rows("cuLaunchGridAsync", "launch", LAUNCH, stream=3),
    *_rows("cuLaunchCooperativeKernelMultiDevice", "launch", LAUNCH_MULTI),
    *_rows("cuGraphLaunch cuGraphLaunch_ptsz", "launch", LAUNCH_GRAPH, stream=1),
    *_rows(
        "cuLaunchHostFunc cuLaunchHostFunc_ptsz cuLaunchHostFunc_v2 cuLaunchHostFunc_v2_ptsz",
        "launch",
        LAUNCH,
        1,
        stream=0,
    ),
    # --- memory: allocations and frees, on success --------------------------------------------
    *_rows("cuMemAlloc_v2", "memory", ALLOC, _DEVICE),
    *_rows("cuMemAlloc", "memory", ALLOC, _DEVICE, narrow=True),
    *_rows("cuMemAllocPitch_v2", "memory", ALLOC_PITCH, _DEVICE),
    *_rows("cuMemAllocPitch", "memory", ALLOC_PITCH, _DEVICE, narrow=True),
    *_rows("cuMemAllocManaged", "memory", ALLOC, _MANAGED),
    *_rows("cuMemAllocAsync cuMemAllocAsync_ptsz", "memory", ALLOC, _POOL, stream=2),
    *_rows(
        "cuMemAllocFromPoolAsync cuMemAllocFromPoolAsync_ptsz",
        "memory",
        ALLOC_FROM_POOL,
        _POOL,
        stream=3,
    ),
    *_rows("cuMemPoolCreate", "memory", GET_POOL, 1),
    *_rows("cuDeviceGetDefaultMemPool cuDeviceGetMemPool", "memory", GET_POOL),
    *_rows("cuMemGetDefaultMemPool cuMemGetMemPool", "memory", GET_POOL, 2),
    *_rows("cuMemCreate", "memory", CREATE_MEMORY, _VIRTUAL),
    *_rows("cuMemAllocHost_v2 cuMemHostAlloc", "memory", ALLOC, _HOST),
    *_rows("cuMemAllocHost", "memory", ALLOC, _HOST, narrow=True),
    *_rows("cuArrayCreate_v2", "memory", ARRAY_2D, _ARRAY),
    *_rows("cuArrayCreate", "memory", ARRAY_2D, _ARRAY, narrow=True),
    *_rows("cuArray3DCreate_v2", "memory", ARRAY_3D, _ARRAY),
    *_rows("cuArray3DCreate", "memory", ARRAY_3D, _ARRAY, narrow=True),
    *_rows("cuMipmappedArrayCreate", "memory", MIPMAP, _ARRAY),
    *_rows("cuMemFree_v2", "memory", FREE, _DEVICE),
    *_rows("cuMemFreeAsync cuMemFreeAsync_ptsz", "memory", FREE, _DEVICE, stream=1),
    *_rows("cuMemFree", "memory", FREE, _DEVICE, narrow=True),
    *_rows("cuMemRelease", "memory", RELEASE_MEMORY, _VIRTUAL),
    *_rows("cuMemRetainAllocationHandle", "memory", RETAIN_MEMORY),
    *_rows("cuMemImportFromShareableHandle cuMulticastCreate", "memory", RETAIN_MEMORY, 1),
    *_rows("cuMemMap", "memory", MAP),
    *_rows("cuMemUnmap", "memory", UNMAP),
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
    *_rows("cuMemcpyBatchAsync cuMemcpyBatchAsync_ptsz", "copy", COPY_BATCH, _ANY, stream=8),
    *_rows("cuMemcpyBatchAsync_v2 cuMemcpyBatchAsync_v2_ptsz", "copy", COPY_BATCH, _ANY, stream=7),
    # The bytes of a batch of 3D copies are not added up: the calls alone are counted.
    *_rows(
        "cuMemcpy3DBatchAsync cuMemcpy3DBatchAsync_ptsz "
        "cuMemcpy3DBatchAsync_v2 cuMemcpy3DBatchAsync_v2_ptsz",
        "copy",
        COUNT,
    ),
    *_rows(
        "cuMemcpyWithAttributesAsync cuMemcpyWithAttributesAsync_ptsz",
        "copy",
        COPY_2,
        _ANY,
        stream=4,
    ),
    *_rows(
        "cuMemcpy3DWithAttributesAsync cuMemcpy3DWithAttributesAsync_ptsz",
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
    *_rows("cuStreamSynchronize cuStreamSynchronize_ptsz", "wait", WAIT, stream=0),
    *_rows("cuCtxSynchronize", "wait", WAIT),
    *_rows("cuCtxSynchronize_v2", "wait", WAIT, 1),
    *_rows("cuEventSynchronize", "wait", WAIT, 2),
    # --- state: contexts, and what the process is told of devices -------------------------------
    *_rows("cuInit", STATE, INIT),
    *_rows("cuCtxCreate cuCtxCreate_v2", STATE, CREATE_CONTEXT, 2),
    *_rows(
        "cuGLCtxCreate cuGLCtxCreate_v2 cuVDPAUCtxCreate cuVDPAUCtxCreate_v2",
        STATE,
        CREATE_CONTEXT,
        2,
    ),
    *_rows("cuCtxCreate_v3", STATE, CREATE_CONTEXT, 4),
    *_rows("cuCtxCreate_v4", STATE, CREATE_CONTEXT, 3),
    *_rows("cuDevicePrimaryCtxRetain", STATE, RETAIN_PRIMARY),
    *_rows("cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2", STATE, RELEASE_PRIMARY),
    *_rows("cuDevicePrimaryCtxReset cuDevicePrimaryCtxReset_v2", STATE, RELEASE_PRIMARY, 1),
    *_rows("cuCtxDestroy cuCtxDestroy_v2", STATE, DESTROY_CONTEXT),
    *_rows("cuCtxDetach", STATE, DESTROY_CONTEXT, 1),
    *_rows("cuCtxAttach", STATE, ATTACH_CONTEXT),
    *_rows("cuCtxSetCurrent", STATE, SET_CURRENT),
    *_rows("cuCtxPushCurrent cuCtxPushCurrent_v2", STATE, SET_CURRENT, 1),
    *_rows("cuCtxPopCurrent cuCtxPopCurrent_v2", STATE, POP_CURRENT),
    *_rows("cuCtxGetCurrent", STATE, GET_CURRENT),
    *_rows("cuCtxGetDevice", STATE, GET_DEVICE),
    *_rows("cuCtxGetDevice_v2", STATE, GET_DEVICE, 1),
    *_rows("cuDeviceGetUuid", STATE, ASK, ANSWERS.index("uuid")),
    *_rows("cuDeviceGetUuid_v2", STATE, ASK, ANSWERS.index("uuid_v2")),
    *_rows("cuDeviceGetPCIBusId", STATE, ASK, ANSWERS.index("pci_bus_id")),
    *_rows("cuGreenCtxCreate", STATE, CREATE_GREEN),
    *_rows("cuGreenCtxDestroy", STATE, RELEASE_PRIMARY, 2),
    *_rows("cuCtxFromGreenCtx", STATE, CREATE_OF),
    *_rows("cuGreenCtxStreamCreate", STATE, CREATE_OF, 1),
    *_rows(
        "cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary",
        STATE,
        CREATE_HERE,
        1,
    ),
    *_rows("cuLibraryGetModule", STATE, CREATE_HERE, 1),
    *_rows("cuKernelGetFunction", STATE, CREATE_HERE, 2),
    *_rows("cuModuleGetFunction", STATE, CREATE_OF, 2),
    # --- state: streams, events, captures -------------------------------------------------------
    *_rows("cuStreamCreate cuStreamCreateWithPriority", STATE, CREATE_HERE),
    *_rows("cuStreamDestroy cuStreamDestroy_v2", STATE, DESTROY_STREAM),
    *_rows(
        "cuStreamGetCtx cuStreamGetCtx_ptsz cuStreamGetCtx_v2 cuStreamGetCtx_v2_ptsz",
        STATE,
        ASK_STREAM,
    ),
    *_rows("cuStreamGetDevice cuStreamGetDevice_ptsz", STATE, ASK_STREAM, 1),
    *_rows(
        "cuStreamBeginCapture cuStreamBeginCapture_ptsz "
        "cuStreamBeginCapture_v2 cuStreamBeginCapture_v2_ptsz",
        STATE,
        BEGIN_CAPTURE,
    ),
    *_rows("cuStreamBeginCaptureToGraph cuStreamBeginCaptureToGraph_ptsz", STATE, BEGIN_CAPTURE, 1),
    *_rows("cuStreamEndCapture cuStreamEndCapture_ptsz", STATE, END_CAPTURE),
    *_rows("cuEventRecord cuEventRecord_ptsz", STATE, RECORD_EVENT),
    *_rows("cuEventRecordWithFlags cuEventRecordWithFlags_ptsz", STATE, RECORD_EVENT, 1),
    *_rows("cuEventDestroy cuEventDestroy_v2", STATE, RECORD_EVENT, 2),
    *_rows("cuStreamWaitEvent cuStreamWaitEvent_ptsz", STATE, WAIT_EVENT),
    # --- state: graphs --------------------------------------------------------------------------
    *_rows("cuGraphCreate", STATE, CREATE_GRAPH),
    *_rows("cuGraphClone", STATE, COPY_GRAPH),
    *_rows(
        "cuGraphInstantiate cuGraphInstantiate_v2 cuGraphInstantiateWithFlags "
        "cuGraphInstantiateWithParams cuGraphInstantiateWithParams_ptsz",
        STATE,
        COPY_GRAPH,
        1,
    ),
    *_rows("cuGraphExecUpdate cuGraphExecUpdate_v2", STATE, UPDATE_INSTANCE),
    *_rows("cuGraphDestroy", STATE, DESTROY_GRAPH),
    *_rows("cuGraphExecDestroy", STATE, DESTROY_GRAPH, 1),
    *_rows("cuGraphAddKernelNode", STATE, ADD_NODE, 1),
    *_rows("cuGraphAddKernelNode_v2", STATE, ADD_NODE, 2),
    *_rows("cuGraphAddChildGraphNode", STATE, ADD_NODE, 3),
    *_rows("cuGraphAddNode", STATE, ADD_NODE, 4),
    *_rows("cuGraphAddNode_v2", STATE, ADD_NODE, 5),
    *_rows(
        "cuGraphAddMemcpyNode cuGraphAddMemsetNode cuGraphAddHostNode cuGraphAddEmptyNode "
        "cuGraphAddEventRecordNode cuGraphAddEventWaitNode cuGraphAddMemAllocNode "
        "cuGraphAddMemFreeNode cuGraphAddBatchMemOpNode "
        "cuGraphAddExternalSemaphoresSignalNode cuGraphAddExternalSemaphoresWaitNode",
        STATE,
        ADD_NODE,
        6,
    ),
    *_rows("cuGraphKernelNodeSetParams", STATE, SET_NODE, 1),
    *_rows("cuGraphKernelNodeSetParams_v2", STATE, SET_NODE, 2),
    *_rows("cuGraphNodeSetParams", STATE, SET_NODE, 4),
    *_rows("cuGraphDestroyNode", STATE, DESTROY_NODE),
    *_rows("cuGraphChildGraphNodeGetGraph", STATE, GET_CHILD),
    *_rows("cuGraphNodeSetEnabled", STATE, ENABLE_NODE),
)


def chosen(groups: tuple[str, ...], attribution: bool = True) -> tuple[Symbol, ...]:
    """The symbols of these groups, in table order (their position is their lane).

    With any group go, for `attribution`, the functions that tell what its calls belong to.
    """
    wanted = {*groups, STATE} if groups and attribution else {*groups}
    return tuple(symbol for symbol in SYMBOLS if symbol.group in wanted)
