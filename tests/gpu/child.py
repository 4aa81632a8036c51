"""The check's side of a process that works on the GPU: it is asked, and ends with the check."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.gpu.model import CheckError, NotPossibleError


class Child:
    """A program that answers commands (programs/talk.py). `ask` raises what it couldn't do."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], deadline: float
    ) -> None:
        self._deadline = deadline  # of the check, by time.monotonic
        scripts = [word for word in command if word.endswith(".py")]
        self._name = os.path.basename([*scripts, command[0]][0])
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close
        self._rest = b""
        self.process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.pid = self.process.pid

    def ask(self, do: str, seconds: float = 60.0, **arguments: Any) -> Any:
        """Its answer to a command. Raises NotPossibleError and CheckError."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = json.loads(self._line(do, seconds))
        if "not_here" in answer:
            raise NotPossibleError(answer["not_here"])
        if "error" in answer:
            raise CheckError(f"{self._name}: {do}: {answer['error']}")
        return answer["answer"]

    def _line(self, do: str, seconds: float) -> bytes:
        assert self.process.stdout is not None
        begin = time.monotonic()
        end = min(begin + seconds, self._deadline)
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.process.kill()
                    took = time.monotonic() - begin
                    raise CheckError(f"{self._name}: no answer to {do} within {took:.0f} s")
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    raise self._ended()
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _ended(self) -> CheckError:
        self.process.kill()
        code = self.process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["it said nothing"]
        return CheckError(f"{self._name} ended with {code}: {said[-1]}")

    def close(self) -> None:
        """Lets it end by itself, as programs do; kills it where it doesn't."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._errors.close()
