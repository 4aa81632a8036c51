"""gpubpf.bpf.marker: two open files, and whether they are one inode."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpubpf.bpf import marker
from tests.unit.images import plain

Open = Callable[[Path], int]

both_kinds = pytest.mark.parametrize("multi", [True, False], ids=["uprobe.multi", "perf events"])

START = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    area = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    print(area[:4].hex())
"""

WRITER = r"""
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print(flush=True)
while True:
    os.pwrite(fd, b"\xcc", 0)
    os.pwrite(fd, b"\x7f", 0)
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library"
    path.write_bytes(plain())
    return path


@pytest.fixture
def opened() -> Iterator[Open]:
    fds: list[int] = []

    def open_(path: Path) -> int:
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1]

    yield open_
    for fd in fds:
        os.close(fd)


@both_kinds
def test_one_and_another(library: Path, opened: Open, multi: bool) -> None:
    link, copy = library.with_name("link"), library.with_name("copy")
    os.link(library, link)
    shutil.copy2(library, copy)
    others = [opened(path) for path in (library, link, copy)]
    assert marker.same(opened(library), others, multi=multi) == [True, True, False]
    assert marker.same(opened(copy), others, multi=multi) == [False, False, True]
    assert not any(map(marker._shows, others))  # it is gone


@both_kinds
def test_no_other_process_has_the_marker(library: Path, opened: Open, multi: bool) -> None:
    fd = opened(library)
    command = [sys.executable, "-S", "-c", START, str(library)]
    with marker._marked(fd, multi=multi):
        assert marker._shows(fd)
        seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert seen == "7f454c46\n"


def test_where_nothing_may_be_executed_it_can_not_be_told(
    library: Path, opened: Open, tmp_path: Path
) -> None:
    """The kernel puts no breakpoint there."""
    folder = tmp_path / "mount"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", str(folder)], check=True)
    try:
        shutil.copyfile(library, folder / "library")
        with open(folder / "library", "rb") as inside:
            assert marker.same(opened(library), [inside.fileno()], multi=True) == [None]
            assert marker.same(inside.fileno(), [opened(library)], multi=True) == [None]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", [0, 3])
def test_a_file_that_is_cut_off(library: Path, opened: Open, size: int) -> None:
    """What isn't there can't be read, and doesn't kill."""
    other = opened(library)
    short = library.with_name("short")
    shutil.copyfile(library, short)
    fd = opened(short)
    os.truncate(short, size)
    assert marker.same(fd, [other], multi=True) in ([None], [False])
    assert marker.same(other, [fd], multi=True) == [False]


def test_what_is_written_is_no_breakpoint(library: Path, opened: Open) -> None:
    fd = opened(library)
    command = [sys.executable, "-S", "-c", WRITER, str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"\n"
            assert not any(marker._shows(fd) for _ in range(20_000))
        finally:
            writer.kill()
