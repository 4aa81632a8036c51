"""Which capabilities this process has, of those that matter here."""

from __future__ import annotations

from collections.abc import Mapping, Set

CAPABILITIES = {
    # bit of /proc/PID/status (include/uapi/linux/capability.h): name
    1: "DAC_OVERRIDE",
    2: "DAC_READ_SEARCH",
    19: "SYS_PTRACE",
    21: "SYS_ADMIN",
    24: "SYS_RESOURCE",
    38: "PERFMON",
    39: "BPF",
}


def own_status() -> dict[str, str]:
    """/proc/self/status."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        rows = (line.split(":", 1) for line in file)
        return {row[0]: row[1].strip() for row in rows if len(row) == 2}


def effective(status: Mapping[str, str]) -> frozenset[str]:
    """Of a process with this status."""
    bits = int(status.get("CapEff", "0"), 16)
    return frozenset(name for bit, name in CAPABILITIES.items() if bits >> bit & 1)


def suffice_for_bpf(have: Set[str]) -> bool:
    """Whether the kernel lets these load uprobe programs and attach them (capabilities(7))."""
    return "SYS_ADMIN" in have or have >= {"BPF", "PERFMON"}
