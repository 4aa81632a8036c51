"""A client by CuPy, without its memory pool."""

from __future__ import annotations

import importlib
from typing import Any

from tests.gpu.programs import talk

CODE = 'extern "C" __global__ void work() {}'


class Client:
    def __init__(self) -> None:
        self.cupy: Any = None
        self.kernel: Any = None

    def open(self) -> None:
        """Compiles and launches once: the first launch may bring others with it."""
        self.cupy = importlib.import_module("cupy")
        self.cupy.cuda.set_allocator(None)
        self.kernel = self.cupy.RawKernel(CODE, "work")
        self.kernel((1,), (32,), ())
        self.cupy.cuda.runtime.deviceSynchronize()

    def work(self, launches: int, allocations: int, size: int, copies: int, copied: int) -> None:
        for _ in range(launches):
            self.kernel((1,), (32,), ())
        held = [self.cupy.cuda.alloc(size) for _ in range(allocations)]
        numpy = importlib.import_module("numpy")
        there = numpy.full(copied, 7, dtype=numpy.uint8)
        back = numpy.zeros_like(there)
        for _ in range(copies):
            held[0].copy_from_host(there.ctypes.data, copied)
            held[0].copy_to_host(back.ctypes.data, copied)
        if not numpy.array_equal(there, back):
            raise RuntimeError("what came back is not what was sent")
        self.cupy.cuda.runtime.deviceSynchronize()

    def versions(self) -> dict[str, str]:
        runtime = self.cupy.cuda.runtime.runtimeGetVersion()
        return {"CuPy": self.cupy.__version__, "its CUDA runtime": str(runtime)}


if __name__ == "__main__":
    client = Client()
    talk.serve({"open": client.open, "work": client.work, "versions": client.versions})
