"""Library files to examine: compiled here, and made up byte by byte."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from gpubpf.bpf.elf import ProbePoint, probe_points
from gpubpf.symbols import SYMBOLS

NAMES = frozenset(symbol.name for symbol in SYMBOLS)

# NVIDIA's stub; `widen` is what it does to the value of cuMemsetD8 and D16.
STUB = """
    .globl {name}
    .type {name}, @function
{name}:
    cmpl $0x321cba00, flag(%rip)
    je 1f
    {widen}
    jmp *table(%rip)
1:  ret
    .size {name}, . - {name}
"""
ASSEMBLY = """
    .data
flag: .long 0
table: .quad 0
    .text
    .p2align 5
""" + "".join(
    STUB.format(name=name, widen=widen)
    for name, widen in (
        ("cuLaunchKernel", ""),
        ("cuMemsetD8_v2", "movzbl %sil, %esi"),
        ("cuMemsetD16_v2", "movzwl %si, %esi"),
        ("cuMemsetD2D8_v2", "movzbl %dl, %edx"),
        ("cuMemsetD2D16_v2", "movzwl %dx, %edx"),
    )
)  # fmt: skip
PLAIN = """
int cuInit(void) { return 100; }
int cuLaunchKernel(void *f) { return f != 0; }
int cuMemAlloc_v2(void **p, unsigned long n) { return p != 0 && n; }
int cuMemFree_v2(void *p) { return p != 0; }
int cuMemFreeAsync(void *p) __attribute__((alias("cuMemFree_v2")));
int cuGraphLaunch;
static int cuMemcpy(void) { return 0; }
int cuMemcpyAsync(void);
int user(void) { return cuMemcpy() + cuMemcpyAsync(); }
"""


class Image(bytes):
    """A file's content. Hypothesis prints arguments."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def points_of(data: bytes) -> Mapping[str, ProbePoint]:
    fd = os.memfd_create("library")
    try:
        os.write(fd, data)
        return probe_points(fd, NAMES)
    finally:
        os.close(fd)


def points_at(path: Path | str) -> Mapping[str, ProbePoint]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return probe_points(fd, NAMES)
    finally:
        os.close(fd)


def build(folder: Path, name: str, source: str, *flags: str) -> Path:
    file = folder / name
    file.write_text(source)
    subprocess.run(["cc", "-O1", *flags, "-o", file.with_suffix(".out"), file], check=True)
    return file.with_suffix(".out")


@cache
def plain() -> Image:
    """Functions as a compiler makes them; small, for mutation."""
    flags = ("-shared", "-fPIC", "-nostdlib", "-Wl,-z,noseparate-code")
    with tempfile.TemporaryDirectory() as folder:
        return Image(build(Path(folder), "plain.c", PLAIN, *flags).read_bytes())


@cache
def stubs() -> Image:
    """Functions as NVIDIA's library exports them."""
    with tempfile.TemporaryDirectory() as folder:
        return Image(build(Path(folder), "stubs.s", ASSEMBLY, "-shared", "-nostdlib").read_bytes())


def crafted(
    symbols: int,
    strings: bytes,
    machine: int = 62,
    segment: int = 0,
    symbol: tuple[int, int, int] = (2, 1, 2048),
) -> bytes:
    """A library of one segment at address 0, whose symbols all have the same name.

    `symbol` is their type (2: a function), the section that defines them, and their address.
    """
    kind, section, address = symbol
    dynsym = struct.pack("<IBBHQQ", 0, kind, 0, section, address, 0) * symbols
    at = 64 + 56 + 3 * 64
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 120, 0, 64, 56, 1, 64, 3, 0
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", 1, 5, segment, 0, 0, 4096, 4096, 4096)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 0, 11, 0, 0, at, len(dynsym), 2, 0, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at + len(dynsym), len(strings), 0, 0, 1, 0)
    return (head + load + sections + dynsym + strings).ljust(4096, b"\0")
