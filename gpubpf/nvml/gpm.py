"""GPU performance monitoring: metrics between two samples (NVML API Reference, "GPM Functions").

Hopper and later. The driver keeps nothing: each reader has two samples of its own, so that others
who measure, and other intervals, are not in its way.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.nvml import codes
from gpubpf.nvml.library import Library

# nvmlGpmMetric_t: id, return, value, texts. Unpacked at once, as in `plan`.
_METRIC = struct.Struct("=IId24x")
SHORTEST = 0.1  # seconds between two samples, at least


def supported(library: Library, handle: Any) -> bool:
    function = library.function("nvmlGpmQueryDeviceSupport")
    if function is None or library.function("nvmlGpmMetricsGet") is None:
        return False
    support = pynvml.c_nvmlGpmSupport_t()
    support.version = pynvml.NVML_GPM_SUPPORT_VERSION
    return function(handle, ctypes.byref(support)) == 0 and bool(support.isSupportedDevice)


class Reader:
    """Reads some metrics of a device, or of one of its MIG instances. `close` frees it."""

    def __init__(
        self,
        library: Library,
        handle: Any,
        ids: Sequence[int],
        instance: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._handle = handle
        self._instance = instance
        self._monotonic = monotonic
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = len(ids)
        size, start = _METRIC.size * len(ids), pynvml.c_nvmlGpmMetricsGet_t.metrics.offset
        self._rows = (ctypes.c_char * size).from_buffer(self._request, start)
        for place, number in enumerate(ids):
            self._request.metrics[place].metricId = number
        self._samples: list[Any] = []
        self._at: float | None = None  # of the newest sample, which is the last in the list
        self.values: list[tuple[int, float]] = [(codes.NOT_NOW, 0.0)] * len(ids)

    def read(self) -> int:
        """A new sample, and `values` since the one before: (code, figure). An NVML code."""
        now = self._monotonic()
        if self._at is not None and now - self._at < SHORTEST:
            return 0  # the last ones hold
        if len(self._samples) < 2:
            sample = pynvml.c_nvmlGpmSample_t()
            code = self._library.function("nvmlGpmSampleAlloc")(ctypes.byref(sample))
            if code:
                return int(code)
        else:
            sample = self._samples.pop(0)
        code = self._sample(sample)
        if code:
            self._free([sample])
            self.close()
            return code
        self._samples.append(sample)
        self._at = now
        return self._compare() if len(self._samples) == 2 else 0

    def _sample(self, sample: Any) -> int:
        if self._instance is None:
            return int(self._library.function("nvmlGpmSampleGet")(self._handle, sample))
        function = self._library.function("nvmlGpmMigSampleGet")
        return int(function(self._handle, self._instance, sample))

    def _compare(self) -> int:
        self._request.sample1, self._request.sample2 = self._samples
        code = int(self._library.function("nvmlGpmMetricsGet")(ctypes.byref(self._request)))
        self.values = [(code or each, value) for _, each, value in _METRIC.iter_unpack(self._rows)]
        return code

    def close(self) -> None:
        self._free(self._samples)
        self._samples = []
        self._at = None
        self.values = [(codes.NOT_NOW, 0.0)] * len(self.values)

    def _free(self, samples: list[Any]) -> None:
        for sample in samples:
            self._library.function("nvmlGpmSampleFree")(sample)
