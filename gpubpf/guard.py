"""Looks at what others own, each for a bounded time.

A file may lie on a server that doesn't answer, and what a process maps can't be read while the
process is stuck in the kernel with its address space locked. The agent must not get stuck too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS = 1.0  # without any progress
MOST_STUCK = 8  # threads


class _Run(Generic[Item, Result]):
    """Some items, one after the other, by one thread."""

    def __init__(
        self,
        look: Callable[[Item], Result],
        items: list[Item],
        drop: Callable[[Result], None],
    ) -> None:
        self.items = items
        self.done = threading.Event()
        self.results: list[Result | Exception] = []
        self._look = look
        self._drop = drop
        self._lock = threading.Lock()
        self._abandoned = False

    def run(self) -> bool:
        """By the thread. False if nobody waits any more."""
        for item in self.items:
            answer: Result | Exception
            try:
                answer = self._look(item)
            except Exception as error:  # it is the caller's
                answer = error
            with self._lock:
                if self._abandoned:
                    if not isinstance(answer, Exception):
                        self._drop(answer)
                    break
                self.results.append(answer)
        self.done.set()
        return not self._abandoned

    def wait(self, seconds: float) -> Item | None:
        """Until it is done, or makes no progress: then the item that it is stuck at."""
        before = -1
        while not self.done.wait(seconds):
            with self._lock:
                if len(self.results) == before:
                    self._abandoned = True
                    return self.items[before]
                before = len(self.results)
        return None


class Guard:
    """One thread makes the looks; if one gets stuck, another thread goes on with the rest."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._runs: SimpleQueue[_Run[object, object] | None] | None = None
        self._stuck: dict[object, _Run[object, object]] = {}

    @property
    def stuck(self) -> int:
        """Threads that are stuck now."""
        self._forget()
        return len(self._stuck)

    def each(
        self,
        look: Callable[[Item], Result],
        items: Iterable[Item],
        drop: Callable[[Result], None] = lambda _: None,
    ) -> Iterator[tuple[Item, Result | Exception]]:
        """Item and result, or its exception: TimeoutError for one that takes too long.

        An item is not looked at again while an earlier look at it is stuck. A result that comes
        too late is given to `drop`.
        """
        self._forget()
        todo = []
        for item in items:
            if item in self._stuck:
                yield item, TimeoutError("it hangs")
            else:
                todo.append(item)
        while todo:
            if len(self._stuck) >= MOST_STUCK:
                raise TimeoutError(f"{MOST_STUCK} looks at foreign files and processes hang")
            run = _Run(look, todo, drop)
            self._thread().put(run)  # type: ignore[arg-type]
            at = run.wait(self._seconds)
            yield from zip(todo, run.results, strict=False)
            if at is None:
                return
            self._stuck[at] = run  # type: ignore[assignment]
            self._runs = None
            yield at, TimeoutError("it hangs")
            todo = todo[len(run.results) + 1 :]

    def call(self, look: Callable[[], Result]) -> Result:
        """One look. Raises what it raises, and TimeoutError."""
        ((_, answer),) = self.each(lambda _: look(), [object()])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        if self._runs is not None:
            self._runs.put(None)
            self._runs = None

    def _forget(self) -> None:
        for item in [item for item, run in self._stuck.items() if run.done.is_set()]:
            del self._stuck[item]

    def _thread(self) -> SimpleQueue[_Run[object, object] | None]:
        if self._runs is None:
            self._runs = SimpleQueue()
            threading.Thread(target=_work, args=(self._runs,), name="look", daemon=True).start()
        return self._runs


def _work(runs: SimpleQueue[_Run[object, object] | None]) -> None:
    while (run := runs.get()) is not None and run.run():
        pass
