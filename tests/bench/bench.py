"""What every benchmark is given: how much to do, where to build, the simulated node."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import real_library
from tests.fakegpu.node import Node

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
BUILD = ROOT / ".build"
DEVICES = 8
PROCESSES = 64


@dataclass(frozen=True, slots=True)
class Bench:
    """A run of the benchmarks. `scratch` is a folder of its own, removed at the end."""

    quick: bool
    scratch: Path

    def amount(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def library(self) -> Path:
        """A copy of the real libcuda: an inode of our own, which nothing else is probing."""
        copy = self.scratch / "libcuda.so.1"
        if not copy.exists():
            shutil.copy(real_library(), copy)
        return copy

    @contextlib.contextmanager
    def node(self, devices: int = DEVICES) -> Iterator[Node]:
        """A simulated node."""
        with Node(BUILD / "bench" / "fakegpu", self.scratch / "state", devices=devices) as node:
            yield node


def program(name: str) -> Path:
    """A C program of this folder, built where it isn't up to date."""
    source, built = HERE / f"{name}.c", BUILD / "bench" / name
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        built.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
        subprocess.run(["cc", *flags, "-o", built, source, "-ldl"], check=True)
    return built
