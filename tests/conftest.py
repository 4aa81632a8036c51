"""Fixtures shared by the suites: an agent as a real process, and the simulated GPU node."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from prometheus_client.parser import text_string_to_metric_families

from tests.fakegpu.node import Node
from tests.scheduling import BESIDE, OWN, Lanes

T = TypeVar("T")
Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]

ROOT = Path(__file__).parent.parent
BUILD = ROOT / ".build" / "fakegpu"  # where deploy/run builds it too
GPUBPF = Path(sys.executable).with_name("gpubpf")
READY = 30.0  # seconds that an agent may take to start on a loaded machine
# It looks at everything in each step.
EVERY_TIME = tuple(
    word
    for what in ("compute", "memory", "link", "heat", "node")
    for word in (f"--{what}-interval", "0.1")
)

# The suite judges a change: the same programs each time. What no change made shows up by
# `tests/run --hypothesis-profile=default`, which tries others every time (CONTRIBUTING.md).
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the pages of tests/unit/boards anew"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        alone = not BESIDE.match(item.nodeid) and not OWN.match(item.nodeid)
        if "serve" in getattr(item, "fixturenames", ()) and not alone:
            raise pytest.UsageError(f"{item.nodeid} starts an agent: see tests/scheduling.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    return Lanes(config, log)


def get(url: str, headers: Mapping[str, str] | None = None) -> str:
    """The body of a page; raises HTTPError for anything but success."""
    request = urllib.request.Request(url, headers=dict(headers or {}))
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def parse_metrics(page: str) -> Metrics:
    """(sample name, its labels) -> value"""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def get_metrics(url: str) -> Metrics:
    """What the agent at this base URL exports."""
    return parse_metrics(get(f"{url}/metrics"))


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The sample of exactly these labels; 0 where there is none."""
    return metrics.get((name, frozenset(labels.items())), 0.0)


def eventually(look: Callable[[], T], good: Callable[[T], object], seconds: float = 10.0) -> T:
    """Looks until it is good, or time is up, and returns what was seen last: assert on that."""
    end = time.monotonic() + seconds
    while not good(seen := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return seen


class Agent:
    """`gpubpf serve` as a process of its own, on a free port of the loopback address."""

    def __init__(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPUBPF_")}
        self.process = subprocess.Popen(
            [
                GPUBPF,
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--interval",
                "0.2",
                *EVERY_TIME,
                *options,
            ],
            env={**kept, **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.lines: list[str] = []  # of its standard error
        self.ready = ""  # its ready line
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._told.wait(READY)
        found = re.search(r"ready: (https?://\S+)/metrics", self.ready)
        if not found:
            self.stop()
            raise RuntimeError(f"the agent did not get ready: {self.lines}")
        self.url = found[1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if "ready: " in line:
                self.ready = self.lines[-1]
                self._told.set()
        self._told.set()

    def metrics(self) -> Metrics:
        """What it exports now."""
        return get_metrics(self.url)

    def calls(self) -> dict[str, float]:
        """Calls on the node by function."""
        return {
            dict(labels)["function"]: number
            for (name, labels), number in self.metrics().items()
            if name == "gpubpf_calls_total"
        }

    def stop(self) -> int:
        """SIGTERM, and its exit code; kills what doesn't end."""
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join(5)


def _forbidden_skips(config: pytest.Config) -> list[str]:
    """No test passes by being skipped, except for a reason that is a line of allowed-skips."""
    allowed = (Path(__file__).parent / "allowed-skips").read_text().splitlines()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", ()) if reporter else ()
    reasons = ((report, str(report.longrepr[2]).removeprefix("Skipped: ")) for report in skipped)
    return [f"{report.nodeid}: {reason}" for report, reason in reasons if reason not in allowed]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _forbidden_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _forbidden_skips(terminalreporter.config):
        terminalreporter.write_line(f"SKIPPED WITHOUT LEAVE (tests/allowed-skips) {line}", red=True)


@pytest.fixture
def serve() -> Iterator[Callable[..., Agent]]:
    """Starts agents: serve("--process-metrics", environment={…}) -> Agent, ready."""
    agents: list[Agent] = []

    def start(*options: str, environment: Mapping[str, str] | None = None) -> Agent:
        agents.append(Agent(*options, environment=environment))
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


@pytest.fixture
def alone(tmp_path: Path) -> tuple[str, ...]:
    """Options for an agent that finds no library by itself, only those of --library: whatever else
    runs on this machine, its node-wide counts are then those of the test's own processes."""
    empty = tmp_path / "empty"
    empty.mkdir()
    return ("--proc-root", str(empty), "--host-root", str(empty))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A simulated node with two devices: node.library, node.nvml_library, node.environment()."""
    with Node(BUILD, tmp_path / "state", devices=2) as node:
        yield node
