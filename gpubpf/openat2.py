"""openat2(2), which Python doesn't have: opens a path that leads only where it may."""

from __future__ import annotations

import ctypes
import os
import struct

# include/uapi/linux/openat2.h
NO_MAGICLINKS, NO_SYMLINKS, IN_ROOT, CACHED = 0x02, 0x04, 0x10, 0x20

_NUMBER = ctypes.c_long(437)  # on x86-64 and arm64 (asm-generic/unistd.h)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def openat2(directory: int, path: str | bytes, flags: int, resolve: int) -> int:
    """A descriptor of `path` as seen from `directory`. Raises OSError; ENOSYS or EPERM where the
    kernel, or a filter of system calls, doesn't know the call."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    fd: int = _libc.syscall(
        _NUMBER, ctypes.c_int(directory), os.fsencode(path), how, ctypes.c_size_t(len(how))
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def in_root(root: str, path: str, flags: int) -> int:
    """The same inside of `root`, which no symlink and no .. leaves: a symlink to / is to `root`."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2(directory, path, flags, IN_ROOT | NO_MAGICLINKS)
    finally:
        os.close(directory)
