"""gpubpf.node on the real /proc: real children, real mounts; a /proc of files for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpubpf.model import NodeFacts, Work
from gpubpf.node import NodeReader
from gpubpf.processes import TICKS

Start = Callable[..., int]
PAGE = os.sysconf("SC_PAGE_SIZE")

# Mounts a FUSE file system on its argument that never answers: nobody reads its requests.
_HANG = """
import ctypes, os, sys, time
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"hangs", sys.argv[1].encode(), b"fuse.hangs", 0, options) == 0
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program; its pid once it has written a line."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str) -> int:
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        return child.pid

    yield run
    for child in started:
        child.kill()
        child.communicate()


def contained(start: Start, script: str) -> int:
    """A process in a mount namespace of its own, after the script."""
    ending = "echo; exec sleep 600"
    return start("unshare", "--mount", "sh", "-ec", f"{script}\n{ending}")


def tmpfs(size: int, used: int) -> str:
    mount = f"mount -t tmpfs -o size={size} container /dev/shm"
    return f"{mount}; head -c {used} /dev/zero >/dev/shm/data"


def within(seconds: float, call: Callable[[], NodeFacts]) -> NodeFacts:
    """The answer; fails where there is none, instead of hanging as the call does."""
    answers: list[NodeFacts] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert answers, "it hangs"
    return answers[0]


def work(facts: NodeFacts) -> Work:
    assert facts.work is not None
    return facts.work


# --- shared memory --------------------------------------------------------------------------------


def test_the_nodes_shared_memory() -> None:
    usage = os.statvfs("/dev/shm")
    found = NodeReader().read(()).shared_memory
    assert found is not None
    assert found.size == usage.f_blocks * usage.f_frsize
    assert 0 <= found.used <= found.size


def test_a_host_root_with_another_shared_memory_is_not_believed(tmp_path: Path) -> None:
    """As an agent sees that has a /proc of the node's, and its own /dev/shm."""
    proc = tmp_path / "proc"
    (proc / "1").mkdir(parents=True)
    table = Path("/proc/1/mountinfo").read_bytes()
    (proc / "1" / "mountinfo").write_bytes(table)
    assert NodeReader(str(proc), "/").read(()).shared_memory is not None
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    assert NodeReader(str(proc), str(tmp_path)).read(()).shared_memory is None
    (proc / "1" / "mountinfo").write_bytes(table.replace(b" - tmpfs ", b" - fuse "))
    assert NodeReader(str(proc), "/").read(()).shared_memory is None


def test_the_fullest_of_the_containers(start: Start) -> None:
    pids = [contained(start, tmpfs(64 * PAGE, used * PAGE)) for used in (16, 48, 0)]
    facts = NodeReader().read([*pids, os.getpid()])
    assert (facts.containers, facts.fullest) == (3, 0.75)


def test_a_full_one_is_1(start: Start) -> None:
    pid = contained(start, tmpfs(16 * PAGE, 16 * PAGE))
    assert NodeReader().read([pid]).fullest == 1


def test_the_nodes_own_is_no_containers(start: Start) -> None:
    """Not in another namespace either, as with hostIPC."""
    facts = NodeReader().read([os.getpid(), contained(start, "")])
    assert (facts.containers, facts.fullest) == (0, None)


def test_one_that_containers_share_counts_once(start: Start) -> None:
    script = f"{tmpfs(64 * PAGE, 32 * PAGE)}; unshare --mount sleep 600 & sleep 600 &"
    contained_pid = contained(start, f"{script} echo $! >/dev/shm/pid")
    children = Path(f"/proc/{contained_pid}/task/{contained_pid}/children").read_text().split()
    facts = NodeReader().read([contained_pid, *map(int, children)])
    assert len(children) == 2
    assert facts.containers == 1
    for pid in map(int, children):
        os.kill(pid, 9)


def test_one_without_a_limit_is_looked_at_and_has_no_ratio(start: Start) -> None:
    pid = contained(start, "mount -t tmpfs -o size=0 container /dev/shm")
    facts = NodeReader().read([pid])
    assert (facts.containers, facts.fullest) == (1, None)


@pytest.mark.parametrize(
    "script",
    [
        # a symlink to a tmpfs; the /dev over it has one that no path reaches
        "mount -t tmpfs x /mnt; mkdir /mnt/real; mount -t tmpfs -o size=4k x /mnt/real;"
        " ln -s /mnt/real /mnt/shm; mount --bind /mnt /dev",
        # a folder of /dev's own tmpfs
        "mount -t tmpfs x /dev; mkdir /dev/shm",
        # no tmpfs, though one is below it
        "mount -t tmpfs x /dev/shm; mount --bind /usr /dev/shm",
        # ramfs has no limit and no numbers
        "mount -t ramfs x /dev/shm",
        # nothing there
        "mount -t tmpfs x /dev",
        "mount -t devtmpfs x /dev/shm",
    ],
)
def test_what_is_no_tmpfs_is_left_alone(start: Start, script: str) -> None:
    facts = NodeReader().read([contained(start, script)])
    assert (facts.containers, facts.fullest) == (0, None)


