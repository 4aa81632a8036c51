"""What `tests/gpu/run` runs once the machine is set up."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from contextlib import ExitStack

from gpubpf import __version__
from tests.gpu import extras, report
from tests.gpu.agent import AgentError
from tests.gpu.here import refusal
from tests.gpu.model import Check, CheckError, Result
from tests.gpu.options import Wanted, parse
from tests.gpu.rig import Rig
from tests.gpu.runner import run
from tests.gpu.simulation import simulated

FAILED, NOT_ROOT, NO_AGENT, NO_GPU, INTERRUPTED = 1, 3, 4, 5, 130


def main() -> int:
    wanted = parse()
    if wanted.listed:
        print(report.table(wanted.checks))
        return 0
    if os.geteuid() != 0:
        return _refuse(NOT_ROOT, "must run as root (to load BPF programs)")
    if not wanted.simulated and (why := refusal()):
        return _refuse(NO_GPU, why)
    if wanted.before_setup:
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with ExitStack() as stack:
        python = wanted.python or sys.executable
        rig = stack.enter_context(simulated(python)) if wanted.simulated else Rig(python)
        stack.callback(rig.close)
        stack.callback(_finish)
        try:
            machine = _machine(rig)
        except (AgentError, CheckError) as error:
            return _refuse(NO_AGENT, f"the agent doesn't start: {error}")
        if wanted.packages:
            rig.begin(60)
            major = int(rig.client("driver_client").ask("about")["version"]) // 1000
            rig.end()
            if problem := extras.install(wanted.packages, major):
                return _refuse(FAILED, f"pip can't install what --with names: {problem}")
        return _report(wanted, rig, machine)


def _report(wanted: Wanted, rig: Rig, machine: dict[str, str]) -> int:
    """Runs and tells; what was found until an interrupt is told as well."""
    end = time.monotonic() + wanted.seconds
    rows: list[tuple[Check, Result]] = []
    text = wanted.format == "text"
    interrupted = False
    if text:
        print(report.heading(machine, rig.simulated), flush=True)
    try:
        for check in wanted.checks:
            rows.append((check, run(check, rig, end - time.monotonic())))
            if text:  # as it goes
                print(report.as_text(*rows[-1], every=wanted.every), flush=True)
    except KeyboardInterrupt:
        interrupted = True
    results = [result for _, result in rows]
    if text:
        print(f"\n{report.summary(results, rig.simulated)}")
    else:
        print(report.as_json(rows, machine, rig.simulated))
    if interrupted:
        return INTERRUPTED
    return FAILED if report.failed(results) else 0


def _machine(rig: Rig) -> dict[str, str]:
    """What the report is about. Raises AgentError and CheckError."""
    found = {
        "gpubpf": __version__,
        "Linux": platform.release(),
        "Python": f"{platform.python_version()}, of the programs {rig.python}",
    }
    rig.begin(120)
    for uuid, row in rig.page().gpus().items():
        versions = f"driver {row.get('driver_version')}, CUDA {row.get('cuda_version')}"
        found[f"GPU {row['gpu']}"] = f"{row.get('name')}, {versions}, {uuid}"
    return found


def _finish() -> None:
    """What tidies up is not interrupted."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _refuse(code: int, why: str) -> int:
    print(f"tests/gpu/run: {why}", file=sys.stderr)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
