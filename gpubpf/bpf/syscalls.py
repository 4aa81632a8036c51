"""The few kernel calls that the agent makes itself: bpf(2) and perf_event_open(2).

Raw calls instead of a library: bcc stays in the loader child (its LLVM costs 60 MiB), and its
Python passes one argument too few to its own attach function. Structures are from the kernel's
include/uapi/linux/bpf.h and perf_event.h. Every function raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_NUMBERS = {"x86_64": (321, 298), "aarch64": (280, 241)}  # bpf, perf_event_open
_SYS_BPF, _SYS_PERF_EVENT_OPEN = _NUMBERS.get(os.uname().machine, (-1, -1))

MAP_LOOKUP_ELEM = 1
MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
PROG_LOAD = 5
RAW_TRACEPOINT_OPEN = 17
MAP_LOOKUP_BATCH = 24
MAP_LOOKUP_AND_DELETE_BATCH = 25
LINK_CREATE = 28

PROG_TYPE_KPROBE = 2
TRACE_UPROBE_MULTI = 48  # enum bpf_attach_type
PERF_EVENT_ATTACH = 41
UPROBE_MULTI_RETURN = 1

_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_ATTR_SIZE = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    return _call(
        _SYS_BPF, ctypes.c_int(command), attributes, ctypes.c_uint(ctypes.sizeof(attributes))
    )


def _attributes(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    packed = struct.pack(layout, *values)
    # The kernel takes a longer structure if the rest is zero; 64 bytes hold all that we use.
    return ctypes.create_string_buffer(packed, max(len(packed), 64))


def map_lookup(fd: int, key: bytes, value: ctypes.Array[ctypes.c_char]) -> None:
    """Copies the value of `key` into `value` (for a per-CPU map: of every possible CPU)."""
    buffer = ctypes.create_string_buffer(key, len(key))
    bpf(
        MAP_LOOKUP_ELEM,
        _attributes("IxxxxQQQ", fd, ctypes.addressof(buffer), ctypes.addressof(value), 0),
    )


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Sets the value of `key`, whether or not it is there."""
    buffer = ctypes.create_string_buffer(key, len(key))
    new = ctypes.create_string_buffer(value, len(value))
    bpf(
        MAP_UPDATE_ELEM,
        _attributes("IxxxxQQQ", fd, ctypes.addressof(buffer), ctypes.addressof(new), 0),
    )


def map_delete(fd: int, key: bytes) -> None:
    buffer = ctypes.create_string_buffer(key, len(key))
    bpf(MAP_DELETE_ELEM, _attributes("IxxxxQQQ", fd, ctypes.addressof(buffer), 0, 0))


class Batch:
    """Reads whole hash maps, a batch at a time, into one buffer that is kept.

    A hash is walked bucket by bucket: an entry that is there during the whole walk is seen
    exactly once, whatever else comes and goes.
    """

    def __init__(self, fd: int, key_size: int, value_size: int, entries: int = 128) -> None:
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size
        self._resize(entries)

    def _resize(self, entries: int) -> None:
        self._entries = entries
        self._keys = ctypes.create_string_buffer(self.key_size * entries)
        self._values = ctypes.create_string_buffer(self.value_size * entries)
        self._cursor = ctypes.create_string_buffer(max(8, self.key_size))

    def read(self, *, delete: bool = False) -> list[tuple[bytes, bytes]]:
        """Every (key, value); with `delete`, each is removed as it is read."""
        command = MAP_LOOKUP_AND_DELETE_BATCH if delete else MAP_LOOKUP_BATCH
        rows: list[tuple[bytes, bytes]] = []
        first = True
        while True:
            attributes = _attributes(
                "QQQQIIQQ",
                0 if first else ctypes.addressof(self._cursor),
                ctypes.addressof(self._cursor),
                ctypes.addressof(self._keys),
                ctypes.addressof(self._values),
                self._entries,
                self.fd,
                0,
                0,
            )
            last = False
            try:
                bpf(command, attributes)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # a bucket holds more than the buffer
                    self._resize(self._entries * 2)
                    if first:
                        continue
                    if delete:  # what was deleted is in `rows`: a new walk finds the rest
                        return rows + self.read(delete=True)
                    return self.read()
                if error.errno != errno.ENOENT:  # ENOENT: this was the last batch
                    raise
                last = True
            (count,) = struct.unpack_from("I", attributes, 32)
            keys, values = self._keys.raw, memoryview(self._values)
            for i in range(count):
                key = keys[i * self.key_size : (i + 1) * self.key_size]
                value = values[i * self.value_size : (i + 1) * self.value_size]
                rows.append((key, bytes(value)))
            if last:
                return rows
            first = False


