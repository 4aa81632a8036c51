"""Whether two open files are one inode to the kernel's uprobes.

A probe belongs to the real inode. What stat says of a file can't tell which that is: two overlay
mounts over one file show two devices, and clones of a file system show the same inode number,
size and times on two files. So the kernel is asked. A marker, a probe that does nothing, is put on
the one file, and the agent looks whether its breakpoint shows where it has mapped the other.

* The marker is for the agent's own address space: no other process has it, whoever maps the
  files, and none of theirs is in ours. A breakpoint of another tool proves nothing; this does.
* It is on the first bytes of the file, which are an ELF file's signature: never code, so nobody
  else has a probe there. (They decode as an instruction, jg, or the kernel would refuse them.)
* The agent maps the page for reading; nothing there is ever executed. The kernel puts breakpoints
  into private mappings that could be made executable, so not into those of a noexec mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterator, Sequence

from gpubpf.bpf import syscalls

_SIGNATURE = b"\x7fELF"
_ENTRY = struct.Struct("Q")
_PRESENT, _FILE_PAGE = 1 << 63, 1 << 61
_PROT_READ, _MAP_PRIVATE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def same(fd: int, others: Sequence[int], *, multi: bool) -> list[bool | None]:
    """For each of `others`: is it the file that `fd` is open on? None where it can't be told.

    `multi`: by an uprobe.multi link, else by a perf event.
    """
    unknown: list[bool | None] = [None] * len(others)
    try:
        # Should somebody have a probe there after all, the marker proves nothing.
        blind = [_noexec(other) or _shows(other) for other in others]
        if _shows(fd):
            return unknown
        with _marked(fd, multi=multi):
            if not _shows(fd):  # it doesn't take
                return unknown
            return [
                None if hidden else _shows(other)
                for hidden, other in zip(blind, others, strict=True)
            ]
    except OSError:
        return unknown


@contextlib.contextmanager
def _marked(fd: int, *, multi: bool) -> Iterator[None]:
    kept = _by_link(fd) if multi else _by_event(fd)
    try:
        yield
    finally:
        os.close(kept)


def _by_link(fd: int) -> int:
    program = syscalls.load_nothing(syscalls.TRACE_UPROBE_MULTI)
    try:
        return syscalls.link_uprobe_multi(
            program, _path(fd), [0], [], returns=False, pid=os.getpid()
        )
    finally:
        os.close(program)


def _by_event(fd: int) -> int:
    """Before Linux 6.6. An event that is open has its breakpoint; it needs no program."""
    return syscalls.uprobe_event(_path(fd), 0, returns=False, pid=os.getpid())


def _path(fd: int) -> bytes:
    return f"/proc/self/fd/{fd}".encode()


def _shows(fd: int) -> bool:
    """Whether a mapping of the file has the breakpoint.

    The file's owner may write to it at any time, to pass for another's. But what is written shows
    in the file's own page, and the kernel puts a breakpoint into a copy of it, which is anonymous
    memory: nobody else turns a page of a mapping that is only read into one.
    """
    address = _libc.mmap(None, mmap.PAGESIZE, _PROT_READ, _MAP_PRIVATE, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return False
    try:
        # By a file and not by the address: what is beyond the library's end would kill the agent.
        return _read("mem", address, len(_SIGNATURE)) != _SIGNATURE and _anonymous(address)
    except OSError:
        return False
    finally:
        _libc.munmap(address, mmap.PAGESIZE)


def _anonymous(address: int) -> bool:
    """By the page's entry in pagemap (Documentation/admin-guide/mm/pagemap.rst)."""
    place = address // mmap.PAGESIZE * _ENTRY.size
    (entry,) = _ENTRY.unpack(_read("pagemap", place, _ENTRY.size))
    return bool(entry & _PRESENT) and not entry & _FILE_PAGE


def _read(name: str, place: int, size: int) -> bytes:
    fd = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, place)
    finally:
        os.close(fd)


def _noexec(fd: int) -> bool:
    return bool(os.fstatvfs(fd).f_flag & os.ST_NOEXEC)
