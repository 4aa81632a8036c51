"""Runs caller.c: processes that call the driver on command."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from tests.bench.bench import program

_BREAKPOINT = b"\xcc"


class Caller:
    """One process that makes calls. `what` is launch, allocate, wait, copy or all."""

    def __init__(
        self,
        library: Path,
        what: str = "launch",
        threads: int = 1,
        device: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [program("caller"), library, what, str(threads), str(device)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.pid = self._process.pid
        ready, address = self._line().split()
        assert ready == "ready"
        self._address = int(address, 16)

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended by itself
            self._process.stdin.close()
        self._process.wait(10)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the caller ended early")
        return line

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def run(self, rounds: int) -> float:
        """Every thread makes so many rounds; the CPU time of one, in nanoseconds."""
        self._say(f"run {rounds}")
        made, cpu = map(int, self._line().split())
        return cpu / made

    def pace(self, rate: float) -> None:
        """Begins to make rounds at this rate (a second; 0: idle; -1: as many as it can)."""
        self._say(f"pace {rate}")

    def end_pace(self) -> int:
        """Ends it; how many rounds were made."""
        self._say("")
        return int(self._line().split()[0])

    def probed(self, offset: int = 10) -> bool:
        """Whether a breakpoint is at its function, or at this offset in it."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self._address)
            code = memory.read(offset + 1)
        return code[:1] == _BREAKPOINT or code[-1:] == _BREAKPOINT

    def wait_until(self, probed: bool, seconds: float = 120.0) -> None:
        """Until a probe is there, or none. Raises RuntimeError."""
        end = time.monotonic() + seconds
        while self.probed() != probed:
            if time.monotonic() > end:
                what = "was not probed" if probed else "is probed by something else: stop that"
                raise RuntimeError(f"the library {what}")
            time.sleep(0.01)


@contextlib.contextmanager
def callers(
    count: int, library: Path, environment: Mapping[str, str], devices: int, rate: float
) -> Iterator[list[Caller]]:
    """So many processes, spread over the devices, each making `rate` rounds of all calls."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(Caller(library, "all", 1, place % devices, environment))
            for place in range(count)
        ]
        for caller in started:
            caller.pace(rate)
        yield started
