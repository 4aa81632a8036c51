"""A client that counts the kernels that ran with NVIDIA's CUPTI (PyPI: cupti-python)."""

from __future__ import annotations

import collections
import importlib
from ctypes import c_uint, c_void_p
from typing import Any

from tests.gpu.programs import talk
from tests.gpu.programs.driver import Cuda

BUFFER = 8 << 20  # bytes that CUPTI may fill with records


class Client:
    def __init__(self) -> None:
        self.cupti: Any = None
        self.cuda = Cuda()
        self.kernels: collections.Counter[int] = collections.Counter()  # by device

    def begin(self) -> None:
        """Before the driver is initialised: CUPTI then sees all."""
        self.cupti = importlib.import_module("cupti.cupti")
        kind = self.cupti.ActivityKind.CONCURRENT_KERNEL

        def completed(records: list[Any]) -> None:
            for record in records:
                if record.kind == kind:
                    self.kernels[int(record.device_id)] += 1

        try:
            self.cupti.activity_register_callbacks(lambda: (BUFFER, 0), completed)
            self.cupti.activity_enable(kind)
        except Exception as error:
            raise talk.NotHereError(f"CUPTI can't record here: {error}") from error
        self.cuda.call("cuInit", c_uint(0))

    def work(self, launches: int, kernels: int, times: int) -> dict[str, int]:
        """Answers with CUPTI's kernels by UUID."""
        for ordinal in range(min(self.cuda.count(), 2)):
            self.cuda.retain(ordinal)
            kernel = self.cuda.kernel()
            for _ in range(launches):
                self.cuda.launch(kernel, c_void_p())
            stream = self.cuda.stream()
            graph = self.cuda.graph(kernel, kernels, stream)
            for _ in range(times):
                self.cuda.call("cuGraphLaunch", graph, stream)
            self.cuda.call("cuCtxSynchronize")
        self.cupti.activity_flush_all(1)
        return {self.cuda.uuid(device): count for device, count in self.kernels.items()}


if __name__ == "__main__":
    client = Client()
    talk.serve({"begin": client.begin, "work": client.work})
