"""Calls that may never return, such as NVML's when a GPU has fallen off the bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class _Job:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.began = time.monotonic()
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class Worker:
    """One thread that makes calls for another, which waits for each only so long.

    While a call hangs no other is begun: they are not piled up. When it returns after all, its
    late answer is dropped and the next call is made. The thread is a daemon: it keeps no process
    from ending.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._last: _Job | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def busy(self) -> bool:
        return self._last is not None and not self._last.done.is_set()

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """The function's value or exception; TimeoutError when it takes longer."""
        if self.busy:
            assert self._last is not None
            raise TimeoutError(f"no answer for {time.monotonic() - self._last.began:.0f} s")
        job = self._last = _Job(function)
        self._jobs.put(job)
        if not job.done.wait(seconds):
            raise TimeoutError(f"no answer for {seconds:g} s")
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job.value = job.function()
            except BaseException as error:  # it is the caller's
                job.error = error
            job.done.set()
