"""Both halves of the simulated node together: NVML tells what living CUDA processes hold and do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpubpf.nvml import Nvml
from tests.fakegpu.node import Device, Node
from tests.fakegpu.nvml_control import BUILD

CONTEXT = 3 << 20
KERNEL = 10_000_000  # ns
CLIENT = """
import ctypes, sys
PTX = b".version 7.0\\n.target sm_70\\n.address_size 64\\n.visible .entry nothing() { ret; }"
cuda = ctypes.CDLL("libcuda.so.1")
device, size = map(int, sys.argv[1:])
handle, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGet(ctypes.byref(handle), device) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, handle) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0
for line in sys.stdin:
    print("ready", flush=True)
    if line == "free\\n":
        assert cuda.cuMemFree_v2(pointer) == 0
    elif line == "work\\n":
        module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        assert cuda.cuModuleLoadData(ctypes.byref(module), PTX) == 0
        assert cuda.cuModuleGetFunction(ctypes.byref(kernel), module, b"nothing") == 0
        for _ in range(503):
            assert cuda.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
    elif line == "end\\n":
        assert cuda.cuCtxDestroy_v2(context) == 0
    print("done", flush=True)
"""


class Client:
    """A process with a context and an allocation."""

    def __init__(self, node: Node, device: int, size: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(device), str(size)],
            env=node.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.tell("wait")

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ready\n"
        assert self.process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    devices = [Device(context_bytes=CONTEXT, kernel_ns=KERNEL)] * 2
    with Node(BUILD, tmp_path / "state", devices=devices) as node:
        monkeypatch.setenv("FAKEGPU_STATE", str(node.path))
        yield node


@pytest.fixture
def nvml(node: Node, tmp_path: Path) -> Iterator[Nvml]:
    copy = tmp_path / "libnvidia-ml.so.1"  # it maps the state it finds first
    copy.write_bytes(node.nvml_library.read_bytes())
    with closing(Nvml(str(copy))) as nvml:
        yield nvml


def test_memory_of_cuda_processes(node: Node, nvml: Nvml) -> None:
    clients = [
        Client(node, 0, 1_000_003),
        Client(node, 1, 2_000_003),
        Client(node, 1, 3_000_017),
    ]

    def listed(device: int) -> dict[int, int | None]:
        read = nvml.read()[device]
        assert read.info.uuid == node.uuid(device)
        processes = {p.pid: p.memory_used for p in read.processes or ()}
        used = sum(memory or 0 for memory in processes.values())
        assert read.get("memory_used_bytes") == used
        return processes

    first, second, third = clients
    held = {c.pid: node.process(c.pid).counts for c in clients}
    expected = {pid: counts.activity for pid, counts in held.items()}
    assert listed(0) == {first.pid: expected[first.pid][0].held_bytes}
    assert listed(1) == {c.pid: expected[c.pid][1].held_bytes for c in (second, third)}
    assert (listed(0)[first.pid] or 0) >= 1_000_003 + CONTEXT
    second.tell("free")
    assert listed(1)[second.pid] == CONTEXT
    second.tell("end")  # alive, but nothing of it is on the device any more
    assert list(listed(1)) == [third.pid]
    third.kill()
    assert listed(1) == {}
    first.process.communicate()
    assert listed(0) == {}
    second.kill()


def test_utilization_of_cuda_processes(node: Node, nvml: Nvml) -> None:
    busy, idle = Client(node, 1, 1), Client(node, 1, 1)
    busy.tell("work")  # 503 kernels of 10 ms are submitted at once: it runs for 5 seconds
    nvml.read()
    time.sleep(0.3)
    other, device = nvml.read()
    assert other.get("utilization_ratio") == 0.0
    assert device.get("utilization_ratio") == pytest.approx(1.0, abs=0.3)
    shares = {process.pid: process.share and process.share.sm for process in device.processes or ()}
    assert shares == {busy.pid: pytest.approx(1.0, abs=0.3), idle.pid: 0.0}
    busy.kill()
    idle.kill()
