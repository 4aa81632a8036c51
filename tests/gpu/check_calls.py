"""What processes ask for is what is counted: by the driver API, the CUDA runtime, and the clients
that the tests have for the simulated node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.gpu.model import CheckError, Figure, Finding, NotPossibleError, Result, judged
from tests.gpu.pages import Expect, judge
from tests.gpu.rig import ROOT, Rig, require

MIB = 1 << 20
COPIED = 997 * 4  # bytes, of each copy that the clients make


def driver_api(rig: Rig) -> Result:
    """Prime counts of everything, by the driver API alone."""
    client = rig.client("driver_client")
    before = rig.page()
    client.ask("open")
    client.ask("launch", times=101)
    client.ask("make_graph", kernels=7)
    client.ask("launch_graph", times=5)
    for kind, times in KINDS.items():
        client.ask("allocate", kind=kind, size=2 * MIB, times=times)
    client.ask("copy", size=COPIED, times=13)
    client.ask("set", size=4099, times=17)
    client.ask("wait", times=3)
    for kind, times in KINDS.items():
        client.ask("free", kind=kind, times=times)
    client.ask("wait")
    expected = [
        Expect("kernel_launches+captured_launches", 108),
        Expect("captured_launches", 7),
        Expect("graph_launches", 5),
        Expect("graph_kernels", 35),
        Expect("set_bytes", 17 * 4099),
        Expect("copied_bytes", 13 * COPIED, {"direction": "host_to_device"}),
        Expect("copied_bytes", 13 * COPIED, {"direction": "device_to_host"}),
        Expect("waits", 4),
    ]
    for kind, times in KINDS.items():
        expected.append(Expect("allocations", times, {"kind": kind}))
        expected.append(Expect("allocated_bytes", times * 2 * MIB, {"kind": kind}))
        expected.append(Expect("frees", times, {"kind": kind}))
        expected.append(Expect("freed_bytes", times * 2 * MIB, {"kind": kind}))
        expected.append(Expect("live_bytes", 0, {"kind": kind}, gauge=True))
    return judged(judge(client.pid, before, rig.page(), expected))


KINDS = {"device": 3, "managed": 2, "pool": 5, "virtual": 2, "host": 2}  # 2 MiB each


def cudart(rig: Rig) -> Result:
    """Every libcudart here."""
    findings: list[Finding] = []
    figures: dict[str, Figure] = {}
    for path in rig.runtimes():
        name = path.rpartition("/")[2]
        try:
            found = _one_runtime(rig, path)
        except NotPossibleError as error:
            figures[path] = f"not possible: {error}"
            continue
        except CheckError as error:
            findings.append(Finding(f"{name} works", "yes", str(error), False))
            continue
        figures[path] = "tried"
        findings += [
            Finding(f"{name}: {f.what}", f.expected, f.seen, f.ok, f.absent) for f in found
        ]
    require(findings, "; ".join(f"{path}: {why}" for path, why in figures.items()))
    return judged(findings, figures)


def _one_runtime(rig: Rig, path: str) -> list[Finding]:
    client = rig.client("runtime_client", path)
    before = rig.page()
    did = client.ask("work", allocations=11, size=MIB, copies=13, copied=COPIED, launches=101)
    expected = [
        Expect("allocations", 11, {"kind": "device"}),
        Expect("allocated_bytes", 11 * MIB, {"kind": "device"}),
        Expect("frees", 11, {"kind": "device"}),
        Expect("copied_bytes", 2 * 13 * COPIED, note="copied bytes (any direction)"),
        Expect("allocations", did["pool"], {"kind": "pool"}),
    ]
    if did["launches"]:
        expected.append(Expect("kernel_launches+captured_launches", did["launches"]))
        expected.append(Expect("captured_launches", did["captured"]))
        expected.append(Expect("graph_launches", did["graph_launches"]))
        expected.append(Expect("graph_kernels", did["graph_kernels"]))
    return judge(client.pid, before, rig.page(), expected)


def cupy(rig: Rig) -> Result:
    """CuPy without its pool, with its own kernels."""
    client = rig.client("cupy_client")
    client.ask("open", seconds=100)
    before = rig.page()
    client.ask("work", launches=101, allocations=11, size=MIB, copies=13, copied=COPIED)
    expected = [
        Expect("kernel_launches", 101),
        Expect("allocations", 11, {"kind": "device"}),
        Expect("allocated_bytes", 11 * MIB, {"kind": "device"}),
        Expect("copied_bytes", 2 * 13 * COPIED, note="copied bytes (any direction)"),
    ]
    figures: dict[str, Figure] = dict(client.ask("versions"))
    return judged(judge(client.pid, before, rig.page(), expected), figures)


def _client(name: str, expected: list[Expect], rig: Rig) -> Result:
    """A script of tests/clients."""
    path = str(ROOT / "tests" / "clients" / f"{name}_client.py")
    client = rig.client("run_client", **_environment(rig))
    before = rig.page()
    client.ask("run", seconds=200, path=path, arguments=["--launches", "103"])
    return judged(judge(client.pid, before, rig.page(), expected))


def _environment(rig: Rig) -> dict[str, str]:
    if not rig.simulated:
        return {}
    return {"TRITON_LIBCUDA_PATH": rig.environment["LD_LIBRARY_PATH"].partition(":")[0]}


_GRAPH = [
    Expect("kernel_launches+captured_launches", 110),
    Expect("captured_launches", 7),
    Expect("graph_launches", 5),
    Expect("graph_kernels", 35),
]
_COPIES = [
    Expect("copied_bytes", 13 * COPIED, {"direction": direction})
    for direction in ("host_to_device", "device_to_host")
]
CLIENTS: dict[str, Callable[[Rig], Result]] = {
    "cuda_bindings": partial(_client, "cuda_bindings", _GRAPH + _COPIES),
    "cuda_core": partial(_client, "cuda_core", _GRAPH),
    "numba": partial(_client, "numba", [Expect("kernel_launches", 103)]),
    "triton": partial(_client, "triton", [Expect("kernel_launches", 103)]),
}
