"""The short-lived child that compiles and loads: the only importer of bcc.

It reads a request (JSON) from standard input, answers over the inherited Unix socket with one JSON
message and the file descriptors of maps and programs (SCM_RIGHTS), and ends. LLVM's memory, about
130 MiB at the peak, ends with it. Started by `gpubpf.bpf.load`, never by a person.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpubpf.bpf import program, syscalls
from gpubpf.symbols import Symbol, chosen

FAST = ["-g0", "-Xclang", "-disable-llvm-passes"]
"""bcc runs LLVM's passes over what clang made: clang's own and debug symbols are 40 % of the time,
and change next to nothing in the result."""

KERNEL_HEADERS_ERROR = "bcc could not compile the probes"


@contextmanager
def _kernel_source(path: str | None) -> Iterator[None]:
    """BCC_KERNEL_SOURCE tells bcc which headers to use; None leaves it to find the kernel's."""
    if path is not None:
        os.environ["BCC_KERNEL_SOURCE"] = path
    try:
        yield
    finally:
        os.environ.pop("BCC_KERNEL_SOURCE", None)


def _member_offset(btf: ctypes.CDLL, handle: int, structure: str, member: str) -> int | None:
    """Offset in bytes of a member of a kernel structure, from BTF (libbpf reads it).

    The layout of `struct btf_type` is the kernel's ABI (include/uapi/linux/btf.h).
    """
    kind_struct = 4
    index = btf.btf__find_by_name_kind(handle, structure.encode(), kind_struct)
    if index < 0:
        return None
    base = btf.btf__type_by_id(handle, index)
    info = ctypes.c_uint32.from_address(base + 4).value
    for i in range(info & 0xFFFF):
        entry = base + 12 + 12 * i
        name = btf.btf__name_by_offset(handle, ctypes.c_uint32.from_address(entry).value)
        if name == member.encode():
            offset = ctypes.c_uint32.from_address(entry + 8).value
            bits = offset & 0xFFFFFF if info >> 31 else offset  # high byte: bit-field size
            return bits // 8
    return None


_OFFSETS = (
    ("TASK_SIGNAL", "task_struct", "signal"),
    ("SIGNAL_LIVE", "signal_struct", "live"),
    ("TASK_REAL_PARENT", "task_struct", "real_parent"),
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_GROUP_LEADER", "task_struct", "group_leader"),
    ("TASK_START_BOOTTIME", "task_struct", "start_boottime"),
    ("TASK_SELF_EXEC_ID", "task_struct", "self_exec_id"),
    ("TASK_PARENT_EXEC_ID", "task_struct", "parent_exec_id"),
)


def kernel_offsets() -> dict[str, int]:
    """Where the running kernel keeps what `probes/` looks at: a process's last thread, its parent.
    Empty without BTF."""
    try:
        btf = ctypes.CDLL("libbpf.so.1")
    except OSError:
        return {}
    btf.btf__load_vmlinux_btf.restype = ctypes.c_void_p
    btf.btf__type_by_id.restype = ctypes.c_void_p
    btf.btf__name_by_offset.restype = ctypes.c_char_p
    btf.libbpf_get_error.restype = ctypes.c_long
    for name in ("btf__find_by_name_kind", "btf__type_by_id", "btf__name_by_offset", "btf__free"):
        getattr(btf, name).argtypes = {
            "btf__find_by_name_kind": [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32],
            "btf__type_by_id": [ctypes.c_void_p, ctypes.c_uint32],
            "btf__name_by_offset": [ctypes.c_void_p, ctypes.c_uint32],
            "btf__free": [ctypes.c_void_p],
        }[name]
    btf.libbpf_get_error.argtypes = [ctypes.c_void_p]
    handle = btf.btf__load_vmlinux_btf()
    if not handle or btf.libbpf_get_error(handle):
        return {}
    try:
        found = {
            name: _member_offset(btf, handle, structure, member)
            for name, structure, member in _OFFSETS
        }
    finally:
        btf.btf__free(handle)
    known = {name: offset for name, offset in found.items() if offset is not None}
    return known if len(known) == len(_OFFSETS) else {}


def _compile(symbols: tuple[Symbol, ...], request: dict[str, Any], offsets: dict[str, int]) -> Any:
    from bcc import BPF

    text = program.source(
        symbols,
        program.Sizes(**request["sizes"]),
        cookies=request["cookies"],
        offsets=offsets,
        births=request["births"],
    )
    failure: Exception | None = None
    for headers, flags in ((str(program.probes_folder() / "headers"), FAST), (None, [])):
        with _kernel_source(headers):
            try:
                return BPF(text=text, cflags=flags)
            except Exception as error:  # bcc raises plain Exception
                failure = error
    raise RuntimeError(f"{KERNEL_HEADERS_ERROR}: {failure}")


def load(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Compiles and loads; returns the answer and the descriptors that go with it, in order."""
    from bcc import BPF

    symbols = chosen(tuple(request["groups"]), request["attribution"])
    offsets = kernel_offsets()
    loaded = _compile(symbols, request, offsets)
    attach_type = syscalls.TRACE_UPROBE_MULTI if request["multi"] else -1
    programs: list[str] = []
    descriptors: list[int] = []
    for stub in program.stubs(symbols, cookies=request["cookies"]):
        function = loaded.load_func(stub.name.encode(), BPF.KPROBE, attach_type=attach_type)
        programs.append(stub.name)
        descriptors.append(function.fd)
    for name in program.TRACEPOINTS:
        function = loaded.load_func(name.encode(), BPF.RAW_TRACEPOINT)
        programs.append(name)
        descriptors.append(function.fd)
    maps: dict[str, dict[str, int]] = {}
    for name in program.MAPS:
        table = loaded[name.encode()]
        maps[name] = {
            "key_size": ctypes.sizeof(table.Key),
            "value_size": ctypes.sizeof(table.Leaf),
            "capacity": int(table.max_entries),
        }
        descriptors.append(table.map_fd)
    if request["births"]:
        descriptors.append(loaded[program.BIRTHS.encode()].map_fd)
    return {"programs": programs, "maps": maps, "tells_exits": bool(offsets)}, descriptors


def main() -> int:
    request = json.load(sys.stdin)
    channel = socket.socket(fileno=int(sys.argv[1]))
    try:
        answer, descriptors = load(request)
    except Exception as error:  # the parent turns it into one line for a person
        answer, descriptors = {"error": str(error) or type(error).__name__}, []
    answer["descriptors"] = len(descriptors)
    message = json.dumps(answer).encode()
    channel.sendall(len(message).to_bytes(4, "little") + message)
    for start in range(0, len(descriptors), program.MOST_DESCRIPTORS):
        socket.send_fds(channel, [b"."], descriptors[start : start + program.MOST_DESCRIPTORS])
    # Nothing to tidy: the kernel keeps what the parent holds. bcc's own tear-down is slow.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
