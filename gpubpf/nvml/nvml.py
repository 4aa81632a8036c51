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
LONGEST_RETRY_OF_SOME = 600.0  # the same where some GPUs work: each attempt costs them samples
# What no new start helps with.
_FOR_GOOD = frozenset((pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_OPERATING_SYSTEM))
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
        # What is left alone, as a call has not come back: UUIDs, or "GPU 3" before there is one.
        self.blocked: set[str] = set()
        self._were_blocked: set[str] = set()
        self._left_out: set[str] = set()  # of the devices, when they were looked for
        self._to_find = True  # the devices have to be looked for
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

    def open(self, watch: Watch | None = None) -> None:
        """Loads and initialises NVML and asks for what doesn't change. Raises NvmlError."""
        try:
            self._library.init()
            self._find(watch or Watch())
        except Exception as error:  # whatever it is: nothing of a half opened library may stay
            mine = _translated(error)
            self._fail(mine, LONGEST_RETRY)
            self.close()
            raise mine from None

    def close(self, forget: bool = False) -> None:
        """Lets go of the driver. Never raises; a later read or open starts anew.

        `forget`: it may take long until then, so that nothing is worked out across it.
        """
        if self._library.initialised:
            for gpu in self._gpus:
                gpu.close()
            if self._events is not None:
                self._events.close()
        self._events = None
        for gpu in self._gpus:
            gpu.let_go()
            if forget:
                gpu.forget()
        self._library.shutdown()

    def retry_now(self) -> None:
        """The next read doesn't wait for another attempt's time."""
        self._retry_at = self._retry_after = 0.0

    def _find(self, watch: Watch) -> None:
        """The devices there are, in the state in which those known before are."""
        self._to_find = True
        known = {gpu.info.uuid: gpu for gpu in self._gpus}
        found: dict[int, Gpu] = {}
        missing: dict[int, int] = {}
        watch()
        system = System()
        for index in range(pynvml.nvmlDeviceGetCount()):
            watch.at = f"GPU {index}"
            if watch.at in self.blocked:
                missing[index] = codes.BLOCKED
                continue
            watch()
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            except pynvml.NVMLError as error:
                missing[index] = int(error.value)
                continue
            except UnicodeDecodeError:
                missing[index] = int(pynvml.NVML_ERROR_UNKNOWN)
                continue
            watch()
            info = system.device(index, uuid, handle)
            before = known.get(uuid)
            found[index] = Gpu(info, self._library, handle, self._counters, self._clock, before)
        handles = {gpu.info.uuid: gpu.handle for gpu in found.values()}
        for uuid, gpu in ((gpu.info.uuid, gpu) for gpu in found.values()):
            watch.at = uuid
            watch()
            gpu.info = dataclasses.replace(gpu.info, p2p=peers(uuid, handles))
        watch.at = ""
        watch()
        events = Events(self._library, handles)
        watch()  # from here on nothing is this thread's own
        self._events = events
        self._left_out = {at for at in self.blocked if at.startswith("GPU ")}
        self._take(found, missing)
        self._to_find = False

    def _take(self, found: dict[int, Gpu], missing: dict[int, int]) -> None:
        """Those found, and those known before that aren't: down, but still told of."""
        present = {gpu.info.uuid for gpu in found.values()}
        self._unidentified = []
        self._garbage += sum(gpu.garbage for gpu in self._gpus)
        gone = {gpu.info.index: gpu for gpu in self._gpus if gpu.info.uuid not in present}
        for index, code in missing.items():
            gpu = gone.pop(index, None)  # a device is never renamed to the one that had its index
            if gpu is None and code == codes.BLOCKED:
                continue  # looked for again when the call has come back
            if gpu is None:
                self._unidentified.append(f"GPU {index}: {codes.text(code)}")
            else:
                found[index] = gpu.without_handle(code)
        lost = [gpu.without_handle(pynvml.NVML_ERROR_NOT_FOUND) for gpu in gone.values()]
        self._gpus = sorted([*found.values(), *lost], key=lambda gpu: gpu.info.index)

    # --- read -------------------------------------------------------------------------------

    def read(self) -> tuple[Device, ...]:
        """Samples everything; gives every device. Raises NvmlError, as `sample`."""
        self.sample()
        return self.plane().devices

    def sample(self, classes: Collection[str] = CLASSES, watch: Watch | None = None) -> None:
        """New samples of the classes, of every device.

        Raises NvmlError where NVML as a whole fails. After a failure, or while a GPU is lost, NVML
        is initialised again: at the next read, then after 1, 2, 4 … 60 seconds; where other GPUs
        work, up to 600 seconds.
        """
        watch = watch or Watch()
        watch()
        if not self._library.initialised or self._error:
            classes = self._reopen(classes, watch)
        elif self._to_find or self._left_out - self.blocked:
            self._find(watch)
            classes = CLASSES
        watch.at = ""
        watch()
        struck = self._look_for_events()
        for uuid in self._were_blocked - self.blocked:
            for gpu in self._gpus:
                if gpu.info.uuid == uuid:
                    gpu.forget()
        self._were_blocked = set(self.blocked)
        problems = list(self._unidentified)
        broken: list[int] = []
        for gpu in self._gpus:
            uuid = gpu.info.uuid
            if uuid in self.blocked:
                continue
            if uuid not in watch.done:
                watch.at = uuid
                more = {MEMORY} if uuid in struck else set()
                garbage = gpu.read({*classes, *more}, watch, self._monotonic())
                watch()  # from here on nothing is this thread's own
                self._garbage += garbage
                watch.done.add(uuid)
            if gpu.failing:
                broken.append(gpu.failing)
                problems.append(f"GPU {gpu.info.index} ({uuid}): {codes.text(gpu.failing)}")
        self._sampled.update(dict.fromkeys(classes, self._monotonic()))
        self.problems = tuple(problems)
        self._judge(broken)

    def _judge(self, broken: list[int]) -> None:
        """Whether NVML has to be initialised again. Raises NvmlError where nothing works."""
        if not self.problems or (broken and all(code in _FOR_GOOD for code in broken)):
            self._error = None
            self._retry_after = 0.0
            return
        code = next((code for code in broken if code not in LOST), None)
        failure = NvmlError(self.problems[0] if code is None else codes.text(code), code)
        nothing = len(broken) == len(self._gpus)
        self._fail(failure, LONGEST_RETRY if nothing else LONGEST_RETRY_OF_SOME)
        if code is not None and nothing:
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

    def _reopen(self, classes: Collection[str], watch: Watch) -> Collection[str]:
        """The classes to read now: all, after a new start."""
        if self.blocked or (self._error and self._monotonic() < self._retry_at):
            if self._library.initialised:
                if self._to_find:
                    self._find(watch)
                    return CLASSES
                return classes  # the other devices can be read meanwhile
            raise (self._error or NvmlError("NVML gives no answer")).with_traceback(None)
        self.close()
        self.open(watch)
        return CLASSES

    def _fail(self, error: NvmlError, longest: float) -> None:
        now = self._monotonic()
        if self._error is None or now >= self._retry_at:
            self._retry_at = now + self._retry_after
            self._retry_after = min(max(1.0, 2 * self._retry_after), longest)
        self._error = error


def _translated(error: Exception) -> NvmlError:
    if isinstance(error, NvmlError):
        return error
    if isinstance(error, pynvml.NVMLError):
        return codes.error(int(error.value))
    return NvmlError(f"NVML can't be opened: {error!r}")
