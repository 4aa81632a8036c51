"""Whether the pointers that a libcuda hands out are its exports: what is probed is what is called.

The CUDA runtime and most frameworks get the driver's functions from cuGetProcAddress, not by name
from the dynamic linker. The library is asked in a child of its own: it is NVIDIA's code with
threads and signal handlers, and the agent never maps it. Only the node's own driver, found in the
usual places or named by the operator, may be given here, never a file that some process maps.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass

from gpubpf.bpf import elf

_TIMEOUT = 30.0  # seconds
_STREAMS = {"legacy": 1, "per-thread": 2}  # CU_GET_PROC_ADDRESS_*_DEFAULT_STREAM
_SUFFIX = re.compile(r"(_v\d+)?(_pt[sd][sz])?$")


@dataclass(frozen=True, slots=True)
class Pointer:
    """What the library answered for one function."""

    name: str  # as asked for, without _v2 and the like
    stream: str  # which default stream was asked for: legacy or per-thread
    export: str | None  # the probed export that the pointer is; None: it is none of them


def look_up(fd: int, names: Collection[str]) -> list[Pointer]:
    """The pointers that the library open at `fd` gives for these exports' plain names.

    Functions that it doesn't give are left out. Raises OSError, one line, when it can't be asked,
    and elf.NotALibrary.
    """
    points = elf.probe_points(fd, names)
    entries = {
        point.offset - (10 if point.at == "stub+10" else 0): name for name, point in points.items()
    }
    asked = sorted({_SUFFIX.sub("", name) for name in points})
    child = subprocess.run(
        [sys.executable, "-P", "-m", "gpubpf.pointers", str(fd)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        pass_fds=[fd],
        timeout=_TIMEOUT,
        check=False,
    )
    if child.returncode != 0:
        reason = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise OSError(f"asking the library failed: {reason[0]}")
    answers: list[tuple[str, str, int]] = json.loads(child.stdout)
    return [Pointer(name, stream, entries.get(offset)) for name, stream, offset in answers]


# --- the child ----------------------------------------------------------------------------------


def _mappings(inode: int) -> list[tuple[int, int, int]]:
    """(start, end, file offset) of what is mapped of this file here."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            span, _, offset, _, number, *_ = line.split(None, 5)
            if int(number) == inode:
                start, end = (int(part, 16) for part in span.split("-"))
                found.append((start, end, int(offset, 16)))
    return found


def _ask(fd: int, names: list[str]) -> list[tuple[str, str, int]]:
    """(name, stream, file offset or -1) of every function that the library knows."""
    library = ctypes.CDLL(f"/proc/self/fd/{fd}")
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))  # works without a GPU
    mappings = _mappings(os.fstat(fd).st_ino)
    newer = getattr(library, "cuGetProcAddress_v2", None)
    answers = []
    for name in names:
        for stream, flag in _STREAMS.items():
            pointer = ctypes.c_void_p()
            arguments = [
                name.encode(),
                ctypes.byref(pointer),
                ctypes.c_int(version.value or 12000),
                ctypes.c_uint64(flag),
            ]
            if newer is not None:
                code = newer(*arguments, None)
            else:
                code = library.cuGetProcAddress(*arguments)
            if code == 0 and pointer.value:
                places = [p for p in mappings if p[0] <= pointer.value < p[1]]
                offset = pointer.value - places[0][0] + places[0][2] if places else -1
                answers.append((name, stream, offset))
    return answers


def _end_with_parent() -> None:
    """Whatever the library does, this ends with its parent, or after a time."""
    pr_set_pdeathsig = 1  # include/uapi/linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    signal.alarm(int(_TIMEOUT))


def main() -> int:
    _end_with_parent()
    try:
        answers = _ask(int(sys.argv[1]), json.load(sys.stdin))
    except (OSError, AttributeError) as error:  # AttributeError: it has no cuGetProcAddress
        print(error, file=sys.stderr)
        return 1
    json.dump(answers, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
