"""gpubpf.libraries on a /proc of files and on paths, for what real processes can't stage."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubpf.libraries import FULL_LOOK, USUAL_PLACES, Copy, Libraries
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


def test_symlinks_of_the_host_are_the_host_s(tmp_path: Path) -> None:
    """What is absolute there, or climbs, is beneath its root here."""
    host, outside = tmp_path / "host", tmp_path / "outside"
    file = host / "etc" / "alternatives" / "driver"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"the host's")
    (host / "etc" / "other").write_bytes(b"the other")
    outside.write_bytes(b"not the host's")
    targets = ["/etc/alternatives/driver", "../" * 40 + "etc/other", str(outside), "libcuda.so.1",
               "/proc/self/root/etc/other"]  # fmt: skip
    (host / "proc").symlink_to("/proc")
    for place, target in zip(USUAL_PLACES, targets, strict=False):
        (host / place).mkdir(parents=True, exist_ok=True)
        (host / place / "libcuda.so.1").symlink_to(target)
    libraries = Libraries(str(tmp_path), str(host))
    found = []
    for copy in libraries.usual():
        found.append((copy.name, os.pread(copy.fd, 100, 0)))
        os.close(copy.fd)
    assert found == [
        (str(host / USUAL_PLACES[0] / "libcuda.so.1"), b"the host's"),
        (str(host / USUAL_PLACES[1] / "libcuda.so.1"), b"the other"),
    ]


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


def test_a_symlink_does_not_lead_out_of_the_root_of_a_process(root: Path, tmp_path: Path) -> None:
    (tmp_path / "host").write_bytes(b"the host's")
    folder = fake(root, 7, "/a/libcuda.so.1", "/b/libcuda.so.1")
    for name, target in (("a", str(tmp_path / "host")), ("b", "../" * 40 + str(tmp_path / "host"))):
        (folder / "root" / name).mkdir()
        (folder / "root" / name / "libcuda.so.1").symlink_to(target)
    assert names(Libraries(str(root)).mapped()) == []


def test_another_file_that_has_the_path_now_is_not_it(root: Path) -> None:
    """Where map_files can't be opened, and the device is the one that the mapping shows."""
    folder = fake(root, 7, "/a/libcuda.so.1")
    status = put(folder, "/a/libcuda.so.1").stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    for inode, expected in ((status.st_ino + 1, []), (status.st_ino, ["/a/libcuda.so.1"])):
        (folder / "maps").write_text(
            f"7f0000000000-7f0000001000 r-xp 00000000 {device} {inode}    /a/libcuda.so.1\n"
        )
        assert names(Libraries(str(root)).mapped()) == expected


def crowded(root: Path, pid: int, megabytes: float, size: int) -> None:
    """A process with very many mappings, the last of which is a library."""
    folder = fake(root, pid, "/a/libcuda.so.1", size=size)
    put(folder, "/a/libcuda.so.1")
    line = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
    maps = folder / "maps"
    maps.write_text(line * int(megabytes * (1 << 20) / len(line)) + maps.read_text())


def test_who_has_many_mappings_is_read_less_often(root: Path) -> None:
    crowded(root, 7, 5, size=1)
    libraries = Libraries(str(root))
    assert len(names(libraries.mapped())) == 1
    read = 0
    for i in range(40):
        fake(root, 8, size=100 + i)
        folder = root / "7" / "statm"
        folder.write_text(f"{100 + i} 1 1 1 0 1 0\n")  # it changes all the time
        names(libraries.mapped())
        assert libraries.looked in (1, 2)  # the other each time
        read += libraries.looked - 1
    assert 2 <= read <= 4  # 5 MiB, of half a MiB a look


def test_what_is_read_at_a_look_is_bounded_and_everybody_has_a_turn(root: Path) -> None:
    libraries = Libraries(str(root))
    root.mkdir()
    assert names(libraries.mapped()) == []  # the first look, which is not bounded, sees nobody
    for pid in range(101, 113):
        crowded(root, pid, 3, size=1)
    found: list[str] = []
    looks = 0
    while len(found) < 12:
        found += names(libraries.mapped())
        assert libraries.looked <= 3  # 9 MiB
        looks += 1
        assert looks <= 5
    assert looks >= 4


def test_who_changes_all_the_time_does_not_take_others_turn(root: Path) -> None:
    libraries = Libraries(str(root))
    root.mkdir()
    assert names(libraries.mapped()) == []
    crowd = range(101, 141)
    for pid in crowd:
        crowded(root, pid, 0.45, size=1)  # not too much for one, all together for a look
    assert names(libraries.mapped())
    put(fake(root, 999, "/a/libcuda.so.1"), "/a/libcuda.so.1")
    found = []
    for look in range(4):
        for pid in crowd:
            (root / str(pid) / "statm").write_text(f"{2 + look} 1 1 1 0 1 0\n")
        for copy in libraries.mapped():
            found.append(copy.pid)
            os.close(copy.fd)
    assert 999 in found


HOLDER = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print(flush=True)
sys.stdin.read()
"""


def test_a_lease_on_the_file_is_not_waited_for(root: Path) -> None:
    """The kernel would give its holder 45 seconds."""
    file = put(fake(root, 7, "/a/libcuda.so.1"), "/a/libcuda.so.1")
    command = [sys.executable, "-S", "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        begin = time.monotonic()
        libraries = Libraries(str(root))
        assert names(libraries.mapped()) == []
        assert libraries.guard.stuck == 0
        assert time.monotonic() - begin < 0.5
        holder.kill()


def test_a_full_look_takes_as_long_as_it_takes(root: Path) -> None:
    root.mkdir()
    libraries = Libraries(str(root))
    assert names(libraries.mapped()) == []
    assert libraries.full_looks == 1
    for pid in range(101, 113):
        crowded(root, pid, 3, size=1)
    for _ in range(FULL_LOOK - 1):
        names(libraries.mapped())
    assert libraries.full_looks == 1
    looks = 0
    while libraries.full_looks == 1:
        names(libraries.mapped())
        looks += 1
    assert 4 <= looks <= 12


def test_what_is_in_use(root: Path, tmp_path: Path) -> None:
    explicit = tmp_path / "explicit"
    explicit.write_bytes(b"x")
    put(fake(root, 7, "/a/libcuda.so.1"), "/a/libcuda.so.1")
    libraries = Libraries(str(root), "/nonexistent", (str(explicit),))
    found = [*libraries.usual(), *libraries.mapped()]
    for copy in found:
        os.close(copy.fd)
    keys = [copy.key for copy in found]
    assert [libraries.in_use(key) for key in keys] == [True, True]
    explicit.unlink()
    fake(root, 7, size=1)
    for _ in range(FULL_LOOK):
        assert names(libraries.usual()) == []
        assert names(libraries.mapped()) == []
    assert [libraries.in_use(key) for key in keys] == [False, False]


def test_what_is_refused_is_offered_again_when_it_has_changed(root: Path) -> None:
    folder = fake(root, 7, "/a/libcuda.so.1")
    file = put(folder, "/a/libcuda.so.1")
    libraries = Libraries(str(root))

    def looks() -> int:
        """How often it is offered in two full looks; each time it is refused."""
        found = 0
        for _ in range(2 * FULL_LOOK):
            for copy in libraries.mapped():
                libraries.refused(copy, again=False)
                os.close(copy.fd)
                found += 1
        return found

    assert looks() == 1
    assert looks() == 0
    file.write_bytes(b"another content")
    assert looks() == 1