def load_nothing(expected_attach_type: int = 0) -> int:
    """Loads `return 0` as an uprobe program: the smallest test of what this kernel and these
    privileges allow. Returns a file descriptor."""
    instructions = ctypes.create_string_buffer(
        struct.pack("BBhi", 0xB7, 0, 0, 0) + struct.pack("BBhi", 0x95, 0, 0, 0), 16
    )
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "IIQQIIQII16sII",
            PROG_TYPE_KPROBE,
            2,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            0,
            0,
            0,
            0,
            0,
            b"gpubpf_nothing",
            0,
            expected_attach_type,
        ),
        128,
    )
    return bpf(PROG_LOAD, attributes)


def link_uprobe_multi(
    program: int,
    path: bytes,
    offsets: list[int],
    cookies: list[int],
    *,
    returns: bool,
    pid: int = 0,
) -> int:
    """One link from a program to many offsets of a file (Linux 6.6), in one process or (pid 0) in
    all."""
    where = (ctypes.c_uint64 * len(offsets))(*offsets)
    what = (ctypes.c_uint64 * len(cookies))(*cookies)
    name = ctypes.create_string_buffer(path)
    return bpf(
        LINK_CREATE,
        _attributes(
            "IIIIQQQQIIII",
            program,
            0,
            TRACE_UPROBE_MULTI,
            0,
            ctypes.addressof(name),
            ctypes.addressof(where),
            0,
            ctypes.addressof(what) if cookies else 0,
            len(offsets),
            UPROBE_MULTI_RETURN if returns else 0,
            pid,
            0,
        ),
    )


def link_raw_tracepoint(program: int, name: str) -> int:
    buffer = ctypes.create_string_buffer(name.encode())
    return bpf(RAW_TRACEPOINT_OPEN, _attributes("QIxxxx", ctypes.addressof(buffer), program))


def uprobe_event_type(sys_root: str = "/sys") -> tuple[int, int]:
    """The dynamic PMU type of uprobes, and the bit of `config` that asks for a return probe."""
    folder = os.path.join(sys_root, "bus/event_source/devices/uprobe")
    with open(os.path.join(folder, "type"), encoding="ascii") as file:
        kind = int(file.read())
    with open(os.path.join(folder, "format/retprobe"), encoding="ascii") as file:
        bit = int(file.read().strip().removeprefix("config:"))
    return kind, bit


def uprobe_event(path: bytes, offset: int, *, returns: bool, pid: int = -1) -> int:
    """A perf event on an offset of a file, in one process or (pid -1) in all, on every CPU. Its
    breakpoint is there as long as it is open; a program is to be set."""
    kind, bit = uprobe_event_type()
    name = ctypes.create_string_buffer(path)
    attributes = ctypes.create_string_buffer(
        # type, size, config, period, sample_type, read_format, flags, wakeup, bp_type,
        # config1 (path), config2 (offset)
        struct.pack(
            "IIQQQQQIIQQ",
            kind,
            _PERF_ATTR_SIZE,
            (1 << bit) if returns else 0,
            *(0, 0, 0, 0, 0, 0),
            ctypes.addressof(name),
            offset,
        ),
        _PERF_ATTR_SIZE,
    )
    return _call(
        _SYS_PERF_EVENT_OPEN,
        attributes,
        ctypes.c_int(pid),
        ctypes.c_int(0 if pid == -1 else -1),  # CPU: an event of all processes must name one
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
    )


def perf_uprobe(
    program: int, path: bytes, offset: int, cookie: int | None, *, returns: bool
) -> list[int]:
    """The older way: one perf event for each probe. Returns the descriptors to keep open."""
    event = uprobe_event(path, offset, returns=returns)
    try:
        if cookie is not None:  # BPF_LINK_CREATE on a perf event takes a cookie (Linux 5.15)
            link = bpf(
                LINK_CREATE, _attributes("IIIIQ", program, event, PERF_EVENT_ATTACH, 0, cookie)
            )
            kept = [link, event]
        else:
            _ioctl(event, _PERF_EVENT_IOC_SET_BPF, program)
            kept = [event]
        _ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return kept


def _ioctl(fd: int, request: int, argument: int) -> None:
    if _libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), ctypes.c_ulong(argument)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def has_uprobe_multi() -> bool:
    """Whether this kernel has uprobe.multi links (6.6) and this process may make them.

    A link to "/" can't be made: a kernel that knows the kind says EBADF (not a regular file),
    one that doesn't says EINVAL.
    """
    try:
        program = load_nothing(TRACE_UPROBE_MULTI)
    except OSError:
        return False
    try:
        link = link_uprobe_multi(program, b"/", [1], [], returns=False)
    except OSError as error:
        return error.errno == errno.EBADF
    finally:
        os.close(program)
    os.close(link)
    return True


def has_cookies(program: int) -> bool:
    """Whether perf events take attach cookies (5.15); `program` is any loaded program.

    With an invalid event a kernel that knows the link kind says EBADF, else EINVAL.
    """
    try:
        bpf(LINK_CREATE, _attributes("IIIIQ", program, 0xFFFFFFFF, PERF_EVENT_ATTACH, 0, 1))
    except OSError as error:
        return error.errno == errno.EBADF
    return True
