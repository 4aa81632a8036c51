"""What `gpubpf doctor` looks at. CHECKS is the table: one function per check, in order."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Callable

from gpubpf import bound, pointers, system_checks
from gpubpf.bpf import elf
from gpubpf.bpf.load import Loaded
from gpubpf.errors import GpubpfError
from gpubpf.machine import FAIL, INFO, OK, WARN, Check, Machine
from gpubpf.symbols import SYMBOLS

_MOST_SHOWN = 4  # libraries or functions named in one line


def programs(machine: Machine) -> Check:
    loaded = machine.loaded
    if loaded is None:
        return Check("programs", INFO, "none: --probe none")
    if isinstance(loaded, GpubpfError):
        what, _, do = str(loaded).partition(": ")
        return Check("programs", FAIL, what, do)
    peak = loaded.loader_peak_bytes
    details = {
        "programs": sorted(loaded.programs),
        "load_seconds": machine.load_seconds,
        "loader_peak_bytes": peak,
        "map_entries": {name: m.capacity for name, m in loaded.maps.items()},
    }
    what = (
        f"{len(loaded.programs)} for {len(machine.symbols)} functions, compiled and loaded in "
        f"{machine.load_seconds:.2f} s; the loader took {peak / 2**20:.0f} MiB meanwhile"
    )
    return Check("programs", OK, what, details=details)


def headers(machine: Machine) -> Check:
    places = (f"/lib/modules/{platform.release()}/build", "/sys/kernel/kheaders.tar.xz")
    found = [place for place in places if os.path.exists(place)]
    details = {"found": found}
    if not isinstance(machine.loaded, Loaded):
        return Check("kernel headers", INFO, "not needed; no programs were loaded", "", details)
    if found:
        what = "not needed: gpubpf has its own; those here are used only if its own fail"
    else:
        what = "not needed: none are here, and the programs were loaded"
    return Check("kernel headers", OK, what, details=details)


def libraries(machine: Machine) -> Check:
    copies = machine.copies
    details = {
        "copies": [{"path": copy.name, "mapped_by": copy.pid} for copy in copies],
        "missing": machine.missing,
    }
    if machine.missing:
        return Check(
            "libcuda",
            FAIL,
            f"not there: {_some(machine.missing)}",
            "name files that exist with --library",
            details,
        )
    if not copies:
        return Check(
            "libcuda",
            WARN if machine.symbols else INFO,
            "none found; probing would start when a process maps one",
            "install the NVIDIA driver, or name a file with --library (in a "
            "container: mount the node's root, and name it with --host-root)",
            details,
        )
    return Check("libcuda", OK, _some([copy.name for copy in copies]), details=details)


def probes(machine: Machine) -> Check:
    rows, parts, refused = [], [], []
    for probed in machine.probed:
        if probed.attachment is None:
            refused.append(f"{probed.copy.name} ({probed.error})")
            continue
        rows += [
            {"library": p.library, "function": p.function, "at": p.at}
            for p in probed.attachment.probes
        ]
        at = Counter(probe.at for probe in probed.attachment.probes)
        parts.append(
            ", ".join(
                f"{count} {_AT.get(where, where)}"
                for where, count in sorted(at.items(), key=lambda item: -item[1])
            )
        )
    details = {"probes": rows, "refused": refused}
    if refused:
        return Check(
            "probes",
            FAIL if not parts else WARN,
            f"not probed: {_some(refused)}",
            "calls through these are not counted: look at the file",
            details,
        )
    if not parts:
        return Check("probes", INFO, "nothing to probe", details=details)
    if not any(row["at"] in ("stub+10", "entry") for row in rows):
        return Check(
            "probes",
            FAIL,
            "no library exports any of the functions",
            "is this libcuda? See the check before",
            details,
        )
    return Check("probes", OK, _some(parts), details=details)


_AT = {"stub+10": "at stub+10", "entry": "at the entry (dearer)", "alias": "a second name"}


def handed_out(machine: Machine) -> Check:
    """Only of the node's own driver: what a process maps is never executed."""
    name, details, strange, good = "pointers", {}, [], 0
    names = {symbol.name for symbol in SYMBOLS}
    for copy in machine.copies:
        if copy.pid is not None:
            continue
        try:
            found = pointers.look_up(copy.fd, names)
        except (OSError, ValueError, elf.NotALibraryError, subprocess.SubprocessError) as error:
            return Check(
                name,
                WARN,
                f"{copy.name}: {error}",
                "calls by pointers of cuGetProcAddress may go uncounted",
            )
        details[copy.name] = [
            {"function": p.name, "stream": p.stream, "export": p.export} for p in found
        ]
        strange += [f"{p.name} ({p.stream} stream)" for p in found if p.export is None]
        good += sum(p.export is not None for p in found)
    if strange:
        return Check(
            name,
            FAIL,
            f"cuGetProcAddress gives other code than the exports for "
            f"{_some(strange)}: such calls are not counted",
            "report the driver's version to gpubpf's developers",
            details,
        )
    if not good:
        return Check(name, INFO, "no driver of this node to ask", details=details)
    what = f"all {good} that cuGetProcAddress gives, for both default streams, are exports"
    return Check(name, OK, what, details=details)


