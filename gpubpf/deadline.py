"""Calls that may never return, such as NVML's when a GPU has fallen off the bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A call that another thread makes."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        self.began = time.monotonic()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it is done, after so long at most."""
        return self._done.wait(seconds)

    def result(self) -> T:
        """The function's value, or its exception raised. Only when done."""
        if self._error is not None:
            raise self._error
        value: T = self._value  # type: ignore[assignment]
        return value

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # it is the asker's
            self._error = error
        self._done.set()


class Worker:
    """One thread that makes calls for another, which waits for each only so long.

    While a call hangs no other is begun: they are not piled up. The thread is a daemon: it keeps no
    process from ending.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._last: Job[Any] | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def busy(self) -> bool:
        return self._last is not None and not self._last.done

    def stuck(self, seconds: float) -> bool:
        """Whether it is busy for that long with one call."""
        return (
            self.busy and self._last is not None and time.monotonic() - self._last.began > seconds
        )

    def begin(self, function: Callable[[], T]) -> Job[T]:
        """Starts a call; only when not busy."""
        job = Job(function)
        self._last = job
        self._jobs.put(job)
        return job

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """The function's value or exception; TimeoutError when it takes longer."""
        if self.busy:
            assert self._last is not None
            raise TimeoutError(f"no answer for {time.monotonic() - self._last.began:.0f} s")
        job = self.begin(function)
        if not job.wait(seconds):
            raise TimeoutError(f"no answer for {seconds:g} s")
        return job.result()

    def retire(self) -> None:
        """The thread ends, when the call that it makes has come back."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