@pytest.mark.parametrize("place", ["/dev/shm", "/dev"])
def test_a_file_system_that_never_answers(start: Start, place: str) -> None:
    """On /dev it hides a tmpfs that the mount table still lists."""
    hangs = start("unshare", "--mount", sys.executable, "-c", _HANG, place)
    fine = contained(start, tmpfs(64 * PAGE, 32 * PAGE))
    facts = within(10, lambda: NodeReader().read([hangs, fine]))
    assert (facts.containers, facts.fullest) == (1, 0.5)
    assert work(facts).processes == 2


def test_a_mount_table_that_lies_does_not_make_it_wait(start: Start, tmp_path: Path) -> None:
    """The table was read, and then such a file system mounted on the way: the walk finds it."""
    hangs = start("unshare", "--mount", sys.executable, "-c", _HANG, "/dev")
    folder = tmp_path / str(hangs)
    folder.mkdir()
    for name in ("root", "ns", "stat", "status"):
        (folder / name).symlink_to(f"/proc/{hangs}/{name}")
    (folder / "mountinfo").write_bytes(Path("/proc/self/mountinfo").read_bytes())
    facts = within(10, lambda: NodeReader(str(tmp_path)).read([hangs]))
    assert (facts.containers, facts.fullest) == (0, None)


def test_another_mount_than_the_table_names_is_not_believed(start: Start, tmp_path: Path) -> None:
    pid = contained(start, tmpfs(64 * PAGE, 32 * PAGE))
    folder = tmp_path / str(pid)
    folder.mkdir()
    for name in ("root", "ns", "stat", "status"):
        (folder / name).symlink_to(f"/proc/{pid}/{name}")
    (folder / "mountinfo").write_bytes(Path("/proc/self/mountinfo").read_bytes())
    assert NodeReader(str(tmp_path)).read([pid]).containers == 0
    (folder / "mountinfo").write_bytes(Path(f"/proc/{pid}/mountinfo").read_bytes())
    assert NodeReader(str(tmp_path)).read([pid]).containers == 1


# --- processes ------------------------------------------------------------------------------------


def spend(
    root: Path, pid: int, ticks: int, start: int = 100, state: str = "S", **more: int
) -> None:
    """A process in a /proc of files."""
    folder = root / str(pid)
    folder.mkdir(exist_ok=True)
    fields = [state, *["0"] * 49]
    fields[11], fields[12] = str(ticks), "0"
    fields[17], fields[19], fields[21] = str(more.get("threads", 1)), str(start), "10"
    (folder / "stat").write_text(f"{pid} (a) R (b) {' '.join(fields)}\n")
    (folder / "status").write_text(f"Name:\tx\\nTgid:\t7\nTgid:\t{pid}\nRssShmem:\t   4 kB\n")


def vanish(root: Path, pid: int) -> None:
    for name in ("stat", "status"):
        (root / str(pid) / name).unlink()
    (root / str(pid)).rmdir()


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * TICKS // 1_000_000_000


def test_a_real_child(start: Start) -> None:
    script = (
        "import os, time\nwhile os.times().user < 0.3: pass\nprint(flush=True)\ntime.sleep(600)"
    )
    reader = NodeReader()
    reader.read([])
    time.sleep(2 / TICKS)  # its start is rounded down
    pid = start(sys.executable, "-c", script)
    found = work(reader.read([pid, os.getpid()]))
    assert found.processes == 2
    assert found.cpu_seconds >= 0.28  # it began since the look before; ours of before don't count
    assert found.cpu_seconds < 5
    statm = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in (pid, os.getpid())]
    assert abs(found.resident - sum(statm) * PAGE) < 8 << 20


def test_no_jump_for_what_ran_before(tmp_path: Path) -> None:
    reader = NodeReader(str(tmp_path))
    spend(tmp_path, 5, 9000)
    assert work(reader.read([5])) == Work(1, 1, 0, 10 * PAGE, 4096)
    spend(tmp_path, 6, 9000)  # an old process that is new here
    spend(tmp_path, 5, 9000 + TICKS)
    assert work(reader.read([5, 6])).cpu_seconds == 1


def test_what_began_since_the_last_look_counts_whole(tmp_path: Path) -> None:
    reader = NodeReader(str(tmp_path))
    reader.read([])
    spend(tmp_path, 5, 3 * TICKS, start=now() + 2)
    assert work(reader.read([5])).cpu_seconds == 3
    assert work(reader.read([5])).cpu_seconds == 3


def test_what_ended_stays_in_the_sum_and_a_pid_is_used_again(tmp_path: Path) -> None:
    reader = NodeReader(str(tmp_path))
    spend(tmp_path, 5, 0)
    reader.read([5])
    spend(tmp_path, 5, 2 * TICKS)
    assert work(reader.read([5])).cpu_seconds == 2
    spend(tmp_path, 5, TICKS, start=now() + 2)  # another process, begun since
    assert work(reader.read([5])) == Work(1, 1, 3, 10 * PAGE, 4096)
    vanish(tmp_path, 5)
    assert work(reader.read([5])) == Work(0, 0, 3, 0, 0)
    assert work(reader.read([])).cpu_seconds == 3


