"""gpubpf.libraries on real processes that map files, each file to be found once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubpf.libraries import Copy, Libraries
from tests.unit.mapping import Start, mappers


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "proc"


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    with mappers(root) as start:
        yield start


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return library_at(tmp_path / "lib" / "libcuda.so.1")


def library_at(path: Path, content: bytes = b"a library") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def taken(copies: Iterator[Copy]) -> list[tuple[str, int | None, bytes]]:
    """What was found: name, pid and content; closed again."""
    found = []
    for copy in copies:
        found.append((copy.name, copy.pid, os.pread(copy.fd, 100, 0)))
        os.close(copy.fd)
    return found


def test_a_mapped_library_is_found_once(root: Path, start: Start, library: Path) -> None:
    first = start(library)
    libraries = Libraries(str(root))
    assert taken(libraries.mapped()) == [(str(library), first.pid, b"a library")]
    assert taken(libraries.mapped()) == []
    start(library)
    assert taken(libraries.mapped()) == []


def test_a_library_known_by_its_path_is_not_found_again(
    root: Path, start: Start, library: Path
) -> None:
    start(library)
    libraries = Libraries(str(root), "/nonexistent", (str(library),))
    assert taken(libraries.usual()) == [(str(library), None, b"a library")]
    assert taken(libraries.mapped()) == []


def test_links_are_the_same_library(root: Path, start: Start, library: Path) -> None:
    hard, soft = library.with_name("libcuda.so.535"), library.with_name("libcuda.so")
    os.link(library, hard)
    soft.symlink_to(library)
    for path in (library, hard, soft):
        start(path)
    assert len(taken(Libraries(str(root)).mapped())) == 1


def test_a_bind_mount_is_the_same_library(root: Path, start: Start, library: Path) -> None:
    """As container runtimes bring the host's library into a container."""
    place = library_at(library.with_name("inside") / "libcuda.so.1", b"")
    start(library)
    start(place, *in_namespace(f"mount --bind {library} {place}"))
    copies = taken(Libraries(str(root)).mapped())
    assert [content for _, _, content in copies] == [b"a library"]


def in_namespace(setup: str) -> tuple[str, ...]:
    return ("unshare", "--mount", "sh", "-ec", f'{setup}; exec "$@"', "sh")


def test_another_file_of_the_same_name_is_another_library(
    root: Path, start: Start, library: Path, tmp_path: Path
) -> None:
    """The same bytes even: each image that bakes one in has its own."""
    for path in (library, library_at(tmp_path / "other" / "libcuda.so.1")):
        start(path)
    assert len(taken(Libraries(str(root)).mapped())) == 2


def test_a_deleted_library_is_still_opened(root: Path, start: Start, library: Path) -> None:
    """As after an upgrade of the driver's package: another file has its name now."""
    mapper = start(library)
    library.unlink()
    library_at(library, b"a newer one")
    libraries = Libraries(str(root), "/nonexistent", (str(library),))
    assert taken(libraries.mapped()) == [(str(library), mapper.pid, b"a library")]
    assert [content for _, _, content in taken(libraries.usual())] == [b"a newer one"]


@pytest.mark.parametrize(
    "name",
    [
        b"with spaces/libcuda.so.1",
        b"a new\nline/libcuda.so.1",
        b"not utf-8 \xff\xfe/libcuda.so.1",
        b"libcuda.so.1 (deleted)",
        b"libcuda.so.1 (deleted)/libcuda.so.535.1",
        b"7f00-7f01 r-xp 0 00:00 0  /libcuda.so.1/libcuda.so",
        b"\x1b[2J\x07\r/libcuda.so.1",
        b"back\\slash\\012/libcuda.so.1",
    ],
)
def test_hostile_names(root: Path, start: Start, tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"hostile")
    start(path)
    ((shown, _, content),) = taken(Libraries(str(root)).mapped())
    assert content == b"hostile"
    assert shown.isprintable()
    assert shown.encode()


@pytest.mark.parametrize(
    "name",
    ["libcudart.so.12", "libcudadebugger.so.1", "notlibcuda.so.1", "libcuda.so.1~", "libcuda.so.x",
     "libcuda.so.1/other.so", "xlibcuda.so"],
)  # fmt: skip
def test_other_libraries_are_not_it(root: Path, start: Start, tmp_path: Path, name: str) -> None:
    start(library_at(tmp_path / name))
    assert taken(Libraries(str(root)).mapped()) == []


def test_a_library_mapped_as_data_is_not_used(root: Path, start: Start, library: Path) -> None:
    start(library, code=False)
    assert taken(Libraries(str(root)).mapped()) == []


def test_one_that_loads_it_later_is_found(root: Path, start: Start, library: Path) -> None:
    mapper = start()
    libraries = Libraries(str(root))
    assert taken(libraries.mapped()) == []
    mapper.map(library)
    assert [pid for _, pid, _ in taken(libraries.mapped())] == [mapper.pid]


def test_one_that_ends_meanwhile_is_nothing(root: Path, start: Start, library: Path) -> None:
    mapper = start(library)
    mapper.end()
    assert taken(Libraries(str(root)).mapped()) == []
