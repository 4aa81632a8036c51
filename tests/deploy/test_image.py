"""The image: built from the checkout, without a network once its packages are gathered, and run as
a container next to others. It counts exactly, privileged and with the least capabilities, each of
which is shown to be needed; it is stopped, restarted and killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpubpf import __version__
from tests.conftest import BUILD, ROOT, eventually
from tests.deploy.containers import (
    BASE,
    CLIENT,
    FULL,
    OWN,
    PACKAGES,
    PRIVATE,
    PRIVILEGED,
    SLIM,
    USER,
    Agent,
    Client,
    attached,
    build,
    build_images,
    image_options,
    least,
    podman,
)
from tests.fakegpu.node import Node

MOUNTED = "/node/libcuda.so.1"  # in a client's container: the node's own file
MODES = {"privileged": (FULL, PRIVILEGED), "least": (SLIM, ())}
# Looks in the image, where the slim variant has no shell: files, those that Python compiled with
# another rule than "it is valid" (PEP 552), and Debian's packages
LOOK = """
import json, os, sys
found = [os.path.join(at, name) for at, _, names in os.walk("/", followlinks=False)
         if not at.startswith(("/proc", "/sys", "/dev", "/simulated", "/state")) for name in names]
dated = [path for path in found
         if path.endswith(".pyc") and open(path, "rb").read(8)[4:] != b"\\1\\0\\0\\0"]
