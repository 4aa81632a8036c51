from __future__ import annotations

import signal
import threading
import time

import pytest

from gpubpf.stop import Stop


def test_wait_ends_when_set_or_over() -> None:
    stop = Stop()
    start = time.monotonic()
    stop.wait(0.05)
    stop.wait(-1)
    assert time.monotonic() - start >= 0.05
    assert not stop.is_set()
    stop.set()
    stop.wait(60)
    assert stop.is_set()
    assert time.monotonic() - start < 30


def test_a_signal_wakes_the_wait(request: pytest.FixtureRequest) -> None:
    stop = Stop()
    before = signal.signal(signal.SIGALRM, lambda *_: stop.set())
    request.addfinalizer(lambda: signal.signal(signal.SIGALRM, before))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    stop.wait(60)
    assert stop.is_set()


def test_signals_at_any_instruction(request: pytest.FixtureRequest) -> None:
    """With threading.Event this hangs within a second: the handler waits for its own thread."""
    handled = 0
    stop = Stop()

    def handle(*_: object) -> None:
        nonlocal handled, stop
        handled += 1
        stop.set()

    before = signal.signal(signal.SIGALRM, handle)
    request.addfinalizer(lambda: signal.signal(signal.SIGALRM, before))
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        while handled < 5000:
            stop = Stop()
            stop.wait(1e-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_long_rest_has_beats() -> None:
    stop, beats = Stop(), list[float]()
    began = time.monotonic()
    stop.rest(began + 0.5, lambda: beats.append(time.monotonic() - began), beat=0.1)
    assert 2 <= len(beats) <= 5
    assert beats[-1] >= 0.5


def test_a_rest_ends_when_it_is_woken_or_set() -> None:
    for end in (Stop.wake, Stop.set):
        stop, beats = Stop(), list[int]()
        threading.Timer(0.1, end, [stop]).start()
        began = time.monotonic()
        stop.rest(began + 60, lambda beats=beats: beats.append(1), beat=30)  # type: ignore[misc]
        assert time.monotonic() - began < 5
        assert beats == [1]
