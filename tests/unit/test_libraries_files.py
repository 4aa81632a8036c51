"""gpubpf.libraries on a /proc of files and on paths, for what real processes can't stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubpf.libraries import FULL_LOOK, MOST_COPIES, USUAL_PLACES, Copy, Libraries
from tests.unit.mapping import fake, put


def names(copies: Iterator[Copy]) -> list[str]:
    found = []
    for copy in copies:
        found.append(copy.name)
        os.close(copy.fd)
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "proc"


def test_a_process_is_read_again_only_when_its_address_space_changed(root: Path) -> None:
    libraries = Libraries(str(root))
    put(fake(root, 7), "/a/libcuda.so.1")
    assert names(libraries.mapped()) == []
    fake(root, 7, "/a/libcuda.so.1")  # the same size: its mappings aren't read
    assert names(libraries.mapped()) == []
    fake(root, 7, "/a/libcuda.so.1", size=1001)
    assert names(libraries.mapped()) == ["/a/libcuda.so.1"]


def test_processes_known_to_call_a_probed_copy_are_read_only_now_and_then(root: Path) -> None:
    libraries = Libraries(str(root))
    fake(root, 6, "/bin/true")
    assert names(libraries.mapped()) == []  # the first look is a full one
    for pid in (7, 8):
        put(fake(root, pid, "/a/libcuda.so.1"), "/a/libcuda.so.1")
    found = list(libraries.mapped(covered={7}))
    assert [copy.pid for copy in found] == [8]
    os.close(found[0].fd)
    later = [names(libraries.mapped(covered={7})) for _ in range(FULL_LOOK)]
    assert sorted(map(len, later)) == [0] * (FULL_LOOK - 1) + [1]  # 7 may use a second copy


def test_kernel_threads_and_other_files_of_proc_are_passed_over(root: Path) -> None:
    put(fake(root, 2, "/a/libcuda.so.1", size=0), "/a/libcuda.so.1")
    for name in ("self", "irq", "7x"):
        (root / name).mkdir()
    (root / "9").mkdir()  # has ended meanwhile: nothing in it can be read
    (root / "10").write_text("")
    assert names(Libraries(str(root)).mapped()) == []


def test_no_more_copies_than_the_cap(root: Path) -> None:
    more = 6
    for pid in range(1, MOST_COPIES + more + 1):
        put(fake(root, pid, "/a/libcuda.so.1"), "/a/libcuda.so.1")
    libraries = Libraries(str(root))
    before = open_files()
    assert len(names(libraries.mapped())) == MOST_COPIES
    assert libraries.beyond_cap == more
    assert open_files() == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_file_does_not_block(root: Path, tmp_path: Path, make: object) -> None:
    """The process mapped a library; something else has its path now."""
    assert callable(make)
    folder = fake(root, 7, "/a/libcuda.so.1")
    (folder / "root" / "a").mkdir()
    make(folder / "root" / "a" / "libcuda.so.1")
    place = tmp_path / "host" / USUAL_PLACES[0]
    place.mkdir(parents=True)
    make(place / "libcuda.so.1")
    before = open_files()
    libraries = Libraries(str(root), str(tmp_path / "host"))
    assert names(libraries.usual()) == []
    assert names(libraries.mapped()) == []
    assert open_files() == before


def test_usual_places_and_those_of_the_search_path(tmp_path: Path) -> None:
    host, other = tmp_path / "host", tmp_path / "other"
    for index, place in enumerate((host / USUAL_PLACES[0], host / USUAL_PLACES[-1], other)):
        place.mkdir(parents=True)
        (place / "libcuda.so.1").write_bytes(b"x" * index)
    libraries = Libraries(str(tmp_path), str(host), search_path=f"relative::{other}:")
    assert names(libraries.usual()) == [
        str(host / USUAL_PLACES[0] / "libcuda.so.1"),
        str(host / USUAL_PLACES[-1] / "libcuda.so.1"),
        str(other / "libcuda.so.1"),
    ]
    assert names(libraries.usual()) == []


def test_explicit_paths(tmp_path: Path) -> None:
    there, link, absent = (tmp_path / name for name in ("there", "link", "absent"))
    there.write_bytes(b"x")
    link.symlink_to(there)
    libraries = Libraries(
        str(tmp_path), "/nonexistent", (str(there), str(link), str(absent), str(tmp_path))
    )
    assert names(libraries.usual()) == [str(there)]  # whatever it is called, and once
    # The operator named it: that it is no file can't go unsaid.
    assert libraries.missing == [str(absent), str(tmp_path)]


def test_the_root_of_a_process_is_where_its_paths_are(root: Path) -> None:
    """Where map_files can't be opened."""
    folder = fake(root, 7, "/a b/libcuda.so.1", "/gone/libcuda.so.1", "/c/libcuda.so.1 (deleted)")
    put(folder, "/a b/libcuda.so.1")
    assert names(Libraries(str(root)).mapped()) == ["/a b/libcuda.so.1"]
