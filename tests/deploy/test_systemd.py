"""The systemd service: installed from the checkout into a systemd that runs, and started, asked,
restarted, killed, hung, updated, stopped and removed there. It counts what the driver counted."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubpf.config import load
from tests.conftest import BUILD, ROOT, eventually, value
from tests.deploy.containers import attached
from tests.deploy.machine import CONFIG, DRIVER, Machine
from tests.deploy.test_jobs import by_job, launching, on_gpus
from tests.fakegpu.node import Node

SHIPPED = ROOT / "deploy" / "systemd"
INSTALL = SHIPPED / "install"
# Without CAP_SYS_ADMIN, which is for kernels that have no uprobe.multi
CAPABILITIES = {"cap_dac_read_search", "cap_sys_ptrace", "cap_perfmon", "cap_bpf"}


def test_it_is_hardened() -> None:
    path = SHIPPED / "gpubpf.service"
    command = ("systemd-analyze", "security", "--offline=yes", "--threshold=50", str(path))
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout[-500:]


def test_the_configuration_is_one(tmp_path: Path) -> None:
    options = load({}, {}, str(SHIPPED / "gpubpf.toml"))
    assert [spec.source for spec in options.jobs] == ["slurm", "systemd", "user"]
    assert options.state == "/var/lib/gpubpf/state.json"
    commented = (SHIPPED / "gpubpf.toml").read_text().replace("# web-config", "web-config")
    (tmp_path / "x.toml").write_text(commented)
    assert load({}, {}, str(tmp_path / "x.toml")).web_config


def test_what_is_wrong_is_one_line() -> None:
    for arguments in (["--root", "/nonexistent"], ["--rot", "/"], ["--root"]):
        command = [str(INSTALL), *arguments]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert told.returncode == 2
        assert len(told.stderr.splitlines()) == 1


# --- in a systemd that runs ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(BUILD, tmp_path_factory.mktemp("node") / "state", devices=2) as node:
        yield node


@pytest.fixture(scope="module")
def bare(own: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(tmp_path_factory.mktemp("machine") / "work", own) as machine:
        yield machine


@pytest.fixture(scope="module")
def before(bare: Machine) -> set[str]:
    return bare.ours()


@pytest.fixture(scope="module")
def machine(bare: Machine, before: set[str]) -> Machine:
    bare.simulate()
    told = bare.run("sh", "-c", f"umask 000; exec {INSTALL}", seconds=600, network=True)
    assert "started: systemctl status gpubpf" in told
    return bare


@pytest.fixture(autouse=True)
def started(request: pytest.FixtureRequest) -> None:
    if "machine" in request.fixturenames:
        request.getfixturevalue("machine").run("systemctl", "start", "gpubpf")


def test_nobody_else_may_write_what_root_runs(machine: Machine) -> None:
    """Whatever umask it was installed with."""
    places = ("/opt/gpubpf", "/etc/gpubpf", "/etc/systemd/system/gpubpf.service")
    assert machine.run("find", *places, "-perm", "/022", "!", "-type", "l") == ""


def test_it_is_a_command_like_any_other(machine: Machine) -> None:
    assert machine.run("gpubpf", "--version").startswith("gpubpf ")
    _, told = machine.tell("gpubpf", "doctor", "--config", "/etc/gpubpf/gpubpf.toml")
    assert "slurm" in told  # its jobs are the service's


def links(machine: Machine) -> set[int]:
    """The kernel's numbers of what is attached."""
    pid = machine.unit("MainPID")
    _, told = machine.tell("sh", "-c", f"cat /proc/{pid}/fdinfo/*")  # of which some may be gone
    return {int(number) for number in re.findall(r"^link_id:\s+(\d+)$", told, re.MULTILINE)}


def another(machine: Machine, pid: str) -> bool:
    """Whether it was started again, and serves."""

    def seen() -> bool:
        return machine.unit("ActiveState") == "active" and machine.unit("MainPID") != pid

    return eventually(seen, bool, 40)


def test_it_serves_when_systemd_says_that_it_is_started(machine: Machine) -> None:
    metrics = machine.metrics()  # at once
    assert value(metrics, "gpubpf_agent_source_up", source="nvml") == 1
    assert machine.unit("ActiveState") == "active"
    assert machine.unit("StatusText").startswith("ready: http://localhost:10440/metrics; probing")
    log = machine.run("journalctl", "--unit=gpubpf", "--output=cat")
    assert re.search(r"^gpubpf: ready: http://localhost:10440/metrics; .*2 GPUs", log, re.M)
    assert "Traceback" not in log


def test_its_unit_is_read_without_a_word(machine: Machine) -> None:
    told = machine.run("systemd-analyze", "verify", "gpubpf.service").splitlines()
    assert [line for line in told if "gpubpf" in line] == []


def test_its_restrictions_are_in_force(machine: Machine) -> None:
    status = machine.run("cat", f"/proc/{machine.unit('MainPID')}/status")
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert re.search(r"^Seccomp:\s+2$", status, re.M)
    (effective,) = re.findall(r"^CapEff:\s+(\w+)$", status, re.M)
    assert int(effective, 16).bit_count() == len(CAPABILITIES)
    assert set(machine.unit("CapabilityBoundingSet").split()) == CAPABILITIES
    assert machine.unit("MemoryDenyWriteExecute") == "yes"


