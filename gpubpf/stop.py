"""A flag that a signal handler may set."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable

BEAT = 60.0  # seconds


class Stop:
    """`set` may be called anywhere, by a signal handler too; `wait` by one thread.

    Not a threading.Event: a handler runs in the main thread, between two of its instructions, and
    these may be inside Event.wait with the event's lock taken. Event.set would then wait for ever.
    SimpleQueue.put is made to be re-entered (Python's reference of `queue`).
    """

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._set = False

    def set(self) -> None:
        self._set = True
        self._told.put(None)

    def wake(self) -> None:
        """Ends a wait without being set. As `set`, anywhere."""
        self._told.put(None)

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> None:
        """Until it is set or the time is up; earlier where it was woken or set more than once."""
        if not self._set:
            with contextlib.suppress(queue.Empty):
                self._told.get(timeout=max(0.0, seconds))

    def rest(self, until: float, woken: Callable[[], None], beat: float = BEAT) -> None:
        """Waits until then (CLOCK_MONOTONIC seconds), or until it is set or woken. Calls `woken` at
        the end, and each `beat` seconds before it: who watches sees that this goes on."""
        while True:
            end = min(until, time.monotonic() + beat)
            self.wait(end - time.monotonic())
            woken()
            if end == until or time.monotonic() < end:
                return
