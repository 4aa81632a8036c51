"""gpubpf.bpf.elf: where it would probe NVIDIA's library, and libraries compiled here."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from gpubpf.bpf.elf import NotALibraryError, ProbePoint
from tests.unit.images import NAMES, build, plain, points_at, points_of, stubs

LIBRARY = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"  # Debian's libcuda1, see tests/run

on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the stub is x86-64 code")


def symbols(path: str) -> dict[str, int]:
    """Name -> offset in the file, of the exported functions, by binutils."""
    headers = subprocess.check_output(["readelf", "-lW", path], text=True)
    rows = [line.split() for line in headers.splitlines() if line.lstrip().startswith("LOAD")]
    loads = [tuple(int(field, 16) for field in row[1:5]) for row in rows]
    found = {}
    table = subprocess.check_output(["nm", "-D", "--defined-only", path], text=True)
    for line in table.splitlines():
        value, kind, name = line.split()
        if kind == "T":
            for offset, address, _, size in loads:
                if address <= int(value, 16) < address + size:
                    found[name.partition("@")[0]] = int(value, 16) - address + offset
    return found


@on_x86_64
def test_every_probed_export_of_the_real_library_is_probed_at_its_je() -> None:
    exported = symbols(LIBRARY)
    expected = {
        name: ProbePoint(offset + 10, "stub+10")
        for name, offset in exported.items()
        if name in NAMES
    }
    assert points_at(LIBRARY) == expected
    assert len(expected) == len(NAMES) - 30  # what came after driver 535, see test_symbols


def test_plain_functions_are_probed_at_their_entry(tmp_path: Path) -> None:
    (tmp_path / "plain.so").write_bytes(plain())
    exported = symbols(str(tmp_path / "plain.so"))
    points = points_of(plain())
    # Not data, nor what is static or of another library.
    assert points.keys() == {
        "cuInit",
        "cuLaunchKernel",
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuMemFreeAsync",
    }
    for name, point in points.items():
        assert point == ProbePoint(exported[name], "entry")
    assert points["cuMemFreeAsync"].offset == points["cuMemFree_v2"].offset


def test_a_library_without_the_functions_has_no_points() -> None:
    assert points_of(plain().replace(b"cuLaunch", b"cuLounge")).keys() == points_of(
        plain()
    ).keys() - {"cuLaunchKernel"}
    assert points_of(plain().replace(b"cu", b"xy")) == {}


@on_x86_64
def test_stubs_compiled_here_are_probed_at_their_je() -> None:
    points = points_of(stubs())
    assert len(points) == 5
    for point in points.values():
        assert point.at == "stub+10"
        assert stubs()[point.offset] == 0x74


@on_x86_64
def test_a_stub_with_one_byte_changed_is_probed_at_its_entry() -> None:
    """Every byte but the displacement of the flag and how far the je jumps."""
    start = points_of(stubs())["cuLaunchKernel"].offset - 10
    for at in range(14):
        for flipped in (0x01, 0x80, 0xFF):
            data = bytearray(stubs())
            data[start + at] ^= flipped
            point = points_of(bytes(data))["cuLaunchKernel"]
            if at in (2, 3, 4, 5, 11):
                assert point == ProbePoint(start + 10, "stub+10")
            else:
                assert point == ProbePoint(start, "entry")


def test_other_machines_are_refused_and_arm64_is_probed_at_the_entry() -> None:
    for at, value in ((4, 1), (5, 2), (6, 0), (16, 2), (16, 1), (18, 3), (18, 40), (18, 243)):
        data = bytearray(plain())
        data[at] = value  # 32-bit, big-endian, executable, object, i386, arm, riscv
        with pytest.raises(NotALibraryError):
            points_of(bytes(data))
    arm = bytearray(stubs())
    arm[18] = 183
    assert {point.at for point in points_of(bytes(arm)).values()} == {"entry"}


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    program = build(tmp_path, "main.c", "int main(void) { return 0; }", "-no-pie")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("#!/bin/sh\n" * 100)
    for path in (program, tmp_path / "pipe", tmp_path / "empty", tmp_path / "text", "/dev/zero"):
        with pytest.raises(NotALibraryError):
            points_at(path)
    with pytest.raises((NotALibraryError, IsADirectoryError)):
        points_at(tmp_path)
