"""gpubpf.copies: each real inode is probed once. Counts are compared with the simulated driver's,
through real mounts, in namespaces of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpubpf.bpf import elf
from gpubpf.copies import MOST_PER_USER
from gpubpf.errors import GpubpfError
from tests.bpf.probing import probing
from tests.bpf.watching import (
    FUNCTION,
    PLACE,
    Caller,
    Start,
    Watch,
    as_user,
    copied,
    counted,
    in_namespace,
    watching,
)
from tests.conftest import Agent, eventually
from tests.fakegpu.node import Node


def breakpoint_at(library: Path) -> bool:
    """Whether any process that maps the file has a breakpoint where it is probed."""
    with library.open("rb") as file:
        point = elf.probe_points(file.fileno(), {FUNCTION})[FUNCTION].offset
        own = os.pread(file.fileno(), 1, point)
    program = (
        "import mmap, sys; file = open(sys.argv[1], 'rb');"
        "page = int(sys.argv[2]) & -4096;"
        "area = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=page);"
        "sys.stdout.buffer.write(area[int(sys.argv[2]) - page:][:1])"
    )
    command = ["python3", "-S", "-c", program, str(library), str(point)]
    return subprocess.run(command, capture_output=True, check=True).stdout != own


# --- one inode, many ways to it -----------------------------------------------------------------


def test_links_and_bind_mounts(watch: Watch, start: Start, own: Node, library: Path) -> None:
    """As container runtimes bring the host's library into a container."""
    hard, soft = library.with_name("libcuda.so.535.1"), library.with_name("libcuda.so")
    os.link(library, hard)
    soft.symlink_to(library)
    inside = copied(Path("/dev/null"), library.parent / "inside" / "libcuda.so.1")
    for path in (library, hard, soft):
        start(path)
    bound = start(inside, *in_namespace(f"mount --bind {library} {inside}"))
    plain = start(library)
    assert watch.look() == 1
    bound.call(inside, 101)
    plain.call(library, 211)
    assert counted(watch, own) == (312, 312)


def overlay(start: Start, library: Path, name: str, options: str = "") -> tuple[Path, Caller]:
    """A process that maps the library through an overlay mount of its own."""
    merged = library.parent.parent / f"merged {name}"
    empty = library.parent.parent / f"empty {name}"
    merged.mkdir()
    empty.mkdir()
    mount = f"mount -t overlay overlay -o 'lowerdir={library.parent}:{empty}{options}' '{merged}'"
    path = merged / "libcuda.so.1"
    return path, start(path, *in_namespace(mount))


@pytest.mark.parametrize("multi", [True, False], ids=["uprobe.multi", "perf events"])
def test_overlays_over_one_file_are_one(
    root: Path, start: Start, own: Node, library: Path, multi: bool
) -> None:
    """As containers of one image: many devices, one real inode."""
    with watching(root, multi=multi) as watch:
        mapped = [overlay(start, library, name) for name in "ab"]
        statuses = [os.stat(f"/proc/{caller.pid}/root{path}") for path, caller in mapped]
        assert statuses[0].st_dev != statuses[1].st_dev
        assert watch.look() == 1
        # Its status changes: it is still the same.
        os.link(library, library.with_name("other"))
        library.chmod(0o700)
        os.utime(library)
        mapped.append(overlay(start, library, "c"))
        caller = start(library)
        mapped.append((library, caller))
        assert watch.look() == 1
        for path, caller in mapped:
            caller.call(path, 101)
        assert counted(watch, own) == (404, 404)


def test_an_overlay_that_copied_the_file_up_has_another(
    watch: Watch, start: Start, own: Node, library: Path, tmp_path: Path
) -> None:
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    path = tmp_path / "merged" / "libcuda.so.1"
    options = f"lowerdir={library.parent},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount = f"mount -t overlay overlay -o {options} {path.parent}; touch {path}"
    changed = start(path, *in_namespace(mount))
    first = start(library)
    overlay(start, library, "other")
    assert watch.look() == 2
    changed.call(path, 101)
    first.call(library, 211)
    assert counted(watch, own) == (312, 312)


