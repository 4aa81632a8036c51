"""A client by PyTorch."""

from __future__ import annotations

import collections
import importlib
import multiprocessing
from collections.abc import Callable
from typing import Any

from tests.gpu.programs import talk

LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cudaLaunchCooperativeKernel",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
)


class Client:
    def __init__(self) -> None:
        self.torch: Any = None
        self.held: list[Any] = []
        self.graph: Any = None
        self.compiled: Any = None
        self.worker: Any = None

    def open(self) -> dict[str, Any]:
        """Launches each kind of kernel once: libraries load theirs when first asked."""
        self.torch = torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise talk.NotHereError("this PyTorch sees no GPU (built for it? driver too old?)")
        self._step(torch.ones(1024, device="cuda"))
        torch.cuda.synchronize()
        version = str(torch.version.cuda)
        return {"PyTorch": str(torch.__version__), "its CUDA": version}

    def uuid(self, device: int) -> str:
        from tests.gpu.programs.driver import Cuda

        return Cuda().uuid(device)

    def _step(self, x: Any) -> Any:
        square = x.view(32, 32)
        return (square @ square + x.sum()).relu_().sort().values.cumsum(0)

    def _profiled(self, work: Callable[[], Any]) -> dict[str, Any]:
        """How many launches the profiler sees, by name, and kernels on the GPU."""
        profiler = importlib.import_module("torch.profiler")
        kinds = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]
        with profiler.profile(activities=kinds) as profile:
            work()
            self.torch.cuda.synchronize()
        counts: collections.Counter[str] = collections.Counter()
        kernels = 0
        for event in profile.events():
            if event.name in LAUNCHES:
                counts[event.name] += 1
            elif "CUDA" in str(event.device_type) and not event.name.startswith("Mem"):
                kernels += 1
        return {"launches": dict(counts), "kernels": kernels}

    def eager(self, steps: int) -> dict[str, Any]:
        def work() -> None:
            x = self.torch.ones(1024, device="cuda")
            for _ in range(steps):
                self._step(x)

        return self._profiled(work)

    def capture(self, kernels: int) -> None:
        x = self.torch.ones(1024, device="cuda")
        self.torch.cuda.synchronize()
        self.graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(self.graph):
            for _ in range(kernels):
                x.add_(1)
        self.held.append(x)

    def replay(self, times: int) -> None:
        for _ in range(times):
            self.graph.replay()
        self.torch.cuda.synchronize()

    def allocate(self, size: int, times: int) -> dict[str, int]:
        before = self.torch.cuda.memory_stats()
        kind = self.torch.uint8
        self.held += [self.torch.empty(size, dtype=kind, device="cuda") for _ in range(times)]
        self.torch.cuda.synchronize()
        return {
            "bytes": self._grown(before, "reserved_bytes.all.allocated"),
            "segments": self._grown(before, "segment.all.allocated"),
            "tensors": times,
            "asked": size * times,
        }

    def _grown(self, before: dict[str, int], name: str) -> int:
        return int(self.torch.cuda.memory_stats().get(name, 0)) - int(before.get(name, 0))

    def release(self) -> int:
        """Answers with the bytes that PyTorch says it gave back."""
        before = self.torch.cuda.memory_stats()
        self.held.clear()
        self.torch.cuda.synchronize()
        self.torch.cuda.empty_cache()
        return self._grown(before, "reserved_bytes.all.freed")

    def compile(self) -> None:
        def work(x: Any) -> Any:
            return (x * 2 + 1).relu() * x.sin()

        self.compiled = self.torch.compile(work)
        self.compiled(self.torch.ones(1024, device="cuda"))
        self.torch.cuda.synchronize()

    def run_compiled(self, steps: int) -> dict[str, Any]:
        def work() -> None:
            x = self.torch.ones(1024, device="cuda")
            for _ in range(steps):
                self.compiled(x)

        return self._profiled(work)

    def both(self, adds: int, size: int) -> None:
        for device in ("cuda:0", "cuda:1"):
            x = self.torch.zeros(size, dtype=self.torch.uint8, device=device)
            for _ in range(adds):
                x.add_(1)
            self.held.append(x)
        self.held.append(self.held[-2].to("cuda:1"))
        for ordinal in (0, 1):
            self.torch.cuda.synchronize(ordinal)

    def start_worker(self, method: str, adds: int) -> int:
        """A process that adds and then waits; this one doesn't touch CUDA."""
        context: Any = multiprocessing.get_context(method)
        done, end = context.Event(), context.Event()
        process = context.Process(target=_work, args=(adds, done, end), daemon=True)
        process.start()
        while not done.wait(0.2):
            if not process.is_alive():
                raise RuntimeError(f"the worker ended with {process.exitcode}")
        self.worker = process, end
        return int(process.pid or 0)

    def end_worker(self) -> None:
        process, end = self.worker
        end.set()
        process.join(20)


def _work(adds: int, done: Any, end: Any) -> None:
    talk.end_with_parent()
    torch = importlib.import_module("torch")
    x = torch.ones(1024, device="cuda")
    for _ in range(adds):
        x.add_(1)
    torch.cuda.synchronize()
    done.set()
    end.wait(120)


def main() -> None:
    client = Client()
    names = [name for name in dir(Client) if not name.startswith("_")]
    talk.serve({name: getattr(client, name) for name in names})


if __name__ == "__main__":
    main()
