"""The installed libcuda: where probes sit, and whether what it hands out is what is probed."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

from gpubpf.symbols import SYMBOLS
from tests.gpu.model import CheckError, Figure, Finding, Result, judged
from tests.gpu.rig import Rig

NAMES = sorted({symbol.name for symbol in SYMBOLS})
LOOK = (
    "cu(?:Launch|GraphLaunch|Mem(?:Alloc|Free|Create|Release|HostAlloc|cpy|set)|ArrayCreate|"
    "Array3DCreate|MipmappedArray(?:Create|Destroy)|ArrayDestroy|StreamSynchronize|"
    "EventSynchronize|CtxSynchronize)\\w*"
)
"""What a newer driver may have more of: launches, memory, copies and waits in forms unknown."""
SHOWN = 6


def _doctor(rig: Rig) -> dict[str, Any]:
    command = [sys.executable, "-m", "gpubpf", "doctor", "--probe", "all", "--format", "json"]
    done = rig.run([*command, *rig.agent_options])
    try:
        rows = json.loads(done.stdout)["checks"]
    except (ValueError, KeyError):
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise CheckError(f"doctor said no JSON but: {said[-1]}") from None
    return {row["name"]: row for row in rows}


def stubs(rig: Rig) -> Result:
    """Every probed export is the 32-byte stub."""
    rows = _doctor(rig)["probes"]["details"].get("probes", [])
    client = rig.client("driver_client")
    own = client.ask("library")
    rows = [row for row in rows if os.path.realpath(row["library"]) == own]
    at = Counter(row["at"] for row in rows)
    others = sorted(row["function"] for row in rows if row["at"] == "entry")
    version = client.ask("about")["version"]
    findings = [
        Finding("probed exports", "some", len(rows), bool(rows)),
        Finding("of them not at stub+10", 0, len(others), not others),
    ]
    figures: dict[str, Figure] = {f"at {where}": number for where, number in at.items()}
    if others:
        figures["not the stub"] = some(others)
    return judged(findings, {**figures, "library": own, "CUDA of the driver": cuda(version)})


def doctor(rig: Rig) -> Result:
    """`gpubpf doctor` has nothing to say."""
    rows = _doctor(rig).values()
    findings = [
        Finding(row["name"], "ok", f"{row['status']}: {row['what']}", False)
        for row in rows
        if row["status"] in ("warn", "fail")
    ]
    findings.append(Finding("checks made", "some", len(rows), bool(rows)))
    return judged(findings, {row["name"]: row["status"] for row in rows if row["status"] == "info"})


def unknown_exports(rig: Rig) -> Result:
    """Exports that look like what is counted, and aren't probed."""
    found = rig.client("driver_client").ask("exports", pattern=LOOK)
    new = sorted(set(found) - set(NAMES))
    finding = Finding("exports of a counted kind that aren't probed", 0, len(new), not new)
    return judged([finding], {"they are": some(new)} if new else {"looked at": len(found)})


def pointers(rig: Rig) -> Result:
    """cuGetProcAddress hands out the probed exports, whatever version is asked for."""
    client = rig.client("driver_client")
    version = client.ask("about")["version"]
    versions = asked_versions(version)
    answers = client.ask("pointers", names=NAMES, versions=versions)
    elsewhere = sorted({f"{n} ({stream}, {cuda(v)})" for n, v, stream, e in answers if e is None})
    findings = [
        Finding("functions handed out", "some", len(answers), bool(answers)),
        Finding("of them no probed export", 0, len(elsewhere), not elsewhere),
    ]
    streams = Counter(stream for _, _, stream, _ in answers)
    figures: dict[str, Any] = {f"for the {name} stream": n for name, n in streams.items()}
    figures["versions asked for"] = f"{cuda(versions[0])} to {cuda(versions[-1])}"
    figures["exports given"] = len({export for *_, export in answers if export})
    if elsewhere:
        figures["elsewhere"] = some(elsewhere)
    return judged(findings, figures)


def asked_versions(newest: int) -> list[int]:
    """11.0 and every minor version since, up to the driver's."""
    versions = [1000 * major + 10 * minor for major in range(11, 20) for minor in range(10)]
    return [version for version in versions if version < newest] + [newest]


def cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
