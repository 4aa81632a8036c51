"""Has the BPF programs compiled and loaded by a child and takes over their file descriptors."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpubpf.bpf import syscalls
from gpubpf.bpf.program import MOST_DESCRIPTORS, Sizes
from gpubpf.capabilities import effective, own_status, suffice_for_bpf
from gpubpf.errors import BpfError, PrivilegeError

_TIMEOUT = 120.0  # seconds; a loaded machine compiles slowly


@dataclass(frozen=True, slots=True)
class Map:
    fd: int
    key_size: int
    value_size: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Programs and maps in the kernel; they live as long as these descriptors are open."""

    programs: Mapping[str, int]
    maps: Mapping[str, Map]
    multi: bool  # attach by uprobe.multi links, else by perf events
    cookies: bool  # one program per shape, else one per function
    tells_exits: bool  # the kernel side moves ended processes aside (it has BTF)
    loader_peak_bytes: int  # peak memory of the child
    births: int | None = None  # the ring buffer that tells of first calls, if it was asked for

    def close(self) -> None:
        ring = () if self.births is None else (self.births,)
        for fd in (*self.programs.values(), *(m.fd for m in self.maps.values()), *ring):
            os.close(fd)


def check_privileges() -> None:
    """Raises PrivilegeError or BpfError when a trivial program can't be loaded."""
    try:
        os.close(syscalls.load_nothing())
    except OSError as error:
        if isinstance(error, PermissionError) and suffice_for_bpf(effective(own_status())):
            raise PrivilegeError(
                "may not load BPF programs, though it has the capabilities: let the container's "
                "seccomp filter (or security module) allow bpf and perf_event_open, or leave the "
                "user namespace"
            ) from None
        if isinstance(error, PermissionError):
            raise PrivilegeError(
                "may not load BPF programs: run gpubpf as root, or with CAP_BPF, CAP_PERFMON, "
                "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH (--probe none needs none of them)"
            ) from None
        raise BpfError(
            f"this kernel loads no uprobe programs ({error.strerror}): it needs Linux 5.8 or "
            "newer with CONFIG_BPF_SYSCALL and CONFIG_UPROBE_EVENTS"
        ) from None


def load(
    groups: tuple[str, ...],
    sizes: Sizes | None = None,
    *,
    multi: bool | None = None,
    attribution: bool = True,
    births: bool = False,
) -> Loaded:
    """Compiles and loads the programs of these probe groups, as `symbols.chosen` has them.

    `multi` is found out unless given; `births`: first calls are told at once (`bpf.births`).
    Raises PrivilegeError or BpfError.
    """
    check_privileges()
    use_multi = syscalls.has_uprobe_multi() if multi is None else multi
    cookies = use_multi or _perf_cookies()
    request = {
        "groups": groups,
        "attribution": attribution,
        "sizes": asdict(sizes or Sizes()),
        "multi": use_multi,
        "cookies": cookies,
        "births": births,
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    answer, descriptors = _run_child(request)
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
    programs = dict(zip(answer["programs"], descriptors, strict=False))
    maps = {
        name: Map(fd, about["key_size"], about["value_size"], about["capacity"])
        for (name, about), fd in zip(
            answer["maps"].items(), descriptors[len(programs) :], strict=not births
        )
    }
    ring = descriptors[-1] if births else None
    return Loaded(programs, maps, use_multi, cookies, answer["tells_exits"], peak, ring)


def _perf_cookies() -> bool:
    program = syscalls.load_nothing()
    try:
        return syscalls.has_cookies(program)
    finally:
        os.close(program)


def _run_child(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    ours, theirs = socket.socketpair()
    # No pipe: the verifier's log can be longer than one holds, and nobody reads it meanwhile.
    with ours, theirs, open(os.memfd_create("gpubpf-loader"), "w+b") as noise_file:
        ours.settimeout(_TIMEOUT)
        child = subprocess.Popen(
            # -P: what root runs is not decided by the directory it was started in.
            [sys.executable, "-P", "-m", "gpubpf.bpf.loader", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=noise_file,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
            answer, descriptors = _receive(ours)
        except (OSError, ValueError) as error:
            child.kill()
            answer, descriptors = {"error": f"the loader did not answer: {error}"}, []
        finally:
            child.wait()
        noise_file.seek(0)
        noise = noise_file.read(1 << 20).decode(errors="replace")
    if "error" in answer:
        raise BpfError(_explain(answer["error"], noise))
    return answer, descriptors


def _receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size = int.from_bytes(_exactly(channel, 4), "little")
    answer: dict[str, Any] = json.loads(_exactly(channel, size))
    descriptors: list[int] = []
    while len(descriptors) < answer["descriptors"]:
        message, some, _, _ = socket.recv_fds(channel, 1, MOST_DESCRIPTORS)
        descriptors += some
        if not message:
            for fd in descriptors:
                os.close(fd)
            raise OSError("it ended early")
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return answer, descriptors


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = channel.recv(size - len(data))
        if not part:
            raise OSError("it ended early")
        data += part
    return data


def _explain(error: str, noise: str) -> str:
    if "No module named 'bcc'" in error or "No module named 'bcc'" in noise:
        return (
            "python3-bpfcc (the bcc Python module) is not installed for "
            f"{sys.executable}: apt-get install python3-bpfcc, and use Debian's python3"
        )
    detail = next((line for line in noise.splitlines() if "error" in line.lower()), "")
    return f"could not load the probes: {error}" + (f" ({detail.strip()})" if detail else "")
