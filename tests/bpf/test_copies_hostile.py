"""gpubpf.copies on what is named libcuda and is none, on what doesn't answer, and on whoever wants
to wear the agent out: it goes on, and the others are counted."""

from __future__ import annotations

import _ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpubpf.copies import MOST_ATTEMPTS
from tests.bpf.watching import (
    FUNCTION,
    Start,
    Watch,
    as_user,
    copied,
    counted,
    watching,
)
from tests.conftest import ROOT, eventually
from tests.fakegpu.node import Node
from tests.unit.images import crafted

# --- files that are none ------------------------------------------------------------------------


def bomb(path: Path) -> None:
    """As many symbols and as long a table of names as may be."""
    path.write_bytes(crafted(43_000, b"cu" + b"x" * ((1 << 20) - 3)))


def beyond_its_end(path: Path) -> None:
    data = bytearray(crafted(1, b"cu\0"))
    struct.pack_into("<Q", data, 120 + 64 + 24, 1 << 62)  # the symbol table's offset
    path.write_bytes(data)


NONE: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_bytes(b"not a library" * 1000),
    "bomb": bomb,
    "beyond its end": beyond_its_end,
    "another library": lambda path: shutil.copyfile(_ctypes.__file__, path),
    "a function in its header": lambda path: path.write_bytes(
        crafted(3, b"cuLaunchKernel\0", symbol=(2, 1, 0))
    ),
}


@pytest.mark.parametrize("make", NONE.values(), ids=NONE.keys())
def test_a_file_that_is_none(
    watch: Watch,
    start: Start,
    own: Node,
    library: Path,
    tmp_path: Path,
    make: Callable[[Path], object],
) -> None:
    path = tmp_path / "libcuda.so.1"
    make(path)
    hostile, good = start(), start(library)
    hostile.tell(f"map {path}")
    begin = time.monotonic()
    watch.look()
    assert time.monotonic() - begin < 1
    attempts = watch.copies.refused
    good.call(library, 101)
    assert counted(watch, own) == (101, 101)
    assert (watch.copies.count, attempts) == (1, 1)
    watch.look_fully(2)
    assert watch.copies.refused == 1
    assert any(str(path) in note for note in watch.notes)


def test_a_file_of_absurd_size(watch: Watch, start: Start) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "libcuda.so.1"
        path.write_bytes(crafted(1, b"cu\0"))
        os.truncate(path, (1 << 63) - 4096)
        start().tell(f"map {path}")
        begin = time.monotonic()
        assert watch.look() == 0
        assert time.monotonic() - begin < 1
        assert watch.copies.refused == 1


FLIPPER = r"""
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
content = os.pread(fd, 1 << 24, 0)
print(flush=True)
while True:
    if sys.argv[2] == "size":
        os.ftruncate(fd, 100)
        os.ftruncate(fd, len(content))
        os.pwrite(fd, content, 0)
    else:
        os.pwrite(fd, b"\xcc", 0)
        os.pwrite(fd, b"\x7f", 0)
"""


