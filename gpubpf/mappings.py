"""Files by libcuda's name: what one process maps, and what stands at a path of the host.

What a process maps is hostile input. Names are matched, nothing is executed. A file is looked at
(O_PATH) before it is opened, and what was looked at is opened: opening a pipe or a device may do
something, or never return. A file that a process maps is reached through /proc/PID/map_files, the
very inode, whatever the path says now; where that is refused (it takes CAP_SYS_ADMIN or
CAP_CHECKPOINT_RESTORE), by its path inside the process's root, which symlinks can't leave.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from dataclasses import dataclass
from itertools import islice

from gpubpf.openat2 import in_root

MOST_BYTES = 16 << 20  # of a process's list of mappings; 65,530 of them take 7 MiB
_MOST_LINES = 4096  # that name libcuda
_MOST_FILES = 16
_MOST_MOUNTS_BYTES = 4 << 20

_NAME = re.compile(rb"/(?:memfd:)?libcuda\.so(?:\.[0-9][0-9A-Za-z.]*)?$")
_LINE = re.compile(
    # address, permissions, offset, device, inode, path
    rb"^([0-9a-f]+)-([0-9a-f]+) r.x. \S+ (\S+) (\d+) +"
    rb"(/(?:.*/|memfd:)?libcuda\.so[0-9A-Za-z.]*)( \(deleted\))?$",
    re.MULTILINE,
)

_libc = ctypes.CDLL(None, use_errno=True)
_FUSE = 0x65735546  # f_type, from include/uapi/linux/magic.h and the file systems' own
_LOCAL = frozenset(
    (
        *(0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x2FC12FC1),  # ext, xfs, btrfs, f2fs, zfs
        *(0x01021994, 0x858458F6, 0x73717368, 0xE0F5E1E2),  # tmpfs, ramfs, squashfs, erofs
        0x794C7630,  # overlay
    )
)


@dataclass(frozen=True, slots=True)
class Place:
    """A regular file, looked at and not opened. Whoever gets it closes it."""

    fd: int  # O_PATH
    status: os.stat_result
    name: str  # the path as found, for a person
    f_type: int  # of its file system

    @property
    def served(self) -> bool:
        """By a user's program."""
        return self.f_type == _FUSE

    @property
    def local(self) -> bool:
        """Of a file system that asks no server, which may not answer."""
        return self.f_type in _LOCAL

    @property
    def key(self) -> tuple[int, int]:
        """Device and inode: one file, as long as it is held open."""
        return self.status.st_dev, self.status.st_ino

    def open(self) -> int:
        """A descriptor to read from. Raises OSError."""
        # O_NONBLOCK: not even a lease that its owner holds on the file keeps us waiting.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(f"/proc/self/fd/{self.fd}", flags)


@dataclass(frozen=True, slots=True)
class Mapped:
    """What one process maps by libcuda's name."""

    places: tuple[Place, ...]
    size: int  # of its list of mappings, bytes
    served: bool  # it maps files too that a user's program serves; they are left alone


def mapped(folder: str) -> Mapped:
    """What the process with this folder in /proc maps. Raises OSError."""
    with open(f"{folder}/maps", "rb") as file:
        maps = file.read(MOST_BYTES)
    places: list[Place] = []
    served = False
    if b"libcuda.so" in maps:
        seen: set[tuple[bytes, ...]] = set()  # a file may be mapped thousands of times
        for match in islice(_LINE.finditer(maps), _MOST_LINES):
            start, end, device, inode, path, deleted = match.groups()
            what = (device, inode, path)
            if what in seen or not _NAME.search(path) or len(seen) >= _MOST_FILES:
                continue
            seen.add(what)
            if _is_fuse(folder, device):
                served = True
                continue
            place = _open_mapped(folder, (start, end), path, bool(deleted))
            if place is None:
                continue
            # A mount that has been detached isn't shown any more.
            served = served or place.served
            if place.served or _differs(place, device, inode):
                os.close(place.fd)
                continue
            places.append(place)
    return Mapped(tuple(places), len(maps), served)


def _open_mapped(
    folder: str, span: tuple[bytes, bytes], path: bytes, deleted: bool
) -> Place | None:
    shown = _printable(path)
    start, end = (int(address, 16) for address in span)
    try:
        fd = os.open(f"{folder}/map_files/{start:x}-{end:x}", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        if path.startswith(b"/memfd:"):
            return None
        return beneath(f"{folder}/root", os.fsdecode(path), shown)
    return _place(fd, shown)


def beneath(root: str, path: str, shown: str | None = None) -> Place | None:
    """The regular file at a path inside of `root`, which no symlink or .. leaves."""
    name = path if shown is None else shown
    try:
        return _place(in_root(root, path, os.O_PATH), name)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            return None
    # A container runtime's filter from before the call existed. Then symlinks may lead elsewhere:
    # to a file that is probed in vain.
    return at(f"{root}/{path.lstrip('/')}", name)


def at(path: str, shown: str | None = None) -> Place | None:
    """The regular file at a path."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    return _place(fd, path if shown is None else shown)


def user(folder: str) -> int | None:
    """The real user id of a process. The owner of its folder is the effective one: anybody may run
    a setuid program."""
    try:
        with open(f"{folder}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def _place(fd: int, shown: str) -> Place | None:
    try:
        status = os.fstat(fd)
    except OSError:
        os.close(fd)
        return None
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    return Place(fd, status, shown, _f_type(fd))


def _is_fuse(folder: str, device: bytes) -> bool:
    """Whether a user's program serves the file: such a file is not even looked at.

    It may never answer. Waiting for it, the agent could not be ended, and a probe's attachment
    holds a lock of the kernel's that stops every fork on the machine until the file was read.
    """
    major, minor = _numbers(device)
    if major:  # a disk; only root can mount one
        return False
    wanted = re.compile(rb"^\d+ \d+ %d:%d .* - fuse" % (major, minor), re.MULTILINE)
    for place in (f"{folder}/mountinfo", "/proc/self/mountinfo"):
        try:
            with open(place, "rb") as file:
                if wanted.search(file.read(_MOST_MOUNTS_BYTES)):
                    return True
        except OSError:
            continue
    return False


def _f_type(fd: int) -> int:
    buffer = ctypes.create_string_buffer(256)  # struct statfs
    if _libc.fstatfs(ctypes.c_int(fd), buffer) < 0:
        return 0
    return int(struct.unpack_from("q", buffer)[0])


def _differs(place: Place, device: bytes, inode: bytes) -> bool:
    """Whether another file has the path now. Some file systems (overlayfs, btrfs) give a file
    another device here than there: of those the path is believed."""
    same_device = os.makedev(*_numbers(device)) == place.status.st_dev
    return same_device and int(inode) != place.status.st_ino


def _numbers(device: bytes) -> tuple[int, int]:
    """Major and minor, as /proc/PID/maps writes them."""
    major, _, minor = device.partition(b":")
    return int(major, 16), int(minor, 16)


def _printable(path: bytes) -> str:
    """For messages: a path is whatever its owner likes, terminal escapes included."""
    text = path.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)[:256]
