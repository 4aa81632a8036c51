"""Which GPU: `gpubpf serve` over the simulated node and its NVML, three devices, real clients.

Every figure is compared with what the simulated driver counted, and over all GPUs, `unknown`
included, they add up to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from gpubpf.symbols import KINDS
from tests.bpf.probing import own_node
from tests.conftest import Agent, Metrics, eventually
from tests.fakegpu.node import Activity, Device, Node
from tests.fakegpu.nvml_control import NvmlControl
from tests.fakegpu.programs import Interpreter
from tests.fakegpu.small_programs import lines

Serve = Callable[..., Agent]
Figures = dict[str, int]

DEVICES = 3
CONTEXT = 3 << 20
CLIENTS = Path(__file__).parent.parent / "clients"
PYTHON = os.environ.get("CLIENTS_PYTHON", sys.executable)
OF_A_DEVICE = {
    "kernel_launches": "launches",
    "captured_launches": "captured",
    "graph_launches": "graph_launches",
    "graph_kernels": "graph_kernels",
}


# --- a node, its agent, its processes ------------------------------------------------------------


@dataclass
class Seen:
    """What a process is started with: for Interpreter in place of a node."""

    node: Node
    variables: Mapping[str, str]

    @property
    def program(self) -> Path:
        return self.node.program

    @property
    def library(self) -> Path:
        return self.node.library

    def environment(self) -> dict[str, str]:
        return {**self.node.environment(), **self.variables}


class Rig:
    """A node, the processes that its /proc shows, and its agent."""

    def __init__(self, node: Node, root: Path, serve: Serve) -> None:
        self.node = node
        self.root = root
        self._serve = serve
        self._agent: Agent | None = None
        root.mkdir()

    def show(self, pid: int) -> None:
        (self.root / str(pid)).symlink_to(f"/proc/{pid}")

    def agent(self, *options: str) -> Agent:
        self._agent = self._serve(
            *("--library", str(self.node.library), "--nvml-library", str(self.node.nvml_library)),
            *("--process-metrics", "--probe", "all", "--memory-interval", "0.2"),
            *("--proc-root", str(self.root), "--host-root", str(self.root), *options),
            environment={"FAKEGPU_STATE": str(self.node.path)},
        )
        return self._agent

    @contextmanager
    def process(self, **variables: str) -> Iterator[Interpreter]:
        """A process that the agent can look at before it makes a call."""
        with Interpreter(Seen(self.node, variables)) as process:  # type: ignore[arg-type]
            self.show(process.pid)
            yield process

    def page(self, good: Callable[[Metrics], object]) -> Metrics:
        assert self._agent is not None
        return eventually(self._agent.metrics, good)

    def gpus(self, good: Callable[[dict[str, Figures]], object]) -> dict[str, Figures]:
        """The launches and kernels of each GPU by its index, zeros left out."""
        return by_gpu(self.page(lambda page: good(by_gpu(page))))

    def truth(self) -> dict[str, Figures]:
        """The same as the driver counted them."""
        activity = self.node.counts().activity
        rows = {
            str(device): {name: getattr(row, field) for name, field in OF_A_DEVICE.items()}
            for device, row in activity.items()
        }
        return without_nothing(rows)

    def sources(self) -> Figures:
        """How often what told the GPU of a process's device."""
        assert self._agent is not None
        return {
            dict(labels)["source"]: int(number)
            for (name, labels), number in self._agent.metrics().items()
            if name == "gpubpf_agent_attributions_total" and number
        }


def without_nothing(rows: Mapping[str, Figures]) -> dict[str, Figures]:
    some = {gpu: {name: n for name, n in row.items() if n} for gpu, row in rows.items()}
    return {gpu: row for gpu, row in some.items() if row}


def by_gpu(
    page: Metrics, prefix: str = "gpubpf_gpu_", pid: int | None = None
) -> dict[str, Figures]:
    rows: dict[str, Figures] = {}
    for (name, labels), number in page.items():
        fact, row = name.removeprefix(prefix).removesuffix("_total"), dict(labels)
        if fact in OF_A_DEVICE and row.get("pid") == (None if pid is None else str(pid)):
            rows.setdefault(row["gpu"], {})[fact] = int(number)
    return without_nothing(rows)


