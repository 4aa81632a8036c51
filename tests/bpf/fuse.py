"""A file system of one file, served by a process that can be told not to answer any more.

    python -m tests.bpf.fuse FOLDER FILE

in a mount namespace of its own: mounts on FOLDER, shows FILE's content as FOLDER/libcuda.so.1,
prints the name of every request and the thread that made it, and answers until it is sent SIGUSR1.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 17, 18, 25, 26
NAMES = {LOOKUP: "lookup", GETATTR: "getattr", OPEN: "open", READ: "read", STATFS: "statfs"}
UNANSWERED = (FORGET, 36, 42)  # and interrupt, batch_forget
FILE = 2  # its node; 1 is the root


def attributes(node: int, size: int) -> bytes:
    mode = stat.S_IFREG | 0o755 if node == FILE else stat.S_IFDIR | 0o755
    # ino, size, blocks, three times, their nanoseconds, mode, links, user, group, rdev, blksize, …
    return struct.pack(
        "QQQQQQIIIIIIIIII", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
    )


def answer(operation: int, node: int, body: bytes, content: bytes) -> bytes | int:
    """What to reply with, or an error."""
    if operation == INIT:
        return struct.pack("IIIIHHIIHHIIIIII", 7, 31, 65536, 0, 16, 12, 65536, 1, *([0] * 8))
    if operation == LOOKUP:
        if body.rstrip(b"\0") != b"libcuda.so.1":
            return errno.ENOENT
        return struct.pack("QQQQII", FILE, 0, 0, 0, 0, 0) + attributes(FILE, len(content))
    if operation == GETATTR:
        return struct.pack("QII", 0, 0, 0) + attributes(node, len(content))
    if operation == OPEN:
        return struct.pack("QII", 1, 0, 0)
    if operation == READ:
        _, offset, size = struct.unpack_from("QQI", body)
        return content[offset : offset + size]
    if operation == STATFS:
        return struct.pack("QQQQQIIII", 1, 0, 0, 1, 0, 4096, 255, 4096, 0) + bytes(24)
    return b"" if operation in (RELEASE, FLUSH) else errno.ENOSYS


def serve(folder: str, content: bytes) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"simulated", folder.encode(), b"fuse.simulated", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    answering = True

    def hang(*_: object) -> None:
        nonlocal answering
        answering = False
        print("hangs", flush=True)

    signal.signal(signal.SIGUSR1, hang)
    print("serves", flush=True)
    while True:
        request = os.read(device, 1 << 20)
        _, operation, unique, node, _, _, thread, _ = struct.unpack_from("IIQQIIII", request)
        print(NAMES.get(operation, operation), thread, flush=True)
        if operation in UNANSWERED or not answering:
            continue
        reply = answer(operation, node, request[40:], content)
        error, data = (-reply, b"") if isinstance(reply, int) else (0, reply)
        os.write(device, struct.pack("IiQ", 16 + len(data), error, unique) + data)


if __name__ == "__main__":
    with open(sys.argv[2], "rb") as file:
        serve(sys.argv[1], file.read())