status = open("/var/lib/dpkg/status").read()
json.dump([found, dated, status], sys.stdout)
"""
QUIET = "--no-healthcheck"


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    work = tmp_path_factory.mktemp("images")
    with Node(BUILD, work / "state") as node:
        build_images(work, node.library)


@pytest.fixture(params=MODES)
def agent(request: pytest.FixtureRequest, node: Node) -> Iterator[Agent]:
    """Each variant as it is shipped for: the full one privileged, the slim one with the least."""
    image, rights = MODES[request.param]
    with Agent(node, image, rights or least(), QUIET) as agent:
        yield agent


def look(image: str) -> tuple[list[str], list[str], str]:
    words = ("--rm", QUIET, "--entrypoint=/opt/gpubpf/bin/python", image, "-c", LOOK)
    found, dated, status = json.loads(podman("run", *words))
    return found, dated, status


@pytest.mark.parametrize("image", [FULL, SLIM])
def test_nothing_is_in_it_that_only_building_needs(image: str) -> None:
    found, dated, status = look(image)
    names = {os.path.basename(path) for path in found}
    assert {"gpubpf", "libbcc.so.0", "count.h"} <= names
    assert not names & {"gcc", "cc", "clang", "ld", "make", "pip", "pip3", "wheel", "git"}
    assert not [path for path in found if path.startswith(("/usr/src", "/usr/include", "/src"))]
    assert not [path for path in found if path.endswith((".whl", ".deb", "/Packages"))]
    assert not [path for path in found if path.startswith("/var/lib/apt/lists/")]
    assert not [path for path in found if path.endswith("ca.crt")]
    assert ("/opt/gpubpf/lib/python3.11/site-packages/grpc/__init__.py" in found) == (image == FULL)
    # What would be compiled at every start, into memory that the agent keeps
    ours = [p for p in found if "/site-packages/gpubpf/" in p and p.endswith(".py")]
    compiled = {os.path.basename(p).partition(".")[0] for p in found if "/gpubpf/" in p
                and p.endswith(".pyc")}  # fmt: skip
    assert {os.path.basename(path)[:-3] for path in ours} <= compiled
    assert dated == []  # would be compiled again where a builder sets all times to one
    # What scanners and lawyers read
    packages = set(re.findall(r"^Package: (.*)$", status, re.M))
    assert {"libbpfcc", "libllvm14", "libc6", "python3.11-minimal"} <= packages
    assert ("apt" in packages) == (image == FULL)
    assert {
        f"/usr/share/doc/{name}/copyright" for name in ("libbpfcc", "libc6", "libllvm14")
    } <= set(found)
    assert ("sh" in names, "apt-get" in names) == ((True, True) if image == FULL else (False,) * 2)


def size(image: str) -> int:
    return int(podman("image", "inspect", "--format={{.Size}}", image))


def test_the_slim_one_is_slim() -> None:
    assert size(SLIM) < size(FULL) - 50_000_000
    assert size(FULL) < size(BASE) + 350_000_000


@pytest.mark.parametrize("image", [FULL, SLIM])
def test_what_it_says_of_itself(image: str) -> None:
    config = json.loads(podman("image", "inspect", image))[0]["Config"]
    labels = {
        key.removeprefix("org.opencontainers.image."): value
        for key, value in config["Labels"].items()
    }
    assert labels["title"] == "gpubpf"
    assert labels["version"] == __version__
    assert labels["revision"] == "tried"
    assert labels["licenses"] == "Apache-2.0"
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert podman("run", "--rm", QUIET, image, "--version") == f"gpubpf {__version__}\n"


def test_it_is_of_no_architecture() -> None:
    for name in (
        "Dockerfile",
        "image/packages",
        "image/install",
        "image/collect",
        "image/health.py",
    ):
        text = (ROOT / "deploy" / name).read_text()
        assert not [word for word in ("x86", "amd64", "aarch64", "arm64") if word in text]


# --- its packages --------------------------------------------------------------------------------


def names(text: str) -> set[str]:
    """Of a list of packages, with where they go: system/python3."""
    return {line.split()[1].partition("_")[0] for line in text.splitlines()}


def test_the_locks_have_what_it_is_made_of() -> None:
    """Their versions are Debian's of when they were made, and no test's matter."""
    locks = {
        path.name: path.read_text() for path in (ROOT / "deploy" / "image" / "locks").iterdir()
    }
    assert {"amd64", "arm64"} <= set(locks)
    here = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert names(locks[here]) == names((PACKAGES / "list").read_text())
    for text in locks.values():
        assert names(text) >= {"system/python3-bpfcc", "system/libllvm14", "tools/python3-pip"}


def test_packages_that_are_not_the_lists_are_refused(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    shutil.copytree(PACKAGES, packages)
    with next((packages / "system").glob("python3-bpfcc_*")).open("ab") as file:
        file.write(b"more")
    with pytest.raises(AssertionError, match="the packages of system are not those of the list"):
        build(*image_options(packages), "--no-cache", "--target=system", ROOT)
    with (packages / "list").open("a") as file:
        file.write(f"{'0' * 64}  system/other_1_all.deb\n")
    with pytest.raises(AssertionError, match="not those of deploy/image/locks"):
        build(*image_options(packages, versions="locked"), "--target=system", ROOT)


# --- what it does --------------------------------------------------------------------------------


def test_processes_of_the_node_and_of_containers(agent: Agent, node: Node) -> None:
    """With the node's library, mounted; with one of their image's own, of which two containers
    share one file; and with one where only its user may look. Each counts once."""
    user = f"--user={USER}"
    made = [
        (str(node.library), "", ()),
        (MOUNTED, BASE, ()),
        (OWN, CLIENT, ()),
        (OWN, CLIENT, ()),
        (PRIVATE, CLIENT, (user,)),
    ]
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Client(node, library, image, *options))
            for library, image, options in made
        ]
        counts = (101, 211, 307, 401, 503)
        assert agent.counts_all(dict(zip(clients, counts, strict=True)))
        names = {dict(labels)["name"] for (name, labels) in agent.metrics()
                 if name == "gpubpf_gpu_info"}  # fmt: skip
        assert names == {"Simulated GPU H100 (gpubpf)"}


def test_stopped_started_and_killed(agent: Agent, node: Node) -> None:
    with Client(node, MOUNTED, BASE) as client:
        assert agent.counts(client, 7)
        links = agent.links()
        assert attached(links) == links != set()

        podman("stop", "--time=30", agent.name)
        assert agent.inspect("{{.State.ExitCode}}") == "0"
        assert "stopped; nothing is left attached" in agent.log()
        assert not eventually(lambda: attached(links), lambda left: not left)
        client.launch(3)  # nobody counts them

        podman("start", agent.name)
        assert agent.wait().counts(client, 11)
        links = agent.links()
        assert attached(links) == links != set()

        os.kill(agent.pid, signal.SIGKILL)  # as who has no memory; podman kill waits 5 s, and fails
        assert not eventually(lambda: attached(links), lambda left: not left, 30)
        assert eventually(lambda: agent.inspect("{{.State.ExitCode}}"), "137".__eq__, 30) == "137"
        client.launch(5)  # and is none the worse for it

        podman("restart", agent.name)
        assert agent.wait().counts(client, 13)


def test_health(node: Node) -> None:
    """Without curl, in the slim variant; by the address that the variable says."""
    with Agent(node, SLIM, least()) as agent:
        podman("healthcheck", "run", agent.name)
        pid = agent.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(AssertionError):
            podman("healthcheck", "run", agent.name)
        os.kill(pid, signal.SIGCONT)
        podman("healthcheck", "run", agent.name)


# --- why each of the capabilities ----------------------------------------------------------------


@pytest.mark.parametrize("capability", ["BPF", "PERFMON"])
def test_without_it_there_is_no_agent(node: Node, capability: str) -> None:
    code, said = Agent(node, SLIM, least(without=capability)).run()
    assert code == 3, said
    assert "CAP_BPF" in said
    assert "CAP_PERFMON" in said
    code, said = Agent(node, SLIM, least(without=capability)).run("doctor")
    assert code == 1
    assert "neither CAP_SYS_ADMIN nor CAP_BPF with CAP_PERFMON" in said
    assert Agent(node, SLIM, least()).run("doctor")[0] == 0


def test_a_seccomp_profile_that_keeps_bpf_to_who_has_sys_admin(node: Node) -> None:
    """Podman's own, of some versions; Docker's and containerd's go by CAP_BPF and CAP_PERFMON."""
    rights = [word for word in least() if "seccomp" not in word]
    old = Path("/usr/share/containers/seccomp.json").read_text()
    code, said = Agent(node, SLIM, rights).run("doctor")
    assert (code, "let the filter allow bpf" in said) == ((0, False) if "CAP_BPF" in old
                                                           else (1, True))  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "library", "options"),
    [("SYS_PTRACE", OWN, ()), ("DAC_READ_SEARCH", PRIVATE, (f"--user={USER}",))],
)
def test_without_it_a_library_of_a_container_is_not_seen(
    node: Node, capability: str, library: str, options: tuple[str, ...]
) -> None:
    """The node's own, mounted, is counted all the same; and doctor says what is lacking."""
    with (
        Agent(node, SLIM, least(without=capability), QUIET,
              "--env=GPUBPF_LIBRARY=/simulated/libcuda.so.1") as agent,
        Client(node, MOUNTED, BASE) as mounted,
        Client(node, library, CLIENT, *options) as client,
    ):  # fmt: skip
        assert agent.counts(mounted, 3)
        client.launch(5)
        assert agent.counts(mounted, 3)  # it has had the time to look again
        assert agent.launches(client.pid) == 0
    said = Agent(node, SLIM, least(without=capability)).run("doctor")[1]
    assert f"no CAP_{capability}: libcuda files of other users' processes stay unseen" in " ".join(
        said.split()
    )
