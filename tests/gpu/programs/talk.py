"""The child's side of a check: one JSON line in is a command, one JSON line out its answer."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any


class NotHereError(Exception):
    """It can't be done on this machine; the text says why."""


def end_with_parent() -> None:
    """Whatever happens to the check, its process doesn't stay."""
    pr_set_pdeathsig = 1  # include/uapi/linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Answers until standard input ends. What libraries print goes to standard error."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while line := sys.stdin.readline():
        arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"answer": commands[arguments.pop("do")](**arguments)}
        except (NotHereError, ImportError) as error:
            answer = {"not_here": " ".join(str(error).split())}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
