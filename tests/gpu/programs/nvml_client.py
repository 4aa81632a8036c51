"""Times the NVML calls that the agent makes, by the agent's own tables. It changes nothing."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.nvml import FACTS, PROCESS_LISTS
from tests.gpu.programs import talk

ROWS = 1024


class Client:
    def __init__(self, path: str) -> None:
        try:
            self.library: Any = ctypes.CDLL(path)
        except OSError as error:
            raise SystemExit(f"NVML: {error}") from None
        pynvml.nvmlLib = self.library
        pynvml.nvmlInit()

    def _calls(self, handle: Any) -> Iterator[tuple[str, Callable[[], int]]]:
        for query in dict.fromkeys(fact.query for fact in FACTS):
            while query is not None and not hasattr(self.library, query.function):
                query = query.older  # type: ignore[assignment]
            if query is None:
                continue
            result = query.result()
            if query.version:
                result.version = query.version
            function = self.library[query.function]
            arguments = (handle, *query.arguments, ctypes.byref(result))
            yield query.function, _bound(function, *arguments)
        count = ctypes.c_uint()
        rows = (pynvml.c_nvmlProcessInfo_v2_t * ROWS)()
        for names in PROCESS_LISTS:
            for name in [name for name in names if hasattr(self.library, name)][:1]:
                yield name, _counted(self.library[name], handle, count, rows)
        name = "nvmlDeviceGetProcessUtilization"
        if hasattr(self.library, name):
            samples = (pynvml.c_nvmlProcessUtilizationSample_t * ROWS)()
            since = ctypes.c_ulonglong(int((time.time() - 1) * 1e6))
            yield name, _sampled(self.library[name], handle, samples, count, since)

    def timing(self, times: int) -> list[dict[str, Any]]:
        found = []
        for gpu in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            for name, call in self._calls(handle):
                codes: collections.Counter[int] = collections.Counter()
                taken: list[float] = []
                begin = time.monotonic()
                while len(taken) < times and time.monotonic() - begin < 2:
                    start = time.perf_counter()
                    codes[call()] += 1
                    taken.append(1000 * (time.perf_counter() - start))
                found.append({"gpu": gpu, "call": name, **_spread(taken), "codes": _told(codes)})
        return found

    def features(self) -> dict[str, str]:
        found = {}
        for gpu in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            found[f"GPU {gpu}: MIG"] = _mig(handle)
            found[f"GPU {gpu}: GPM"] = _gpm(handle)
        return found


def _bound(function: Any, *arguments: Any) -> Callable[[], int]:
    return lambda: int(function(*arguments))


def _counted(function: Any, handle: Any, count: Any, rows: Any) -> Callable[[], int]:
    def call() -> int:
        count.value = ROWS
        return int(function(handle, ctypes.byref(count), rows))

    return call


def _sampled(function: Any, handle: Any, samples: Any, count: Any, since: Any) -> Callable[[], int]:
    def call() -> int:
        count.value = ROWS
        return int(function(handle, samples, ctypes.byref(count), since))

    return call


def _spread(taken: list[float]) -> dict[str, float]:
    ordered = sorted(taken)
    rank = math.ceil(0.99 * len(ordered)) - 1
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[rank], "most": ordered[-1]}


def _told(codes: collections.Counter[int]) -> str:
    """The answers that weren't success."""
    return ", ".join(f"{pynvml.NVMLError(code)} ({n})" for code, n in codes.items() if code)


def _mig(handle: Any) -> str:
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(handle)
        if not mode:
            return "off"
        instances = []
        for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):
                instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
                instances.append(str(pynvml.nvmlDeviceGetUUID(instance)))
        return "on: " + (", ".join(instances) or "no instances")
    except pynvml.NVMLError as error:
        return str(error)


def _gpm(handle: Any) -> str:
    try:
        supported = pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice
    except pynvml.NVMLError as error:
        return str(error)
    return "supported" if supported else "not supported"


if __name__ == "__main__":
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "libnvidia-ml.so.1")
    talk.serve({"timing": client.timing, "features": client.features})
