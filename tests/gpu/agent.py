"""`gpubpf serve` as the checks use it: a process of its own on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping

from tests.gpu.model import CheckError
from tests.gpu.pages import Page
from tests.gpu.programs.talk import end_with_parent

READY = 60.0  # seconds that it may take to start
_READY = re.compile(r"ready: (http://\S+)/metrics")


class AgentError(Exception):
    """It doesn't start. `code` is its exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Agent:
    """Started and ready. Raises AgentError."""

    def __init__(
        self, options: tuple[str, ...], environment: Mapping[str, str], interval: float
    ) -> None:
        self.interval = interval
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop
        kept = {key: v for key, v in environment.items() if not key.startswith("GPUBPF_")}
        command = ["serve", "--listen", "127.0.0.1:0", "--interval", str(interval)]
        command += ["--probe", "all", "--process-metrics", "--max-processes", "1000"]
        for what in ("compute", "memory", "link", "heat", "node"):  # a look is at everything
            command += [f"--{what}-interval", str(interval)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpubpf", *command, "--discovery-interval", "0.5", *options],
            env=kept,
            stderr=self._said,
            preexec_fn=end_with_parent,
        )
        self.pid = self._process.pid
        end = time.monotonic() + READY
        while not (found := _READY.search(self.said())):
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                lines = self.said().strip().splitlines() or ["it said nothing"]
                self.stop()
                raise AgentError(lines[-1].removeprefix("gpubpf: "), code or 1)
            time.sleep(0.05)
        self.url = found[1]

    def said(self) -> str:
        """Its standard error so far."""
        with open(f"/proc/self/fd/{self._said.fileno()}", encoding="utf-8") as file:
            return file.read()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(120)  # before Linux 6.6 each probe takes a while
        self._process.kill()
        self._process.wait()
        self._said.close()

    def page(self) -> Page:
        """What it shows now. Raises CheckError."""
        if self._process.poll() is not None:
            raise CheckError(f"the agent ended with {self._process.returncode}")
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
                return Page.parse(answer.read().decode())
        except OSError as error:
            raise CheckError(f"the agent doesn't answer: {error}") from error

    def settled(self, seconds: float = 20.0) -> Page:
        """What it shows once it has looked again: all that was done before this is on it."""
        begin = time.monotonic() + self.interval  # a look that began earlier may end after this
        end = time.monotonic() + seconds
        while True:
            asked = time.monotonic()
            page = self.page()
            age = page.total("gpubpf_agent_snapshot_age_seconds")
            if age is not None and asked - age > begin:
                return page
            if time.monotonic() > end:
                raise CheckError(f"the agent has shown nothing new for {seconds:.0f} s")
            time.sleep(0.1)

    def cpu_seconds(self) -> float:
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Its proportional share of memory, in bytes."""
        with open(f"/proc/{self.pid}/smaps_rollup") as file:
            sizes = [line.split()[1] for line in file if line.startswith("Pss:")]
        return int(sizes[0]) * 1024
