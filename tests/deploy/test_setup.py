"""deploy/run: sets up once, starts on the simulated node without a driver, leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, eventually, get_metrics, value

RUN = ROOT / "deploy" / "run"
STATES = ROOT / ".build" / "fakegpu"
NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
ENTER = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # wherever it is
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("GPUBPF_", "FAKEGPU_"))}

no_driver = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver"
)


def shim(directory: Path, name: str, script: str) -> dict[str, str]:
    """An environment in which a program is another."""
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {**ENVIRONMENT, "PATH": f"{directory}:{os.environ['PATH']}"}


def sourced(script: str, environment: dict[str, str]) -> tuple[int, list[str]]:
    """A script with deploy/setup.sh's functions: its exit code and what it says."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"source {ROOT}/deploy/setup.sh; {script}", "setup"],
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr.splitlines()


# --- set-up -------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_installed(tmp_path: Path) -> None:
    subprocess.run([RUN, "--setup-only"], env=ENVIRONMENT, check=True)
    trace = tmp_path / "trace"
    environment = shim(tmp_path / "bin", "apt-get", f"echo apt-get $* >> {trace}; exit 1")
    environment["PIP_LOG"] = str(trace)
    start = time.monotonic()
    done = subprocess.run([RUN, "--setup-only"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - start < 5
    assert not trace.exists()


def test_help_needs_nothing() -> None:
    done = subprocess.run([*NOBODY, *ENTER, RUN, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--setup-only" in done.stdout


def test_commands_of_others() -> None:
    done = subprocess.run([RUN, "doctor"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "doctor: expected top, serve or an option" in done.stderr
    assert done.stderr.count("\n") == 1


def test_not_root() -> None:
    done = subprocess.run([*NOBODY, *ENTER, RUN], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "must run as root" in done.stderr


def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    environment = shim(tmp_path / "bin", "apt-get", f"echo $* >> {trace}")
    script = (
        f"BUILD={tmp_path} LOG={tmp_path}/log; need one false; need two true; need three no-such"
    )
    code, said = sourced(f"{script}; install_missing", environment)
    assert (code, said) == (0, ["setup: installing one three"])
    update, install = trace.read_text().splitlines()
    assert update.endswith(" update")
    assert re.search(r" install .*--no-install-recommends one three$", install)


def test_not_debian(tmp_path: Path) -> None:
    code, said = sourced("need gcc false; PATH=/nowhere; install_missing", ENVIRONMENT)
    assert code == 1
    assert len(said) == 1
    assert "not Debian" in said[0]
    assert "gcc" in said[0]


def test_apt_without_a_network(tmp_path: Path) -> None:
    policy = Path("/usr/sbin/policy-rc.d")
    before = policy.exists()
    environment = shim(tmp_path / "bin", "apt-get", "echo 'E: Failed to fetch it'; exit 100")
    script = f"BUILD={tmp_path} LOG={tmp_path}/log; need gcc false; install_missing"
    code, said = sourced(script, environment)
    assert code == 1
    assert "can't install gcc: Failed to fetch it (is the network there?" in said[-1]
    assert len(said) == 2
    assert policy.exists() == before


def test_pip_without_a_network(tmp_path: Path) -> None:
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("PIP_")}
    environment |= {
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_RETRIES": "0",
    }
    script = f"BUILD={tmp_path} LOG={tmp_path}/log VENV={tmp_path}/venv; install new ''"
    code, said = sourced(script, environment)
    assert code == 1
    assert re.search(r"pip can't install .*\(is the network there\?", said[-1])
    assert len(said) == 2
    assert not (tmp_path / "venv" / "stamp-new").exists()


# --- the simulated node -------------------------------------------------------------------------


class Started:
    """deploy/run, when it serves."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [RUN, "--listen", "127.0.0.1:0", *options],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        while "ready: " not in "".join(self.lines[-1:]):
            self.lines.append(self.process.stderr.readline())
            assert self.lines[-1], self.lines
        found = re.search(r"http://\S+(?=/metrics)", self.lines[-1])
        assert found
        self.url = found[0]

    def workloads(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if child.name() == "workload"]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def no_state_stays() -> Iterator[None]:
    """The next run would take away what a killed one left; there is none."""
    yield
    for state in STATES.glob("demo-*.state"):
        if not psutil.pid_exists(int(state.stem.removeprefix("demo-"))):
            state.unlink(missing_ok=True)


@pytest.fixture
def started() -> Iterator[Started]:
    started = Started()
    yield started
    started.stop()


def over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@no_driver
def test_it_shows_life(started: Started) -> None:
    assert len(started.lines) == 2
    assert "no NVIDIA driver" in started.lines[0]
    assert "SIMULATED" in started.lines[0]

    def launches() -> float:
        return value(get_metrics(started.url), "gpubpf_calls_total", function="cuLaunchKernel")

    assert eventually(launches, bool) > 0
    before = launches()
    assert eventually(launches, lambda now: now > before) > before
    metrics = get_metrics(started.url)
    names = {dict(labels)["name"] for name, labels in metrics if name == "gpubpf_gpu_info"}
    assert names
    assert all("Simulated" in name for name in names)
    used = [v for (name, _), v in metrics.items() if name == "gpubpf_gpu_memory_used_bytes"]
    assert max(used) > 1 << 30


@no_driver
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_its_workload_ends_with_it(started: Started, number: signal.Signals) -> None:
    workloads = started.workloads()
    assert len(workloads) == 2  # one works, one idles
    started.process.send_signal(number)
    assert started.process.wait(10) == (-number if number == signal.SIGKILL else 0)
    assert eventually(lambda: all(over(workload) for workload in workloads), bool)


@no_driver
def test_two_at_once_and_no_state_left(started: Started) -> None:
    other = Started()
    try:
        states = {path.name for path in STATES.glob("demo-*.state")}
        assert states >= {f"demo-{p.process.pid}.state" for p in (started, other)}
        for one in (started, other):
            assert get_metrics(one.url)
    finally:
        other.stop()
    third = Started()
    third.stop()
    states = {path.name for path in STATES.glob("demo-*.state")}
    assert f"demo-{other.process.pid}.state" not in states


def test_who_chooses_gets_no_simulation() -> None:
    started = Started("--no-nvml")
    try:
        assert len(started.lines) == 1
        assert started.workloads() == []
    finally:
        started.stop()
