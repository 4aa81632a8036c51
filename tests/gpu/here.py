"""Whether this machine has a GPU that the checks could use. Run as a program it says why not.

In a process of its own: whoever initialises the driver can't fork any more.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from ctypes import byref, c_char_p, c_int, c_uint
from typing import Any

_NO_DEVICE = 100


def look(path: str = "libcuda.so.1") -> str:
    """What is missing; empty: nothing is."""
    try:
        library: Any = ctypes.CDLL(path)
    except OSError:
        return f"there is no NVIDIA driver ({path} is not there)"
    code = library.cuInit(c_uint(0))
    count = c_int()
    if code == 0:
        code = library.cuDeviceGetCount(byref(count))
    if code == _NO_DEVICE or (code == 0 and count.value == 0):
        return "NVIDIA's libcuda is there, but no GPU that it can use"
    if code:
        name = c_char_p()
        known = library.cuGetErrorName(c_int(code), byref(name)) == 0 and name.value
        text = name.value.decode() if known and name.value else f"error {code}"
        return f"the NVIDIA driver doesn't work here (cuInit gives {text})"
    return ""


def refusal(path: str | None = None) -> str:
    """The same, asked in a child, as the line that a person sees."""
    command = [sys.executable, __file__, *([path] if path else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    why = done.stdout.strip() or (f"asking the driver ended with {done.returncode}")
    if done.returncode == 0:
        return ""
    return f"this needs a machine with an NVIDIA GPU: {why}. tests/run needs none"


if __name__ == "__main__":
    missing = look(*sys.argv[1:2])
    print(missing)
    sys.exit(bool(missing))
