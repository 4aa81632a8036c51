"""Containers for the tests of the image: podman as it runs on any machine, the image built from the
checkout, the agent in it, and clients of the simulated driver beside it."""

from __future__ import annotations

import configparser
import contextlib
import ctypes
import itertools
import json
import os
import re
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import time
import urllib.error
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from gpubpf.bpf import syscalls
from tests.conftest import BUILD, ROOT, Metrics, eventually, get, get_metrics
from tests.fakegpu.node import Node
from tests.fakegpu.small_programs import START, lines

KEPT = ROOT / ".build" / "image"
PACKAGES = KEPT / "packages"
BASE = "localhost/debian:bookworm-slim"
FULL, SLIM, CLIENT = (f"localhost/gpubpf-test:{name}" for name in ("full", "slim", "client"))
OWN = "/usr/local/lib/libcuda.so.1"  # in the clients' image
PRIVATE = "/home/user/private/libcuda.so.1"  # likewise, where only its user may look
USER = 4711
PRIVILEGED = ("--privileged",)
_TRUSTED = "/etc/ssl/certs/ca-certificates.crt"
# The least that works (deploy/image/README.md)
LEAST = ("BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH")
_numbers = itertools.count()
_LINK_GET_FD_BY_ID = 30  # include/uapi/linux/bpf.h


# --- podman -------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Podman set to what works in a container or VM without systemd, and with low limits."""
    KEPT.mkdir(parents=True, exist_ok=True)
    limits = []
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(number)[1]  # podman's own defaults may be above it
        most = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
        limits.append(f'"{name}={most}:{most}"')
    settings = KEPT / f"containers-{os.getpid()}.conf"
    settings.write_text(
        f'[containers]\nnetns = "host"\ndefault_ulimits = [{", ".join(limits)}]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\nevents_logger = "file"\n'
    )
    return {**os.environ, "CONTAINERS_CONF": str(settings)}


def podman(
    *words: str | Path, seconds: float = 120, check: bool = True, before: Sequence[str] = ()
) -> str:
    """What it printed. Fails with what it said, and with what to do where it is missing."""
    for program in ("podman", "runc", "debootstrap"):
        if shutil.which(program) is None:
            raise AssertionError(f"the image can't be tested: apt-get install {program}")
    command = [*before, "podman", *map(str, words)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=seconds, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def seccomp_profile() -> Path:
    """Podman's default profile, with bpf and perf_event_open let to who has the capabilities, as
    Docker's and containerd's have it."""
    profile = json.loads(Path("/usr/share/containers/seccomp.json").read_text())
    ours = {"bpf", "perf_event_open"}
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in ours]
    profile["syscalls"].append({"names": sorted(ours), "action": "SCMP_ACT_ALLOW"})
    profile["syscalls"] = [rule for rule in profile["syscalls"] if rule["names"]]
    (path := KEPT / "seccomp.json").write_text(json.dumps(profile))
    return path


def least(without: str = "") -> tuple[str, ...]:
    """Options for a container with the least capabilities that work, or one less."""
    kept = [name for name in LEAST if name != without]
    return (
        "--cap-drop=all",
        f"--cap-add={','.join(kept)}",
        "--security-opt=no-new-privileges",
        f"--security-opt=seccomp={seccomp_profile()}",
    )


# --- images -------------------------------------------------------------------------------------


def _from_here() -> list[str]:
    """Mounts for a build: how this machine reaches its packages is not written into the image."""
    apt = KEPT / "apt.conf.d"
    shutil.rmtree(apt, ignore_errors=True)
    shutil.copytree("/etc/apt/apt.conf.d", apt)
    # In a folder that is there anyway, since a mount leaves its place behind; apt ignores a .crt.
    trusted = "/etc/apt/apt.conf.d/ca.crt"
    shutil.copy(ssl.get_default_verify_paths().cafile or _TRUSTED, apt / "ca.crt")
    (apt / "99trust").write_text(f'Acquire::https::CAInfo "{trusted}";\n')
    pip = configparser.RawConfigParser()
    pip.read("/etc/pip.conf")
    if not pip.has_section("global"):
        pip.add_section("global")
    pip.set("global", "cert", trusted)
    with (KEPT / "pip.conf").open("w") as file:
        pip.write(file)
    mounts = {KEPT / "pip.conf": "/etc/pip.conf", apt: "/etc/apt/apt.conf.d"}
    return [f"--volume={source}:{target}:ro" for source, target in mounts.items()]


