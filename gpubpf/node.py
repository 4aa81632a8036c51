"""What the node as a whole says, from /proc: shared memory, the CPU time and memory of its GPU
processes, pressure. Sums of the node; nothing here grows with the number of processes.

What a process has a say in is hostile: its name, its mounts, what stands at its /dev/shm. Such a
place may be served by a program or a server that never answers, so that nothing is asked of a file
system before the kernel's own table says that it is a tmpfs.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

from gpubpf.model import NodeFacts, Own, Pressure, SharedMemory, Work
from gpubpf.openat2 import CACHED, NO_SYMLINKS, openat2
from gpubpf.processes import TICK_NS, TICKS

MOST_PROCESSES = 8192  # that are summed up; the lowest pids
MOST_NAMESPACES = 256  # of containers, whose /dev/shm is looked at
_MOST_STATUS_BYTES = 1 << 20  # a process may be in 65,536 groups
_MOST_MOUNTS_BYTES = 64 << 10  # of a container's mount table: some 400 mounts
_MOST_NODE_MOUNTS_BYTES = 4 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")

_GONE = (FileNotFoundError, ProcessLookupError)
_FOLLOW = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK = _FOLLOW | os.O_NOFOLLOW

_ATTEMPTS = 3  # the kernel says "not cached" too when another CPU mounts or renames meanwhile

# Of file systems that ask neither a program nor a server.
_LOCAL = frozenset(
    b"overlay ext2 ext3 ext4 xfs btrfs f2fs zfs erofs squashfs tmpfs ramfs rootfs devtmpfs".split()
)
_ON_THE_WAY = {b"/": _LOCAL, b"/dev": _LOCAL, b"/dev/shm": frozenset((b"tmpfs",))}
_SHM = (b"/dev/shm", b"tmpfs")
_MOUNT = re.compile(
    # id, parent, device, root, mount point, options and optional fields, type; see
    # proc_pid_mountinfo(5). Spaces and newlines in what a user chooses are escaped.
    rb"^(\d+) \d+ (\d+):(\d+) \S+ (/|/dev|/dev/shm) [^\n]*? - (\S+) ",
    re.MULTILINE,
)


class NodeReader:
    """Reads the facts; one thread uses it.

    `proc_root` is the node's /proc and `host_root` its file system, as seen from here.

    The CPU time counts what a process used since the agent saw it first: it may have run for days
    before, and `rate()` would take all that for work of the last 15 seconds. A process that started
    after the look before counts whole. What one uses between the last look and its end is lost.
    """

    def __init__(self, proc_root: str = "/proc", host_root: str = "/") -> None:
        self._proc_root = proc_root
        self._host_root = host_root
        self._seen: dict[tuple[int, int], int] = {}  # (pid, start) -> ticks of CPU time
        self._ticks = 0  # of all processes, ended ones too
        self._before: int | None = None  # when the last look at processes began, since boot

    def read(self, pids: Collection[int]) -> NodeFacts:
        """`pids` are the GPU processes. Raises OSError where there is no /proc."""
        with _opened(self._proc_root, None, _FOLLOW) as proc:
            chosen = sorted(set(pids))[:MOST_PROCESSES]
            node = self._node_memory(proc)
            looked = _containers(proc, chosen, node)
            return NodeFacts(
                shared_memory=node,
                containers=len(looked),
                fullest=max((m.used / m.size for m in looked if m.size), default=None),
                work=self._work(proc, chosen),
                pressure=_pressures(proc),
                own=_own(),
            )

    def _node_memory(self, proc: int) -> SharedMemory | None:
        """The node's /dev/shm. An agent in a container has another at its own /dev/shm, and a host
        root may be mounted without what is mounted inside. So init's mount table says which device
        it is (no capability needed), and a way to it is believed if it leads to that device: by
        init's root (takes CAP_SYS_PTRACE), else by host_root."""
        devices: set[int] = set()
        with contextlib.suppress(OSError), _opened("1", proc) as init:
            mounts = _mounts(init, _MOST_NODE_MOUNTS_BYTES)
            devices = {m.device for m in mounts if (m.place, m.type) == _SHM}
        for root in ("1/root", os.path.abspath(self._host_root)) if devices else ():
            path = os.path.join(root, "dev/shm")
            with contextlib.suppress(OSError), _opened(path, proc) as fd:
                if (device := os.fstat(fd).st_dev) in devices:
                    return _usage(device, fd)
        return None

    def _work(self, proc: int, pids: Collection[int]) -> Work | None:
        """None where a process that is there can't be read: a sum without it would be wrong."""
        began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        seen: dict[tuple[int, int], int] = {}
        used = processes = threads = resident = shared = 0
        for pid in pids:
            try:
                one = _stat(proc, pid)
                known = self._seen.get((pid, one.start))
                status = _read(f"{pid}/status", proc, most=_MOST_STATUS_BYTES)
                if known is None and _number(status, b"\nTgid:") != pid:
                    continue  # a thread's id: its process is counted by its own
            except _GONE:
                continue
            except (OSError, ValueError, IndexError):
                return None
            new = self._before is not None and one.start * TICK_NS >= self._before
            used += max(0, one.ticks - (known if known is not None else 0 if new else one.ticks))
            seen[pid, one.start] = one.ticks
            if not one.zombie:
                processes += 1
                threads += one.threads
                resident += one.resident
                shared += (_number(status, b"\nRssShmem:") or 0) * 1024
        self._seen, self._before = seen, began
        self._ticks += used
        return Work(processes, threads, self._ticks / TICKS, resident, shared)


