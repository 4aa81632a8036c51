"""The Debian package: built from the checkout, and installed, updated, removed and purged in a
systemd that runs, and where none does."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubpf import __version__
from tests.conftest import BUILD, ROOT, eventually
from tests.deploy.machine import CONFIG, STATE, Machine
from tests.deploy.test_jobs import by_job, on_gpus
from tests.fakegpu.node import Node

DEB = ROOT / "deploy" / "systemd" / "deb"
NO_SYSTEMD = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run/systemd; exec "$@"', "-")


def built(output: Path) -> Path:
    told = subprocess.run([DEB, "--output", output], capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    return Path(told.stdout.strip())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(BUILD, tmp_path_factory.mktemp("node") / "state", devices=2) as node:
        yield node


@pytest.fixture
def machine(own: Node, package: Path, tmp_path: Path) -> Iterator[Machine]:
    """With the package, and a newer one, in its /state."""
    place = own.path.parent
    (place / "old.deb").write_bytes(package.read_bytes())
    if not (place / "new.deb").exists():
        tree = tmp_path / "newer"
        subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
        for path, was, now in (
            ("DEBIAN/control", f"Version: {__version__}", f"Version: {__version__}+newer"),
            ("etc/gpubpf/gpubpf.toml", "# gpubpf's", "# Newer: gpubpf's"),
        ):
            text = (tree / path).read_text()
            assert was in text
            (tree / path).write_text(text.replace(was, now))
        command = ["dpkg-deb", "-Znone", "--root-owner-group", "--build"]
        subprocess.run([*command, tree, place / "new.deb"], check=True, capture_output=True)
    with Machine(tmp_path / "work", own) as machine:
        machine.simulate()
        yield machine


def dpkg(*words: str) -> tuple[str, ...]:
    return ("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--force-confold", *words)


def test_built_again_it_is_the_same(package: Path, tmp_path: Path) -> None:
    first, second = (
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (package, built(tmp_path))
    )
    assert first == second


def test_what_is_in_it(package: Path) -> None:
    asked = ("Package", "Version", "Depends")
    told = subprocess.run(["dpkg-deb", "--field", package, *asked], capture_output=True, text=True)
    assert told.stdout.splitlines() == [
        "Package: gpubpf",
        f"Version: {__version__}",
        "Depends: python3 (>= 3.11), python3 (<< 3.12), python3-bpfcc",
    ]
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True)
    rows = [line.split(None, 5) for line in listed.stdout.splitlines()]
    assert {row[1] for row in rows} == {"root/root"}
    names = [row[5].removeprefix(".") for row in rows]
    assert "/usr/bin/gpubpf -> /opt/gpubpf/bin/gpubpf" in names
    # Neither what was compiled, nor pip, nor where it was built
    stray = re.compile(r"\.pyc$|/(pip|setuptools)/|direct_url|RECORD")
    assert [name for name in names if stray.search(name)] == []
    where = [row for row in rows if not re.match(r"/(etc|lib|opt|usr)(/|$)|/$", row[5][1:])]
    assert where == []


def test_its_life_in_a_systemd(machine: Machine, own: Node) -> None:
    before = machine.ours()
    machine.run(*dpkg("--install", f"{STATE}/old.deb"))
    assert machine.unit("ActiveState") == "active"
    assert machine.run("systemctl", "is-enabled", "gpubpf") == "enabled"
    assert machine.run("gpubpf", "--version") == f"gpubpf {__version__}"
    doctor = ("gpubpf", "doctor", "--no-nvml", "--probe", "launch", "--format", "json")
    checks = json.loads(machine.tell(*doctor)[1])["checks"]
    # Here the node's pids are only in a /proc beside its own.
    assert {check["name"] for check in checks if check["status"] == "fail"} == {"pid namespace"}
    machine.launch(13)
    want = own.counts().calls["cuLaunchKernel"]
    totals = by_job(eventually(machine.metrics, lambda seen: on_gpus(seen) == want))
    assert sum(totals.values()) == want == 13

    # An update: the configuration is the operator's, the totals go on, a new process serves.
    machine.write(CONFIG, machine.run("cat", CONFIG) + "\nmax-jobs = 7\n")
    pid = machine.unit("MainPID")
    machine.run(*dpkg("--install", f"{STATE}/new.deb"))
    assert machine.unit("MainPID") not in ("0", pid)
    assert by_job(machine.metrics()) == totals
    assert machine.run("cat", CONFIG).endswith("max-jobs = 7")
    assert machine.run("cat", f"{CONFIG}.dpkg-dist").startswith("# Newer")
    machine.run("rm", f"{CONFIG}.dpkg-dist")

    # The installer keeps away from it.
    code, told = machine.tell(str(ROOT / "deploy/systemd/install"))
    assert (code, len(told.splitlines())) == (1, 1)

    machine.run(*dpkg("--remove", "gpubpf"))
    assert machine.unit("ActiveState") == "inactive"
    assert machine.tell("ls", "/opt/gpubpf")[0] != 0
    assert {CONFIG, "/var/lib/gpubpf"} <= machine.ours()
    machine.run(*dpkg("--purge", "gpubpf"))
    assert machine.ours() == before


def test_disabled_it_stays_so(machine: Machine) -> None:
    machine.run(*dpkg("--install", f"{STATE}/old.deb"))
    assert machine.unit("ActiveState") == "active"
    machine.run("systemctl", "disable", "--now", "gpubpf")
    machine.run(*dpkg("--install", f"{STATE}/new.deb"))
    assert machine.tell("systemctl", "is-enabled", "gpubpf") == (1, "disabled")
    assert machine.unit("ActiveState") == "inactive"


def test_where_no_systemd_runs(machine: Machine) -> None:
    before = machine.ours()
    machine.run(*NO_SYSTEMD, *dpkg("--install", f"{STATE}/old.deb"))
    assert machine.run("gpubpf", "--version") == f"gpubpf {__version__}"
    assert machine.run("systemctl", "is-enabled", "gpubpf") == "enabled"
    assert machine.unit("ActiveState") == "inactive"
    machine.run(*NO_SYSTEMD, *dpkg("--purge", "gpubpf"))
    assert machine.ours() == before


def test_a_checkout_s_service_is_not_taken_over(machine: Machine) -> None:
    machine.write("/etc/systemd/system/gpubpf.service", "[Service]\nExecStart=/bin/true\n")
    code, said = machine.tell(*dpkg("--install", f"{STATE}/old.deb"))
    assert code != 0
    assert "run its deploy/systemd/install --remove first" in said


def test_what_is_wrong_is_one_line() -> None:
    for arguments in (["--output", "/nonexistent"], ["--outputs", "."]):
        told = subprocess.run([DEB, *arguments], capture_output=True, text=True, timeout=60)
        assert told.returncode == 2
        assert len(told.stderr.splitlines()) == 1