def nvml(machine: Machine) -> Check:
    if not machine.options.nvml:
        return Check("nvml", INFO, "off: --no-nvml")
    if isinstance(machine.devices, GpubpfError):
        what, _, do = str(machine.devices).partition(": ")
        if machine.options.nvml_library is not None:
            return Check("nvml", FAIL, what, do)
        return Check("nvml", WARN, f"{what}; calls are counted all the same", do)
    devices, problems = machine.devices
    rows = [{"gpu": d.info.index, "uuid": d.info.uuid, "name": d.info.name} for d in devices]
    details = {"gpus": rows, "problems": problems}
    if problems:
        what, _, do = problems[0].rpartition(": ")
        return Check("nvml", WARN, what or do, do if what else "", details)
    if not devices:
        return Check("nvml", WARN, "the driver knows no GPU", "is one plugged in?", details)
    info = devices[0].info
    kinds = Counter(device.info.name for device in devices)
    named = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return Check("nvml", OK, f"driver {info.driver_version}: {named}", details=details)


def jobs(machine: Machine) -> Check:
    """How --jobs was understood, and what each source knows of the processes of this node."""
    options = machine.options
    if not options.jobs:
        return Check("jobs", INFO, "off: --jobs says what tells a process's job")
    from gpubpf.deadline import Worker
    from gpubpf.jobs.sight import ProcSight
    from gpubpf.jobs.sources import resolvers

    known = dict.fromkeys(map(str, options.jobs), 0)
    asked, worker, seen = resolvers(options.jobs), Worker("jobs"), 0
    for name in os.listdir(options.proc_root):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with ProcSight(options.proc_root, int(name), worker) as sight:
            if not sight.command:  # one of the kernel's own threads
                continue
            seen += 1
            for spec, resolve in zip(known, asked, strict=True):
                known[spec] += resolve(sight) is not None
    worker.retire()
    what = ", ".join(f"{spec} knows {count}" for spec, count in known.items())
    return Check("jobs", OK, f"of {seen} processes {what}", details={"known": known})


def pods(machine: Machine) -> Check | None:
    """What can tell the names of pods here."""
    options = machine.options
    if not any(spec.source == "kubernetes" for spec in options.jobs):
        return None
    from gpubpf.pods import kubelet
    from gpubpf.pods.podlogs import LOGS, PodLogs
    from gpubpf.pods.pods import socket_of

    logs, path = options.host_root.rstrip("/") + LOGS, socket_of(options)
    sees_logs = PodLogs(options.host_root).there
    what = f"names by {logs}" if sees_logs else f"no {logs}: names by what kubelet gave to whom"
    details = {"logs": logs if sees_logs else None, "kubelet": path}
    if options.kubernetes_api:
        from gpubpf.pods.apiserver import ApiError, ApiServer, path_of

        server = ApiServer(options.kubernetes_account, os.environ)
        try:
            server.metadata(path_of("v1", "Pod", "default", "gpubpf-doctor"))  # there is none
        except ApiError as error:
            return Check(
                "pods", WARN, "the API server can't be asked about pods", str(error), details
            )
        finally:
            server.close()
        what += "; the API server answers"
    if not path:
        return Check("pods", OK if sees_logs else WARN, f"{what}; kubelet isn't asked", "", details)
    try:
        answer, slots = kubelet.ask(path)
    except kubelet.KubeletError as error:
        what = f"{what}; kubelet can't be asked at {path}"
        return Check("pods", WARN, what, str(error), details)
    having = {container[:2] for container, _ in answer.assigned}
    what += f"; kubelet has {len(answer.pods)} pods, {len(having)} of them with GPUs"
    what += "" if slots is None else f", and {len(slots)} slots to give"
    return Check("pods", OK, what, "", details)


def series(machine: Machine) -> Check:
    options = machine.options
    each = bound.per_job(
        options.probe,
        attribution=options.attribution,
        labels=len(options.kubernetes_labels) if options.kubernetes_api else 0,
    )
    most, gpus = options.max_jobs, machine.gpus or 8  # eight are a usual node's
    what = (
        f"of jobs at most {most + 2} x ({each.once} + {each.on_gpu} x (GPUs + 1)), "
        f"which is {each.series(gpus, most):,} for {gpus} GPU{'' if gpus == 1 else 's'}"
    )
    what += "" if options.jobs else "; none without --jobs"
    return Check("series", INFO, what, details={"max_jobs": most, **each._asdict()})


def _some(things: list[str]) -> str:
    more = f"; {len(things) - _MOST_SHOWN} more" if len(things) > _MOST_SHOWN else ""
    return "; ".join(things[:_MOST_SHOWN]) + more


CHECKS: tuple[Callable[[Machine], Check | None], ...] = (
    system_checks.privileges,
    system_checks.kernel,
    system_checks.bpf,
    system_checks.attaching,
    system_checks.exits,
    system_checks.bcc,
    programs,
    headers,
    libraries,
    probes,
    handed_out,
    nvml,
    jobs,
    pods,
    series,
    system_checks.pid_namespace,
    system_checks.other_processes,
    system_checks.memlock,
    system_checks.confinement,
)
