"""A machine for tests of what systemd does: a real systemd as pid 1 (machine.sh tells how), the
simulated node's driver, and the checkout."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from types import TracebackType

from tests.conftest import GPUBPF, ROOT, Metrics, eventually, parse_metrics
from tests.deploy.test_jobs import launching
from tests.fakegpu.node import Node

DRIVER, STATE = "/simulated", "/state"  # where it sees them; the checkout is at its own place
CLIENT = (f"{DRIVER}/program", f"{DRIVER}/libcuda.so.1")
CONFIG = "/etc/gpubpf/gpubpf.toml"
_UNIT = "/etc/systemd/system/gpubpf.service"
_DROP_IN = f"{_UNIT}.d/simulated.conf"
_BOOT = Path(__file__).with_name("machine.sh")
_HALT = signal.SIGRTMIN + 3  # systemd(1)
_ASK = "import urllib.request as u; print(u.urlopen('http://{}/metrics').read().decode())"
_numbers = itertools.count()


class Machine:
    """It has this machine's files, and a network of its own with nothing but the loopback."""

    def __init__(self, work: Path, node: Node) -> None:
        self._name = f"gpubpf-test-{os.getpid()}-{next(_numbers)}"
        self._state = f"{STATE}/{node.path.name}"
        work.mkdir()
        shared = {ROOT: str(ROOT), node.library.parent: DRIVER, node.path.parent: STATE}
        node.path.parent.chmod(0o777)  # for clients of other users
        node.path.chmod(0o666)
        pairs = [f"{source}:{target}" for source, target in shared.items()]
        self._outer = subprocess.Popen([_BOOT, self._name, work, *pairs])
        up = eventually(self._is_up, lambda up: up or self._outer.poll() is not None, 30)
        if not up:
            self.__exit__(None, None, None)
            raise AssertionError("systemd did not start")

    def __enter__(self) -> Machine:
        return self

    @property
    def _first(self) -> str:
        """Its pid 1, as the node knows it."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        return children.read_text().strip()

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            code, state = self.tell("systemctl", "is-system-running", seconds=10)
            return code == 0 and state == "running"
        return False

    def tell(
        self, *command: str, seconds: float = 60, network: bool = False, given: str = ""
    ) -> tuple[int, str]:
        """A command's exit code, and what it printed; with `network` it has this machine's."""
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", *["--net"] * (not network)]
        done = subprocess.run(
            ["nsenter", f"--target={self._first}", *spaces, *command],
            env={**os.environ, "FAKEGPU_STATE": self._state},
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        return done.returncode, done.stdout.strip()

    def run(
        self, *command: str, seconds: float = 60, network: bool = False, given: str = ""
    ) -> str:
        """What a command printed that must succeed."""
        code, said = self.tell(*command, seconds=seconds, network=network, given=given)
        assert code == 0, f"{' '.join(command)}: {code}\n{said}"
        return said

    def write(self, path: str, text: str) -> None:
        self.run("mkdir", "-p", os.path.dirname(path))
        self.run("tee", path, given=text)

    # --- gpubpf there ---------------------------------------------------------------------------

    def simulate(self, *more: str) -> None:
        """Its gpubpf, when it is started next, watches the simulated node, five times a second. It
        compiles little, has no CAP_SYS_ADMIN, and is looked after more closely than as shipped."""
        environment = {
            "FAKEGPU_STATE": self._state,
            "GPUBPF_LIBRARY": f"{DRIVER}/libcuda.so.1",
            "GPUBPF_NVML_LIBRARY": f"{DRIVER}/libnvidia-ml.so.1",
            "GPUBPF_PROC_ROOT": "/node/proc",  # with the node's pids, which are BPF's
            "GPUBPF_PROBE": "launch",
            "GPUBPF_INTERVAL": "0.2",
            "GPUBPF_DISCOVERY_INTERVAL": "0.2",
        }
        lines = (
            *(f"Environment={name}={text}" for name, text in environment.items()),
            f"ReadWritePaths={STATE}",
            "CapabilityBoundingSet=~CAP_SYS_ADMIN",
            "RestartSec=0.1",
            "WatchdogSec=5",
            *more,
        )
        self.write(_DROP_IN, "\n".join(("[Service]", *lines, "")))
        self.run("systemctl", "daemon-reload")

    def serve_checkout(self) -> None:
        """Starts the shipped unit with the checkout's own program."""
        for name, target in (("gpubpf.service", _UNIT), ("gpubpf.toml", CONFIG)):
            self.write(target, (ROOT / "deploy" / "systemd" / name).read_text())
        # The checkout may be below /tmp.
        self.simulate("PrivateTmp=no", "ExecStart=", f"ExecStart={GPUBPF} serve")
        self.run("systemctl", "start", "gpubpf")

    def unit(self, what: str) -> str:
        return self.run("systemctl", "show", "--property", what, "--value", "gpubpf")

    def ours(self) -> set[str]:
        """What is called after gpubpf, but for logs, images and the drop-in from here."""
        places = ("/etc", "/lib/systemd", "/opt", "/run", "/usr", "/var")
        but = ("/var/log", "/var/lib/containers", "/var/tmp", "/var/cache", f"{_UNIT}.d")
        pruned = [word for path in but for word in ("-path", path, "-prune", "-o")]
        found = self.run("find", *places, *pruned, "-name", "*gpubpf*", "-print")
        return set(found.splitlines())

    def metrics(self) -> Metrics:
        return parse_metrics(self.run("/usr/bin/python3", "-c", _ASK.format("localhost:10440")))

    def launch(self, count: int, *within: str, before: str = "") -> str:
        """A process that launches so often and ends, started by `within`; its output."""
        program = [*([before] if before else []), *launching(count)]
        return self.run(*within, *CLIENT, given="".join(f"{line}\n" for line in program))

    # --- the end --------------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self._first), _HALT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._outer.wait(30)
        self._outer.kill()  # and all of its own with it
        self._outer.wait()
        self._remove_groups()

    def _remove_groups(self) -> None:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            if kind in ("cgroup", "cgroup2"):
                top = Path(where) / self._name
                inside = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
                for path in (*inside, top):
                    assert eventually(partial(_removed, path), bool)


def _removed(path: Path) -> bool:
    """Who was killed in it may still be on the way out."""
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()
