"""Times the NVML calls that the agent makes, by the agent's own tables. It changes nothing."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import CLASSES
from gpubpf.nvml import NvmlError, gpm
from gpubpf.nvml.ask import Query
from gpubpf.nvml.facts import FACTS
from gpubpf.nvml.library import Library
from gpubpf.nvml.plan import Plan, Sample, Watch
from gpubpf.nvml.processes import PROCESS_LISTS, ProcessReader
from tests.gpu.programs import talk

ROWS = 1024


class Client:
    def __init__(self, path: str) -> None:
        self.library = Library(path)
        try:
            self.library.init()
        except NvmlError as error:
            raise SystemExit(f"NVML: {error}") from None

    def _calls(self, handle: Any) -> Iterator[tuple[str, Callable[[], int]]]:
        """Those of a look at everything: of each figure the way that the agent chooses."""
        has_gpm = gpm.supported(self.library, handle)
        for sampled in CLASSES:
            facts = [fact for fact in FACTS if fact.sampled == sampled]
            plan = Plan(self.library, handle, facts, Watch(), has_gpm, 0.0)
            for query, call in plan._calls.items():
                yield _named(query), call
            for number, chunk in enumerate(plan._chunks):
                yield (
                    f"nvmlDeviceGetFieldValues, {sampled}, {number}",
                    partial(_fields, plan, *chunk),
                )
            if plan._gpm:
                ids = [way.id for way, _ in plan._gpm]
                clock = map(float, itertools.count())  # it leaves time between two samples
                reader = gpm.Reader(self.library, handle, ids, monotonic=partial(next, clock))
                yield f"GPM, {sampled}", reader.read
                reader.close()
            plan.close()
        count = ctypes.c_uint()
        rows = (pynvml.c_nvmlProcessInfo_v2_t * ROWS)()
        for _, *names in PROCESS_LISTS:
            function = self.library.function(*names)
            if function is not None:
                yield function.__name__, _counted(function, handle, count, rows)
        processes = ProcessReader(self.library, handle)
        yield "utilization of processes", lambda: processes._ask(ROWS)[0]

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


def _named(query: Query) -> str:
    arguments = ", ".join(map(str, query.arguments))
    return f"{query.function}({arguments})" if arguments else query.function


def _fields(plan: Plan, targets: list[Any], values: Any) -> int:
    return plan._read_fields(Sample(), targets, values)


def _counted(function: Any, handle: Any, count: Any, rows: Any) -> Callable[[], int]:
    def call() -> int:
        count.value = ROWS
        return int(function(handle, ctypes.byref(count), rows))

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
