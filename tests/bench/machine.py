"""The machine that is measured on, and what its processes use of it."""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

_REAL_LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/aarch64-linux-gnu")


def real_library(name: str = "libcuda.so.1") -> Path:
    """NVIDIA's own library. Raises FileNotFoundError."""
    for folder in _REAL_LIBRARIES:
        path = Path(folder, name)
        if path.exists():
            return path.resolve()
    raise FileNotFoundError(f"{name} is not installed: the benchmarks need the real one")


def describe() -> str:
    """One paragraph: on which machine the figures were taken."""
    about = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", about, re.M)
    virtual = " of a virtual machine" if re.search(r"^flags.*\bhypervisor\b", about, re.M) else ""
    version = real_library().name.removeprefix("libcuda.so.")
    return (
        f"Measured on {os.cpu_count()} CPUs{virtual} ({model[1] if model else 'unknown model'}), "
        f"Linux {os.uname().release}, Python {platform.python_version()}, without a GPU: calls go "
        f"to NVIDIA's libcuda {version}, which has no device there, or to the simulated node. "
        f"Load average at the end: {os.getloadavg()[0]:.1f}. Ratios are taken inside one run, case "
        "after case in turn; they travel to other machines, absolute times do not."
    )


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, threads that have ended included, to the nanosecond."""
    # man 2 clock_getres: a process's CPU clock is ~pid << 3, plus 2 for the scheduler's time.
    return time.clock_gettime((~pid << 3) | 2)


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB. `private`: pages that no other process has; `pss` adds its share of the others."""

    rss: float
    pss: float
    private: float


def memory(pid: int, without: Path | None = None) -> Memory:
    """Of all its mappings but those of the file `without`: the simulated node's state, which the
    simulated NVML maps into the process, is not the agent's."""
    kib = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    skip = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # the head of a mapping: its addresses … its file
            skip = without is not None and rest[-1] == str(without)
        elif name[:-1] in kib and not skip:
            kib[name[:-1]] += int(rest[0])
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return Memory(kib["Rss"] / 1024, kib["Pss"] / 1024, private / 1024)
