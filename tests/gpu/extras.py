"""EXTRAS: what `--with` installs, by the driver's major version of CUDA."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

CLIENTS = Path(__file__).parents[1] / "clients" / "requirements.txt"

EXTRAS: dict[str, Callable[[int], list[str]]] = {
    "torch": lambda cuda: ["torch"],
    "cupy": lambda cuda: [f"cupy-cuda{cuda}x"],
    "cupti": lambda cuda: [f"cupti-python>={cuda},<{cuda + 1}"],
    "cudart": lambda cuda: [
        "nvidia-cuda-runtime-cu12" if cuda == 12 else f"nvidia-cuda-runtime>={cuda},<{cuda + 1}"
    ],
    "clients": lambda cuda: ["--requirement", str(CLIENTS)],
}


def requirements(names: Iterable[str], cuda: int) -> list[str]:
    """pip's arguments for these names; what is no name is a requirement itself."""
    return [word for name in names for word in (EXTRAS[name](cuda) if name in EXTRAS else [name])]


def install(names: Iterable[str], cuda: int) -> str:
    """Into the Python that runs this. The error, one line; empty: it worked."""
    wanted = requirements(names, cuda)
    if not wanted:
        return ""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *wanted], stderr=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
    return "" if done.returncode == 0 else (lines or ["pip failed"])[0]
