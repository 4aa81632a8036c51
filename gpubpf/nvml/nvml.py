"""The GPUs of this node as NVML tells: opened, read by class, opened again after a failure."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import CLASSES, MEMORY, Device, Plane, Xid
from gpubpf.nvml import codes
from gpubpf.nvml.codes import LOST, NvmlError
from gpubpf.nvml.counters import Counters
from gpubpf.nvml.device import Gpu
from gpubpf.nvml.events import Events
from gpubpf.nvml.library import Library, System, peers
from gpubpf.nvml.plan import Watch

LONGEST_RETRY = 60.0  # seconds between attempts to initialise NVML again
MOST_XIDS = 1000  # (GPU, code) that are told apart


class Nvml:
    """The GPUs of this node, through the NVML library at `library` (its soname if None).

    One instance at a time in a process, used by one thread at a time. `clock` gives seconds since
    the epoch, `monotonic` seconds for intervals.
    """

    def __init__(
        self,
        library: str | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problems: tuple[str, ...] = ()  # of the last read: one line per failing device
        self.blocked: set[str] = set()  # UUIDs that are left alone: a call has not come back
        self._library = Library(library)
        self._clock = clock
        self._monotonic = monotonic
        self._counters = Counters()
        self._xids: dict[tuple[str, int], Xid] = {}
        self._sampled: dict[str, float] = {}
        self._garbage = 0
        self._gpus: list[Gpu] = []
        self._events: Events | None = None
        self._unidentified: list[str] = []
        self._error: NvmlError | None = None  # why NVML is to be initialised again
        self._retry_at = 0.0
        self._retry_after = 0.0

    # --- open and close ---------------------------------------------------------------------

    def open(self) -> None:
        """Loads and initialises NVML and asks for what doesn't change. Raises NvmlError."""
        try:
            self._library.init()
            self._find()
        except (pynvml.NVMLError, NvmlError) as error:
            mine = error if isinstance(error, NvmlError) else codes.error(int(error.value))
            self._fail(mine)
            self.close()
            raise mine from None

    def close(self) -> None:
        """Lets go of the driver. Never raises; a later read or open starts anew."""
        if self._library.initialised:
            for gpu in self._gpus:
                gpu.close()
            if self._events is not None:
                self._events.close()
            self._events = None
        self._library.shutdown()

    def _find(self) -> None:
        known = {gpu.info.index: gpu for gpu in self._gpus}
        system = System()
        found: dict[int, Gpu] = {}
        missing: dict[int, int] = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            except pynvml.NVMLError as error:
                missing[index] = int(error.value)
                continue
            info = system.device(index, uuid, handle)
            found[index] = Gpu(info, self._library, handle, self._counters, self._clock)
        present = {gpu.info.uuid for gpu in found.values()}
        self._unidentified = []
        for index, code in missing.items():
            gpu = known.get(index)  # a device is never renamed to the one that had its index
            if gpu and gpu.info.uuid not in present:
                found[index] = Gpu(gpu.info, self._library, None, self._counters, self._clock, code)
            else:
                self._unidentified.append(f"GPU {index}: {codes.text(code)}")
        self._garbage += sum(gpu.garbage for gpu in self._gpus)
        self._gpus = [found[index] for index in sorted(found)]
        handles = {gpu.info.uuid: gpu.handle for gpu in self._gpus if gpu.handle is not None}
        for gpu in self._gpus:
            if gpu.handle is not None:
                gpu.info = dataclasses.replace(gpu.info, p2p=peers(gpu.info.uuid, handles))
        self._events = Events(self._library, handles)

    # --- read -------------------------------------------------------------------------------

    def read(
        self, classes: Collection[str] = CLASSES, watch: Watch | None = None
    ) -> tuple[Device, ...]:
        """Reads the classes of every device; gives every device with its newest samples.

        Raises NvmlError where NVML as a whole fails. After a failure, or while a GPU is lost, NVML
        is initialised again: at the next read, then after 1, 2, 4 … 60 seconds.
        """
        watch = watch or Watch()
        if not self._library.initialised or self._error:
            classes = self._reopen(classes)
        watch()
        struck = self._look_for_events()
        problems = list(self._unidentified)
        broken: list[int] = []
        for gpu in self._gpus:
            if gpu.info.uuid in self.blocked:
                continue
            watch.at = gpu.info.uuid
            more = {MEMORY} if gpu.info.uuid in struck else set()
            garbage = gpu.read({*classes, *more}, watch, self._monotonic())
            watch()  # from here on nothing is this thread's own
            self._garbage += garbage
            if gpu.failing:
                broken.append(gpu.failing)
                problems.append(
                    f"GPU {gpu.info.index} ({gpu.info.uuid}): {codes.text(gpu.failing)}"
                )
        self._sampled.update(dict.fromkeys(classes, self._monotonic()))
        self.problems = tuple(problems)
        self._judge(broken)
        return self.plane().devices

    def _judge(self, broken: list[int]) -> None:
        """Whether NVML has to be initialised again. Raises NvmlError where nothing works."""
        if not self.problems:
            self._error = None
            self._retry_after = 0.0
            return
        code = next((code for code in broken if code not in LOST), None)
        failure = NvmlError(self.problems[0] if code is None else codes.text(code), code)
        self._fail(failure)
        if code is not None and len(broken) == len(self._gpus):
            raise failure

    def plane(self) -> Plane:
        """What was said last."""
        devices = tuple(
            gpu.device(codes.BLOCKED if gpu.info.uuid in self.blocked else gpu.failing)
            for gpu in self._gpus
        )
        garbage = self._garbage + sum(gpu.garbage for gpu in self._gpus)
        return Plane(devices, dict(self._sampled), dict(self._xids), garbage)

    def _look_for_events(self) -> set[str]:
        """Counts the XID errors that came; the devices with an ECC error."""
        if self._events is None:
            return set()
        xids, struck = self._events.drain()
        for uuid, code in xids:
            key = uuid, code
            if key in self._xids or len(self._xids) < MOST_XIDS:
                count = self._xids[key].count + 1 if key in self._xids else 1
                self._xids[key] = Xid(count, self._clock())
        return struck

    def _reopen(self, classes: Collection[str]) -> Collection[str]:
        """The classes to read now: all, after a new start."""
        if (self._error and self._monotonic() < self._retry_at) or self.blocked:
            if self._library.initialised:
                return classes  # the other devices can be read meanwhile
            raise (self._error or NvmlError("NVML gives no answer")).with_traceback(None)
        self.close()
        self.open()
        return CLASSES

    def _fail(self, error: NvmlError) -> None:
        now = self._monotonic()
        if self._error is None or now >= self._retry_at:
            self._retry_at = now + self._retry_after
            self._retry_after = min(max(1.0, 2 * self._retry_after), LONGEST_RETRY)
        self._error = error
