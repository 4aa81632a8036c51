"""The systemd unit: installed from the checkout, read by systemd's own tools, and its command run
under the unit's own restrictions as far as they can be had without a systemd that runs."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubpf.config import load
from tests.conftest import ROOT, Agent, eventually, value
from tests.deploy.test_jobs import on_gpus, run_as
from tests.fakegpu.node import Node

SHIPPED = ROOT / "deploy" / "systemd"
INSTALL = SHIPPED / "install"
_PR_SET_MDWE, _PR_SET_NO_NEW_PRIVS, _REFUSE_EXEC_GAIN = 65, 38, 1  # include/uapi/linux/prctl.h


def unit() -> dict[str, list[str]]:
    """Of its [Service]: each key's values."""
    found: dict[str, list[str]] = {}
    lines = (SHIPPED / "gpubpf.service").read_text().partition("[Service]")[2].splitlines()
    for line in lines:
        key, equals, text = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(text)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("root")
    told = subprocess.run([INSTALL, "--root", root], capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stderr
    assert "nothing is started" in told.stderr
    yield root
    shutil.rmtree(root)


def test_systemd_reads_it(installed: Path) -> None:
    command = ("systemd-analyze", "verify", f"--root={installed}", "gpubpf.service")
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ours = [line for line in told.stderr.splitlines() if "sysinit.target not found" not in line]
    assert ours == []


def test_it_is_hardened() -> None:
    path = SHIPPED / "gpubpf.service"
    command = ("systemd-analyze", "security", "--offline=yes", "--threshold=50", str(path))
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout[-500:]


def test_the_configuration_is_one(tmp_path: Path) -> None:
    options = load({}, {}, str(SHIPPED / "gpubpf.toml"))
    assert [spec.source for spec in options.jobs] == ["slurm", "systemd", "user"]
    assert options.state == "/var/lib/gpubpf/state.json"
    (directory,) = unit()["StateDirectory"]
    assert options.state.startswith(f"/var/lib/{directory}/")
    commented = (SHIPPED / "gpubpf.toml").read_text().replace("# web-config", "web-config")
    assert load({}, {}, _written(tmp_path / "x.toml", commented)).web_config


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_an_update_keeps_the_configuration(installed: Path) -> None:
    config = installed / "etc" / "gpubpf" / "gpubpf.toml"
    config.write_text('listen = "127.0.0.1:1"\n')
    again = subprocess.run([INSTALL, "--root", installed], capture_output=True, timeout=600)
    assert again.returncode == 0
    assert tomllib.loads(config.read_text()) == {"listen": "127.0.0.1:1"}
    assert {path.name for path in (installed / "opt").iterdir()} == {"gpubpf"}
    assert (installed / "opt/gpubpf/bin/gpubpf").read_text().startswith("#!/opt/gpubpf/bin/python")


def test_what_is_wrong_is_one_line() -> None:
    for arguments in (["--root", "/nonexistent"], ["--rot", "/"], ["--root"]):
        told = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, timeout=60)
        assert told.returncode == 2
        assert len(told.stderr.splitlines()) == 1


def restricted() -> list[str]:
    """What puts a command under the unit's capabilities."""
    (kept,) = unit()["CapabilityBoundingSet"]
    names = [name.removeprefix("CAP_").lower() for name in kept.split()]
    bounding = ",".join(["-all", *(f"+{name}" for name in names if name != "sys_admin")])
    assert unit()["NoNewPrivileges"] == ["yes"]
    return ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]


def no_new_code() -> None:
    """MemoryDenyWriteExecute=, by the kernel's own switch (Linux 6.3)."""
    if ctypes.CDLL(None).prctl(_PR_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0):
        raise OSError("PR_SET_MDWE")


def test_the_unit_s_command_counts_under_its_restrictions(
    installed: Path, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CAP_SYS_ADMIN: the kernel has uprobe.multi."""
    assert unit()["MemoryDenyWriteExecute"] == ["yes"]
    (command,) = unit()["ExecStart"]
    program, *arguments = command.split()
    assert arguments == ["serve"]
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(words: list[str], **options: object) -> subprocess.Popen[str]:
        python = str(installed / program.lstrip("/")).replace("/bin/gpubpf", "/bin/python")
        under = [*restricted(), python, "-m", "gpubpf", *map(str, words[1:])]
        options = {**options, "preexec_fn": no_new_code, "cwd": "/"}
        started.append(popen(under, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr("tests.conftest.subprocess.Popen", start)
    agent = Agent(
        "--library", str(node.library), "--nvml-library", str(node.nvml_library),
        "--control-socket", "", "--jobs", "environ:JOB", environment=node.environment(),
    )  # fmt: skip
    monkeypatch.undo()
    try:
        status = Path(f"/proc/{started[0].pid}/status").read_text()
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        effective = int(re.findall(r"^CapEff:\s+(\w+)$", status, re.MULTILINE)[0], 16)
        assert effective.bit_count() == 4
        run_as(node, 17, {"JOB": "a"})
        metrics = eventually(agent.metrics, lambda seen: on_gpus(seen) == 17)
        assert on_gpus(metrics) == 17
        assert value(metrics, "gpubpf_job_processes", job_id="a") == 0
    finally:
        assert agent.stop() == 0
    assert os.path.exists("/sys/kernel/btf/vmlinux")
