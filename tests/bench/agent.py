"""`gpubpf serve` as a process of its own, for measuring it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from tests.bench.machine import cpu_seconds

_READY = re.compile(r"ready: http://[^/]*:(\d+)/metrics")
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.M)


def environment(scratch: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The agent's: with byte code as an installed package has it, whatever this one says."""
    given = {**os.environ, **(more or {})}
    kept = {key: value for key, value in given.items() if not key.startswith("GPUBPF_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}


def warm_up(scratch: Path) -> None:
    """Starts an agent once: the ones to be measured then find byte code, as in daily life."""
    with Agent("--probe", "all", "--process-metrics", environment=environment(scratch)) as agent:
        agent.ready().scrape()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Agent:
    """Started at once; `ready` waits until it serves."""

    def __init__(self, *options: str, environment: Mapping[str, str], port: int = 0) -> None:
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpubpf", "serve", "--listen", f"127.0.0.1:{port}", *options],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.port = port

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()

    def ready(self) -> Agent:
        """Waits until it says that it is. Raises RuntimeError."""
        assert self._process.stderr is not None
        said = ""
        for line in self._process.stderr:
            said += line
            found = _READY.search(line)
            if found:
                self.port = int(found[1])
                return self
        raise RuntimeError(f"the agent did not get ready: {said}")

    def seconds_to_ready(self) -> float:
        """From its start to the first 200 of /readyz; it needs a port of its own for that."""
        while self._process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return time.monotonic() - self.started
            connection.close()
            time.sleep(0.005)
        raise RuntimeError("the agent ended early")

    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def scrape(self) -> str:
        """The page as text, compressed on the wire or not as urllib asks: it is not."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    def samples(self) -> dict[tuple[str, str], float]:
        """(name, labels as they stand) -> value."""
        return {(name, labels): float(v) for name, labels, v in _SAMPLE.findall(self.scrape())}

    def calls(self, function: str, pid: int) -> float:
        """The calls of one process; needs --process-metrics. Others may be calling as well."""
        labels = f'function="{function}",pid="{pid}"'
        return self.samples().get(("gpubpf_process_calls_total", labels), 0.0)

    def read_seconds(self) -> dict[str, float]:
        """How long each source's last read took."""
        name = "gpubpf_agent_source_read_seconds"
        found = {labels: value for (n, labels), value in self.samples().items() if n == name}
        return {json.loads(labels.partition("=")[2]): value for labels, value in found.items()}


@contextlib.contextmanager
def cpu_share(agent: Agent) -> Iterator[list[float]]:
    """Appends the share of one CPU (1.0: all of it) that the agent takes meanwhile."""
    share: list[float] = []
    begin, cpu = time.monotonic(), agent.cpu()
    yield share
    share.append((agent.cpu() - cpu) / (time.monotonic() - begin))