def of_process(page: Metrics, pid: int) -> dict[str, Figures]:
    return by_gpu(page, "gpubpf_process_", pid)


def sums(rows: Mapping[str, Figures]) -> Figures:
    return {name: sum(row.get(name, 0) for row in rows.values()) for name in OF_A_DEVICE}


@pytest.fixture
def rig(tmp_path: Path, serve: Serve) -> Iterator[Rig]:
    with own_node(tmp_path, DEVICES) as node:
        for number in range(DEVICES):
            node.set_device(number, Device(context_bytes=CONTEXT))
        yield Rig(node, tmp_path / "proc", serve)


def do(process: Interpreter, text: str) -> None:
    program = [line for line in lines(text) if line]
    process.tell(program)
    told = process.hear(len(program))
    assert set(told) <= {"0"}, list(zip(program, told, strict=True))


def use(device: int, number: int = 1, ask: bool = False) -> str:
    """A context and a stream, N and N + 2, on a device; the kernel is 1."""
    asked = f"0 cuDeviceGetUuid_v2 {device}\n" if ask else ""
    return f"""
        0 cuInit 0
        {asked.strip() or "0 cuInit 0"}
        0 cuDevicePrimaryCtxRetain {number} {device}
        0 cuCtxSetCurrent {number}
        0 cuLibraryLoadData 1
        0 cuLibraryGetKernel 1 1
        0 cuStreamCreate {number + 2} 1
        """


def work(stream: int, launches: int, kernels: int, replays: int) -> str:
    return f"""
        0 cuStreamBeginCapture_v2 {stream} 2
        {kernels} x 0 cuLaunchKernel 1 {stream}
        0 cuStreamEndCapture {stream} {stream}
        0 cuGraphInstantiateWithFlags {stream} {stream} 0
        {replays} x 0 cuGraphLaunch {stream} {stream}
        {launches} x 0 cuLaunchKernel 1 {stream}
        """


def figures(launches: int, kernels: int, replays: int) -> Figures:
    return {
        "kernel_launches": launches,
        "captured_launches": kernels,
        "graph_launches": replays,
        "graph_kernels": kernels * replays,
    }


# --- processes and GPUs --------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [False, True], ids=["by NVML and its surroundings", "asks"])
def test_two_processes_on_different_gpus(rig: Rig, ask: bool) -> None:
    rig.agent()
    with rig.process() as one, rig.process() as other:
        do(one, use(0, ask=ask) + work(3, 5, 2, 3))
        do(other, use(2, ask=ask) + work(3, 7, 3, 2))
        expected = {"0": figures(5, 2, 3), "2": figures(7, 3, 2)}
        assert rig.truth() == expected
        assert rig.gpus(lambda seen: seen == expected) == expected
        page = rig.page(lambda page: of_process(page, other.pid))
        assert of_process(page, one.pid) == {"0": figures(5, 2, 3)}
        assert of_process(page, other.pid) == {"2": figures(7, 3, 2)}
        assert rig.sources() == {"uuid" if ask else "visible_devices": 2}
    assert rig.gpus(lambda seen: seen == expected) == expected


def test_one_process_on_two_gpus(rig: Rig) -> None:
    rig.agent()
    with rig.process() as process:
        do(process, use(1, ask=True) + work(3, 5, 2, 3) + use(2, 2, ask=True) + work(4, 7, 3, 2))
        expected = {"1": figures(5, 2, 3), "2": figures(7, 3, 2)}
        assert rig.truth() == expected
        assert rig.gpus(lambda seen: seen == expected) == expected
        page = rig.page(lambda page: of_process(page, process.pid) == expected)
        assert of_process(page, process.pid) == expected
        assert rig.sources() == {"uuid": 2}


@contextmanager
def remapped(rig: Rig, *devices: int, **variables: str) -> Iterator[Interpreter]:
    """A process that sees these devices of the node in this order, as after CUDA_VISIBLE_DEVICES:
    a driver state of its own with their UUIDs, of which NVML lists the process on the first."""
    rows = [
        Device(uuid=UUID(rig.node.uuid(d).removeprefix("GPU-")), pci=(0, 0x10 + d, 0))
        for d in devices
    ]
    with (
        Node(rig.node.library.parent, rig.root.parent / "view", rows) as view,
        Interpreter(Seen(view, variables)) as process,  # type: ignore[arg-type]
        closing(NvmlControl(rig.node.path)) as nvml,
    ):
        rig.show(process.pid)
        nvml.processes(devices[0], (process.pid, "compute", 1 << 20))
        yield process


