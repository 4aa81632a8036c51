"""When NVML is read: each class at its own interval, in a thread that may be lost to a call.

`poll` starts what is due and waits for it, but not for long: where the driver takes its time the
agent goes on counting, and the newest samples there are stay in force until newer ones come. A
call that doesn't come back within the deadline is left to its thread. Another thread takes over
for the other devices, and the device is left alone until the call has come back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpubpf.deadline import Job, Worker
from gpubpf.model import CLASSES, Plane, Reading
from gpubpf.nvml import codes
from gpubpf.nvml.codes import NvmlError
from gpubpf.nvml.nvml import Nvml
from gpubpf.nvml.plan import Watch

SOURCE = "nvml"
PATIENCE = 1.0  # seconds that a look waits for samples that are due
LONGEST_PAUSE = 300.0  # seconds that a device is left alone after its call has come back
LONG_AGO = 600.0  # seconds after which it is forgotten that a device was slow


class _AbandonedError(BaseException):
    """In a thread whose call came back too late: nobody waits for the rest. Not to be handled."""


@dataclass(slots=True)
class _Stuck:
    """A call that has not come back, or has only just."""

    job: Job[Any]
    until: float  # left alone at least so long: who is slow again and again must not slow the rest


class _Round(Watch):
    """What a thread does for one `poll`, and since when it is in a call."""

    def __init__(self, monotonic: Callable[[], float], classes: list[str]) -> None:
        super().__init__()
        self.classes = classes
        self.abandoned = False
        self._monotonic = monotonic
        self.ticked = monotonic()

    def __call__(self) -> None:
        if self.abandoned:
            raise _AbandonedError
        self.ticked = self._monotonic()


class Sampler:
    """`open`, then `poll` by one thread; `release` and `resume` by any."""

    def __init__(
        self,
        nvml: Nvml,
        intervals: Mapping[str, float],
        deadline: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`intervals`: seconds by class; `deadline`: seconds for one call."""
        self._nvml = nvml
        self._intervals = intervals
        self._deadline = deadline
        self._monotonic = monotonic
        self._worker = Worker(SOURCE)
        self._lock = threading.Lock()
        self._due = dict.fromkeys(CLASSES, 0.0)
        self._round: _Round | None = None
        self._job: Job[Plane] | None = None
        self._stuck: dict[str, _Stuck] = {}  # by UUID, or GPU index, or "" for the library
        self._slow: dict[str, tuple[int, float]] = {}  # how often that came, and when the last did
        self._plane: Plane | None = None
        self._seconds = 0.0
        self._error: NvmlError | None = None
        self._released_until: float | None = None  # None: it isn't; infinity: until `resume`

    # --- reading --------------------------------------------------------------------------

    def poll(self, *urgent: str) -> Reading[Plane]:
        """The newest samples there are. `urgent`: classes that are read now whatever is due."""
        with self._lock:
            now = self._monotonic()
            if self._released_until is not None and now >= self._released_until:
                self._resume()
            if self._released_until is None:
                self._free_stuck()
                if self._job is None and "" not in self._stuck:
                    self._begin(now, urgent)
                self._wait(PATIENCE)
            return self._reading(now)

    def _begin(self, now: float, urgent: tuple[str, ...]) -> None:
        classes = [name for name in CLASSES if now >= self._due[name] or name in urgent]
        for name in classes:
            self._due[name] = now + self._intervals[name]
        self._start(_Round(self._monotonic, classes))

    def _start(self, round_: _Round) -> None:
        self._nvml.blocked = set(self._stuck)
        self._round = round_
        classes = round_.classes

        def read() -> Plane:
            try:
                self._nvml.sample(classes, round_)
            except NvmlError:
                if not round_.abandoned:
                    self._due = dict.fromkeys(CLASSES, 0.0)  # when it works again, all
                raise
            return self._nvml.plane()

        self._job = self._worker.begin(read)

    def _wait(self, patience: float) -> None:
        """For the round under way, if there is one, so long at most."""
        until = self._monotonic() + patience
        while self._job is not None:
            assert self._round is not None
            overdue = self._round.ticked + self._deadline
            now = self._monotonic()
            if self._job.wait(max(0.0, min(until, overdue) - now)):
                self._finish(self._job)
            elif self._monotonic() >= self._round.ticked + self._deadline:
                self._abandon()
            elif self._monotonic() >= until:
                return

    def _finish(self, job: Job[Plane]) -> None:
        self._job = self._round = None
        self._seconds = time.monotonic() - job.began
        try:
            self._plane = job.result()
            self._error = None
        except NvmlError as error:
            self._plane, self._error = None, error
        except Exception as error:  # the boundary: no answer of a driver ends the agent
            self._plane, self._error = None, NvmlError(repr(error))

    def _abandon(self) -> None:
        """The call under way doesn't come back: another thread, for the other devices."""
        assert self._job is not None
        assert self._round is not None
        self._round.abandoned = True
        at, before = self._round.at, self._round
        now = self._monotonic()
        times, last = self._slow.get(at, (0, now))
        times = 0 if now - last > LONG_AGO else times
        self._slow[at] = times + 1, now
        patience = min(self._deadline * (2**times - 1), LONGEST_PAUSE)
        self._stuck[at] = _Stuck(self._job, now + patience)
        self._job = self._round = None
        self._worker.retire()
        self._worker = Worker(SOURCE)
        if not at:
            self._plane = None
            self._error = NvmlError(f"NVML gives no answer for {self._deadline:g} s", codes.BLOCKED)
        else:
            rest = _Round(self._monotonic, before.classes)
            rest.done = set(before.done)
            self._start(rest)

    def _free_stuck(self) -> None:
        """Devices whose call has come back can be asked again."""
        for at, stuck in [*self._stuck.items()]:
            if stuck.job.done and self._monotonic() >= stuck.until:
                del self._stuck[at]

    def _reading(self, now: float) -> Reading[Plane]:
        if self._released_until is not None:
            error, code = "gpubpf was asked to let go of the driver", codes.RELEASED
        elif self._error is not None:
            error = str(self._error)
            code = codes.NOT_NOW if self._error.code is None else self._error.code
        elif self._plane is None:
            error, code = "NVML has not answered yet", codes.NOT_NOW
        else:
            reasons = [device.reason for device in self._plane.devices]
            if None in reasons or not reasons:
                return Reading(SOURCE, now, self._seconds, self._plane)
            return Reading(SOURCE, now, self._seconds, self._plane, "no GPU answers", reasons[0])
        return Reading(SOURCE, now, self._seconds, None, error, codes.reason(code))

    # --- life -----------------------------------------------------------------------------

    def open(self) -> None:
        """The first round, in which the driver may take long. Raises NvmlError."""
        with self._lock:
            self._begin(self._monotonic(), ())
            self._wait(self._deadline)
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """Lets go of the driver, where no call hangs: else that ends with the process."""
        with self._lock, contextlib.suppress(NvmlError):
            self._let_go()
        self._worker.retire()

    def release(self, seconds: float | None = None) -> None:
        """Lets go of every device file, until `resume` or for so long. Raises NvmlError."""
        with self._lock:
            self._let_go()
            self._plane = None
            self._released_until = float("inf") if seconds is None else self._monotonic() + seconds

    def _let_go(self) -> None:
        self._wait(self._deadline)
        hung = [at for at, stuck in self._stuck.items() if not stuck.job.done]
        if hung or self._worker.busy:
            who = ", ".join(filter(None, hung)) or "NVML"
            raise NvmlError(f"can't let go of the driver: a call for {who} has not come back")
        closing = self._worker.begin(lambda: self._nvml.close(forget=True))
        if not closing.wait(self._deadline):
            self._stuck[""] = _Stuck(closing, 0.0)
            self._worker.retire()
            self._worker = Worker(SOURCE)
            self._plane = None
            what = f"NVML gives no answer for {self._deadline:g} s"
            self._error = NvmlError(what, codes.BLOCKED)
            raise NvmlError(f"can't let go of the driver: {what}")
        held = sorted(_device_files())
        if held:
            raise NvmlError(f"NVML was shut down, but {', '.join(held)} is still open")

    def resume(self) -> bool:
        """Takes the driver up again; whether it had been released."""
        with self._lock:
            released = self._released_until is not None
            self._resume()
            return released

    def _resume(self) -> None:
        self._released_until = None
        self._error = None
        self._nvml.retry_now()
        self._due = dict.fromkeys(CLASSES, 0.0)


def _device_files() -> Iterator[str]:
    """The driver's device files that this process has open."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:  # none is left to list them by
        return
    for fd in descriptors:
        with contextlib.suppress(OSError):  # that of the listing itself
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith("/dev/nvidia"):
                yield path