def test_one_that_comes_back_or_says_less_never_lowers_it(tmp_path: Path) -> None:
    reader = NodeReader(str(tmp_path))
    for ticks, sees in ((0, True), (200, True), (300, False), (400, True), (350, True)):
        spend(tmp_path, 5, ticks)
        assert work(reader.read([5] if sees else [])).cpu_seconds == (ticks > 0) * 200 / TICKS


def test_a_zombie_spent_time_and_is_no_process(tmp_path: Path) -> None:
    reader = NodeReader(str(tmp_path))
    spend(tmp_path, 5, 0)
    reader.read([5])
    spend(tmp_path, 5, TICKS, state="Z")
    assert work(reader.read([5])) == Work(0, 0, 1, 0, 0)
    spend(tmp_path, 5, TICKS, state="Z", threads=3)  # its first thread ended
    assert work(reader.read([5])) == Work(1, 3, 1, 10 * PAGE, 4096)


def test_what_is_no_process(start: Start) -> None:
    threads = [threading.Thread(target=time.sleep, args=(1,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    mine = [thread.native_id or 0 for thread in threads]
    found = work(NodeReader().read([os.getpid(), *mine, 0, -1, 2**22 + 1, 10**30]))
    for thread in threads:
        thread.join()
    assert found.processes == 1
    assert found.threads >= 4


def test_processes_that_end_while_it_reads() -> None:
    reader = NodeReader()
    last = 0.0
    for _ in range(20):
        children = [subprocess.Popen(["sleep", f"0.00{i}"]) for i in range(8)]
        found = work(reader.read([child.pid for child in children]))
        assert found.cpu_seconds >= last
        last = found.cpu_seconds
        for child in children:
            child.wait()
    assert work(reader.read([child.pid for child in children])).processes == 0


@pytest.mark.parametrize("stat", [b"", b"5 (", b"5 (x) S 1", b"\xff" * 9000])
def test_a_process_that_cannot_be_read_leaves_no_wrong_sum(tmp_path: Path, stat: bytes) -> None:
    spend(tmp_path, 5, 0)
    spend(tmp_path, 6, 0)
    (tmp_path / "6" / "stat").write_bytes(stat)
    reader = NodeReader(str(tmp_path))
    assert reader.read([5, 6]).work is None
    assert work(reader.read([5])).processes == 1


# --- pressure -------------------------------------------------------------------------------------


def test_pressure_only_grows() -> None:
    reader = NodeReader()
    first, second = reader.read(()), reader.read(())
    shown = {name for name in ("cpu", "memory", "io") if os.path.exists(f"/proc/pressure/{name}")}
    assert set(first.pressure) == shown
    assert all(second.pressure[name].some >= first.pressure[name].some for name in shown)


def test_pressure_as_the_kernel_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "pressure"
    folder.mkdir()
    some = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n"
    (folder / "cpu").write_text(some)  # before Linux 5.13
    (folder / "memory").write_text(some + some.replace("some", "full").replace("15", "5"))
    (folder / "io").write_text("nonsense\n")
    found = NodeReader(str(tmp_path)).read(()).pressure
    assert {name: (p.some, p.full) for name, p in found.items()} == {
        "cpu": (1.5, None),
        "memory": (1.5, 0.5),
    }


def test_the_agents_own_counters(tmp_path: Path) -> None:
    reader = NodeReader()
    before = reader.read(()).own
    time.sleep(0.01)  # a voluntary switch
    with open(tmp_path / "file", "wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    after = reader.read(()).own
    assert after.voluntary_switches > before.voluntary_switches
    assert after.major_faults >= before.major_faults
    assert before.written_bytes is not None
    assert after.written_bytes is not None
    assert after.written_bytes >= before.written_bytes


# --- as a whole -----------------------------------------------------------------------------------


def test_without_a_proc_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        NodeReader(str(tmp_path / "none")).read([1])


def test_no_descriptor_is_left_open(start: Start) -> None:
    pids = [contained(start, tmpfs(64 * PAGE, 0)), contained(start, "mount -t ramfs x /dev/shm")]
    reader = NodeReader()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        reader.read([*pids, 0, -1])
    assert len(os.listdir("/proc/self/fd")) == before


GROUPS = """
import mmap, os, time
os.setgroups(range(1000, 1600))
area = mmap.mmap(-1, 32 << 20)
area.write(bytes(32 << 20))
print(flush=True)
time.sleep(600)
"""


def test_many_groups_hide_nothing() -> None:
    """They stand before the memory in a process's status."""
    with subprocess.Popen([sys.executable, "-c", GROUPS], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            found = NodeReader().read((child.pid,)).work
            assert found is not None
            assert found.resident_shared >= 32 << 20
        finally:
            child.kill()