REMAPPED = {
    "it asks": ({}, True, "uuid"),
    "it asks, and the variable says something else": ({"CUDA_VISIBLE_DEVICES": "0"}, True, "uuid"),
    "indices": (
        {"CUDA_VISIBLE_DEVICES": "2,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        False,
        "visible_devices",
    ),
    "a script set the variable": ({}, False, "nvml"),
}


@pytest.mark.parametrize(("variables", "ask", "source"), REMAPPED.values(), ids=REMAPPED)
def test_other_ordinals_than_the_nodes(
    rig: Rig, variables: dict[str, str], ask: bool, source: str
) -> None:
    """Its ordinal 0 is the node's GPU 2."""
    rig.agent()
    with remapped(rig, 2, 0, **variables) as process:
        do(process, use(0, ask=ask) + work(3, 5, 2, 3))
        expected = {"2": figures(5, 2, 3)}
        assert rig.gpus(lambda seen: seen == expected) == expected
        assert rig.sources() == {source: 1}


def test_a_uuid_as_the_variable(rig: Rig) -> None:
    rig.agent()
    with remapped(rig, 2, CUDA_VISIBLE_DEVICES=rig.node.uuid(2)) as process:
        do(process, use(0) + work(3, 5, 2, 3))
        expected = {"2": figures(5, 2, 3)}
        assert rig.gpus(lambda seen: seen == expected) == expected
        assert rig.sources() == {"visible_devices": 1}


# --- late ----------------------------------------------------------------------------------------


def test_late_on_one_gpu(rig: Rig) -> None:
    """What the process doesn't say NVML does, if it lists one GPU."""
    with rig.process() as process:
        do(process, use(1) + work(3, 5, 2, 3))
        rig.agent()
        do(process, "0 cuGraphLaunch 3 3\n 7 x 0 cuLaunchKernel 1 3")
        expected = {"1": {"kernel_launches": 7, "graph_launches": 1}}
        assert rig.gpus(lambda seen: seen == expected) == expected
        assert rig.sources() == {"nvml": 1}


def test_late_on_two_gpus(rig: Rig) -> None:
    """Then only what the process says tells; the rest is unknown."""
    with rig.process() as process:
        do(process, use(0) + use(1, 2))
        rig.agent()
        do(process, "7 x 0 cuLaunchKernel 1 3\n 3 x 0 cuLaunchKernel 1 4")
        expected = {"unknown": {"kernel_launches": 10}}
        assert rig.gpus(lambda seen: seen == expected) == expected
        assert rig.sources() == {"unknown": 1}
        do(process, "0 cuStreamGetDevice 4\n 0 cuDeviceGetUuid_v2 1\n 5 x 0 cuLaunchKernel 1 4")
        expected |= {"1": {"kernel_launches": 5}}
        assert rig.gpus(lambda seen: seen == expected) == expected
        assert rig.sources() == {"unknown": 1, "uuid": 1}
        assert sums(expected)["kernel_launches"] == sums(rig.truth())["kernel_launches"]


# --- memory --------------------------------------------------------------------------------------

MEMORY = """
0 cuMemAlloc_v2 1 1000
0 cuMemAlloc_v2 2 3000000
0 cuMemAlloc_v2 3 100
0 cuMemAllocAsync 4 70000 3
0 cuMemAllocManaged 5 4096
0 cuMemHostAlloc 1 8192 0
0 cuArrayCreate_v2 1 100 10 32 4
0 cuMemCreate 1 4194304 DEVICE
0 cuMemFree_v2 3
"""


def by_kind(page: Metrics, name: str, gpu: str) -> Figures:
    return {
        dict(labels)["kind"]: int(number)
        for (sample, labels), number in page.items()
        if sample == name and dict(labels)["gpu"] == gpu and number
    }


def gauge(page: Metrics, name: str, gpu: str) -> float | None:
    found = [
        number for (n, labels), number in page.items() if n == name and dict(labels)["gpu"] == gpu
    ]
    return found[0] if found else None


def held(node: Node, number: int) -> Figures:
    found = {kind: node.live_bytes(number, kind) for kind in KINDS[:-1]}
    return {kind: n for kind, n in found.items() if n}


def assert_memory(rig: Rig, number: int) -> None:
    node, gpu = rig.node, str(number)
    live, granules = held(node, number), node.granules(number)
    on_device = sum(n for kind, n in live.items() if kind not in ("managed", "host"))
    wanted = (
        live,
        None if not granules else pytest.approx(1 - on_device / granules),
        node.memory_used(number) - granules,
    )

    def shown(page: Metrics) -> tuple[Figures, float | None, float | None]:
        return (
            by_kind(page, "gpubpf_gpu_live_bytes", gpu),
            gauge(page, "gpubpf_gpu_memory_fragmentation_ratio", gpu),
            gauge(page, "gpubpf_gpu_memory_unattributed_bytes", gpu),
        )

    assert shown(rig.page(lambda page: shown(page) == wanted)) == wanted


def test_memory(rig: Rig) -> None:
    """Live bytes, granules, and what nobody asked for, against the device's own figures."""
    rig.agent()
    with ExitStack() as stack:
        one, other, third = (stack.enter_context(rig.process()) for _ in range(3))
        do(one, use(0) + MEMORY.replace("DEVICE", "0"))
        do(other, use(2) + MEMORY.replace("DEVICE", "2"))
        do(third, use(0) + "0 cuMemAlloc_v2 1 5000000\n 0 cuMemAlloc_v2 2 10")
        for number in range(DEVICES):
            assert_memory(rig, number)
        do(one, "0 cuMemFree_v2 2\n 0 cuArrayDestroy 1\n 0 cuMemRelease 1\n 0 cuMemFreeAsync 4 3")
        do(third, "0 cuDevicePrimaryCtxReset_v2 0")
        for number in range(DEVICES):
            assert_memory(rig, number)
    for number in range(DEVICES):
        assert_memory(rig, number)


# --- real clients --------------------------------------------------------------------------------

# Does what the client does, says so, and stays: the context is there until it is told to end.
STAYING = """
import runpy, sys
select, sys.argv = sys.argv[1], sys.argv[2:]
if select:
    from numba import cuda
    cuda.select_device(int(select))
runpy.run_path(sys.argv[0], run_name="__main__")
print("done", flush=True)
sys.stdin.readline()
"""


@contextmanager
def client(rig: Rig, name: str, *options: str, select: str = "") -> Iterator[int]:
    """A real client, until it has done everything; its pid."""
    process = subprocess.Popen(
        [PYTHON, "-c", STAYING, select, str(CLIENTS / f"{name}_client.py"), *options],
        env=rig.node.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    rig.show(process.pid)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        yield process.pid
    finally:
        process.communicate("\n", timeout=60)
    assert process.returncode == 0


def test_captures_replays_and_direct_launches_of_cuda_core(rig: Rig) -> None:
    """2 launches while capturing, 3 replays, 5 direct launches: 11 kernels ran."""
    rig.agent()
    options = ("--launches", "5", "--graph-kernels", "2", "--graph-launches", "3")
    with client(rig, "cuda_core", *options) as pid:
        expected = {"0": figures(5, 2, 3)}
        assert rig.truth() == expected
        assert rig.gpus(lambda seen: seen == expected) == expected
        page = rig.page(lambda page: of_process(page, pid) == expected)
        assert of_process(page, pid) == expected
    assert rig.gpus(lambda seen: seen == expected) == expected
    activity: Activity = rig.node.counts().activity[0]
    assert activity.launches + activity.graph_kernels == 11


def test_which_gpu_numba_uses(rig: Rig) -> None:
    """It asks for UUIDs: what it did is its GPU's even if no look saw it alive."""
    rig.agent()
    with client(rig, "numba", "--launches", "11", select="2"):
        expected = {"2": {"kernel_launches": 11}}
        assert rig.truth() == expected
        assert rig.gpus(lambda seen: seen == expected) == expected
        assert rig.sources().keys() == {"uuid"}