class _Stat(NamedTuple):
    start: int  # ticks since boot
    ticks: int  # user and system time of all its threads, ended ones too
    threads: int
    resident: int  # bytes
    zombie: bool


def _stat(proc: int, pid: int) -> _Stat:
    """Raises OSError, ValueError, IndexError. The name may hold parentheses and spaces."""
    text = _read(f"{pid}/stat", proc)
    f = text[text.rindex(b")") + 2 :].split()
    threads = int(f[17])
    # a process whose first thread ended while others run says so too
    zombie = f[0] in (b"Z", b"X") and threads <= 1
    return _Stat(int(f[19]), int(f[11]) + int(f[12]), threads, int(f[21]) * _PAGE, zombie)


def _number(text: bytes, key: bytes) -> int | None:
    """What stands after the key. Linux escapes newlines in the name, the one line that a process
    chooses."""
    at = text.find(key)
    return None if at < 0 else int(text[at + len(key) :].split(None, 1)[0])


class _Mount(NamedTuple):
    id: int
    device: int
    place: bytes
    type: bytes


def _containers(proc: int, pids: Collection[int], node: SharedMemory | None) -> list[SharedMemory]:
    """Every /dev/shm of these processes but the node's: one look per mount namespace, and each
    tmpfs once, as the containers of a pod share theirs."""
    found: dict[int, SharedMemory] = {}
    namespaces: set[int] = set()
    with contextlib.suppress(OSError):
        namespaces.add(os.stat("1/ns/mnt", dir_fd=proc).st_ino)
    for pid in pids:
        if len(namespaces) > MOST_NAMESPACES:
            break
        with contextlib.suppress(OSError, ValueError):
            namespace = os.stat(f"{pid}/ns/mnt", dir_fd=proc).st_ino
            if namespace in namespaces:
                continue
            namespaces.add(namespace)
            with _opened(str(pid), proc, _FOLLOW) as process:
                mounted = _shared_memory(process)
            if mounted is not None and (node is None or mounted.device != node.device):
                found[mounted.device] = mounted
    return list(found.values())


def _shared_memory(process: int) -> SharedMemory | None:
    """What is at a process's /dev/shm, if that is a tmpfs; may raise OSError.

    The mount table comes first: a hung NFS server would keep us waiting when the path is walked.
    It may change at any time, so the walk itself takes only what the kernel has in memory, which
    the way to a mount point always is. At last the table has to name the very mount that is now
    held open: its id can't be another's any more.
    """
    mounts = _mounts(process, _MOST_MOUNTS_BYTES)
    places = {mount.place for mount in mounts}
    if not {b"/", b"/dev/shm"} <= places or not all(m.type in _ON_THE_WAY[m.place] for m in mounts):
        return None
    with _opened("root", process, _FOLLOW) as root, _cached(root) as fd:
        mount_id = _number(_read(f"/proc/self/fdinfo/{fd}"), b"\nmnt_id:")
        for mount in _mounts(process, _MOST_MOUNTS_BYTES):
            if (mount.id, mount.place, mount.type) == (mount_id, *_SHM):
                return _usage(mount.device, fd)
    return None


def _mounts(process: int, most: int) -> list[_Mount]:
    """The mounts on the way to /dev/shm, as the process sees them."""
    return [
        _Mount(int(number), os.makedev(int(major), int(minor)), place, kind)
        for number, major, minor, place, kind in _MOUNT.findall(_read("mountinfo", process, most))
    ]


def _usage(device: int, fd: int) -> SharedMemory:
    u = os.fstatvfs(fd)
    return SharedMemory(device, u.f_blocks * u.f_frsize, (u.f_blocks - u.f_bfree) * u.f_frsize)


@contextlib.contextmanager
def _cached(root: int) -> Iterator[int]:
    """Its /dev/shm, without following symlinks and without waiting for any file system. Raises
    OSError, so it does before Linux 5.12."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            fd = openat2(root, b"dev/shm", _LOOK, NO_SYMLINKS | CACHED)
            break
        except OSError:
            if not left:
                raise
    try:
        yield fd
    finally:
        os.close(fd)


def _pressures(proc: int) -> dict[str, Pressure]:
    """Pressure stall information, Documentation/accounting/psi.rst. Kernels without it, or with
    psi=0, have no such files or refuse to read them."""
    found: dict[str, Pressure] = {}
    for name in ("cpu", "memory", "io"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = (line.split() for line in _read(f"pressure/{name}", proc).splitlines())
            total = {f[0]: int(f[4].removeprefix(b"total=")) / 1e6 for f in lines}
            if b"some" in total:
                found[name] = Pressure(total[b"some"], total.get(b"full"))
    return found


def _own() -> Own:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    io = b""
    with contextlib.suppress(OSError):  # needs CONFIG_TASK_IO_ACCOUNTING
        io = b"\n" + _read("/proc/self/io")
    read, written = _number(io, b"\nread_bytes:"), _number(io, b"\nwrite_bytes:")
    return Own(usage.ru_nvcsw, usage.ru_nivcsw, usage.ru_majflt, read, written)


@contextlib.contextmanager
def _opened(path: str, folder: int | None, flags: int = _LOOK) -> Iterator[int]:
    fd = os.open(path, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(path: str, folder: int | None = None, most: int = 4096) -> bytes:
    """At most so much of a file of /proc, which gives a page at a time. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        text = part = os.read(fd, most)
        while part and len(text) < most and most > 4096:
            text += (part := os.read(fd, most - len(text)))
        return text
    finally:
        os.close(fd)
