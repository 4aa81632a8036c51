"""NVML: what the driver says of each GPU and of the processes on it. The only importer of pynvml.

pynvml gives the names, structures, constants and error codes, and the calls that are made once. The
calls of every read go through the same library handle, with structures kept between reads: the
wrappers ask every list for its size first, so that the driver answers twice, and copy each row
field by field. Measured on the simulated NVML with 8 GPUs and 64 busy processes, one read: 0.45 ms
and 96 calls with the wrappers, 0.25 ms and 80 calls so; 0.08 ms of each is the simulation's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf import errors
from gpubpf.model import Device, DeviceInfo, DeviceProcess

DEFAULT_LIBRARY = "libnvidia-ml.so.1"
SAMPLE_US = 1_000_000
"""The longest time between two utilization samples (nvmlDeviceGetUtilizationRates in NVML's API
reference: 1 s to 1/6 s, by product); a shorter window can be empty though a process is busy."""
LONGEST_RETRY = 60.0  # seconds between attempts to initialise NVML again


class NvmlError(errors.NvmlError):
    """`code` is NVML's, or None. `fatal`: the library named is the wrong one, no retry helps."""

    def __init__(self, message: str, code: int | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.fatal = fatal


ADVICE = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no NVIDIA driver is loaded (on a node with a GPU:"
    " modprobe nvidia)",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: f"{DEFAULT_LIBRARY} was not found: install the NVIDIA"
    " driver's libraries or name one with --nvml-library",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "this driver's NVML is too old: update the driver",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to ask the GPU: run as root, or allow access to"
    " /dev/nvidiactl and /dev/nvidia*",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost (fallen off the bus): look for Xid in the"
    " kernel log, then reset the GPU or restart the node",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset: stop its processes, then"
    " nvidia-smi --gpu-reset",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVML and the loaded driver differ in version: load"
    " the installed driver (or restart the node), then restart gpubpf",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "the operating system refuses access to the GPU: check the"
    " device cgroup and /dev/nvidia*",
    pynvml.NVML_ERROR_UNINITIALIZED: "NVML is not initialised any more: gpubpf tries again",
    pynvml.NVML_ERROR_UNKNOWN: "NVML gives no reason (unknown error): the driver was reloaded or"
    " access to /dev/nvidia* was taken away; if it lasts, restart gpubpf or its container",
}

# Answers after which only a new nvmlInit can help.
BROKEN = frozenset(
    (
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
    )
)
# Of one device only: the library and the other devices may be well.
LOST = frozenset((pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED))


def _divided(handle: Any) -> bool:
    """Whether the board is divided into MIG devices; where that can't be told, it may be."""
    try:
        return any(pynvml.nvmlDeviceGetMigMode(handle))
    except pynvml.NVMLError as error:
        return bool(error.value != pynvml.NVML_ERROR_NOT_SUPPORTED)


def _translated(error: pynvml.NVMLError) -> NvmlError:
    code = int(error.value)
    return NvmlError(ADVICE.get(code, f"NVML error {code}: {error}"), code)


@dataclass(frozen=True, slots=True)
class Query:
    """One NVML call of the form f(device, *arguments, &result)."""

    function: str
    result: type[Any] = ctypes.c_uint
    arguments: tuple[int, ...] = ()
    version: int = 0  # for structures that carry their own
    older: Query | None = None  # for drivers without the function


@dataclass(frozen=True, slots=True)
class Fact:
    """One field of model.Device: where it comes from and in what unit."""

    field: str
    query: Query
    attribute: str = "value"
    per: int | None = None  # NVML's units in one of ours; None: the same, an integer


RATES = Query("nvmlDeviceGetUtilizationRates", pynvml.c_nvmlUtilization_t)
MEMORY = Query(  # v1 counts what the driver reserves as used, v2 doesn't (as nvidia-smi)
    "nvmlDeviceGetMemoryInfo_v2",
    pynvml.c_nvmlMemory_v2_t,
    version=pynvml.nvmlMemory_v2,
    older=Query("nvmlDeviceGetMemoryInfo", pynvml.c_nvmlMemory_t),
)
TEMPERATURE = Query("nvmlDeviceGetTemperature", arguments=(pynvml.NVML_TEMPERATURE_GPU,))
ENERGY = Query("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)

PERCENT = 100
FACTS = (
    Fact("utilization", RATES, "gpu", PERCENT),
    Fact("memory_utilization", RATES, "memory", PERCENT),
    Fact("memory_used", MEMORY, "used"),
    Fact("memory_free", MEMORY, "free"),
    Fact("memory_total", MEMORY, "total"),
    Fact("temperature", TEMPERATURE, per=1),
    Fact("power", Query("nvmlDeviceGetPowerUsage"), per=1000),
    Fact("power_limit", Query("nvmlDeviceGetEnforcedPowerLimit"), per=1000),
    Fact("energy", ENERGY, per=1000),
)

# One layout in v2 of every driver; v3's was another in drivers 535.43 to 535.86, giving wrong pids.
PROCESS_LISTS = (
    ("nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetComputeRunningProcesses_v3"),
    ("nvmlDeviceGetGraphicsRunningProcesses_v2", "nvmlDeviceGetGraphicsRunningProcesses_v3"),
    ("nvmlDeviceGetMPSComputeRunningProcesses_v2", "nvmlDeviceGetMPSComputeRunningProcesses_v3"),
)
NO_MEMORY_FIGURE = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
NO_SIZE = pynvml.NVML_ERROR_INSUFFICIENT_SIZE

Call = tuple[Callable[[], int], Any, list[Fact]]  # bound to a device; its result; what it gives
Shares = tuple[float, float, float, float]  # SM, memory, encoder, decoder
IDLE: Shares = (0.0, 0.0, 0.0, 0.0)


@dataclass(slots=True)
class Gpu:
    """A device as Nvml keeps it between reads."""

    info: DeviceInfo
    handle: Any = None  # None: it can't be asked
    error: int = 0  # why not
    calls: list[Call] = field(default_factory=list)
    last_seen: int = 0  # microseconds since the epoch: newest utilization sample
    shares: dict[int, Shares] = field(default_factory=dict)  # by pid, of the newest samples


class Nvml:
    """The GPUs of this node, through the NVML library at `library` (its soname if None).

    One instance at a time in a process, used by one thread: pynvml has one library handle.
    `clock` gives seconds since the epoch, `monotonic` seconds for the time between attempts.
    """

    def __init__(
        self,
        library: str | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.garbage_rows = 0  # rows and figures out of range, dropped since the start
        self.problems: tuple[str, ...] = ()  # of the last read: one line per failing device
        self._path = library
        self._clock = clock
        self._monotonic = monotonic
        self._library: Any = None
        self._initialised = False
        self._gpus: list[Gpu] = []
        self._unidentified: list[str] = []
        self._error: NvmlError | None = None  # why NVML is to be initialised again
        self._retry_at = 0.0
        self._retry_after = 0.0
        self._count = ctypes.c_uint()
        self._listed = (pynvml.c_nvmlProcessInfo_v2_t * 128)()
        self._samples = (pynvml.c_nvmlProcessUtilizationSample_t * 128)()

    # --- open and close ---------------------------------------------------------------------

    def open(self) -> None:
        """Loads and initialises NVML and asks for what doesn't change. Raises NvmlError."""
        try:
            self._load()
            pynvml.nvmlInit()  # where it fails there is nothing to shut down
            self._initialised = True
            self._find()
        except (pynvml.NVMLError, NvmlError) as error:
            mine = error if isinstance(error, NvmlError) else _translated(error)
            self._fail(mine)
            self.close()
            raise mine from None

    def close(self) -> None:
        """Lets go of the driver. Never raises; a later read or open starts anew."""
        if self._initialised:
            self._initialised = False
            with contextlib.suppress(pynvml.NVMLError):  # where the driver went first
                pynvml.nvmlShutdown()

    def _load(self) -> None:
        if self._library is None:
            path = self._path or DEFAULT_LIBRARY
            try:
                self._library = ctypes.CDLL(path)
            except OSError as error:
                if self._path is None:
                    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND) from None
                message = " ".join(f"can't load the NVML library {path}: {error}".split())
                raise NvmlError(message, fatal=True) from None
            if not hasattr(self._library, "nvmlInitWithFlags"):
                self._library = None
                message = f"{path} is not an NVML library: name a {DEFAULT_LIBRARY}"
                raise NvmlError(message, fatal=True)
        if pynvml.nvmlLib is not self._library:  # pynvml has no argument for the path
            pynvml.nvmlLib = self._library
            pynvml._nvmlGetFunctionPointer_cache.clear()
        self._lists = [self._function(*names) for names in PROCESS_LISTS]
        self._utilization = self._function("nvmlDeviceGetProcessUtilization")

    def _function(self, *names: str) -> Any:
        for name in names:
            try:
                return self._library[name]
            except AttributeError:
                continue
        return None

    def _find(self) -> None:
        known = {gpu.info.index: gpu for gpu in self._gpus}
        driver = str(_asked(pynvml.nvmlSystemGetDriverVersion) or "")
        cuda = _asked(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        version = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None
        found: dict[int, Gpu] = {}
        missing: dict[int, int] = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            except pynvml.NVMLError as error:
                missing[index] = int(error.value)
                continue
            pci = _asked(pynvml.nvmlDeviceGetPciInfo, handle)
            info = DeviceInfo(
                index=index,
                uuid=uuid,
                name=str(_asked(pynvml.nvmlDeviceGetName, handle) or ""),
                driver_version=driver,
                pci_bus_id=pci and str(pci.busId),
                minor=_asked(pynvml.nvmlDeviceGetMinorNumber, handle),
                mig=_divided(handle),
                cuda_version=version,
            )
            calls = self._bind(handle)
            found[index] = Gpu(info, handle, calls=calls, last_seen=self._now() - SAMPLE_US)
        present = {gpu.info.uuid for gpu in found.values()}
        self._unidentified = []
        for index, code in missing.items():
            gpu = known.get(index)  # a device is never renamed to the one that had its index
            if gpu and gpu.info.uuid not in present:
                found[index] = Gpu(gpu.info, error=code)
            else:
                self._unidentified.append(f"GPU {index}: {_text(code)}")
        self._gpus = [found[index] for index in sorted(found)]

    def _bind(self, handle: Any) -> list[Call]:
        calls: list[Call] = []
        for query in dict.fromkeys(fact.query for fact in FACTS):
            facts = [fact for fact in FACTS if fact.query is query]
            function = self._function(query.function)
            if function is None and query.older:
                query = query.older
                function = self._function(query.function)
            if function is not None:
                result = query.result()
                if query.version:
                    result.version = query.version
                call = partial(function, handle, *query.arguments, ctypes.byref(result))
                calls.append((call, result, facts))
        return calls

    # --- read -------------------------------------------------------------------------------

    def read(self) -> tuple[Device, ...]:
        """Every device of the node, by index, with None for what it can't tell.

        Raises NvmlError where NVML as a whole fails. After a failure, or while a GPU is lost, NVML
        is initialised again: at the next read, then after 1, 2, 4 … 60 seconds.
        """
        if not self._initialised or self._error:
            self._reopen()
        devices = []
        problems = list(self._unidentified)
        broken: list[int] = []
        for gpu in self._gpus:
            device, error = self._read_device(gpu)
            devices.append(device)
            if error:
                broken.append(error)
                problems.append(f"GPU {gpu.info.index} ({gpu.info.uuid}): {_text(error)}")
        self.problems = tuple(problems)
        if problems:
            code = next((c for c in broken if c not in LOST), None)
            failure = NvmlError(problems[0] if code is None else _text(code), code)
            self._fail(failure)
            if code is not None and len(broken) == len(self._gpus):
                raise failure
        else:
            self._error = None
            self._retry_after = 0.0
        return tuple(devices)

    def _reopen(self) -> None:
        if self._error and self._monotonic() < self._retry_at:
            if self._initialised:
                return  # the other devices can be read meanwhile
            raise self._error.with_traceback(None)
        self.close()
        self.open()

    def _fail(self, error: NvmlError) -> None:
        now = self._monotonic()
        if self._error is None or now >= self._retry_at:
            self._retry_at = now + self._retry_after
            self._retry_after = min(max(1.0, 2 * self._retry_after), LONGEST_RETRY)
        self._error = error

    def _read_device(self, gpu: Gpu) -> tuple[Device, int]:
        """The device, and the NVML error if it has to be initialised again, else 0."""
        if gpu.handle is None:
            return Device(gpu.info), gpu.error
        values: dict[str, Any] = {}
        failed = 0
        for call, result, facts in gpu.calls:
            code = call()
            if code == 0:
                for fact in facts:
                    value = getattr(result, fact.attribute)
                    if fact.per is None:
                        values[fact.field] = value
                    elif fact.per == PERCENT and value > 100:
                        self.garbage_rows += 1
                    else:
                        values[fact.field] = value / fact.per
            elif code in BROKEN:
                return Device(gpu.info), code
            elif code != pynvml.NVML_ERROR_NOT_SUPPORTED:
                failed = code
        processes = self._read_processes(gpu)
        if failed and not values and processes is None:
            return Device(gpu.info), failed
        return Device(gpu.info, processes=processes, **values), 0

    def _read_processes(self, gpu: Gpu) -> tuple[DeviceProcess, ...] | None:
        listed: dict[int, int | None] = {}
        for position, function in enumerate(self._lists):
            rows = self._rows(gpu, function)
            if rows is None:
                if position == 0:  # without the compute processes the list would mislead
                    return None
                continue
            for row in rows:
                pid, memory = row.pid, row.usedGpuMemory
                if pid == 0:
                    self.garbage_rows += 1
                elif memory == NO_MEMORY_FIGURE:
                    listed.setdefault(pid, None)
                else:  # a process in two lists has the same memory in both
                    listed[pid] = max(memory, listed.get(pid) or 0)
        shares = self._read_shares(gpu, len(listed))
        if shares is None:
            return tuple(DeviceProcess(pid, memory) for pid, memory in listed.items())
        return tuple(
            DeviceProcess(pid, memory, *shares.get(pid, IDLE)) for pid, memory in listed.items()
        )

    def _rows(self, gpu: Gpu, function: Any) -> Any:
        if function is None:
            return None
        for _ in range(4):  # processes may come between two calls
            self._count.value = len(self._listed)
            code = function(gpu.handle, ctypes.byref(self._count), self._listed)
            if code == 0:
                return self._listed[: self._count.value]
            if code != NO_SIZE:
                return None
            self._listed = (pynvml.c_nvmlProcessInfo_v2_t * (2 * self._count.value + 16))()
        return None

    def _read_shares(self, gpu: Gpu, processes: int) -> dict[int, Shares] | None:
        """Utilization by pid since the last read; who is listed and not in it was idle.

        None where the device or the driver doesn't support it.
        """
        if self._utilization is None:
            return None
        now = self._now()
        if gpu.last_seen > now:  # the clock was set back, or a sample is from the future
            gpu.last_seen = now - SAMPLE_US
        if len(self._samples) < 2 * processes:
            self._samples = (pynvml.c_nvmlProcessUtilizationSample_t * (4 * processes))()
        for _ in range(4):
            self._count.value = len(self._samples)
            since = ctypes.c_ulonglong(gpu.last_seen)
            code = self._utilization(gpu.handle, self._samples, ctypes.byref(self._count), since)
            if code != NO_SIZE:
                break
            size = 2 * self._count.value + 16
            self._samples = (pynvml.c_nvmlProcessUtilizationSample_t * size)()
        if code == pynvml.NVML_ERROR_NOT_FOUND:
            if now - gpu.last_seen > SAMPLE_US:  # else: no new sample yet, the last ones hold
                gpu.shares = {}
                gpu.last_seen = now - SAMPLE_US
            return gpu.shares
        if code != 0:
            gpu.shares = {}
            return None
        newest: dict[int, int] = {}
        gpu.shares = {}
        for row in self._samples[: self._count.value]:
            pid, at = row.pid, row.timeStamp
            percents = (row.smUtil, row.memUtil, row.encUtil, row.decUtil)
            gpu.last_seen = max(gpu.last_seen, at)
            if pid == 0 or max(percents) > 100:
                self.garbage_rows += 1
            elif at >= newest.get(pid, 0):
                newest[pid] = at
                sm, memory, encoder, decoder = percents
                gpu.shares[pid] = (sm / 100, memory / 100, encoder / 100, decoder / 100)
        return gpu.shares

    def _now(self) -> int:
        return int(self._clock() * 1e6)


def _text(code: int) -> str:
    return str(_translated(pynvml.NVMLError(code)))


def _asked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What an optional pynvml call returns, None where it can't or isn't text."""
    try:
        return function(*arguments)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None
