"""Runs programs of driver calls in `program`, the interpreter beside: whole ones, or a line at a
time. program.c tells the language, program_functions.h and program_arguments.c its words.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .node import Node

UNSET = -1  # an operation that named what was never made, and called nothing
LIMIT = 60.0  # seconds for a program


@dataclass(frozen=True, slots=True)
class Result:
    """What a program printed for each of its lines, and whose process it was."""

    pid: int
    printed: tuple[str, ...]

    @property
    def codes(self) -> tuple[int, ...]:
        """The results of calls."""
        return tuple(int(line) for line in self.printed)


class Interpreter:
    """A process that does operations when it is told to."""

    def __init__(
        self,
        node: Node,
        library: Path | None = None,
        by_address: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [node.program, str(library or node.library), *["--by-address"] * by_address],
            env={**node.environment(), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate(timeout=LIMIT)
        if kind is None and self._process.returncode != 0:
            raise RuntimeError(f"the interpreter ended with {self._process.returncode}")

    def do(self, line: str) -> str:
        """Does one operation and gives what it printed."""
        self.tell((line,))
        return self.hear(1)[0]

    def tell(self, lines: Iterable[str]) -> None:
        """Hands it operations to do; some thousand at once, what a pipe holds."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(line + "\n" for line in lines))
        self._process.stdin.flush()

    def hear(self, count: int) -> list[str]:
        """Waits until so many operations are done, and gives what they printed."""
        assert self._process.stdout is not None
        return [self._process.stdout.readline().rstrip("\n") for _ in range(count)]


def run(
    node: Node,
    lines: Iterable[str],
    library: Path | None = None,
    by_address: bool = False,
    before: tuple[str, ...] = (),
) -> Result:
    """Runs a whole program in a process of its own. `before`: a command that runs its arguments;
    the process is that one, then."""
    process = subprocess.Popen(
        [*before, node.program, str(library or node.library), *["--by-address"] * by_address],
        env=node.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    printed, _ = process.communicate("".join(line + "\n" for line in lines), timeout=LIMIT)
    if process.returncode not in (0, -9):
        raise RuntimeError(f"the interpreter ended with {process.returncode}")
    return Result(process.pid, tuple(printed.splitlines()))
