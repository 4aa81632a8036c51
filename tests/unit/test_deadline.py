"""Calls that hang don't hold their caller, and are not piled up."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from gpubpf.deadline import Worker


def test_values_and_errors_come_back() -> None:
    worker = Worker("test")
    assert worker.call(lambda: 7, 5) == 7
    with pytest.raises(ValueError, match="x"):
        worker.call(lambda: int("x"), 5)
    assert worker.call(threading.get_ident, 5) != threading.get_ident()


def test_a_hung_call_is_left_alone_and_its_late_answer_dropped() -> None:
    worker = Worker("test")
    release = threading.Event()
    calls: list[str] = []

    def hang() -> str:
        calls.append("hung")
        release.wait(30)
        return "late"

    def other() -> str:
        calls.append("other")
        return "in time"

    functions: tuple[Callable[[], str], ...] = (hang, other, hang)
    for function in functions:
        with pytest.raises(TimeoutError, match="no answer for"):
            worker.call(function, 0.05)
    assert calls == ["hung"]
    assert worker.busy
    release.set()
    while worker.busy:
        pass
    assert worker.call(other, 5) == "in time"
    assert calls == ["hung", "other"]
