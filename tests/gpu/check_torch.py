"""PyTorch: the paths that it takes into the driver are the ones that are counted."""

from __future__ import annotations

from typing import Any

from tests.gpu.check_processes import elsewhere
from tests.gpu.child import Child
from tests.gpu.model import Figure, Finding, Result, judged
from tests.gpu.pages import Expect, judge
from tests.gpu.rig import Rig

MIB = 1 << 20
START = 150.0  # seconds that importing PyTorch and its first kernel may take


def _open(rig: Rig, **environment: str) -> tuple[Child, dict[str, Figure]]:
    client = rig.client("torch_client", **environment)
    return client, dict(client.ask("open", seconds=START))


def eager(rig: Rig) -> Result:
    """As many launches as PyTorch's own profiler has seen."""
    client, figures = _open(rig)
    before = rig.page()
    did = client.ask("eager", steps=20)
    launches = sum(did["launches"].values())
    figures.update({f"profiler: {name}": n for name, n in did["launches"].items()})
    figures["profiler: kernels on the GPU"] = did["kernels"]
    page = rig.page()
    findings = judge(client.pid, before, page, [Expect("kernel_launches", launches)])
    findings.append(Finding("launches that the profiler saw", "some", launches, launches > 0))
    findings.append(elsewhere(page, client.pid, client.ask("uuid", device=0)))
    return judged(findings, figures)


def graphs(rig: Rig) -> Result:
    """A captured graph, and its replays."""
    client, figures = _open(rig)
    before = rig.page()
    client.ask("capture", kernels=7)
    captured = rig.page()
    findings = judge(client.pid, before, captured, [Expect("captured_launches", 7)])
    client.ask("replay", times=5)
    page = rig.page()
    expected = [Expect("graph_launches", 5), Expect("graph_kernels", 35)]
    findings += judge(client.pid, captured, page, expected)
    name = "gpubpf_process_kernel_launches_total"
    pid = str(client.pid)
    beside = (page.total(name, pid=pid) or 0) - (captured.total(name, pid=pid) or 0)
    figures["launches beside the replays"] = beside
    return judged(findings, figures)


def allocators(rig: Rig) -> Result:
    """Its three allocators, each by the kind of memory that it asks the driver for."""
    findings: list[Finding] = []
    figures: dict[str, Figure] = {}
    for name, (configuration, kind) in ALLOCATORS.items():
        names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # before and since 2.9
        client, about = _open(rig, **dict.fromkeys(names, configuration))
        before = rig.page()
        did: dict[str, Any] = client.ask("allocate", size=37 * MIB, times=3)
        page = rig.page()
        expected = _expected(name, kind, did)
        found = judge(client.pid, before, page, expected)
        back = client.ask("release")
        pool = name == "async"
        freed = Expect("freed_bytes", did["asked"] if pool else back, {"kind": kind}, least=pool)
        found += judge(client.pid, before, rig.page(), [freed])
        findings += [
            Finding(f"{name}: {f.what}", f.expected, f.seen, f.ok, f.absent) for f in found
        ]
        figures.update(about)
        client.close()
    return judged(findings, figures)


ALLOCATORS = {
    "caching": ("expandable_segments:False", "device"),
    "expandable": ("expandable_segments:True", "virtual"),
    "async": ("backend:cudaMallocAsync", "pool"),
}


def _expected(name: str, kind: str, did: dict[str, Any]) -> list[Expect]:
    of = {"kind": kind}
    if name == "async":  # the pool is the driver's: PyTorch asks for each tensor
        return [
            Expect("allocations", did["tensors"], of),
            Expect("allocated_bytes", did["asked"], of),
        ]
    expected = [Expect("allocated_bytes", did["bytes"], of)]
    if name == "caching":
        expected.append(Expect("allocations", did["segments"], of))
    return expected


def processes(rig: Rig) -> Result:
    """Worker processes, by spawn and by a fork before CUDA is initialised; one at a time."""
    findings: list[Finding] = []
    for method in ("spawn", "fork"):
        client = rig.client("torch_client")
        before = rig.page()
        pid = client.ask("start_worker", seconds=START, method=method, adds=53)
        note = f"launches of a worker by {method}"
        expected = [Expect("kernel_launches", 53, least=True, note=note)]
        findings += judge(pid, before, rig.page(), expected)
        client.ask("end_worker")
        client.close()
    return judged(findings)


def compiled(rig: Rig) -> Result:
    """torch.compile: kernels by Triton's launcher."""
    client, figures = _open(rig)
    client.ask("compile", seconds=200)
    before = rig.page()
    did = client.ask("run_compiled", steps=20)
    launches = sum(did["launches"].values())
    figures.update({f"profiler: {name}": n for name, n in did["launches"].items()})
    findings = judge(client.pid, before, rig.page(), [Expect("kernel_launches", launches)])
    findings.append(Finding("launches that the profiler saw", "some", launches, launches > 0))
    return judged(findings, figures)


def two_gpus(rig: Rig) -> Result:
    """Work on two GPUs from one process, and copies between them."""
    client, figures = _open(rig)
    before = rig.page()
    client.ask("both", adds=53, size=8 * MIB)
    page = rig.page()
    first, second = (page.uuid(client.ask("uuid", device=device)) for device in (0, 1))
    expected = [
        Expect("kernel_launches", 53, {"uuid": first}, least=True, note="launches on the first"),
        Expect("kernel_launches", 53, {"uuid": second}, least=True, note="launches on the second"),
        Expect("allocated_bytes", 8 * MIB, {"uuid": first}, least=True, note="bytes on the first"),
        Expect("allocated_bytes", 8 * MIB, {"uuid": second}, least=True, note="on the second"),
        Expect("copied_bytes", 8 * MIB, least=True, note="bytes copied, any direction"),
    ]
    directions = page.by("gpubpf_process_copied_bytes_total", "direction", pid=str(client.pid))
    figures.update({f"copied as {name}": n for name, n in directions.items() if n})
    return judged(judge(client.pid, before, page, expected), figures)
