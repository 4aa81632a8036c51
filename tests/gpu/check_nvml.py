"""NVML on real boards: how long its calls take, what it supports, what it says of processes."""

from __future__ import annotations

import sys
from dataclasses import replace

from tests.gpu.model import Figure, Finding, Result, judged
from tests.gpu.pages import Page
from tests.gpu.rig import Rig, require

SLOW = 10.0  # ms, 99 of 100 calls: a look makes some ten of them for each GPU
MEASURES = {"nvmlDeviceGetPcieThroughput": 20.0}  # ms that it takes by its documentation


def _library(rig: Rig) -> list[str]:
    options = rig.agent_options
    given = "--nvml-library" in options
    return [options[options.index("--nvml-library") + 1]] if given else []


def timing(rig: Rig) -> Result:
    """Every call of a look, for each GPU."""
    client = rig.client("nvml_client", *_library(rig), python=sys.executable)
    work = rig.client("driver_client")
    work.ask("open")
    findings: list[Finding] = []
    told: dict[str, list[str]] = {}
    for row in client.ask("timing", times=100):
        low, high, most = (row[part] for part in ("p50", "p99", "most"))
        text = f"GPU {row['gpu']} {low:.3f}/{high:.3f}/{most:.3f}"
        text += f" ({row['codes']})" if row["codes"] else ""
        told.setdefault(row["call"], []).append(text)
        limit = SLOW + MEASURES.get(row["call"].partition("(")[0], 0.0)
        what = f"{row['call']} of GPU {row['gpu']}, p99"
        slow = Finding(what, f"at most {limit:g} ms", "", False)
        if high > limit:
            findings.append(replace(slow, seen=f"{high:.1f} ms"))
    findings.append(Finding("calls timed", "some", len(told), bool(told)))
    figures: dict[str, Figure] = {"ms": "p50/p99/max"}
    figures.update({call: ", ".join(texts) for call, texts in told.items()})
    return judged(findings, figures)


def processes(rig: Rig) -> Result:
    """NVML lists a process by its pid, with its memory and, while it works, its utilization."""
    client = rig.client("driver_client")
    client.ask("open")
    client.ask("allocate", kind="device", size=64 << 20)
    client.ask("wait")
    pid = str(client.pid)
    findings, page = [], Page({})
    for _ in range(8):  # utilization is sampled by the driver, about once a second
        client.ask("launch", times=20_000)
        client.ask("wait")
        page = rig.page()
        if page.by("gpubpf_process_sm_utilization_ratio", "gpu", pid=pid):
            break
    memory = page.by("gpubpf_process_memory_used_bytes", "uuid", pid=pid)
    wanted = page.uuid(client.ask("uuid", device=0))
    findings.append(
        Finding("NVML lists the process on", wanted, _one(memory), list(memory) == [wanted])
    )
    held = memory.get(wanted)
    enough = held is not None and held >= 64 << 20
    findings.append(Finding("memory of the process", "64 MiB at least", held, enough))
    shares = page.by("gpubpf_process_sm_utilization_ratio", "gpu", pid=pid)
    findings.append(Finding("its SM utilization is there", "yes", _yes(shares), bool(shares)))
    figures: dict[str, Figure] = {f"SM utilization, GPU {gpu}": s for gpu, s in shares.items()}
    return judged(findings, figures)


def _one(found: dict[str, float]) -> str:
    return ", ".join(found) or "none"


def _yes(found: dict[str, float]) -> str:
    return "yes" if found else "no"


def device(rig: Rig) -> Result:
    """Every figure of a GPU is there, or known not to be supported."""
    page = rig.page()
    require(page.gpus(), "NVML shows no GPU")
    findings = []
    figures: dict[str, Figure] = {}
    for uuid, row in page.gpus().items():
        has = [name for name in EXPECTED if page.by(f"gpubpf_gpu_{name}", "uuid", uuid=uuid)]
        missing = [name for name in EXPECTED if name not in has]
        findings.append(
            Finding(
                f"GPU {row['gpu']}: figures absent",
                "none",
                ", ".join(missing) or "none",
                not missing,
            )
        )
        figures[f"GPU {row['gpu']}"] = f"{row['name']}, driver {row['driver_version']}, {uuid}"
    return judged(findings, figures)


EXPECTED = (
    "utilization_ratio",
    "memory_utilization_ratio",
    "memory_used_bytes",
    "memory_free_bytes",
    "memory_size_bytes",
    "temperature_celsius",
    "power_watts",
    "power_limit_watts",
    "energy_joules_total",
)


def features(rig: Rig) -> Result:
    """MIG and GPM: told, not judged."""
    client = rig.client("nvml_client", *_library(rig), python=sys.executable)
    return judged([], dict(client.ask("features")), "told, not judged")
