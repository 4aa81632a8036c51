"""A network of its own: default ports are free in it, whatever else runs on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_UP_AND_RUNNING = 0x1 | 0x40


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """The calling thread, and what it starts, are in a new network namespace with a loopback
    interface alone, which ends with the last of them."""
    library = ctypes.CDLL(None, use_errno=True)
    before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        if library.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare: no network namespace can be made")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sh14x", b"lo", _UP_AND_RUNNING)
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
        yield
    finally:
        library.setns(before, _CLONE_NEWNET)
        os.close(before)