def test_clones_of_a_file_system_are_two(
    watch: Watch, start: Start, own: Node, library: Path, tmp_path: Path
) -> None:
    """As two machines' or containers' volumes of one snapshot: all that stat says is the same but
    the device."""
    images = [tmp_path / "one.ext4", tmp_path / "two.ext4"]
    command = ["mkfs.ext4", "-q", "-d", str(library.parent), str(images[0]), "16M"]
    subprocess.run(command, check=True)
    shutil.copyfile(*images)
    mounted = []
    for image in images:
        place = image.with_suffix("")
        place.mkdir()
        path = place / "libcuda.so.1"
        mounted.append((path, start(path, *in_namespace(f"mount -o ro,loop {image} {place}"))))
    seen = [os.stat(f"/proc/{caller.pid}/root{path}") for path, caller in mounted]
    for field in ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"):
        assert len({getattr(status, field) for status in seen}) == 1
    assert watch.look() == 2
    for times, (path, caller) in zip((101, 211), mounted, strict=True):
        caller.call(path, times)
    assert counted(watch, own) == (312, 312)


def test_equal_bytes_are_two_files(
    watch: Watch, start: Start, own: Node, library: Path, tmp_path: Path
) -> None:
    other = copied(library, tmp_path / "other" / "libcuda.so.1")
    first, second = start(library), start(other)
    assert watch.look() == 2
    first.call(library, 101)
    second.call(other, 211)
    assert counted(watch, own) == (312, 312)
    assert len({probe.library for probe in watch.copies.attached}) == 2


def test_the_breakpoints_of_another_tool_are_not_ours(
    watch: Watch, start: Start, own: Node, library: Path, tmp_path: Path
) -> None:
    """Of another gpubpf even."""
    other = copied(library, tmp_path / "other" / "libcuda.so.1")
    start(library)
    assert watch.look() == 1
    with probing(str(other), groups=("launch",)) as theirs:
        caller = start(other)
        assert breakpoint_at(other)
        assert watch.look() == 2
        caller.call(other, 101)
        assert theirs.total().calls == {FUNCTION: 101}
    assert counted(watch, own) == (101, 101)


def test_a_file_in_memory(watch: Watch, start: Start, own: Node, library: Path) -> None:
    caller = start()
    caller.tell(f"memory libcuda.so.1 {library}")
    assert watch.look() == 1
    caller.call(library, 101)
    assert counted(watch, own) == (101, 101)


@pytest.mark.parametrize("name", ["libcuda.so.535.x", "libcuda.so.535.261.03"])
def test_a_deleted_file(watch: Watch, start: Start, own: Node, library: Path, name: str) -> None:
    path = library.rename(library.with_name(name))
    caller = start(path)
    path.unlink()
    assert watch.look() == 1
    caller.call(path, 101)
    assert counted(watch, own) == (101, 101)


# --- the life of an attachment ------------------------------------------------------------------


def test_a_driver_upgrade(root: Path, start: Start, own: Node, tmp_path: Path) -> None:
    """The file at the usual path is replaced by rename, as package managers do."""
    path = copied(own.library, tmp_path / "host" / PLACE)
    kept = path.with_name("kept")
    os.link(path, kept)  # so that it can be looked at
    with watching(root, host=tmp_path / "host") as watch:
        assert watch.copies.count == 1  # before anybody maps it
        old = start(path)
        old.call(path, 101)
        os.replace(copied(own.library, path.with_name("new")), path)
        new = start(path)
        assert watch.look() == 2
        new.call(path, 211)
        old.call(path, 307)
        assert counted(watch, own) == (619, 619)
        watch.look_fully(3)
        assert (watch.copies.count, watch.copies.detached) == (2, 0)  # one still uses it
        old.end()
        watch.look_fully(3)
        assert (watch.copies.count, watch.copies.detached) == (1, 1)
        assert not eventually(lambda: breakpoint_at(kept), lambda there: not there)
        assert breakpoint_at(path)
        new.end()
        watch.look_fully(3)
        assert (watch.copies.count, watch.copies.detached) == (1, 1)  # it stands at its path
        assert counted(watch, own) == (619, 619)


