"""Checks of the system for `gpubpf doctor`: privileges, kernel, confinement."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

from gpubpf.bpf import syscalls
from gpubpf.bpf.load import Loaded, check_privileges
from gpubpf.capabilities import suffice_for_bpf
from gpubpf.errors import GpubpfError
from gpubpf.machine import FAIL, INFO, OK, WARN, Check, Machine

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_BTF = "/sys/kernel/btf/vmlinux"


def privileges(machine: Machine) -> Check:
    have = machine.capabilities
    details = {"uid": os.geteuid(), "effective": sorted(have)}

    def check(status: str, what: str, do: str = "") -> Check:
        return Check("privileges", status, what, do, details)

    if not machine.symbols:
        return check(INFO, "nothing is probed: none are needed for that")
    if not suffice_for_bpf(have):
        return check(
            FAIL,
            f"neither CAP_SYS_ADMIN nor CAP_BPF with CAP_PERFMON (user id {os.geteuid()})",
            "run as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        )
    lacking = [name for name in ("SYS_PTRACE",) if name not in have]
    if not have & {"DAC_READ_SEARCH", "DAC_OVERRIDE"}:
        lacking.append("DAC_READ_SEARCH")
    if lacking:
        names = " and ".join(f"CAP_{name}" for name in lacking)
        return check(
            WARN, f"no {names}: libcuda files of other users' processes stay unseen", f"add {names}"
        )
    return check(OK, f"user id {os.geteuid()}, with every capability that is needed")


def kernel(machine: Machine) -> Check:
    name, details = platform.machine(), {"release": platform.release()}
    what = f"{platform.system()} {platform.release()} on {name}"
    if name == "x86_64":
        return Check("kernel", OK, what, details=details)
    if name == "aarch64":
        return Check(
            "kernel",
            INFO,
            f"{what}: counts were never compared with a driver's there",
            "compare them with a workload that you know",
            details,
        )
    return Check("kernel", FAIL, f"{what}: not supported", "use x86-64 or arm64", details)


def bpf(machine: Machine) -> Check:
    try:
        check_privileges()
    except GpubpfError as error:
        what, _, do = str(error).partition(": ")
        return Check("bpf", FAIL if machine.symbols else INFO, what, do)
    return Check("bpf", OK, "the kernel loads uprobe programs")


def attaching(machine: Machine) -> Check:
    try:
        check_privileges()
    except GpubpfError:
        return Check("attach", INFO, "not known: no program can be loaded to try it")
    multi = syscalls.has_uprobe_multi()
    try:
        syscalls.uprobe_event_type()
        perf = True
    except (OSError, ValueError):
        perf = False
    details = {"uprobe_multi": multi, "perf_uprobes": perf}
    if multi:
        what = "uprobe.multi: all functions of a library by a few links, with cookies"
        return Check("attach", OK, what, details=details)
    if not perf:
        return Check(
            "attach",
            FAIL if machine.symbols else INFO,
            "the kernel has no uprobes",
            "use a kernel with CONFIG_UPROBE_EVENTS",
            details,
        )
    what = "perf uprobes, one by one: to detach takes the kernel seconds"
    if "SYS_ADMIN" not in machine.capabilities:
        return Check(
            "attach",
            FAIL if machine.symbols else INFO,
            f"only {what}",
            "add CAP_SYS_ADMIN, which they need; or use Linux 6.6 or newer",
            details,
        )
    return Check("attach", INFO, what, "Linux 6.6 or newer does it at once", details)


def exits(machine: Machine) -> Check:
    there = os.path.exists(_BTF)
    loaded = machine.loaded
    seen = isinstance(loaded, Loaded) and loaded.tells_exits
    details = {"btf": there, "exit_program": seen}
    if seen:
        return Check("exits", OK, "the kernel tells when a process ends (BTF)", details=details)
    if there and not isinstance(loaded, Loaded):
        return Check("exits", INFO, "BTF is there; no programs were loaded", details=details)
    why = "the kernel has no BTF" if not there else "libbpf.so.1 can't read the kernel's BTF"
    do = "install libbpf1" if there else "use a kernel with CONFIG_DEBUG_INFO_BTF"
    return Check(
        "exits", WARN, f"{why}: a pid used again within an interval goes unnoticed", do, details
    )


def bcc(machine: Machine) -> Check:
    """In a child: this process never maps LLVM."""
    ask = "import bcc; print(getattr(bcc, '__version__', 'of unknown version'))"
    child = subprocess.run(
        [sys.executable, "-P", "-c", ask], capture_output=True, text=True, timeout=60, check=False
    )
    if child.returncode == 0:
        version = child.stdout.strip()
        return Check("bcc", OK, f"bcc {version}", details={"version": version})
    reason = (child.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return Check(
        "bcc",
        FAIL if machine.symbols else INFO,
        f"can't be imported: {reason}",
        f"apt-get install python3-bpfcc, for {sys.executable}",
    )


def pid_namespace(machine: Machine) -> Check:
    number = os.stat("/proc/self/ns/pid").st_ino
    details = {"inode": number, "initial": number == _INITIAL_PID_NAMESPACE}
    if number == _INITIAL_PID_NAMESPACE:
        return Check("pid namespace", OK, "the node's own", details=details)
    return Check(
        "pid namespace",
        FAIL if machine.symbols else WARN,
        "not the node's: the kernel and NVML count by the node's pids, which mean "
        "other processes here, or none",
        "run in the node's (Kubernetes: hostPID: true; else --pid=host)",
        details,
    )


def other_processes(machine: Machine) -> Check:
    """Some process may be off limits even to root; that many are is what matters."""
    root = machine.options.proc_root
    seen = refused = 0
    for name in os.listdir(root):
        if name.isdigit():
            try:
                with open(f"{root}/{name}/maps", "rb") as file:
                    file.read(1)
                seen += 1
            except PermissionError:
                refused += 1
            except OSError:
                pass  # it has ended
    details = {"seen": seen, "refused": refused}
    what = f"what {seen} of {seen + refused} processes map can be seen"
    if not seen:
        return Check(
            "processes",
            FAIL,
            f"no process can be looked at in {root}",
            "name the node's /proc with --proc-root, and add CAP_SYS_PTRACE",
            details,
        )
    if refused > seen:
        return Check("processes", WARN, what, "add CAP_SYS_PTRACE", details)
    return Check("processes", OK, what, details=details)


def memlock(machine: Machine) -> Check:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    endless = limit == resource.RLIM_INFINITY
    details = {"limit_bytes": None if endless else limit}
    if isinstance(machine.loaded, GpubpfError) and not endless:
        return Check(
            "memlock",
            WARN,
            f"locked memory is limited to {limit / 1024:.0f} KiB, which "
            "kernels before 5.11 count BPF maps against",
            "raise it: ulimit -l unlimited; systemd: LimitMEMLOCK=infinity",
            details,
        )
    what = "no limit" if endless else f"{limit / 1024:.0f} KiB, and the maps did not need it"
    return Check("memlock", OK, what, details=details)


def confinement(machine: Machine) -> Check:
    filtered = machine.status.get("Seccomp") == "2"
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii") as file:
            mode = file.read().partition("[")[2].partition("]")[0]
    except OSError:
        mode = "not known"
    details = {"lockdown": mode, "seccomp_filter": filtered}
    what = f"lockdown: {mode}; seccomp filter: {'yes' if filtered else 'no'}"
    if mode == "confidentiality":
        return Check(
            "confinement",
            WARN,
            f"{what}: BPF may not read kernel memory",
            "boot with lockdown=integrity, or expect ends of processes to be missed",
            details,
        )
    if filtered and isinstance(machine.loaded, GpubpfError):
        return Check(
            "confinement", WARN, what, "let the filter allow bpf and perf_event_open", details
        )
    return Check("confinement", OK, what, details=details)
