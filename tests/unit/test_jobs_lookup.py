"""gpubpf.jobs.sight and .lookup on real processes, and on a /proc of files for the rest."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpubpf import visible
from gpubpf.deadline import Worker
from gpubpf.jobs.job import Resolver, Sight, job
from gpubpf.jobs.lookup import ANCESTORS, MOST_STUCK, TRIES, Lookup
from gpubpf.jobs.paths import LARGEST
from gpubpf.jobs.proc import user_name
from gpubpf.jobs.sight import COMMAND, ProcSight
from gpubpf.jobs.sources import parse, resolvers
from gpubpf.model import Job
from gpubpf.processes import TICK_NS
from tests.conftest import eventually

LATER = 2**63
PATIENT = 5.0  # seconds for what is to be seen, on a loaded machine
ALL = "slurm,kubernetes,systemd,environ:X,cgroup:/(?P<job>[^/]+)$,command:a|b=c,user"


def jobs(sources: str, root: str | Path = "/proc", seconds: float = 5) -> Lookup:
    return Lookup(resolvers(parse(sources)), str(root), seconds)


def ident(job: Job | None) -> str | None:
    return None if job is None else job.key.id


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fake(
    root: Path,
    pid: int,
    parent: int = 1,
    start: int = 500,
    cgroup: bytes | None = b"0::/\n",
    environ: bytes | None = b"",
    name: bytes = b"job",
) -> Path:
    """A process in a /proc of files; start in ticks since boot."""
    path = root / str(pid)
    path.mkdir(parents=True, exist_ok=True)
    fields = ["S", str(parent), *["0"] * 17, str(start), *["0"] * 30]
    (path / "stat").write_bytes(b"%d (%s) " % (pid, name) + " ".join(fields).encode() + b"\n")
    (path / "cmdline").write_bytes(b"run\0me\0")
    for file, text in (("cgroup", cgroup), ("environ", environ)):
        if text is not None:
            (path / file).write_bytes(text)
    return path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python programs, which print a line when they are ready."""
    started: list[subprocess.Popen[str]] = []

    def begin(program: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        child.communicate()  # the end of its stdin ends it


READY = "import sys; print(1, flush=True); sys.stdin.read()"
PARENT = """
import os, subprocess, sys
program = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
child = subprocess.Popen(program, env={"Y": "1"})
print(child.pid, flush=True)
child.wait()
"""


# --- what is seen --------------------------------------------------------------------------------


def test_a_real_process(start: Callable[..., subprocess.Popen[str]]) -> None:
    child = start(READY, {"X": "a=b\nc", "Y": ""})
    assert child.stdout is not None
    child.stdout.readline()
    with ProcSight("/proc", child.pid, Worker("test")) as sight:
        assert sight.environment == {b"X": b"a=b\nc", b"Y": b""}
        assert sight.command == f"{sys.executable} -S -c {READY}"
        assert sight.name == Path(f"/proc/{child.pid}/comm").read_text().rstrip("\n")
        assert sight.cgroup == Path(f"/proc/{child.pid}/cgroup").read_text()
        assert sight.user == pwd.getpwuid(os.getuid()).pw_name
        assert sight.stat is not None
        assert sight.stat.parent == os.getpid()
        assert not sight.gone
        assert not sight.late


def test_another_users_process() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    child = subprocess.Popen(["sleep", "60"], user=54321, group=54321)
    try:
        with ProcSight("/proc", child.pid) as sight:
            assert sight.user == "54321"
    finally:
        child.kill()
        child.wait()


def test_a_process_that_ended_is_nobody() -> None:
    child = subprocess.Popen(["sleep", "60"])
    with ProcSight("/proc", child.pid) as sight:
        child.kill()
        child.wait()
        assert (sight.user, sight.name, sight.command, sight.cgroup) == ("", "", "", "")
        assert sight.environment is None
        assert sight.gone


def test_each_is_read_once(tmp_path: Path) -> None:
    path = fake(tmp_path, 7, environ=b"A=1\0", name=b"a) (b")
    with ProcSight(str(tmp_path), 7) as sight:
        before = (sight.environment, sight.command, sight.name, sight.cgroup, sight.user)
        for file in path.iterdir():
            file.unlink()
        assert before == ({b"A": b"1"}, "run me", "a) (b", "0::/\n", sight.user)
        assert (sight.environment, sight.command, sight.name) == before[:3]


def test_it_stays_one_process(tmp_path: Path) -> None:
    fake(tmp_path, 7, environ=b"A=1\0")
    with ProcSight(str(tmp_path), 7) as sight:
        (tmp_path / "7").rename(tmp_path / "8")
        fake(tmp_path, 7, environ=b"A=2\0")
        assert sight.environment == {b"A": b"1"}


@pytest.mark.parametrize("pid", [0, -1, 9, 2**70])
def test_nobody_there(tmp_path: Path, pid: int) -> None:
    for root in (str(tmp_path), str(tmp_path / "none"), "a\0b"):
        with ProcSight(root, pid, Worker("test")) as sight:
            assert (sight.user, sight.name, sight.command, sight.cgroup) == ("", "", "", "")
            assert sight.environment is None
            assert sight.gone
        assert jobs(ALL, root).find(pid, LATER) is None


def test_what_is_large_is_cut(tmp_path: Path) -> None:
    line = b"1:x:/" + b"a" * 1000 + b"\n"
    path = fake(tmp_path, 7, cgroup=line * 100_000, environ=b"A=" + b"x" * visible.LARGEST + b"\0")
    (path / "cmdline").write_bytes(b"x\xff" * 10_000_000)
    with ProcSight(str(tmp_path), 7) as sight:
        assert sight.cgroup == line.decode() * (LARGEST // len(line))
        assert sight.command == "x\ufffd" * (COMMAND // 2)
        assert sight.environment is None
    fake(tmp_path, 7, cgroup=b"0::/" + b"a" * 10_000_000)
    with ProcSight(str(tmp_path), 7) as sight:
        assert sight.cgroup == ""
    fake(tmp_path, 7, cgroup="é".encode() * LARGEST)
    with ProcSight(str(tmp_path), 7) as sight:
        assert sight.cgroup == ""


def test_links_and_fifos(tmp_path: Path) -> None:
    path = fake(tmp_path, 7, environ=None, cgroup=None)
    (path / "environ").symlink_to("/proc/self/environ")
    (path / "cgroup").symlink_to("/proc/self/cgroup")
    (path / "cmdline").unlink()
    os.mkfifo(path / "cmdline")
    (tmp_path / "8").symlink_to("7")
    began = time.monotonic()
    for pid in (7, 8):
        with ProcSight(str(tmp_path), pid) as sight:
            assert (sight.cgroup, sight.command, sight.environment) == ("", "", None)
            assert sight.gone == (pid == 8)
    assert time.monotonic() - began < 0.15  # it waited for no writer


def test_a_read_that_hangs(tmp_path: Path) -> None:
    fake(tmp_path, 7, environ=b"A=1\0")
    worker, over = Worker("test"), threading.Event()
    hung = worker.begin(over.wait)
    with ProcSight(str(tmp_path), 7, worker, 0.05) as sight:
        assert sight.environment is None
        assert sight.late
        assert sight.cgroup == "0::/\n"  # not from the process's memory
    over.set()
    assert hung.wait(5)
    with ProcSight(str(tmp_path), 7, worker, 5) as sight:
        assert sight.environment == {b"A": b"1"}


def test_a_late_read_is_still_of_the_process(tmp_path: Path) -> None:
    """Its descriptor is its own: ours is closed, and may be another file's, when it comes back."""
    fake(tmp_path, 7)
    worker, over, before = Worker("test"), threading.Event(), descriptors()
    found: list[bytes] = []

    def slow(directory: int) -> None:
        over.wait(5)
        found.append(os.readlink(f"/proc/self/fd/{directory}").encode())

    with ProcSight(str(tmp_path), 7, worker, 0.05) as sight:
        assert sight._in_time(slow) is None
    taken = os.open("/dev/null", os.O_RDONLY)
    over.set()
    assert worker._last is not None
    assert worker._last.wait(5)
    os.close(taken)
    assert found == [str(tmp_path / "7").encode()]
    assert descriptors() == before


# --- whose job -----------------------------------------------------------------------------------


def test_its_own_environment(start: Callable[..., subprocess.Popen[str]]) -> None:
    child = start(READY, {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "fit", "X": "y"})
    assert child.stdout is not None
    child.stdout.readline()
    found = jobs("slurm,environ:X").find(child.pid, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert found is not None
    assert (found.key.id, found.name) == ("77", "fit")
    assert ident(jobs("environ:X,slurm").find(child.pid, LATER)) == "y"
    assert jobs("environ:Z").find(child.pid, 1) is None  # began later: it isn't the one


def test_its_parents_environment(start: Callable[..., subprocess.Popen[str]]) -> None:
    parent = start(PARENT, {"SLURM_JOB_ID": "77"})
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert ident(jobs("slurm").find(child, LATER)) == "77"
    assert ident(jobs("environ:NONE,slurm").find(child, LATER)) == "77"
    # which is why it belongs at the end
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert ident(jobs("slurm,user").find(child, LATER)) == owner
    assert parent.stdin is not None
    before = descriptors()
    jobs("environ:NONE").find(child, LATER)
    assert descriptors() == before


def test_ancestors(tmp_path: Path) -> None:
    fake(tmp_path, 1, 0, 1, environ=b"X=init\0")
    last = 100 + ANCESTORS
    for pid in range(100, last + 2):
        fake(tmp_path, pid, pid - 1 if pid > 100 else 1, pid)
    fake(tmp_path, 100, 1, 100, environ=b"X=a\0")
    found = jobs("environ:X", tmp_path)
    assert ident(found.find(101, LATER)) == "a"
    assert ident(found.find(last, LATER)) == "a"
    assert found.find(last + 1, LATER) is None
    fake(tmp_path, 50, 1)
    assert found.find(50, LATER) is None  # pid 1 isn't asked
    fake(tmp_path, 103, 103, 103)  # its own parent, and a circle
    fake(tmp_path, 105, 106, 103)
    fake(tmp_path, 106, 105, 103)
    found = jobs("environ:X", tmp_path)
    assert found.find(103, LATER) is None
    assert found.find(105, LATER) is None


def test_an_environment_written_over(tmp_path: Path) -> None:
    """setproctitle, as Ray's workers do."""
    fake(tmp_path, 7, 5, environ=b"ray::train\0\0\0\0SLURM_JOB_ID=78\0")
    fake(tmp_path, 5, 1, environ=b"SLURM_JOB_ID=77\0")
    assert ident(jobs("slurm", tmp_path).find(7, LATER)) == "77"


def test_a_parent_that_began_later_is_another(tmp_path: Path) -> None:
    fake(tmp_path, 7, 5, 500)
    fake(tmp_path, 5, 1, 501, environ=b"X=a\0")
    assert jobs("environ:X", tmp_path).find(7, LATER) is None
    fake(tmp_path, 5, 1, 500, environ=b"X=a\0")
    assert ident(jobs("environ:X", tmp_path).find(7, LATER)) == "a"


def test_a_process_that_began_after_birth_is_another(tmp_path: Path) -> None:
    fake(tmp_path, 7, 1, 500, environ=b"X=a\0")
    for born, want in ((500, "a"), (499, "a"), (498, None), (0, "a")):
        assert ident(jobs("environ:X", tmp_path).find(7, born * TICK_NS)) == want


def test_asked_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def resolve(sight: Sight) -> Job | None:
        asked.append(sight.pid)
        return None if sight.pid == 9 else job("x", str(sight.pid))

    fake(tmp_path, 7)
    fake(tmp_path, 9)
    found = Lookup([resolve], str(tmp_path))
    for _ in range(3):
        assert ident(found.find(7, LATER)) == "7"
        assert found.find(9, LATER) is None
    assert asked == [7, 9]
    found.forget([(7, LATER), (8, 8)])
    found.find(7, LATER)
    found.find(9, LATER)
    found.find(7, LATER - 1)
    assert asked == [7, 9, 7, 7]


def test_what_is_known_stays(tmp_path: Path) -> None:
    fake(tmp_path, 7, environ=b"X=a\0")
    found = jobs("environ:X", tmp_path)
    assert ident(found.find(7, LATER)) == "a"
    fake(tmp_path, 7, start=900, environ=b"X=b\0")
    assert ident(found.find(7, LATER)) == "a"
    assert ident(found.find(7, LATER - 1)) == "b"
    assert found.find(7, 800 * TICK_NS) is None


def test_memory_is_bounded(tmp_path: Path) -> None:
    found = Lookup((), str(tmp_path), capacity=10)
    for pid in range(100):
        found.find(pid, 5)
    assert len(found._known) == 10


def test_the_first_source_wins(tmp_path: Path) -> None:
    fake(tmp_path, 7, cgroup=b"0::/system.slice/a.service\n", environ=b"X=x\0SLURM_JOB_ID=5\0")
    for sources, scheduler in (
        ("slurm,systemd,environ:X,user", "slurm"),
        ("kubernetes,systemd,slurm", "systemd"),
        ("kubernetes,environ:Y,environ:X,slurm", "environ2"),
        ("command:run me,user", "command"),
        ("kubernetes,user", "user"),
    ):
        found = jobs(sources, tmp_path).find(7, LATER)
        assert found is not None
        assert found.key.scheduler == scheduler


def test_unseen(tmp_path: Path) -> None:
    """Each counts once: 7 can't be read, 10 is gone. Of 9 nobody knows a job, but it is seen."""
    fake(tmp_path, 7, cgroup=None, parent=8)
    fake(tmp_path, 8, cgroup=None)
    fake(tmp_path, 9)
    found = jobs("slurm", tmp_path)
    for pid in (7, 9, 7, 10, 10):
        assert found.find(pid, LATER) is None
    assert found.unseen == 2


def test_one_that_ends_meanwhile_is_unseen(tmp_path: Path) -> None:
    path = fake(tmp_path, 7)

    def resolve(sight: Sight) -> Job | None:
        for file in path.iterdir():
            file.unlink()
        return None

    found = Lookup([resolve], str(tmp_path))
    assert found.find(7, LATER) is None
    assert found.unseen == 1


def slow_once(over: threading.Event) -> Resolver:
    def resolve(sight: Sight) -> Job | None:
        environment = sight.environment
        if environment is None:
            over.set()
            return None
        return job("x", environment[b"X"])

    return resolve


def test_what_came_late_is_asked_for_again(tmp_path: Path) -> None:
    fake(tmp_path, 7, cgroup=None, environ=b"X=a\0")
    over = threading.Event()
    found = Lookup([slow_once(over)], str(tmp_path), 0.05)
    hung = found._worker.begin(over.wait)
    assert found.find(7, LATER) is None
    assert found.unseen == 0
    assert hung.wait(5)
    found._seconds = PATIENT
    assert ident(found.find(7, LATER)) == "a"
    assert found.unseen == 0


def test_what_came_late_of_a_parent_is_asked_for_again(tmp_path: Path) -> None:
    fake(tmp_path, 7, 5)
    fake(tmp_path, 5, environ=b"X=a\0")
    over = threading.Event()

    def resolve(sight: Sight) -> Job | None:
        return None if sight.pid == 7 else slow_once(over)(sight)

    found = Lookup([resolve], str(tmp_path), 0.05)
    hung = found._worker.begin(over.wait)
    assert found.find(7, LATER) is None
    assert hung.wait(5)
    found._seconds = PATIENT
    assert ident(found.find(7, LATER)) == "a"


def slow(seconds: float) -> Resolver:
    """One that reads the process's memory, which takes so long."""

    def resolve(sight: Sight) -> Job | None:
        assert isinstance(sight, ProcSight)
        sight._in_time(lambda _: time.sleep(seconds))
        return job("x", b"a") if sight.hung is False and not sight.late else None

    return resolve


def test_what_always_comes_late_is_given_up(tmp_path: Path) -> None:
    fake(tmp_path, 7)
    found = Lookup([slow(0.2), resolvers(parse("user"))[0]], str(tmp_path), 0.05)
    for number in range(TRIES - 1):
        assert found.find(7, LATER) is None  # not the user's: an earlier source may know
        assert found._late == {(7, LATER): number + 1}
        assert eventually(lambda: found._worker.busy, lambda busy: not busy) is False
    given = found.find(7, LATER)
    assert given is not None
    assert given.key.scheduler == "user"
    assert not found._late
    assert found.unseen == 0  # it has a job
    found.forget([(7, LATER)])
    assert eventually(lambda: found._worker.busy, lambda busy: not busy) is False
    assert found.find(7, LATER) is None  # the tries are forgotten, too
    assert found._late == {(7, LATER): 1}


def test_who_comes_while_another_hangs_is_asked_when_that_is_over(tmp_path: Path) -> None:
    fake(tmp_path, 7, environ=b"X=a\0")
    found = jobs("environ:X,user", tmp_path, 0.01)
    over = threading.Event()
    hung = found._worker.begin(over.wait)
    for _ in range(3 * TRIES):
        assert found.find(7, LATER) is None
    over.set()
    assert hung.wait(5)
    found._seconds = PATIENT
    assert ident(found.find(7, LATER)) == "a"
    assert (found.unseen, found._late) == (0, {})


def test_another_thread_takes_over_from_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpubpf.jobs.lookup.STUCK", 0.05)
    fake(tmp_path, 7, environ=b"X=a\0")
    over = threading.Event()
    found = jobs("environ:X", tmp_path, 0.5)
    for pid in range(100, 100 + MOST_STUCK):  # each hangs its thread
        found._worker.begin(over.wait)
        time.sleep(0.06)
        fake(tmp_path, pid, environ=b"X=b\0")
        assert ident(found.find(pid, LATER)) == "b"
    found._worker.begin(over.wait)
    time.sleep(0.06)
    assert found.find(7, LATER) is None  # no more than so many
    over.set()
    assert eventually(lambda: ident(found.find(7, LATER)), lambda seen: seen == "a") == "a"


def test_a_process_and_its_parents_have_one_time(tmp_path: Path) -> None:
    for pid in range(2, 2 + ANCESTORS):
        fake(tmp_path, pid, pid - 1)
    began = time.monotonic()
    found = Lookup([slow(0.09)] * 5, str(tmp_path), 0.1)
    found.find(1 + ANCESTORS, LATER)
    assert time.monotonic() - began < 0.5
    assert found.find(2, LATER, 0.0) is None  # no time at all: nothing is remembered
    assert (2, LATER) not in found._known


def test_who_is_asked_for_is_remembered_longest(tmp_path: Path) -> None:
    fake(tmp_path, 7, environ=b"X=a\0")
    found = Lookup(resolvers(parse("environ:X")), str(tmp_path), 5, capacity=10)
    for pid in range(100, 200):
        assert ident(found.find(7, LATER)) == "a"
        found.find(pid, 5)  # gone
    (tmp_path / "7" / "environ").write_bytes(b"")
    assert ident(found.find(7, LATER)) == "a"


def test_a_user_that_is_not_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pwd.getpwuid", dict[int, object]().__getitem__)
        assert user_name(4321) == "4321"
    with monkeypatch.context() as patch:
        patch.setattr("pwd.getpwuid", lambda _: pwd.struct_passwd(("ada", *"xxxxxx")))
        assert user_name(4321) == "ada"  # NSS is up now


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    files=st.lists(st.none() | st.binary(max_size=200), min_size=4, max_size=4),
    born=st.integers(min_value=0, max_value=LATER),
)
def test_any_process(tmp_path: Path, files: Sequence[bytes | None], born: int) -> None:
    path = fake(tmp_path, 7, 7)
    for name, text in zip(("cgroup", "environ", "cmdline", "stat"), files, strict=True):
        if text is not None:
            (path / name).write_bytes(text)
        elif name != "stat":
            (path / name).unlink(missing_ok=True)
    found = jobs(ALL, tmp_path)
    found.find(7, born)
    found.find(7, LATER)
    found._worker.retire()
