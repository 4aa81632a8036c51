"""Where a shared library keeps a function, and where in it a probe is cheapest.

The file belongs to another process and may be anything: every number read from it is checked
against the file's size before use, sizes are bounded, and whatever is malformed raises
NotALibraryError. Only the dynamic symbol table is read, by pread, never by executing or mapping it.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_HEADER = 64  # bytes, and no code: gpubpf.bpf.marker relies on it that nothing is probed there
_MOST_HEADERS = 4096
_MOST_SEGMENTS = 64  # executable ones; a library has one or two
_MOST_TABLE_BYTES = 1 << 20  # dynsym or dynstr; libcuda's are about 20 KiB

_PT_LOAD = 1
_PF_X = 1
_SHT_DYNSYM = 11
_STT_FUNC = 2
_MACHINES = {62: "x86_64", 183: "aarch64"}


class NotALibraryError(Exception):
    """The file is no 64-bit ELF shared library that could be probed."""


@dataclass(frozen=True, slots=True)
class ProbePoint:
    offset: int  # in the file
    at: str  # "stub+10" or "entry"


@dataclass(frozen=True, slots=True)
class _Segment:
    offset: int
    address: int
    size: int


def probe_points(fd: int, names: Collection[str]) -> Mapping[str, ProbePoint]:
    """The probe points of those of `names` that the library exports."""
    size = os.fstat(fd).st_size
    machine, segments, symbols, strings = _headers(fd, size)
    points: dict[str, ProbePoint] = {}
    for name, address in _functions(symbols, strings, names):
        offset = _file_offset(segments, address)
        if offset is not None and offset >= _HEADER:
            points[name] = _cheapest(fd, offset, machine)
    return points


def _read(fd: int, offset: int, length: int, size: int) -> bytes:
    if offset < 0 or length < 0 or length > _MOST_TABLE_BYTES or offset + length > size:
        raise NotALibraryError("a header points outside of the file")
    data = os.pread(fd, length, offset)
    if len(data) != length:
        raise NotALibraryError("the file is shorter than it says")
    return data


def _headers(fd: int, size: int) -> tuple[str, list[_Segment], bytes, bytes]:
    ident = _read(fd, 0, _HEADER, size)
    if ident[:7] != b"\x7fELF\x02\x01\x01":
        raise NotALibraryError("not a 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", ident, 16)
    if kind != 3 or machine not in _MACHINES:
        raise NotALibraryError("not a shared library for x86-64 or arm64")
    phoff, shoff = struct.unpack_from("<QQ", ident, 32)
    phsize, phnum, shsize, shnum = struct.unpack_from("<HHHH", ident, 54)
    if phsize != 56 or shsize != 64 or not 0 < phnum <= _MOST_HEADERS or shnum > _MOST_HEADERS:
        raise NotALibraryError("its header tables have impossible sizes")

    segments = []
    for kind, flags, offset, address, _, filesz, _, _ in struct.iter_unpack(
        "<IIQQQQQQ", _read(fd, phoff, 56 * phnum, size)
    ):
        if kind == _PT_LOAD:
            if offset + filesz > size:
                raise NotALibraryError("a segment lies outside of the file")
            if flags & _PF_X:
                segments.append(_Segment(offset, address, filesz))
    if len(segments) > _MOST_SEGMENTS:
        raise NotALibraryError("it has too many executable segments")

    sections = list(struct.iter_unpack("<IIQQQQIIQQ", _read(fd, shoff, 64 * shnum, size)))
    for section in sections:
        if section[1] == _SHT_DYNSYM and section[6] < len(sections):
            names = sections[section[6]]
            symbols = _read(fd, section[4], section[5] - section[5] % 24, size)
            return _MACHINES[machine], segments, symbols, _read(fd, names[4], names[5], size)
    raise NotALibraryError("it has no dynamic symbol table")


def _functions(symbols: bytes, strings: bytes, names: Collection[str]) -> list[tuple[str, int]]:
    wanted = {name.encode() for name in names}
    longest = max(map(len, wanted), default=0) + 1
    found = []
    for name_at, info, _, section, address, _ in struct.iter_unpack("<IBBHQQ", symbols):
        if info & 0xF == _STT_FUNC and section and strings.startswith(b"cu", name_at):
            name = strings[name_at : name_at + longest].partition(b"\0")[0]
            if name in wanted:
                wanted.remove(name)  # the first definition counts
                found.append((name.decode("ascii"), address))
    return found


def _file_offset(segments: list[_Segment], address: int) -> int | None:
    for s in segments:
        if s.address <= address < s.address + s.size:
            return address - s.address + s.offset
    return None


_STUB = re.compile(
    rb"\x81\x3d....\x00\xba\x1c\x32"  # +0   cmpl $0x321cba00, x(%rip)
    rb"\x74."  # +10  je
    rb"(?:\x40?\x0f[\xb6\xb7][\xf6\xd2])?"  # cuMemsetD8 and D16: movzx of the value
    rb"\xff\x25",  # jmp *table(%rip)
    re.DOTALL,
)


def _cheapest(fd: int, offset: int, machine: str) -> ProbePoint:
    """The stub's `je`, if the function is exactly NVIDIA's stub, else its first instruction.

    The kernel emulates a relative jump; most other instructions cost a second trap, 3 to 15 times
    as much. Up to the `je` at +10 the stub only compares a constant with a global: arguments,
    stack pointer and return address are still the caller's. Any other bytes get an entry probe: a
    breakpoint in the middle of an instruction would corrupt the program. All the probed exports of
    driver 535 match.
    """
    if machine == "x86_64" and _STUB.match(os.pread(fd, 18, offset)):
        return ProbePoint(offset + 10, "stub+10")
    return ProbePoint(offset, "entry")
