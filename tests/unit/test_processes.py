"""gpubpf.processes on real processes, and on a /proc of files for what can't be staged."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpubpf.processes import COMMAND_LENGTH, TICK_NS, TICKS, Processes

LATER = 2**63  # nanoseconds: every process of today began before


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    time.sleep(0.05)  # until it has executed
    yield child
    child.kill()
    child.wait()


def fake(root: Path, pid: int, start: int, name: bytes = b"job", command: bytes = b"job\0") -> Path:
    """A process in a /proc of files; start in ticks since boot."""
    root.mkdir(exist_ok=True)
    (root / "stat").write_text("cpu 1 2 3\nbtime 1700000000\n")
    path = root / str(pid)
    path.mkdir(exist_ok=True)
    fields = ["S", "1", *["0"] * 17, str(start), *["0"] * 30]
    (path / "stat").write_bytes(b"%d (%s) " % (pid, name) + " ".join(fields).encode() + b"\n")
    (path / "status").write_text("Name:\tx\nUid:\t54321\t54321\t54321\t54321\n")
    (path / "cmdline").write_bytes(command)
    return path


def test_a_real_process(child: subprocess.Popen[bytes]) -> None:
    process = Processes().lookup(child.pid, boot_ns())
    assert process is not None
    assert (process.pid, process.name, process.command) == (child.pid, "sleep", "sleep 60")
    assert process.user == pwd.getpwuid(os.getuid()).pw_name
    assert abs(process.start_time - time.time()) < 5
    assert abs(process.start_time - psutil.Process(child.pid).create_time()) < 1.1


def test_a_known_process_is_not_read_again(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    root = tmp_path / "proc"
    fake(root, 7, start=500)
    known = Processes(str(root))
    first = known.lookup(7, LATER)
    (root / "7" / "stat").unlink()
    assert known.lookup(7, LATER) is first
    known = Processes()
    born = boot_ns()
    known.lookup(child.pid, born)
    began = time.perf_counter()
    for _ in range(1000):
        known.lookup(child.pid, born)
    assert (time.perf_counter() - began) / 1000 < 20e-6


def test_psutil_is_asked_once_per_process(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = psutil.Process

    def process(pid: int) -> psutil.Process:
        asked.append(pid)
        return real(pid)

    monkeypatch.setattr(psutil, "Process", process)
    known = Processes()
    assert known.lookup(child.pid, boot_ns()) is known.lookup(child.pid, boot_ns())
    assert asked == [child.pid]


def test_a_process_that_began_after_birth_is_another(tmp_path: Path) -> None:
    root = tmp_path / "proc"
    fake(root, 7, start=500)
    known = Processes(str(root))
    assert known.lookup(7, 500 * TICK_NS) is not None  # in the very tick
    assert known.lookup(7, 499 * TICK_NS) is not None  # one tick of rounding
    assert known.lookup(7, 498 * TICK_NS) is None
    assert known.lookup(7, 500 * TICK_NS + 1) is not None


def test_pid_used_again(tmp_path: Path) -> None:
    root = tmp_path / "proc"
    fake(root, 7, start=500, command=b"first\0")
    known = Processes(str(root))
    first = known.lookup(7, 501 * TICK_NS)
    assert first is not None
    assert first.command == "first"
    fake(root, 7, start=900, command=b"second\0")
    assert not known.alive(7, first.start_time)
    second = known.lookup(7, 901 * TICK_NS)
    assert second is not None
    assert second.command == "second"
    assert second.start_time == first.start_time + 400 / TICKS
    assert known.alive(7, second.start_time)
    assert known.lookup(7, 501 * TICK_NS) is first  # what was known stays
    assert Processes(str(root)).lookup(7, 501 * TICK_NS) is None


def test_pid_used_again_while_it_is_looked_up(tmp_path: Path) -> None:
    root = tmp_path / "proc"
    fake(root, 7, start=500)

    class Slow(Processes):
        def _ask_psutil(self, pid: int) -> tuple[str, str]:
            fake(root, 7, start=900, command=b"second\0")
            return super()._ask_psutil(pid)

    assert Slow(str(root)).lookup(7, 501 * TICK_NS) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a pid namespace of its own")
def test_pid_really_used_again() -> None:
    program = """
        import subprocess, time
        from gpubpf.processes import Processes
        known = Processes()
        first = subprocess.Popen(["sleep", "61"])
        time.sleep(0.1)
        born = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        found = known.lookup(first.pid, born)
        assert found.command == "sleep 61" and known.alive(first.pid, found.start_time)
        first.kill()
        assert first.poll() is None
        time.sleep(0.1)
        assert not known.alive(first.pid, found.start_time), "a zombie lives"
        first.wait()
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(first.pid - 1))
        second = subprocess.Popen(["sleep", "62"])
        time.sleep(0.1)
        assert second.pid == first.pid
        assert not known.alive(first.pid, found.start_time)
        assert Processes().lookup(first.pid, born) is None
        again = known.lookup(second.pid, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        assert again.command == "sleep 62"
        second.kill()
        print("done")
    """
    result = subprocess.run(
        ["unshare", "-pf", "--mount-proc", sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_hostile_names_and_command_lines(tmp_path: Path) -> None:
    root = tmp_path / "proc"
    fake(root, 7, 5, b") R 1 (\x1b[2J\n\xff", b"a\nb\0\x1b]0;x\x07\0\xff\xfe\0" + b"x" * 500_000)
    process = Processes(str(root)).lookup(7, LATER)
    assert process is not None
    assert process.name == ") R 1 ( [2J \ufffd"
    assert process.command.startswith("a b  ]0;x  \ufffd\ufffd xxx")
    assert len(process.command) == COMMAND_LENGTH
    assert process.command.isprintable()
    assert process.name.isprintable()
    assert process.user == "54321"  # no such user


def test_a_real_process_with_a_hostile_name(tmp_path: Path) -> None:
    program = tmp_path / os.fsdecode(b") 0 (\x1b\xff")
    program.symlink_to("/usr/bin/sleep")
    child = subprocess.Popen([os.fsencode(program), b"60"])
    try:
        time.sleep(0.05)
        process = Processes().lookup(child.pid, boot_ns())
        assert process is not None
        assert process.name == ") 0 ( \ufffd"
        assert process.command.endswith(") 0 ( \ufffd 60")
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    "stat",
    [b"", b"7 (job", b"7 (job) S 1", b"7 (job) " + b"x " * 40, b"\xff" * 5000],
)
def test_an_unreadable_stat_is_no_process(tmp_path: Path, stat: bytes) -> None:
    root = tmp_path / "proc"
    (fake(root, 7, 5) / "stat").write_bytes(stat)
    known = Processes(str(root))
    assert known.lookup(7, LATER) is None
    assert not known.alive(7, 1700000000.05)


def test_unreadable_details_are_empty(tmp_path: Path) -> None:
    root = tmp_path / "proc"
    path = fake(root, 7, 5)
    (path / "status").unlink()
    (path / "cmdline").unlink()
    process = Processes(str(root)).lookup(7, LATER)
    assert process is not None
    assert (process.name, process.user, process.command) == ("job", "", "")
    path = fake(root, 8, 5)
    (path / "status").write_text("nothing of use\n")
    (path / "cmdline").unlink()
    (path / "cmdline").mkdir()
    process = Processes(str(root)).lookup(8, LATER)
    assert process is not None
    assert (process.user, process.command) == ("", "")


def test_vanished_and_impossible(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    known = Processes()
    child.kill()
    child.wait()
    assert known.lookup(child.pid, boot_ns()) is None
    assert not known.alive(child.pid, time.time())
    for pid in (0, -1, 2**31, 2**70):
        assert known.lookup(pid, LATER) is None
        assert not known.alive(pid, 0.0)
    assert Processes(str(tmp_path / "nothing")).lookup(1, LATER) is None


def test_a_zombie_is_looked_up_but_does_not_live(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    known = Processes()
    process = known.lookup(child.pid, boot_ns())
    assert process is not None
    assert (process.name, process.command) == ("sleep", "")
    assert not known.alive(child.pid, process.start_time)


def test_a_process_whose_leader_thread_ended() -> None:
    program = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        for _ in range(100):
            state = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                break
            time.sleep(0.02)
        assert state == "Z"
        known = Processes()
        process = known.lookup(child.pid, boot_ns())
        assert process is not None
        assert known.alive(child.pid, process.start_time)
    finally:
        child.kill()
        child.wait()


def test_who_has_a_pid_now(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    root = tmp_path / "proc"
    fake(root, 7, start=500)
    known = Processes(str(root))
    first = known.current(7)
    assert first is not None
    assert known.current(7) is known.lookup(7, LATER) is first
    fake(root, 7, start=900)
    second = known.current(7)
    assert second is not None
    assert second.start_time == first.start_time + 400 / TICKS
    assert known.current(8) is None
    real = Processes()
    assert real.current(child.pid) == real.lookup(child.pid, boot_ns())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert real.current(child.pid) is None


def test_forgetting_and_bounds(tmp_path: Path) -> None:
    root = tmp_path / "proc"
    known = Processes(str(root), capacity=3)
    for pid in range(1, 6):
        fake(root, pid, start=500)
        assert known.lookup(pid, LATER) is not None
    assert len(known._by_birth) == len(known._by_start) == 3
    known.forget([(5, LATER), (77, 1)])
    assert len(known._by_birth) == len(known._by_start) == 2
    (root / "5" / "stat").unlink()
    assert known.lookup(5, LATER) is None


def test_the_root_of_psutil_is_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "proc"
    fake(root, 7, start=500)
    assert Processes(str(root)).lookup(7, LATER) is not None
    assert psutil.PROCFS_PATH == "/proc"
