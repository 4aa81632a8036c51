"""Who is counted, and on which GPU: forks, processes from before the agent, every ordinal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.gpu.model import Figure, Finding, Result, judged
from tests.gpu.pages import Expect, Page, judge
from tests.gpu.rig import Rig

MIB = 1 << 20
LAUNCHES = "gpubpf_process_kernel_launches_total"


def fork(rig: Rig) -> Result:
    """A child of an initialised process can't use the driver, and gets nothing credited."""
    parent = rig.client("driver_client")
    before = rig.page()
    parent.ask("open")
    parent.ask("launch", times=101)
    child = parent.ask("fork_and_try")
    parent.ask("launch", times=2)
    page = rig.page()
    codes = {name: code for name, code in child.items() if name != "pid"}
    findings = [
        Finding(f"{name} in a child of a user of the driver", "error 3", f"error {code}", code == 3)
        for name, code in codes.items()
    ]
    findings += judge(parent.pid, before, page, [Expect("kernel_launches", 103)])
    nothing = Expect("allocated_bytes", 0, note="bytes allocated by that child")
    findings += judge(child["pid"], before, page, [nothing])
    pid = str(child["pid"])
    figures: dict[str, Figure] = {
        "failed launches of the child that are counted": page.total(LAUNCHES, pid=pid),
        "on": where(page, child["pid"]) or None,
    }
    parent.ask("end_child")
    parent.close()
    fresh = rig.client("driver_client")
    early = fresh.ask("fork_and_work", device=0, launches=53)
    works = Expect("kernel_launches", 53, note="launches of a child forked before initialisation")
    findings += judge(early["pid"], page, rig.page(), [works])
    if early.get("error"):
        findings.append(Finding("that child's work", "done", early["error"], False))
    fresh.ask("end_child")
    return judged(findings, figures)


def late(rig: Rig) -> Result:
    """The agent comes after the process: what is unknown, and what makes it known."""
    rig.stop_agent()
    client = rig.client("driver_client")
    client.ask("open")
    client.ask("allocate", kind="device", size=MIB, times=3)
    client.ask("make_graph", kernels=7)
    client.ask("launch", times=29)
    before = rig.page()
    client.ask("launch", times=101)
    client.ask("launch_graph", times=5)
    client.ask("free", kind="device", times=2)
    client.ask("wait")
    first = rig.page()
    expected = [
        Expect("kernel_launches", 101, note="launches since the agent started"),
        Expect("graph_launches", 5),
        Expect("graph_launches_of_unknown_size", 5),
        Expect("graph_kernels", 0, note="kernels of graphs made before the agent"),
        Expect("frees", 2, {"kind": "unknown"}, note="frees of what was allocated before"),
    ]
    findings = judge(client.pid, before, first, expected)
    figures: dict[str, Figure] = {"before anything else, launches on": where(first, client.pid)}
    steps: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("an allocation", lambda: client.ask("allocate", kind="device", size=MIB)),
        ("cuCtxSetCurrent", lambda: client.ask("set_current")),
        ("cuDeviceGetUuid", lambda: client.ask("uuid", device=0)),
    )
    for name, step in steps:
        step()
        client.ask("launch", times=1)
        figures[f"after {name}"] = where(rig.page(), client.pid)
    uuid = client.ask("uuid", device=0)
    last = rig.page()
    findings.append(elsewhere(last, client.pid, uuid))
    return judged(findings, figures)


def which_gpu(rig: Rig) -> Result:
    """Every ordinal, under every order of devices, is the GPU that the driver says it is."""
    findings: list[Finding] = []
    figures: dict[str, Figure] = {}
    count = rig.gpus()
    plain = rig.client("driver_client")
    plain.ask("devices")
    uuids = [plain.ask("uuid", device=ordinal) for ordinal in range(count)]
    for name, environment in orders(uuids, "CUDA_VISIBLE_DEVICES" in rig.environment).items():
        for ordinal in range(min(count, MOST)):
            client = rig.client("driver_client", **environment)
            before = rig.page()
            launches = 101 + 2 * ordinal
            client.ask("open", device=ordinal)
            client.ask("allocate", kind="device", size=3 * MIB)
            client.ask("launch", times=launches)
            client.ask("wait")
            blind = rig.page()
            uuid = client.ask("uuid", device=ordinal)  # only now: it would have told the agent
            label = blind.uuid(uuid)
            if label not in blind.gpus():  # told, not judged
                figures[f"{name}: on {label}, no GPU of NVML's (MIG?)"] = where(blind, client.pid)
                client.close()
                continue
            of = {"uuid": label}
            expected = [
                Expect("kernel_launches", launches, of, note=f"{name}: launches on {ordinal}"),
                Expect("allocated_bytes", 3 * MIB, of, note=f"{name}: bytes on {ordinal}"),
            ]
            findings += judge(client.pid, before, blind, expected)
            findings.append(elsewhere(rig.page(), client.pid, uuid, f"{name}: "))
            client.close()
        figures[name] = f"{min(count, MOST)} of {count} ordinals"
    sources = rig.page().by("gpubpf_agent_attributions_total", "source")
    figures.update({f"attributed by {source}": n for source, n in sources.items()})
    return judged(findings, figures)


MOST = 4  # ordinals tried


def orders(uuids: list[str], given: bool = False) -> dict[str, dict[str, str]]:
    """Environments in which the ordinals mean different GPUs; `given`: some are chosen already."""
    found = {"as it is": {}, "PCI order": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}}
    found["fastest first"] = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    if len(uuids) > 1 and not given:
        back = ",".join(str(ordinal) for ordinal in reversed(range(len(uuids))))
        found["backwards"] = {"CUDA_VISIBLE_DEVICES": back}
        named = ",".join(f"GPU-{uuid}" for uuid in reversed(uuids))
        found["by UUID"] = {"CUDA_VISIBLE_DEVICES": named}
    return found


def where(page: Page, pid: int) -> str:
    """On which GPUs a process's launches are."""
    found = page.by(LAUNCHES, "gpu", pid=str(pid))
    return ", ".join(f"GPU {gpu or '(no label)'}: {n:.0f}" for gpu, n in sorted(found.items()))


def elsewhere(page: Page, pid: int, uuid: str, prefix: str = "") -> Finding:
    """Nothing of a process may be credited to a GPU that isn't its own."""
    found = page.by(LAUNCHES, "uuid", pid=str(pid))
    wrong = sum(n for label, n in found.items() if label and not label.endswith(uuid))
    wrong -= found.get("unknown", 0)
    return Finding(f"{prefix}launches on another GPU", 0, wrong, wrong == 0)