def build(*words: str | Path, seconds: float = 600) -> str:
    """In a network namespace of its own, with nothing in it, but for what gathers packages."""
    alone = () if "--target=packages" in words else ("unshare", "--net")
    return podman(
        "build", "--quiet", "--pull=never", "--isolation=chroot", "--network=host",
        "--format=docker", "--layers", *words, seconds=seconds, before=alone,
    )  # fmt: skip


def image_options(packages: Path = PACKAGES, *, versions: str = "newest") -> list[str | Path]:
    """Debian's packages of today: the lock's may be gone when Debian has mended one."""
    return [
        f"--file={ROOT / 'deploy' / 'Dockerfile'}", f"--build-arg=BASE={BASE}",
        f"--build-arg=VERSIONS={versions}", f"--build-context=packages={packages}",
    ]  # fmt: skip


def build_images(work: Path, node_library: Path) -> None:
    """Both variants, from the Dockerfile as it is, and an image with a libcuda of its own."""
    # Podman first, so that it is what is said to be missing.
    script = ROOT / "deploy" / "image" / "base"
    made_by = sha256(script.read_bytes()).hexdigest()[:12]
    filters = (f"--filter=reference={BASE}", f"--filter=label=gpubpf.base={made_by}")
    if not podman("images", "--quiet", *filters).split():
        made = subprocess.run(
            [script], env=environment(), capture_output=True, text=True, timeout=600, check=False
        )
        assert made.returncode == 0, made.stderr
    shutil.rmtree(PACKAGES, ignore_errors=True)
    build(
        *image_options()[:-1], "--target=packages", *_from_here(),
        f"--output=type=local,dest={PACKAGES}", ROOT,
    )  # fmt: skip
    for image in (FULL, SLIM):
        build(
            *image_options(), f"--target={image.rpartition(':')[2]}", f"--tag={image}",
            "--label=org.opencontainers.image.revision=tried", "--timestamp=0", ROOT,
        )  # fmt: skip
    shutil.copy(node_library, work / "libcuda.so.1")
    (work / "Dockerfile").write_text(
        f"FROM {BASE}\nCOPY libcuda.so.1 {OWN}\nCOPY libcuda.so.1 {PRIVATE}\n"
        f"RUN chown -R {USER} /home/user && chmod 0700 /home/user /home/user/private\n"
    )
    build(f"--tag={CLIENT}", work)


# --- what runs ----------------------------------------------------------------------------------