@contextmanager
def written(path: Path, what: str) -> Iterator[None]:
    """While its owner writes to the file, all the time."""
    command = [sys.executable, "-S", "-c", FLIPPER, str(path), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"\n"
            yield
            assert writer.poll() is None
        finally:
            writer.kill()


def test_a_file_that_shrinks_while_it_is_read(
    watch: Watch, start: Start, own: Node, library: Path, shared: Path
) -> None:
    """And grows again. Whatever of it is seen, the agent goes on."""
    path = copied(library, shared / "libcuda.so.1")
    content = library.read_bytes()
    hostile = start()
    hostile.tell(f"map {path}")
    with written(path, "size"):
        for _ in range(40):
            hostile.tell("crowd 2")  # a change
            watch.look()
    path.write_bytes(content)
    good = start(library)
    watch.look()
    good.call(library, 101)
    assert watch.calls() == own.counts().calls[FUNCTION] == 101


def test_nobody_passes_for_another(
    watch: Watch, start: Start, own: Node, library: Path, tmp_path: Path
) -> None:
    """The owner of a probed copy writes breakpoints into it: others' copies are probed still."""
    mine = copied(library, tmp_path / "mine" / "libcuda.so.1")
    start().tell(f"map {mine}")
    assert watch.look() == 1
    with written(mine, "bytes"):
        for i in range(20):
            caller = start(copied(library, tmp_path / str(i) / "libcuda.so.1"))
            assert watch.look() == i + 2
            caller.end()
    assert counted(watch, own) == (0, 0)


def test_attempts_are_rationed(watch: Watch, start: Start, shared: Path) -> None:
    """A user goes on making files that are no libraries."""
    hostile = start(None, *as_user(60001))
    looks = 40
    for i in range(looks):
        for j in range(3):
            path = shared / f"{i}.{j}" / "libcuda.so.1"
            path.parent.mkdir()
            path.write_bytes(b"not a library" * 1000)
            hostile.tell(f"map {path}")
        watch.look()
    assert 8 <= watch.copies.refused <= 8 + looks / 4 + 1


def test_attempts_at_a_look_are_bounded(
    watch: Watch, start: Start, own: Node, library: Path, tmp_path: Path
) -> None:
    """Root's are not rationed, and everybody has a turn."""
    for i in range(3):
        hostile = start()
        for j in range(15):
            path = tmp_path / f"{i}.{j}" / "libcuda.so.1"
            path.parent.mkdir()
            path.write_bytes(b"not a library" * 1000)
            hostile.tell(f"map {path}")
    good = start(library)
    for looks in range(1, 5):
        watch.look()
        assert watch.copies.refused <= MOST_ATTEMPTS * looks
    assert watch.copies.refused == 45
    assert watch.copies.count == 1
    good.call(library, 101)
    assert counted(watch, own) == (101, 101)


# --- what doesn't answer ------------------------------------------------------------------------


class Server:
    """A process that serves a file system to whoever is in its mount namespace."""

    def __init__(self, folder: Path, library: Path) -> None:
        folder.mkdir()
        self.path = folder / "libcuda.so.1"
        self.log = folder.with_name("requests")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", sys.executable, "-m", "tests.bpf.fuse", folder, library],
                stdout=log,
                cwd=ROOT,
            )
        assert self.says("serves")

    def says(self, word: str) -> bool:
        return eventually(lambda: word in self.log.read_text().split(), bool)

    def asked_by_this_process(self) -> list[str]:
        """Others on this machine may look into /proc too."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        threads = os.listdir("/proc/self/task")
        return [words[0] for words in lines if words[1:] and words[1] in threads]

    def enter(self) -> tuple[str, ...]:
        return ("nsenter", "--mount", f"--target={self.process.pid}")

    def hang(self) -> None:
        self.process.send_signal(signal.SIGUSR1)
        assert self.says("hangs")

    def end(self) -> None:
        self.process.kill()  # what waits for it gets an error
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, library: Path) -> Iterator[Server]:
    server = Server(tmp_path / "served", library)
    yield server
    server.end()


def test_a_file_that_a_user_s_program_serves_is_left_alone(
    watch: Watch, start: Start, own: Node, library: Path, server: Server
) -> None:
    """Not even asked for: it may not answer."""
    start(server.path, *server.enter())
    server.hang()
    good = start(library)
    assert watch.look() == 1
    watch.look_fully(1)
    assert server.asked_by_this_process() == []
    assert watch.copies.served == 1
    good.call(library, 101)
    assert counted(watch, own) == (101, 101)


def test_a_path_that_hangs(
    root: Path, start: Start, own: Node, library: Path, server: Server
) -> None:
    """As on a server that is gone; here the operator named it."""
    path = f"/proc/{server.process.pid}/root{server.path}"
    good = start(library)
    os.stat(path)
    assert server.asked_by_this_process()
    server.hang()
    begin = time.monotonic()
    with watching(root, path) as watch:
        assert time.monotonic() - begin < 6
        assert (watch.copies.count, watch.copies.stuck) == (1, 1)
        good.call(library, 101)
        assert counted(watch, own) == (101, 101)
        begin = time.monotonic()
        watch.look()
        assert time.monotonic() - begin < 1  # once is enough
        server.end()
        assert eventually(lambda: watch.copies.stuck, lambda n: not n) == 0


# --- many mappings ------------------------------------------------------------------------------


def test_a_process_with_very_many_mappings(
    watch: Watch, start: Start, own: Node, library: Path
) -> None:
    crowd = start()
    crowd.tell("crowd 60000")
    good = start(library)
    begin = time.process_time()
    assert watch.look() == 1
    first = time.process_time() - begin
    begin = time.process_time()
    for _ in range(10):
        crowd.tell("crowd 2")  # its address space changes
        watch.look()
    assert time.process_time() - begin < max(first, 0.1)
    assert watch.libraries.looked == 0
    crowd.load(library)
    watch.look_fully(2)
    crowd.call(library, 101)
    good.call(library, 211)
    assert counted(watch, own) == (312, 312)
