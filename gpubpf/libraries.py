"""Finds the copies of libcuda: at the usual paths, and those that processes map, in containers or
deleted.

One attach to an inode covers every process that maps it, so only a file not seen before matters.
Device and inode say whether it was; that another device may show the same inode is for others to
find out (gpubpf.bpf.marker).
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass

from gpubpf import mappings
from gpubpf.guard import Guard
from gpubpf.mappings import Place

FULL_LOOK = 16  # looks
_FIRST_LOOK_BYTES = 256 << 20
_LOOK_BYTES = 8 << 20  # of all processes at one look: some 50 ms
_PROCESS_BYTES = 512 << 10  # of one process a look, on average: 4,000 mappings
_PLACE_COST = 16 << 10  # opening a file, in bytes of mappings read
_MOST_REFUSED = 4096

_KERNEL_THREAD = b"0"  # the size of what has no address space

Key = tuple[int, int]  # device, inode

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
    pid: int | None = None  # who maps it, if that is how it was found
    user: int | None = None  # whose process that is
    key: Key = (0, 0)
    local: bool = True  # no server has to answer for it


@dataclass(frozen=True, slots=True)
class _Sight:
    """What was seen of one process, or at one path."""

    cost: int
    keys: tuple[Key, ...]
    new: tuple[Copy, ...]
    served: bool = False  # it maps files that a user's program serves

    def close(self) -> None:
        for copy in self.new:
            os.close(copy.fd)


class Libraries:
    """`usual` and `mapped` yield what is new, by one thread. A copy that was yielded is known, and
    not yielded again, until `forget`, `later` or `refused` says otherwise."""

    def __init__(
        self,
        proc_root: str = "/proc",
        host_root: str = "/",
        explicit: tuple[str, ...] = (),
        search_path: str = "",
    ) -> None:
        """`search_path` is in LD_LIBRARY_PATH's form: more places than the usual ones."""
        self._proc = proc_root
        self._explicit = explicit
        search = [place for place in search_path.split(":") if place.startswith("/")]
        # In another root symlinks mean what they mean to the processes there.
        root = "" if host_root == "/" else host_root
        self._places = (
            *(("", path) for path in explicit),
            *((root, f"/{place}/libcuda.so.1") for place in USUAL_PLACES),
            *(("", f"{place}/libcuda.so.1") for place in search),
        )
        self.guard = Guard()
        self._known: set[Key] = set()
        self._refused: dict[tuple[int, ...], None] = {}  # until they change; the oldest go first
        self._again: set[str] = set()  # processes to be read at the next look in any case
        self._first = 0  # of them, with whom the next look begins
        self._sizes: dict[str, bytes] = {}  # pid -> size of its address space when last read
        self._debts: dict[str, int] = {}  # pid -> bytes read beyond what it may cost a look
        self._full: set[str] | None = None  # what a full look in progress has still to read
        self._looks = 0
        self._budget = 0
        self._standing: set[Key] = set()  # at a path, at the last look
        self._mapped: set[Key] = set()  # by a process, since the last full look began
        self.mappers: set[int] = set()  # processes that map a copy, since the last full look began
        self.full_looks = 0  # that are complete
        self.unreadable: set[int] = set()  # processes whose mappings were refused, or hang
        self.served: set[int] = set()  # … that map files which a user's program serves: left alone
        self.missing: list[str] = []  # explicit paths that can't be opened
        self.looked = self.unseen = 0  # processes at the last look; whose mappings are refused

    def in_use(self, key: Key) -> bool:
        """Whether the file stands at a path, or a process was seen to map it since the last full
        look began."""
        return key in self._standing or key in self._mapped

    def usual(self) -> Iterator[Copy]:
        """New copies at the explicit and the usual paths, before any process maps them."""
        self._standing = set()
        for (root, path), sight in self.guard.each(self._at, self._places, _Sight.close):
            if isinstance(sight, _Sight):
                self._standing.update(sight.keys)
                yield from self._take(sight)
                if sight.keys:
                    continue
            if not root and path in self._explicit and path not in self.missing:
                self.missing.append(path)

    def mapped(self, covered: Container[int] = ()) -> Iterator[Copy]:
        """New copies that processes map.

        Processes in `covered` are known to call a probed copy. Of the others only those whose
        address space changed in size since the last look are read: loading a library changes it,
        and a look at a size costs a tenth of a look at the mappings. Every so often all are read:
        a process may exec, use a second copy, or replace one by another of the same size.

        How much is read at one look is bounded, and who has many mappings is read less often:
        the next look goes on where this one ended, and a full look takes as long as it takes.
        """
        pids = [name for name in os.listdir(self._proc) if name.isdigit()]
        self.looked = self.unseen = 0
        self._budget = _LOOK_BYTES if self._looks else _FIRST_LOOK_BYTES
        self._begin(set(pids))
        sizes, todo = self._changed(pids, covered)
        self._again = set()
        for name, sight in self.guard.each(self._read, todo, _close):
            if sight is None:  # the budget is spent
                self._again.add(name)
                continue
            self.looked += 1
            if self._full is not None:
                self._full.discard(name)
            if isinstance(sight, _Sight):
                self._debts[name] = sight.cost
                self._mapped.update(sight.keys)
                if sight.keys:
                    self.mappers.add(int(name))
                if sight.served:
                    self.served.add(int(name))
                yield from self._take(sight)
            elif isinstance(sight, PermissionError | TimeoutError):
                self.unseen += 1
                self.unreadable.add(int(name))
        for name in self._again:
            sizes.pop(name, None)
        self._sizes = sizes
        self._first = next((int(name) for name in todo if name in self._again), 0)
        if self._full is not None and not self._full:
            self._full = None
            self.full_looks += 1

    def processes(self) -> set[int]:
        """Those that there are now."""
        return {int(name) for name in os.listdir(self._proc) if name.isdigit()}

    def forget(self, key: Key) -> None:
        """It is yielded again when it is next seen."""
        self._known.discard(key)

    def later(self, copy: Copy) -> None:
        """It is yielded again at the next look."""
        self.forget(copy.key)
        self._again.add(str(copy.pid))

    def refused(self, copy: Copy, *, again: bool) -> None:
        """It could not be probed. It is yielded again if `again`, else only once it has changed."""
        self.forget(copy.key)
        if not again:
            self._refused[_version(os.fstat(copy.fd))] = None
            if len(self._refused) > _MOST_REFUSED:
                del self._refused[next(iter(self._refused))]

    def _begin(self, pids: set[str]) -> None:
        """Begins a look, and a full one if it is time."""
        self._debts = {
            name: debt - _PROCESS_BYTES
            for name, debt in self._debts.items()
            if debt > _PROCESS_BYTES and name in pids
        }
        if self._full is not None:
            self._full &= pids
        elif self._looks % FULL_LOOK == 0:
            self._full = set(pids)
            self._mapped, self.unreadable, self.served = set(), set(), set()
            self.mappers = set()
        self._looks += 1

    def _changed(
        self, pids: list[str], covered: Container[int]
    ) -> tuple[dict[str, bytes], list[str]]:
        """The sizes of the processes, and whose mappings are to be read."""
        sizes: dict[str, bytes] = {}
        todo = []
        full = self._full if self._full is not None else ()
        for name in pids:
            before = self._sizes.get(name)
            if name not in full and name not in self._again:
                if int(name) in covered:
                    continue
                if before == _KERNEL_THREAD:
                    sizes[name] = _KERNEL_THREAD
                    continue
            if name in self._debts:
                if before is not None:
                    sizes[name] = before
                continue
            size = self._size(name)
            if size is not None:
                sizes[name] = size
            if size is None or size == _KERNEL_THREAD:
                if self._full is not None:
                    self._full.discard(name)
            elif name in full or before != size:
                todo.append(name)
        return sizes, sorted(todo, key=lambda name: (int(name) < self._first, int(name)))

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

    # --- by the guard's thread -----------------------------------------------------------------

    def _at(self, place: tuple[str, str]) -> _Sight:
        root, path = place
        shown = root.rstrip("/") + path
        found = mappings.beneath(root, path, shown) if root else mappings.at(path, shown)
        if found is not None and found.served:
            os.close(found.fd)
            raise OSError("a user's program serves it (FUSE)")
        return self._sight((found,) if found else (), None, 0, served=False)

    def _read(self, name: str) -> _Sight | None:
        if self._budget <= 0:
            return None
        found = mappings.mapped(f"{self._proc}/{name}")
        sight = self._sight(found.places, name, found.size, found.served)
        self._budget -= sight.cost
        return sight

    def _sight(
        self, places: tuple[Place, ...], name: str | None, size: int, served: bool
    ) -> _Sight:
        new = []
        for place in places:
            try:
                if place.key not in self._known and _version(place.status) not in self._refused:
                    user = mappings.user(f"{self._proc}/{name}") if name else None
                    pid = int(name) if name else None
                    new.append(Copy(place.open(), place.name, pid, user, place.key, place.local))
            except OSError:
                continue
            finally:
                os.close(place.fd)
        cost = size + _PLACE_COST * len(places)
        return _Sight(cost, tuple(place.key for place in places), tuple(new), served)

    def _take(self, sight: _Sight) -> Iterator[Copy]:
        for copy in sight.new:
            if copy.key in self._known:  # seen twice at this look
                os.close(copy.fd)
            else:
                self._known.add(copy.key)
                yield copy


def _close(sight: _Sight | None) -> None:
    if sight is not None:
        sight.close()


def _version(status: os.stat_result) -> tuple[int, ...]:
    """Another content is another version; so is another file that gets the inode."""
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )
