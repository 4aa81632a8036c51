"""Finds the copies of libcuda that processes map: on the host, in containers, deleted or not.

One attach to an inode covers every process that maps it, so only a copy not seen before matters.
What a process maps is hostile input: names are matched, files are opened through
/proc/PID/map_files (the very inode, whatever the path says now), nothing is executed, and the
number of copies is capped.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_COPIES = 64
FULL_LOOK = 16  # looks
_MOST_MAPS_BYTES = 16 << 20  # a process may have 65,530 mappings

_KERNEL_THREAD = b"0"  # the size of what has no address space
_NAME = re.compile(rb"/libcuda\.so(?:\.[0-9][0-9A-Za-z.]*)?$")
_LINE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) r.x. \S+ (\S+ \d+) +"  # address, permissions, offset, device inode
    rb"(/(?:.*/)?libcuda\.so[0-9A-Za-z.]*)( \(deleted\))?$",
    re.MULTILINE,
)

USUAL_PLACES = (
    # Debian and Ubuntu, arm64, RHEL and SUSE, the GPU operator's driver container, CUDA's
    # forward-compatibility package, WSL, NixOS, GKE's installer
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "run/nvidia/driver/usr/lib64",
    "usr/local/cuda/compat",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
    "home/kubernetes/bin/nvidia/lib64",
)


@dataclass(frozen=True, slots=True)
class Copy:
    """One library file, opened for reading. Whoever gets it closes it."""

    fd: int
    name: str  # the path as found, for a person
    pid: int | None  # who maps it, if that is how it was found


class Libraries:
    """Remembers what it has already found; `usual` and `mapped` yield what is new."""

    def __init__(
        self,
        proc_root: str = "/proc",
        host_root: str = "/",
        explicit: tuple[str, ...] = (),
        search_path: str = "",
    ) -> None:
        """`search_path` is in LD_LIBRARY_PATH's form: more places than the usual ones."""
        self._proc = proc_root
        self._host = Path(host_root)
        self._explicit = explicit
        self._search = [place for place in search_path.split(":") if place.startswith("/")]
        self._known: set[tuple[int, ...]] = set()
        self._looks = 0
        self._sizes: dict[str, bytes] = {}  # pid -> size of its address space when last looked at
        self.missing: list[str] = []  # explicit paths that can't be opened
        self.beyond_cap = 0  # copies found after MOST_COPIES
        self.looked = self.unseen = 0  # processes at the last look; whose mappings are refused

    def usual(self) -> Iterator[Copy]:
        """Copies at the explicit and the usual paths, before any process maps them."""
        for path in self._explicit:
            copy = self._open(path, path, None)
            if copy is not None:
                yield copy
            elif not os.path.isfile(path) and path not in self.missing:
                self.missing.append(path)
        places = [self._host / place for place in USUAL_PLACES] + [Path(p) for p in self._search]
        for place in places:
            copy = self._open(str(place / "libcuda.so.1"), str(place / "libcuda.so.1"), None)
            if copy is not None:
                yield copy

    def mapped(self, covered: Container[int] = ()) -> Iterator[Copy]:
        """Copies that processes map and that were not found before.

        Processes in `covered` are known to call a probed copy. Of the others only those whose
        address space changed in size since the last look are read: loading a library changes it,
        and a look at a size costs a tenth of a look at the mappings. Every so often all are read:
        a process may exec, use a second copy, or replace one by another of the same size.
        """
        pids = [name for name in os.listdir(self._proc) if name.isdigit()]
        sizes: dict[str, bytes] = {}
        self.looked = self.unseen = self.beyond_cap = 0
        if self._looks % FULL_LOOK == 0:
            self._sizes, covered = {}, ()
        self._looks += 1
        for name in pids:
            if int(name) in covered:
                continue
            if self._sizes.get(name) == _KERNEL_THREAD:
                sizes[name] = _KERNEL_THREAD
                continue
            size = self._size(name)
            if size is None:
                continue
            sizes[name] = size
            if size != _KERNEL_THREAD and self._sizes.get(name) != size:
                yield from self._mapped_by(name)
        self._sizes = sizes

    def refused(self, copy: Copy, *, again: bool) -> None:
        """It could not be probed. It is offered again if `again`, else only once it has changed."""
        sure, same = _identities(os.fstat(copy.fd))
        self._known.discard(sure)  # another file may get the inode
        if again:
            self._known.discard(same)

    def _size(self, name: str) -> bytes | None:
        try:
            fd = os.open(f"{self._proc}/{name}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None  # it has ended
        try:
            return os.read(fd, 64).split(b" ", 1)[0]
        except OSError:
            return None
        finally:
            os.close(fd)

    def _mapped_by(self, name: str) -> Iterator[Copy]:
        self.looked += 1
        try:
            with open(f"{self._proc}/{name}/maps", "rb") as file:
                maps = file.read(_MOST_MAPS_BYTES)
        except PermissionError:
            self.unseen += 1
            return
        except OSError:
            return
        if b"/libcuda.so" not in maps:
            return
        seen = set()  # a file may be mapped thousands of times
        for start, end, inode, path, _ in _LINE.findall(maps):
            if not _NAME.search(path) or (inode, path) in seen:
                continue
            seen.add((inode, path))
            shown = _printable(path)
            span = f"{int(start, 16):x}-{int(end, 16):x}"
            for where in (
                f"{self._proc}/{name}/map_files/{span}",
                f"{self._proc}/{name}/root{os.fsdecode(path)}",
            ):
                copy, opened = self._try(where, shown, int(name))
                if copy is not None:
                    yield copy
                if opened:
                    break

    def _open(self, path: str, shown: str, pid: int | None) -> Copy | None:
        return self._try(path, shown, pid)[0]

    def _try(self, path: str, shown: str, pid: int | None) -> tuple[Copy | None, bool]:
        """The copy if it is a new one, and whether the file could be opened at all."""
        try:
            # What stands at the path now may be a pipe or a device, which opening alone would
            # set off: look at it first, and open what was looked at.
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None, False
        try:
            status = os.fstat(place)
            keys = _identities(status)
            if not stat.S_ISREG(status.st_mode) or any(key in self._known for key in keys):
                return None, True
            if len(self._known) >= 2 * MOST_COPIES:
                self.beyond_cap += 1
                return None, True
            fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None, True
        finally:
            os.close(place)
        self._known.update(keys)
        return Copy(fd, shown, pid), True


def _printable(path: bytes) -> str:
    """For messages: a path is whatever its owner likes, terminal escapes included."""
    text = path.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)[:256]


def _identities(status: os.stat_result) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What makes a file the same inode as another.

    (device, inode), or, since two overlay mounts over one lower file show two devices: inode (its
    low half, overlayfs may use the high bits), size and both times, down to the nanosecond.
    """
    low_inode = status.st_ino & 0xFFFFFFFF
    return (
        (status.st_dev, status.st_ino),
        (low_inode, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
    )
