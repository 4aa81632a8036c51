"""A client of one libcudart, by ctypes."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

from tests.gpu.programs import talk
from tests.gpu.programs.driver import PTX, TARGETS

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpy
OLD_DRIVER, NO_DRIVER = 35, 36  # cudaErrorInsufficientDriver, cudaErrorCallRequiresNewerDriver
GRAPH_KERNELS, GRAPH_LAUNCHES, POOL = 7, 5, 3
THREAD_LOCAL = 1


class Dim(ctypes.Structure):
    _fields_ = [("x", c_uint), ("y", c_uint), ("z", c_uint)]


class Runtime:
    def __init__(self, path: str) -> None:
        self.library: Any = ctypes.CDLL(path)

    def call(self, function: str, *arguments: Any) -> None:
        code = getattr(self.library, function)(*arguments)
        if code in (OLD_DRIVER, NO_DRIVER):
            raise talk.NotHereError("the driver is too old for this runtime")
        if code:
            raise RuntimeError(f"{function} gave CUDA error {code}")

    def work(
        self, allocations: int, size: int, copies: int, copied: int, launches: int
    ) -> dict[str, int]:
        """Answers with how much of what depends on the runtime's version was done."""
        self.call("cudaSetDevice", c_int(0))
        places = []
        for _ in range(allocations):
            place = c_void_p()
            self.call("cudaMalloc", byref(place), c_size_t(size))
            places.append(place)
        there, back = (ctypes.c_ubyte * copied)(*[7] * copied), (ctypes.c_ubyte * copied)()
        for _ in range(copies):
            arguments = (c_size_t(copied), c_int(TO_DEVICE))
            self.call("cudaMemcpy", places[0], byref(there), *arguments)
            self.call("cudaMemcpy", byref(back), places[0], c_size_t(copied), c_int(TO_HOST))
        if bytes(there) != bytes(back):
            raise RuntimeError("what came back is not what was sent")
        for place in places:
            self.call("cudaFree", place)
        did = {"launches": 0, "captured": 0, "graph_launches": 0, "graph_kernels": 0, "pool": 0}
        if hasattr(self.library, "cudaMallocAsync"):
            did["pool"] = self._pool(size)
        if hasattr(self.library, "cudaLibraryLoadData"):  # CUDA 12.8
            did.update(self._kernels(launches))
        self.call("cudaDeviceSynchronize")
        return did

    def _pool(self, size: int) -> int:
        for _ in range(POOL):
            place = c_void_p()
            self.call("cudaMallocAsync", byref(place), c_size_t(size), c_void_p())
            self.call("cudaFreeAsync", place, c_void_p())
        return POOL

    def _kernel(self) -> c_void_p:
        library, kernel = c_void_p(), c_void_p()
        for place, target in enumerate(TARGETS):
            code = PTX.format(*target).encode()
            options = (None, None, c_uint(0), None, None, c_uint(0))
            if self.library.cudaLibraryLoadData(byref(library), code, *options) == 0:
                break
            if place == len(TARGETS) - 1:
                self.call("cudaLibraryLoadData", byref(library), code, *options)
        self.call("cudaLibraryGetKernel", byref(kernel), library, b"work")
        return kernel

    def _launch(self, kernel: c_void_p, stream: c_void_p) -> None:
        grid, block = Dim(1, 1, 1), Dim(32, 1, 1)
        self.call("cudaLaunchKernel", kernel, grid, block, None, c_size_t(0), stream)

    def _kernels(self, launches: int) -> dict[str, int]:
        kernel, stream = self._kernel(), c_void_p()
        for _ in range(launches):
            self._launch(kernel, c_void_p())
        self.call("cudaStreamCreate", byref(stream))
        graph, executable = c_void_p(), c_void_p()
        self.call("cudaStreamBeginCapture", stream, c_int(THREAD_LOCAL))
        for _ in range(GRAPH_KERNELS):
            self._launch(kernel, stream)
        self.call("cudaStreamEndCapture", stream, byref(graph))
        instantiate = "cudaGraphInstantiateWithFlags"
        self.call(instantiate, byref(executable), graph, c_ulonglong(0))
        for _ in range(GRAPH_LAUNCHES):
            self.call("cudaGraphLaunch", executable, stream)
        return {
            "launches": launches + GRAPH_KERNELS,
            "captured": GRAPH_KERNELS,
            "graph_launches": GRAPH_LAUNCHES,
            "graph_kernels": GRAPH_KERNELS * GRAPH_LAUNCHES,
        }


if __name__ == "__main__":
    talk.serve({"work": Runtime(sys.argv[1]).work})