def test_the_agent_follows_an_upgrade(
    serve: Callable[..., Agent], root: Path, start: Start, own: Node, tmp_path: Path
) -> None:
    path = copied(own.library, tmp_path / "host" / PLACE)
    agent = serve(
        *("--proc-root", str(root), "--host-root", str(tmp_path / "host"), "--no-nvml"),
        *("--interval", "0.1", "--discovery-interval", "0.1"),
    )

    def attached() -> float:
        name = "gpubpf_agent_probe_attached"
        return sum(
            number
            for (found, labels), number in agent.metrics().items()
            if found == name and ("function", FUNCTION) in labels
        )

    assert attached() == 1
    old = start(path)
    old.call(path, 101)
    os.replace(copied(own.library, path.with_name("new")), path)
    new = start(path)
    assert eventually(attached, lambda n: n == 2) == 2
    new.call(path, 211)
    old.call(path, 307)
    old.end()
    assert eventually(attached, lambda n: n == 1, 30) == 1
    calls = eventually(lambda: agent.calls()[FUNCTION], lambda n: n == 619)
    assert calls == own.counts().calls[FUNCTION] == 619


def test_detached_when_nobody_maps_it(watch: Watch, start: Start, own: Node, library: Path) -> None:
    caller = start(library)
    before = len(os.listdir("/proc/self/fd"))
    assert watch.look() == 1
    assert watch.copies.attached
    caller.call(library, 101)
    caller.tell(f"unload {library}")
    watch.look_fully(1)
    assert watch.copies.count == 1  # not at once
    watch.look_fully(1)
    assert (watch.copies.count, watch.copies.detached, watch.copies.attached) == (0, 1, ())
    assert not eventually(lambda: breakpoint_at(library), lambda there: not there)
    open_files = eventually(lambda: len(os.listdir("/proc/self/fd")), lambda n: n <= before)
    assert open_files <= before
    caller.load(library)
    assert watch.look() == 1
    caller.call(library, 211)
    assert counted(watch, own) == (312, 312)


def test_one_way_to_it_ends_and_another_stays(
    watch: Watch, start: Start, own: Node, library: Path
) -> None:
    _, gone = overlay(start, library, "a")
    second, stays = overlay(start, library, "b")
    assert watch.look() == 1
    gone.end()
    watch.look_fully(3)
    assert (watch.copies.count, watch.copies.detached) == (1, 0)
    stays.call(second, 101)
    assert counted(watch, own) == (101, 101)


# --- caps ---------------------------------------------------------------------------------------


def test_a_slot_that_becomes_free_is_used(
    root: Path, start: Start, own: Node, library: Path, tmp_path: Path
) -> None:
    paths = [copied(library, tmp_path / str(i) / "libcuda.so.1") for i in range(4)]
    mapped = [start(path) for path in paths[:3]]
    with watching(root, most=3) as watch:
        assert watch.copies.count == 3
        last = start(paths[3])
        with pytest.raises(GpubpfError, match="3 libcuda files are probed, the most"):
            watch.look()
        assert (watch.copies.count, watch.copies.beyond_cap) == (3, 1)
        _, seen_elsewhere = overlay(start, paths[0], "view")  # takes no room
        with pytest.raises(GpubpfError, match="1 more"):
            watch.look()
        seen_elsewhere.end()
        mapped[0].end()
        watch.look_fully(4)
        assert (watch.copies.count, watch.copies.beyond_cap) == (3, 0)
        last.call(paths[3], 101)
        assert counted(watch, own) == (101, 101)


def test_one_user_can_not_take_all_slots(
    watch: Watch, start: Start, own: Node, library: Path, shared: Path
) -> None:
    greedy = [start(None, *as_user(60001)) for _ in range(2)]
    for i in range(MOST_PER_USER + 2):
        greedy[i % 2].load(copied(library, shared / str(i) / "libcuda.so.1"))
    watch.look_fully(2)
    assert watch.copies.count == MOST_PER_USER
    assert watch.copies.beyond_cap
    assert any("60001" in note for note in watch.notes)
    other = copied(library, shared / "other" / "libcuda.so.1")
    modest = start(other, *as_user(60002))
    assert watch.look() == MOST_PER_USER + 1
    modest.call(other, 101)
    assert watch.calls() == 101  # he may not write to the own's state