class Container:
    """A container of a name of its own; removed at the end, whatever it does."""

    def __init__(self, *_: object) -> None:
        self.name = f"gpubpf-test-{os.getpid()}-{next(_numbers)}"

    def inspect(self, what: str) -> str:
        return podman("inspect", f"--format={what}", self.name).strip()

    @property
    def pid(self) -> int:
        """Of its first process, as the node knows it."""
        return int(self.inspect("{{.State.Pid}}"))

    def remove(self) -> None:
        podman("rm", "--force", "--time=20", "--ignore", self.name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


class Agent(Container):
    """The image's own entry point and command, beside other containers (--pid=host), with a
    read-only root."""

    def __init__(self, node: Node, image: str, rights: Sequence[str], *options: str) -> None:
        super().__init__()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.words = (
            f"--name={self.name}", "--pid=host", "--read-only", "--read-only-tmpfs=false",
            f"--volume={node.library.parent}:/simulated:ro",
            f"--volume={node.path.parent}:/state",
            f"--env=FAKEGPU_STATE=/state/{node.path.name}", f"--env=GPUBPF_LISTEN={self.address}",
            "--env=GPUBPF_NVML_LIBRARY=/simulated/libnvidia-ml.so.1",
            "--env=GPUBPF_PROCESS_METRICS=yes", "--env=GPUBPF_MAX_PROCESSES=1000",
            "--env=GPUBPF_CONTROL_SOCKET=/state/control.sock",
            "--env=GPUBPF_INTERVAL=0.2", "--env=GPUBPF_DISCOVERY_INTERVAL=0.2",
            *rights, *options, image,
        )  # fmt: skip

    def start(self) -> Agent:
        podman("run", "--detach", *self.words)
        return self.wait()

    __enter__ = start

    def wait(self) -> Agent:
        """Until it is ready."""
        assert eventually(self.ready, bool, 60), podman("logs", self.name)
        return self

    def ready(self) -> bool:
        try:
            return get(f"{self.url}/readyz") == "ready\n"
        except (urllib.error.URLError, OSError):
            return False

    def run(self, *command: str) -> tuple[int, str]:
        """The same container with another command, until it ends: its exit code, what it said."""
        words = ["podman", "run", "--rm", "--no-healthcheck", *self.words, *command]
        done = subprocess.run(
            words, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def log(self) -> str:
        command = ["podman", "logs", self.name]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    def metrics(self) -> Metrics:
        return get_metrics(self.url)

    def launches(self, pid: int) -> float:
        """Of one process, by the node's pid."""
        return sum(
            number
            for (name, labels), number in self.metrics().items()
            if name == "gpubpf_process_calls_total"
            and {"pid": str(pid), "function": "cuLaunchKernel"}.items() <= dict(labels).items()
        )

    def links(self) -> set[int]:
        """The kernel's numbers of what it has attached."""
        found: set[int] = set()
        for path in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                found.update(
                    int(n) for n in re.findall(r"^link_id:\s+(\d+)$", path.read_text(), re.M)
                )
        return found

    def counts(self, client: Client, launches: int) -> bool:
        return self.counts_all({client: launches})

    def counts_all(self, launches: Mapping[Client, int]) -> bool:
        """Whether it counts clients' launches exactly, once it has found their libraries (calls
        from before are missed: so it is told in the README)."""

        def counted() -> list[float]:
            return [self.launches(client.pid) for client in launches]

        def seen() -> bool:
            for client in launches:
                client.launch(1)
            return all(counted())

        if not eventually(seen, bool, 30):
            return False
        before, now = [-1.0], counted()
        while now != before:
            time.sleep(0.6)  # three looks of the agent
            before, now = now, counted()
        for client, count in launches.items():
            client.launch(count)
        want = [had + count for had, count in zip(now, launches.values(), strict=True)]
        eventually(counted, want.__eq__)
        time.sleep(0.6)
        return counted() == want


def attached(links: set[int]) -> set[int]:
    """Those of these links that the kernel still has."""
    there = set()
    for link in links:
        with contextlib.suppress(FileNotFoundError):
            asked = ctypes.create_string_buffer(struct.pack("=I", link), 128)
            os.close(syscalls.bpf(_LINK_GET_FD_BY_ID, asked))
            there.add(link)
    return there


class Client(Container):
    """A process that calls the simulated driver when it is told to: on the node (image ""), or in a
    container with the library that it is given. It has its context when it is made."""

    def __init__(self, node: Node, library: str, image: str = "", *options: str) -> None:
        super().__init__()
        node.path.parent.chmod(0o777)  # for clients of other users
        node.path.chmod(0o666)
        self._image = image
        words = [str(node.program), library]
        if image:
            words = [
                "podman", "run", "--interactive", f"--name={self.name}",
                f"--volume={BUILD}:/node:ro", f"--volume={node.path.parent}:/state",
                f"--env=FAKEGPU_STATE=/state/{node.path.name}", *options,
                image, "/node/program", library,
            ]  # fmt: skip
        self._process = subprocess.Popen(
            words,
            env=environment() if image else node.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told(lines(START))

    def __enter__(self) -> Client:
        return self

    def told(self, program: Sequence[str]) -> set[str]:
        """Returns the results when it has been done."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("".join(f"{line}\n" for line in program))
        stdin.flush()
        return {stdout.readline() for _ in program}

    def launch(self, count: int) -> None:
        assert self.told(["0 cuLaunchKernel 1 1"] * count) == {"0\n"}

    @property
    def pid(self) -> int:
        return super().pid if self._image else self._process.pid

    def remove(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        if self._image:
            super().remove()
