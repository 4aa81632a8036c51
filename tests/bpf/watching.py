"""For tests of gpubpf.copies: the copies that some processes use, watched without an agent, and
processes that load a library and call it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpubpf.bpf.attach import attach_tracepoints, detach
from gpubpf.bpf.load import load
from gpubpf.copies import MOST_COPIES, Copies
from gpubpf.errors import GpubpfError
from gpubpf.libraries import FULL_LOOK, Libraries
from gpubpf.symbols import chosen
from tests.bpf.probing import Probing
from tests.fakegpu.node import Node

FUNCTION = "cuLaunchKernel"
PLACE = "usr/lib64/libcuda.so.1"  # one of the usual ones

# Does what each line says, and says so.
_CALLER = """
import ctypes, mmap, os, sys, _ctypes
libc = ctypes.CDLL(None)
handles = {}
kept = []
zeros = [ctypes.c_void_p(0)] * 11
for line in sys.stdin:
    what, _, rest = line.rstrip("\\n").partition(" ")
    if what == "load":
        handles[rest] = ctypes.CDLL(rest)
    elif what == "memory":
        name, _, path = rest.partition(" ")
        fd = os.memfd_create(name)
        with open(path, "rb") as file:
            os.write(fd, file.read())
        handles[path] = ctypes.CDLL(f"/proc/self/fd/{fd}")
        os.close(fd)
    elif what == "call":
        times, _, path = rest.partition(" ")
        for _ in range(int(times)):
            handles[path].cuLaunchKernel(*zeros)
    elif what == "map":
        with open(rest, "rb") as file:
            kept.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | 4))
    elif what == "crowd":
        pages = int(rest)
        area = mmap.mmap(-1, pages * 4096)
        kept.append(area)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for i in range(0, pages, 2):
            libc.mprotect(ctypes.c_void_p(start + 4096 * i), ctypes.c_size_t(4096), 1)
    elif what == "unload":
        library = handles.pop(rest)
        _ctypes.dlclose(library._handle)
    print("done", flush=True)
"""


class Caller:
    """A process that loads libraries and calls them, when told."""

    def __init__(self, root: Path, node: Node, *inside: str) -> None:
        """`inside`: a command that execs its arguments, say in a mount namespace of its own."""
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-S", "-c", _CALLER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=node.environment(),
            text=True,
        )
        self.pid = self.process.pid
        self.tell("nothing")  # it has got where it is to be
        root.mkdir(exist_ok=True)
        (root / str(self.pid)).symlink_to(f"/proc/{self.pid}")

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", f"it could not: {what}"

    def load(self, path: Path | str) -> None:
        self.tell(f"load {path}")

    def call(self, path: Path | str, times: int) -> None:
        self.tell(f"call {times} {path}")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Caller]


@contextmanager
def callers(root: Path, node: Node) -> Iterator[Start]:
    """Starts processes; `root` shows them as a /proc."""
    root.mkdir(exist_ok=True)
    started: list[Caller] = []

    def start(path: Path | str | None = None, *inside: str) -> Caller:
        started.append(Caller(root, node, *inside))
        if path is not None:
            started[-1].load(path)
        return started[-1]

    try:
        yield start
    finally:
        for caller in started:
            caller.end()


def in_namespace(setup: str) -> tuple[str, ...]:
    """A command that makes mounts of its own first."""
    return ("unshare", "--mount", "sh", "-ec", f'{setup}; exec "$@"', "sh")


def as_user(user: int) -> tuple[str, ...]:
    """A command that execs its arguments as another user."""
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")


class Watch:
    """Copies that are looked for, and what is counted in them."""

    def __init__(self, copies: Copies, libraries: Libraries, probing: Probing, notes: list[str]):
        self.copies = copies
        self.libraries = libraries
        self.notes = notes
        self._probing = probing

    def calls(self) -> int:
        """Counted in all processes, ended ones too."""
        return self._probing.total().calls.get(FUNCTION, 0)

    def look(self) -> int:
        return self.copies.look()

    def look_fully(self, times: int = 1) -> None:
        """Until so many full looks more are complete."""
        wanted = self.libraries.full_looks + times
        for _ in range(4 * (times + 1) * FULL_LOOK):
            if self.libraries.full_looks >= wanted:
                return
            with contextlib.suppress(GpubpfError):  # as the agent does
                self.look()
        raise AssertionError("the full looks don't get done")


@contextmanager
def watching(
    root: Path,
    *explicit: Path | str,
    host: Path | str = "/nonexistent",
    multi: bool | None = None,
    most: int = MOST_COPIES,
) -> Iterator[Watch]:
    """Watches the processes that `root` shows. With perf events only launches: it takes the kernel
    a tenth of a second to let go of each."""
    groups = ("launch",)
    attribution = multi is not False
    loaded = load(groups, multi=multi, attribution=attribution)
    symbols = chosen(groups, attribution)
    tracepoints = attach_tracepoints(loaded)
    notes: list[str] = []
    libraries = Libraries(str(root), str(host), tuple(map(str, explicit)))
    copies = Copies(loaded, symbols, libraries, notes, most)
    try:
        for fd in copies.open_usual():
            os.close(fd)
        copies.look()
        yield Watch(copies, libraries, Probing(loaded, symbols), notes)
    finally:
        copies.close()
        detach(tracepoints)
        loaded.close()


def copied(library: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(library, place)
    return place


def counted(watch: Watch, node: Node) -> tuple[int, int]:
    """What was counted, and what there was to count."""
    return watch.calls(), node.counts().calls[FUNCTION]
