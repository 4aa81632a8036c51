"""gpubpf.guard: what hangs is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from gpubpf.guard import MOST_STUCK, Guard
from tests.conftest import eventually


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def results(guard: Guard, gate: threading.Event, items: list[int]) -> list[object]:
    """Looks at items, of which the negative ones hang."""
    dropped: list[int] = []

    def look(item: int) -> int:
        if item < 0:
            gate.wait()
        return 1 // item if item == 0 else item * 2

    found = guard.each(look, items, dropped.append)
    return [type(r).__name__ if isinstance(r, Exception) else r for _, r in found]


def test_results_and_errors_in_order(gate: threading.Event) -> None:
    assert results(Guard(), gate, [1, 0, 2]) == [2, "ZeroDivisionError", 4]
    assert results(Guard(), gate, []) == []


def test_one_that_hangs_is_left_behind(gate: threading.Event) -> None:
    guard = Guard(0.5)
    assert results(guard, gate, [1, -1, 2]) == [2, "TimeoutError", 4]
    assert guard.stuck == 1
    begin = time.monotonic()
    assert results(guard, gate, [-1, 3]) == ["TimeoutError", 6]  # not waited for again
    assert time.monotonic() - begin < 0.4
    gate.set()
    assert eventually(lambda: guard.stuck, lambda n: n == 0) == 0
    assert results(guard, gate, [-1]) == [-2]


def test_what_comes_too_late_is_dropped(gate: threading.Event) -> None:
    dropped: list[str] = []

    def look(item: str) -> str:
        gate.wait()
        return item * 2

    ((_, answer),) = Guard(0.05).each(look, ["a"], dropped.append)
    assert isinstance(answer, TimeoutError)
    gate.set()
    assert eventually(lambda: dropped, bool) == ["aa"]


def test_slow_is_not_stuck() -> None:
    def look(item: int) -> int:
        time.sleep(0.3)
        return item

    assert [r for _, r in Guard(0.5).each(look, range(3))] == list(range(3))


def test_threads_are_not_piled_up(gate: threading.Event) -> None:
    guard = Guard(0.02)
    before = threading.active_count()
    with pytest.raises(TimeoutError, match="hang"):
        results(guard, gate, [-i for i in range(1, MOST_STUCK + 5)])
    assert threading.active_count() <= before + MOST_STUCK


def test_one_call(gate: threading.Event) -> None:
    guard = Guard(0.05)
    assert guard.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        guard.call(lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        guard.call(gate.wait)


def test_closing_ends_its_thread() -> None:
    before = threading.active_count()
    guard = Guard()
    guard.call(lambda: 7)
    guard.close()
    assert eventually(threading.active_count, lambda n: n == before) == before