def test_units_are_jobs_and_their_counts_the_driver_s(machine: Machine, own: Node) -> None:
    """One of them another user's, with a copy of the library where only he may look."""
    before = on_gpus(machine.metrics())
    unit = ("systemd-run", "--wait", "--pipe", "--quiet", "--setenv=FAKEGPU_STATE=/state/state")
    machine.launch(17, *unit, "--unit=train-a")
    copy = f"install -d -m 0700 /tmp/own; cp {DRIVER}/libcuda.so.1 /tmp/own; exec {DRIVER}/program"
    machine.run(
        *unit, "--unit=train-b", "--uid=nobody", "--property=PrivateTmp=yes",
        "sh", "-c", f"{copy} /tmp/own/libcuda.so.1",
        given="".join(f"{line}\n" for line in ("0 sleep 1500", *launching(23))),
    )  # fmt: skip
    metrics = eventually(machine.metrics, lambda seen: on_gpus(seen) >= before + 40)
    found = by_job(metrics)
    assert (found["train-a.service"], found["train-b.service"]) == (17, 23)
    assert on_gpus(metrics) == own.counts().calls["cuLaunchKernel"] == before + 40
    infos = [dict(labels) for name, labels in metrics if name == "gpubpf_job_info"]
    users = {info["job_id"]: info["user"] for info in infos}
    assert (users["train-a.service"], users["train-b.service"]) == ("root", "nobody")


def test_a_restart_a_crash_and_a_hang_keep_the_totals(machine: Machine, own: Node) -> None:
    machine.launch(7)
    want = own.counts().calls["cuLaunchKernel"]
    before = by_job(eventually(machine.metrics, lambda seen: on_gpus(seen) == want))
    assert sum(before.values()) == want
    machine.run("systemctl", "restart", "gpubpf")
    assert by_job(machine.metrics()) == before

    pid, had = machine.unit("MainPID"), links(machine)
    assert attached(had) == had != set()
    machine.run("kill", "-KILL", pid)
    assert not eventually(lambda: attached(had), lambda left: not left)
    assert another(machine, pid)
    assert by_job(machine.metrics()) == before

    pid = machine.unit("MainPID")
    machine.run("kill", "-STOP", pid)
    assert another(machine, pid)
    assert by_job(machine.metrics()) == before
    said = machine.run("journalctl", "--unit=gpubpf", "--output=cat")
    assert said.count("Watchdog timeout") == 1  # and none for those that were well


def test_a_configuration_that_is_wrong_is_said_once(machine: Machine) -> None:
    right = machine.run("cat", CONFIG)
    machine.write(CONFIG, "lisen = ':1'\n")
    code, said = machine.tell("systemctl", "restart", "gpubpf")
    machine.write(CONFIG, f"{right}\n")
    assert code != 0
    assert "journalctl -xeu gpubpf.service" in said
    assert machine.unit("ExecMainStatus") == "2"
    assert (machine.unit("ActiveState"), machine.unit("SubState")) == ("failed", "failed")
    assert "lisen" in last_words(machine)


def last_words(machine: Machine) -> str:
    """Of the program itself."""
    words = ("journalctl", "--unit=gpubpf", "--output=cat", "--identifier=gpubpf", "--lines=1")
    return machine.run(*words)


def test_stopped_it_leaves_nothing_and_it_comes_with_the_machine(machine: Machine) -> None:
    had, group = links(machine), machine.unit("ControlGroup")
    assert attached(had) == had != set()
    machine.run("systemctl", "stop", "gpubpf")
    assert (machine.unit("Result"), machine.unit("ExecMainStatus")) == ("success", "0")
    assert attached(had) == set()
    assert machine.run("find", "/sys/fs/cgroup", "-path", f"*{group}") == ""
    assert machine.tell("ls", "/run/gpubpf")[0] != 0
    assert machine.run("ls", "/var/lib/gpubpf").split() == ["state.json", "state.json.lock"]
    assert last_words(machine) == "gpubpf: stopped; nothing is left attached"

    machine.run("systemctl", "isolate", "multi-user.target")  # as a boot ends
    assert another(machine, "0")
    assert machine.metrics()


def test_an_update_and_the_removal(machine: Machine, before: set[str]) -> None:
    """The configuration is the operator's, and the totals go on."""
    shipped = (SHIPPED / "gpubpf.toml").read_text()
    assert machine.run("cat", CONFIG) == shipped.strip()
    machine.write(CONFIG, f"{shipped}max-jobs = 7\n")
    pid, totals = machine.unit("MainPID"), by_job(machine.metrics())
    there = machine.run("ls", "/opt")
    machine.run(str(INSTALL), seconds=600, network=True)
    assert machine.unit("MainPID") != pid
    assert machine.run("cat", CONFIG).endswith("max-jobs = 7")
    assert by_job(machine.metrics()) == totals
    assert machine.run("ls", "/opt") == there

    machine.run(str(INSTALL), "--remove")
    assert machine.unit("ActiveState") == "inactive"
    assert machine.ours() - before == {"/etc/gpubpf", CONFIG, "/var/lib/gpubpf"}
