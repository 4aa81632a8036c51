"""The processes that NVML lists on a device, and how much of it each used."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import DeviceProcess, Share
from gpubpf.nvml import codes
from gpubpf.nvml.library import Library
from gpubpf.nvml.plan import Tick

# One layout in v2 of every driver; v3's was another in drivers 535.43 to 535.86, giving wrong pids.
PROCESS_LISTS = (
    (
        "compute",
        "nvmlDeviceGetComputeRunningProcesses_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
    ),
    (
        "graphics",
        "nvmlDeviceGetGraphicsRunningProcesses_v2",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
    ),
    (
        "mps",
        "nvmlDeviceGetMPSComputeRunningProcesses_v2",
        "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    ),
)
SAMPLE_US = 1_000_000
"""The longest time between two utilization samples (nvmlDeviceGetUtilizationRates in NVML's API
reference: 1 s to 1/6 s, by product); a shorter window can be empty though a process is busy."""
NO_MEMORY_FIGURE = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
NO_INSTANCE = 0xFFFFFFFF
MOST_ROWS = 65536
NO_SIZE = pynvml.NVML_ERROR_INSUFFICIENT_SIZE
IDLE = Share(0.0, 0.0, 0.0, 0.0)
# Unpacked at once, as pynvml's structures take a microsecond for each member.
_LISTED = struct.Struct("=I4xQII")  # nvmlProcessInfo_v2_t: pid, bytes, GPU and compute instance
_OLDER = struct.Struct("=I4xQ4I")  # nvmlProcessUtilizationSample_t: pid, time, percents as in Share
_NEWER = struct.Struct("=QI6I4x")  # nvmlProcessUtilizationInfo_v1_t: time, pid, percents


@dataclass(slots=True)
class _Row:
    """What the lists say of a process on the board, or on one MIG device of it."""

    kinds: list[str] = field(default_factory=list)
    memory: int | None = None


_Unpacked = Iterable[tuple[int, ...]]
_Where = tuple[int, tuple[int, int] | None]  # pid; GPU instance and compute instance


class ProcessReader:
    """Reads the processes of one device. `clock` gives seconds since the epoch."""

    def __init__(
        self, library: Library, handle: Any, clock: Callable[[], float] = time.time
    ) -> None:
        self.garbage = 0  # rows that can't be true, since this reader was made
        self.supported: bool | None = None  # utilization by process; None: not known yet
        self._handle = handle
        self._clock = clock
        self._last_seen = self._now() - SAMPLE_US
        self._shares: dict[int, Share] = {}
        self._lists = [(kind, library.function(*names)) for kind, *names in PROCESS_LISTS]
        self._newer = library.function("nvmlDeviceGetProcessesUtilizationInfo")  # from driver 550
        self._older = library.function("nvmlDeviceGetProcessUtilization")
        self._count = ctypes.c_uint()
        self._listed = (pynvml.c_nvmlProcessInfo_v2_t * 128)()
        self._samples = (pynvml.c_nvmlProcessUtilizationSample_t * 128)()
        self._infos = (pynvml.c_nvmlProcessUtilizationInfo_v1_t * 128)()

    def read(
        self, tick: Tick, mig: Mapping[tuple[int, int], str]
    ) -> tuple[DeviceProcess, ...] | None:
        """None where they can't be listed. `mig`: UUIDs of the MIG devices, by instances."""
        listed = self._list(tick)
        if listed is None:
            return None
        tick()
        shares = self._read_shares(len(listed))
        return tuple(
            DeviceProcess(
                pid,
                row.memory,
                tuple(row.kinds),
                mig.get(instance) if instance else None,
                None if shares is None else shares.get(pid, IDLE),
            )
            for (pid, instance), row in listed.items()
        )

    # --- lists ----------------------------------------------------------------------------

    def _list(self, tick: Tick) -> dict[_Where, _Row] | None:
        listed: dict[_Where, _Row] = {}
        for kind, function in self._lists:
            tick()
            rows = self._rows(function)
            if rows is None:
                if kind == "compute":  # without the compute processes the list would mislead
                    return None
                continue
            for pid, memory, gpu_instance, compute_instance in rows:
                if pid == 0:
                    self.garbage += 1
                    continue
                instance = gpu_instance, compute_instance
                place = None if gpu_instance == NO_INSTANCE else instance
                known = listed.setdefault((pid, place), _Row())
                if kind not in known.kinds:
                    known.kinds.append(kind)
                if memory != NO_MEMORY_FIGURE:  # the same in every list it is in
                    known.memory = max(memory, known.memory or 0)
        return listed

    def _rows(self, function: Any) -> _Unpacked | None:
        """Of each: pid, bytes, GPU instance, compute instance."""
        if function is None:
            return None
        for _ in range(4):  # processes may come between two calls
            self._count.value = len(self._listed)
            code = function(self._handle, ctypes.byref(self._count), self._listed)
            if code == 0:
                return _unpacked(_LISTED, self._listed, self._count.value)
            if code != NO_SIZE:
                return None
            self._listed = (pynvml.c_nvmlProcessInfo_v2_t * _more(self._count.value))()
        return None

    # --- utilization ----------------------------------------------------------------------

    def _read_shares(self, processes: int) -> dict[int, Share] | None:
        """Utilization by pid since the last read; who is listed and not in it was idle.

        None where the device or the driver doesn't support it.
        """
        now = self._now()
        if self._last_seen > now:  # the clock was set back, or a sample is from the future
            self._last_seen = now - SAMPLE_US
        code, rows = self._ask(processes)
        if code in (0, pynvml.NVML_ERROR_NOT_FOUND, *codes.UNSUPPORTED):
            self.supported = code not in codes.UNSUPPORTED
        if code == pynvml.NVML_ERROR_NOT_FOUND:
            if now - self._last_seen > SAMPLE_US:  # else: no new sample yet, the last ones hold
                self._shares = {}
                self._last_seen = now - SAMPLE_US
            return self._shares
        self._shares = {}
        if code != 0:
            return None
        newest: dict[int, int] = {}
        for pid, at, *percents in rows:
            self._last_seen = max(self._last_seen, at)
            if pid == 0 or max(percents) > 100:
                self.garbage += 1
            elif at >= newest.get(pid, 0):
                newest[pid] = at
                self._shares[pid] = Share(*(percent / 100 for percent in percents))
        return self._shares

    def _ask(self, processes: int) -> tuple[int, _Unpacked]:
        """An NVML code, and of each sample: pid, time in microseconds, percents."""
        if self._newer is not None:
            code, rows = self._ask_newer(processes)
            if code != pynvml.NVML_ERROR_NOT_SUPPORTED or self._older is None:
                return code, rows
        if self._older is None:
            return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND), ()
        return self._ask_older(processes)

    def _ask_older(self, processes: int) -> tuple[int, _Unpacked]:
        if len(self._samples) < 2 * processes:
            self._samples = (pynvml.c_nvmlProcessUtilizationSample_t * (4 * processes))()
        code = NO_SIZE
        for _ in range(4):
            self._count.value = len(self._samples)
            since = ctypes.c_ulonglong(self._last_seen)
            code = self._older(self._handle, self._samples, ctypes.byref(self._count), since)
            if code != NO_SIZE:
                break
            size = _more(self._count.value)
            self._samples = (pynvml.c_nvmlProcessUtilizationSample_t * size)()
        return int(code), _unpacked(_OLDER, self._samples, 0 if code else self._count.value)

    def _ask_newer(self, processes: int) -> tuple[int, _Unpacked]:
        if len(self._infos) < 2 * processes:
            self._infos = (pynvml.c_nvmlProcessUtilizationInfo_v1_t * (4 * processes))()
        request = pynvml.c_nvmlProcessesUtilizationInfo_v1_t()
        code = NO_SIZE
        for _ in range(4):
            request.version = pynvml.ProcessesUtilizationInfo_v1
            request.processSamplesCount = len(self._infos)
            request.lastSeenTimeStamp = self._last_seen
            request.procUtilArray = self._infos
            code = self._newer(self._handle, ctypes.byref(request))
            if code != NO_SIZE:
                break
            size = _more(request.processSamplesCount)
            self._infos = (pynvml.c_nvmlProcessUtilizationInfo_v1_t * size)()
        count = 0 if code else request.processSamplesCount
        rows = _unpacked(_NEWER, self._infos, count)
        return int(code), ((pid, at, *percents) for at, pid, *percents in rows)

    def _now(self) -> int:
        return int(self._clock() * 1e6)


def _unpacked(row: struct.Struct, array: Any, count: int) -> _Unpacked:
    """The first rows of an array; a driver that says there are more than fit is not believed."""
    return row.iter_unpack(ctypes.string_at(array, row.size * min(count, len(array))))


def _more(rows: int) -> int:
    """Room for so many rows, and for those that come meanwhile; a wild number asks for the most."""
    return min(2 * rows + 16, MOST_ROWS)
