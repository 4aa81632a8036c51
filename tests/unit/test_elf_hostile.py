"""gpubpf.bpf.elf: files that lie. It refuses them, or finds points in them, and soon."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf.bpf.elf import NotALibraryError
from tests.unit.images import crafted, plain, points_of, stubs


def law(data: bytes) -> None:
    """Whatever the file says: refused, or points that lie in the file."""
    try:
        points = points_of(data)
    except NotALibraryError:
        return
    for point in points.values():
        assert 0 <= point.offset < len(data)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_truncated(data: st.DataObject) -> None:
    law(plain()[: data.draw(st.integers(0, len(plain())))])


@settings(max_examples=100, deadline=None)
@given(tail=st.binary(max_size=400), phnum=st.integers(0, 70000), shnum=st.integers(0, 70000))
def test_random_behind_a_true_start(tail: bytes, phnum: int, shnum: int) -> None:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    rest = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 64, 0, 64, 56, phnum & 0xFFFF, 64,
                       shnum & 0xFFFF, 0)  # fmt: skip
    law(ident + rest + tail)


NASTY = st.sampled_from((0, 1, 2, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)) | st.integers(
    0, 2**64 - 1
)


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0), NASTY), min_size=1, max_size=4))
def test_damaged_headers(changes: list[tuple[int, int]]) -> None:
    """Eight bytes of the ELF, program or section headers or of the symbol table are nonsense."""
    data = bytearray(stubs())
    shoff, phnum, shnum = (
        *struct.unpack_from("<Q", data, 40),
        *struct.unpack_from("<H", data, 56),
        *struct.unpack_from("<H", data, 60),
    )
    places = [*range(0, 64 + 56 * phnum, 4), *range(shoff, shoff + 64 * shnum, 4)]
    for place, value in changes:
        struct.pack_into("<Q", data, places[place % (len(places) - 1)], value)
    law(bytes(data))


@settings(max_examples=200, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0), st.integers(0, 7)), min_size=1, max_size=32))
def test_flipped_bits(flips: list[tuple[int, int]]) -> None:
    data = bytearray(plain())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    law(bytes(data))


def test_what_is_crafted_is_otherwise_well_formed() -> None:
    assert points_of(crafted(3, b"cuLaunchKernel\0")).keys() == {"cuLaunchKernel"}


@pytest.mark.parametrize(
    "symbol",
    [
        *((1, 1, 2048), (10, 1, 2048), (2, 0, 2048), (2, 1, 4096), (2, 1, 1 << 63)),
        *((2, 1, 0), (2, 1, 63)),
    ],
)
def test_what_is_no_function_of_this_file_is_not_found(symbol: tuple[int, int, int]) -> None:
    """Data, resolved at run time, defined elsewhere, outside of the code, in the file's header."""
    assert points_of(crafted(3, b"cuLaunchKernel\0", symbol=symbol)) == {}


@pytest.mark.parametrize("machine", [62, 183])
@pytest.mark.parametrize("segment", [1 << 40, 1 << 63, (1 << 64) - 1])
def test_a_segment_that_is_not_in_the_file(machine: int, segment: int) -> None:
    law(crafted(1, b"cuLaunchKernel\0", machine, segment))


CHILD = """
    import resource, sys
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))  # seconds; it takes a tenth
    resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
    from gpubpf.bpf.elf import NotALibraryError, probe_points
    with open(sys.argv[1], "rb") as file:
        try:
            print(len(probe_points(file.fileno(), {"cuLaunchKernel"})))
        except NotALibraryError:
            print("refused")
"""


def bounded(path: Path) -> str:
    """Examines the file with little time and memory."""
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), path], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.strip()


def test_many_symbols_over_one_endless_name(tmp_path: Path) -> None:
    (tmp_path / "lib").write_bytes(crafted(100_000, b"cu" + b"x" * (4 << 20)))
    assert bounded(tmp_path / "lib") in ("0", "refused")


def test_a_sparse_file_of_absurd_size(tmp_path: Path) -> None:
    """A terabyte that is on no disk, with tables as long as may be."""
    data = bytearray(crafted(1, b"cu\0"))
    for size in (60 << 20, 1 << 39):
        struct.pack_into("<Q", data, 120 + 64 + 32, size)  # the symbol table's
        with open(tmp_path / "lib", "wb") as file:
            file.write(data)
            file.truncate(1 << 40)
        assert bounded(tmp_path / "lib") in ("0", "1", "refused")
