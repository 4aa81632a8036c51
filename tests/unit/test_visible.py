"""gpubpf.visible: how CUDA reads CUDA_VISIBLE_DEVICES, and reading what processes make of /proc."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf import visible
from gpubpf.visible import (
    UNREADABLE,
    GpuIdentity,
    Names,
    Reader,
    Surroundings,
    boards,
    in_pci_order,
    names,
    pci_address,
    positions,
)

BOARDS = tuple(
    GpuIdentity(index, uuid, "NVIDIA A100", f"00000000:{index + 1:02X}:00.0", index)
    for index, uuid in enumerate(
        (
            "GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1",
            "GPU-9e8d35e3-a134-0fdd-0e01-23811fdbd293",
            "GPU-e429a63e-c61c-4795-b757-5132caeb8e70",
            "GPU-eee1dfbc-0a0f-4ad8-5ff6-dc942a8b9d98",
        )
    )
)
G0, G1, G2, G3 = (board.uuid for board in BOARDS)
M1, M2 = "MIG-c788539f-c1ea-5a36-8b4d-9b07d024b1bb", "MIG-405bbda1-6b05-535f-9702-f95e8cd170ce"
SPLIT = GpuIdentity(4, "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "H", None, 4, True, (M1, M2))
OTHER = GpuIdentity(5, "GPU-0aa11ebd-627f-af3f-1a0d-4e1fd92fd7b0", "H", None, 5, True, ("MIG-77",))
NODE = (*BOARDS, SPLIT, OTHER)


def by_index(text: str | None, **more: str) -> list[int]:
    surroundings = Surroundings(True, text, **more)  # type: ignore[arg-type]
    found = positions(surroundings, boards(surroundings, BOARDS))
    return [place.board.index for place in found]


def by_name(text: str | None) -> list[str] | None:
    """What the first ordinals are; '*' at the end where all are the same board."""
    found = names(Surroundings(True, text), NODE, visible.Boards(NODE, False))
    if found is None:
        return None
    uuids = [place.uuid for place in found.places]
    return [*uuids, found.all_on.uuid, "*"] if found.all_on else uuids


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,1", [2, 1]),
        ("0,2,-1,1", [0, 2]),  # the Programming Guide's own example
        ("0, 1, 2, -1, 3", [0, 1, 2]),
        ("0,1,2,-1,0", [0, 1, 2]),  # repeated after the end
        ("0, 1, 2, 1", []),  # repeated before it
        ("0,+0", []),
        (" 1 , 0 ", [1, 0]),
        ("2, +3, -0, 1", [2, 3]),
        ("0,9,1", [0]),
        ("0,,1", [0]),
        ("0,", [0]),
        (",0", []),
        ("3,2,two,one", [3, 2]),
        ("one,two,3", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1gpu2,2ampere", []),  # strtoul would say 1, 2
        ("0,01", [0]),  # octal?
        ("0x1", []),
        ("0;1", []),
        ("0\n", []),
        ("٣", []),  # a digit to Python
        ("9" * 100, []),
        (f"0,{G1}", [0]),
        ("0," + " " * 5000, []),
    ],
)
def test_indices(text: str | None, expected: list[int]) -> None:
    assert by_index(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("0", None),
        (f"0,{G1}", None),
        (f"{G2},{G0}", [G2, G0]),
        ("GPU-9942190a,GPU-e4", [G0, G2]),
        ("GPU-9942190a, GPU-e4 ", [G0, G2]),
        ("GPU-9942190A", [G0]),
        ("gpu-9942190a", None),
        ("GPU-9", []),  # of two
        ("GPU-e4,GPU-9,GPU-eee", [G2]),
        ("GPU-", []),
        (f"{G2},GPU-none,{G0}", [G2]),
        (f"{G2},0,1", [G2]),  # indices are of no use in a list of UUIDs
        (f"{G2},{G0},GPU-e4", []),  # repeated
        (f"{G2},,{G2}", [G2]),
        (G2 + "0", []),
        (f"{G2},\ufffd", [G2]),
        (M1, [M1]),
        ("MIG-c788", [M1]),
        ("MIG-", []),
        (f"{M1},{M2}", [SPLIT.uuid, "*"]),  # one of them, or both: by driver
        (f"{M1},{M1}", []),
        (f"{M1},MIG-77", []),
        (f"{M1},{G0}", []),
        (f"{G0},{M1}", []),
        (f"{G0},MIG-none", []),
        (SPLIT.uuid, [SPLIT.uuid, "*"]),
        (f"{G0},{SPLIT.uuid}", []),
        (f"MIG-{SPLIT.uuid}/1/0", [SPLIT.uuid, "*"]),  # before driver 470
        ("MIG-GPU-none/1/0", []),
        (",".join([G0] + ["GPU-e4"] * 1000), []),
    ],
)
def test_names(text: str | None, expected: list[str] | None) -> None:
    assert by_name(text) == expected


def test_at() -> None:
    found = names(Surroundings(True, f"{G2},{G0}"), NODE, None)
    assert found is not None
    assert [found.at(n) and found.at(n).uuid for n in (-1, 0, 1, 2)] == [None, G2, G0, None]  # type: ignore[union-attr]
    assert Names().at(0) is None


def test_a_prefix_is_not_enough_where_boards_are_hidden() -> None:
    assert names(Surroundings(True, "GPU-e4"), NODE, None) == Names()


def test_the_order_is_known_or_nothing_is() -> None:
    faster = GpuIdentity(9, "GPU-f", "NVIDIA B200", "00000000:09:00.0", 9)
    all_ = visible.Boards((*BOARDS, faster), False)
    assert positions(Surroundings(True), all_) == ()
    assert positions(Surroundings(True, order="FASTEST_FIRST"), all_) == ()
    assert positions(Surroundings(True, order="pci_bus_id"), all_) == ()
    assert len(positions(Surroundings(True, order="PCI_BUS_ID"), all_)) == 5
    nowhere = GpuIdentity(9, "GPU-f", "NVIDIA A100", None, 9)
    assert positions(Surroundings(True), visible.Boards((*BOARDS, nowhere), False)) == ()
    assert len(positions(Surroundings(True), visible.Boards((nowhere,), False))) == 1
    twin = GpuIdentity(9, "GPU-f", "NVIDIA A100", "00000000:01:00.0", 9)
    assert positions(Surroundings(True), visible.Boards((*BOARDS, twin), False)) == ()
    assert positions(Surroundings(True), visible.Boards((*BOARDS, SPLIT), False)) == ()
    assert in_pci_order(reversed(BOARDS)) == BOARDS


@pytest.mark.parametrize(
    ("minors", "expected"),
    [(None, [0, 1, 2, 3]), ((), [0, 1, 2, 3]), ((1, 3), [1, 3]), ((0, 1, 2, 3), [0, 1, 2, 3])],
)
def test_boards_in_dev(minors: tuple[int, ...] | None, expected: list[int]) -> None:
    seen = None if minors is None else frozenset(minors)
    there = boards(Surroundings(True, minors=seen), BOARDS)
    assert there is not None
    assert [board.index for board in there.devices] == expected
    assert there.seen == bool(minors)


def test_boards_that_nvml_does_not_show() -> None:
    assert boards(Surroundings(True, minors=frozenset({0, 7})), BOARDS) is None
    unknown = GpuIdentity(9, "GPU-f", "x")
    there = boards(Surroundings(True, minors=frozenset({0})), (*BOARDS, unknown))
    assert there == visible.Boards((*BOARDS, unknown), False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:3B:00.0", (0, 0x3B, 0, 0)),
        ("0000:3b:00.0", (0, 0x3B, 0, 0)),
        ("0000:3b:00.0\0", (0, 0x3B, 0, 0)),
        ("10000:01:1f.7", (0x10000, 1, 0x1F, 7)),
        ("3b:00.0", None),
        ("0000:3b:00", None),
        ("0000:3b:0", None),
        ("0000:3b:00.0 ", None),
        ("0000:3b:00.0\n", None),
        ("0000:٣b:00.0", None),
        ("", None),
        (None, None),
    ],
)
def test_pci_address(text: str | None, expected: tuple[int, ...] | None) -> None:
    assert pci_address(text) == expected


@given(st.none() | st.text(), st.none() | st.text())
def test_no_text_is_too_odd(text: str | None, order: str | None) -> None:
    surroundings = Surroundings(True, text, order)
    there = boards(surroundings, NODE)
    named = names(surroundings, NODE, there)
    first = named.at(0) if named else None
    assert first is None or first.board in NODE
    assert set(positions(surroundings, there)) <= set(positions(Surroundings(True), there))
    pci_address(text)


# --- reading -------------------------------------------------------------------------------------


def process(root: Path, environment: bytes | None, pid: int = 7) -> Path:
    """A process in a /proc of files, with its own root and /dev."""
    path = root / str(pid)
    (path / "root" / "dev").mkdir(parents=True)
    if environment is not None:
        (path / "environ").write_bytes(environment)
    return path


@pytest.fixture
def node(tmp_path: Path) -> Callable[[str, int, int], None]:
    def make(name: str, major: int, minor: int) -> None:
        path = tmp_path / "7" / "root" / "dev" / name
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        except PermissionError:
            pytest.skip("no device files can be made here")

    return make


def test_variables(tmp_path: Path) -> None:
    process(
        tmp_path, b"A=1\0CUDA_VISIBLE_DEVICES=0,1\0CUDA_DEVICE_ORDER=PCI_BUS_ID\0B=x=y\nz\0C=\0"
    )
    assert Reader(str(tmp_path)).read(7) == Surroundings(True, "0,1", "PCI_BUS_ID", frozenset())


@pytest.mark.parametrize(
    ("environment", "readable", "value"),
    [
        (b"A=1\0", True, None),
        (b"CUDA_VISIBLE_DEVICES=\0", True, ""),
        (b"CUDA_VISIBLE_DEVICES=3\0CUDA_VISIBLE_DEVICES=4\0", True, "3"),
        (b"XCUDA_VISIBLE_DEVICES=3\0", True, None),
        (b"A=\xff\xfe\0CUDA_VISIBLE_DEVICES=0\xff,\xc3\xa9\0", True, "0\ufffd,\ufffd\ufffd"),
        (b"CUDA_VISIBLE_DEVICES=0," + b" " * 9999 + b"\0", True, "0," + " " * 4095),
        (b"", False, None),  # ending, or a kernel thread
        (b"\0" * 100, False, None),  # setproctitle
        (b"orker: idle\0\0\0\0\0CUDA_VISIBLE_DEVICES=3\0", False, None),
        (b"A=1\0title\0CUDA_VISIBLE_DEVICES=3\0", False, None),
        (b" " * 100, False, None),
        (b"A=1\0CUDA_VISIBLE_DEVICES=3", False, None),  # cut
        (b"=1\0", False, None),
        (b"A=" + b"x" * visible.LARGEST + b"\0", False, None),
        (None, False, None),
    ],
)
def test_environments(
    tmp_path: Path, environment: bytes | None, readable: bool, value: str | None
) -> None:
    process(tmp_path, environment)
    surroundings = Reader(str(tmp_path)).read(7)
    assert (surroundings.readable, surroundings.visible) == (readable, value)
    assert surroundings.minors == frozenset()  # read all the same


def test_device_files(tmp_path: Path, node: Callable[[str, int, int], None]) -> None:
    process(tmp_path, b"A=1\0")
    for name in ("nvidiactl", "nvidia-uvm", "nvidia01", "xnvidia1"):
        (tmp_path / "7" / "root" / "dev" / name).touch()
    (tmp_path / "7" / "root" / "dev" / "nvidia-caps").mkdir()
    node("nvidia2", 195, 2)
    node("nvidia10", 195, 10)
    assert Reader(str(tmp_path)).read(7).minors == frozenset({2, 10})


@pytest.mark.parametrize(("major", "minor"), [(195, 3), (1, 2)])
def test_a_device_file_of_another_name(
    tmp_path: Path, node: Callable[[str, int, int], None], major: int, minor: int
) -> None:
    process(tmp_path, b"A=1\0")
    node("nvidia1", 195, 1)
    node("nvidia2", major, minor)
    assert Reader(str(tmp_path)).read(7) == Surroundings(True)


def test_a_link_to_a_device_file(tmp_path: Path, node: Callable[[str, int, int], None]) -> None:
    process(tmp_path, b"A=1\0")
    node("x", 195, 0)
    (tmp_path / "7" / "root" / "dev" / "nvidia0").symlink_to("x")
    assert Reader(str(tmp_path)).read(7).minors is None


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = process(tmp_path, b"A=1\0")
    (path / "root" / "dev" / "nvidia0").symlink_to("/dev/null")
    assert Reader(str(tmp_path)).read(7).minors is None
    (path / "root" / "dev" / "nvidia0").unlink()
    (path / "root" / "dev").rmdir()
    (path / "root" / "dev").symlink_to("/dev")
    assert Reader(str(tmp_path)).read(7).minors is None
    (path / "environ").unlink()
    (path / "environ").symlink_to("/proc/self/environ")
    assert Reader(str(tmp_path)).read(7) == UNREADABLE


def test_other_kinds_of_files(tmp_path: Path) -> None:
    path = process(tmp_path, None)
    os.mkfifo(path / "environ")
    began = time.monotonic()
    assert not Reader(str(tmp_path)).read(7).readable
    assert time.monotonic() - began < 0.15  # it didn't wait for a writer
    (path / "environ").unlink()
    (path / "environ").mkdir()
    assert not Reader(str(tmp_path)).read(7).readable


def test_a_dev_full_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible, "ENTRIES", 10)
    path = process(tmp_path, b"A=1\0")
    for number in range(11):
        (path / "root" / "dev" / f"x{number}").touch()
    assert Reader(str(tmp_path)).read(7).minors is None


def test_nobody_there(tmp_path: Path) -> None:
    assert Reader(str(tmp_path)).read(7) == UNREADABLE
    assert Reader(str(tmp_path / "none")).read(7) == UNREADABLE
    assert Reader().read(0) == UNREADABLE
    assert Reader().read(2**40) == UNREADABLE


def test_nothing_is_left_open(tmp_path: Path) -> None:
    path = process(tmp_path, b"A=1\0", 8)
    (path / "root" / "dev" / "nvidia0").touch()
    process(tmp_path, None)
    reader = Reader(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    for pid in (7, 8, 9):
        reader.read(pid)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, b"A=1\0")
    go = threading.Event()
    real = visible.environment_of

    def hang(descriptor: int) -> dict[bytes, bytes] | None:
        go.wait(10)
        return real(descriptor)

    monkeypatch.setattr(visible, "environment_of", hang)
    reader = Reader(str(tmp_path), seconds=0.05)
    began = time.monotonic()
    assert [reader.read(7), reader.read(7)] == [UNREADABLE] * 2
    assert time.monotonic() - began < 1
    go.set()
    for _ in range(100):
        if reader.read(7).readable:
            break
        time.sleep(0.02)
    assert reader.read(7).readable


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code + "; print(flush=True); input()"]
        environment = {**os.environ, **variables}
        pipe = subprocess.PIPE
        one = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
        started.append(one)
        assert one.stdout is not None
        one.stdout.readline()
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_a_real_process(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    code = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = '5'"
    one = child(code, CUDA_VISIBLE_DEVICES="1,0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    surroundings = Reader().read(one.pid)
    expected = ("1,0", "PCI_BUS_ID")  # that it set it later can't be seen
    assert (surroundings.visible, surroundings.order) == expected
    one.kill()
    one.wait()
    assert Reader().read(one.pid) == UNREADABLE


def test_a_zombie(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    one = child("pass", CUDA_VISIBLE_DEVICES="1")
    one.kill()
    while b") Z " not in Path(f"/proc/{one.pid}/stat").read_bytes():
        time.sleep(0.01)
    assert Reader().read(one.pid) == UNREADABLE
