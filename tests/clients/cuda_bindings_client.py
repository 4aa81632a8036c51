"""A client by NVIDIA's cuda-bindings: launches, copies, waits and a captured graph.

With CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM=1 in its environment the bindings call the driver's
per-thread variants.
"""

import argparse
from typing import Any

import numpy as np
from cuda.bindings import driver

PTX = b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry work()\n{\n ret;\n}\n\0"


def call(function: Any, *arguments: Any) -> Any:
    """Calls the driver and gives what it returns besides its status."""
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function.__name__}: {status!r}")
    return values[0] if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=101)
    parser.add_argument("--copies", type=int, default=13)
    parser.add_argument("--graph-kernels", type=int, default=7)
    parser.add_argument("--graph-launches", type=int, default=5)
    options = parser.parse_args()

    call(driver.cuInit, 0)
    device = call(driver.cuDeviceGet, 0)
    context = call(driver.cuDevicePrimaryCtxRetain, device)
    call(driver.cuCtxSetCurrent, context)
    module = call(driver.cuModuleLoadData, PTX)
    kernel = call(driver.cuModuleGetFunction, module, b"work")

    def launch(stream: Any) -> None:
        call(driver.cuLaunchKernel, kernel, 1, 1, 1, 32, 1, 1, 0, stream, 0, 0)

    for _ in range(options.launches):
        launch(0)

    sent = np.arange(997, dtype=np.float32)
    received = np.zeros_like(sent)
    pointer = call(driver.cuMemAlloc, sent.nbytes)
    for _ in range(options.copies):
        call(driver.cuMemcpyHtoD, pointer, sent.ctypes.data, sent.nbytes)
        call(driver.cuMemcpyDtoH, received.ctypes.data, pointer, sent.nbytes)
    call(driver.cuMemFree, pointer)
    if options.copies and not np.array_equal(sent, received):
        raise RuntimeError("what came back is not what was sent")

    stream = call(driver.cuStreamCreate, 0)
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    call(driver.cuStreamBeginCapture, stream, mode)
    for _ in range(options.graph_kernels):
        launch(stream)
    graph = call(driver.cuStreamEndCapture, stream)
    executable = call(driver.cuGraphInstantiate, graph, 0)
    for _ in range(options.graph_launches):
        call(driver.cuGraphLaunch, executable, stream)
    call(driver.cuStreamSynchronize, stream)
    call(driver.cuGraphExecDestroy, executable)
    call(driver.cuGraphDestroy, graph)
    call(driver.cuDevicePrimaryCtxRelease, device)


if __name__ == "__main__":
    main()
