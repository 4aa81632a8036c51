"""nvitop and gpustat, unmodified, on the simulated NVML: they see what gpubpf sees."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubpf.model import Device
from gpubpf.nvml import Nvml
from tests.fakegpu.nvml_control import StagedNode, build_nvml

MIB = 1 << 20

needs_gpustat = pytest.mark.skipif(
    importlib.util.find_spec("gpustat") is None, reason="gpustat is not installed"
)
needs_nvitop = pytest.mark.skipif(
    importlib.util.find_spec("nvitop") is None, reason="nvitop is not installed"
)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StagedNode]:
    library = build_nvml()
    node = StagedNode(tmp_path / "state", devices=2)
    monkeypatch.setenv("FAKEGPU_STATE", str(node.path))
    # pynvml asks the loader for the soname
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("TERM", "dumb")
    node.figures(0, utilization=37, memory_utilization=23, temperature=61, power_mw=123_000)
    node.figures(1, utilization=0, memory_utilization=0, temperature=31, power_mw=61_000)
    for device, memory in ((0, 53), (0, 71), (1, 97)):
        node.start(device, memory * MIB)
    yield node
    node.stop()


@pytest.fixture
def seen(node: StagedNode, tmp_path: Path) -> tuple[Device, ...]:
    """What gpubpf sees."""
    copy = tmp_path / "libnvidia-ml.so.1"  # it maps the state it finds first
    copy.write_bytes(build_nvml().read_bytes())
    nvml = Nvml(str(copy))
    devices = nvml.read()
    nvml.close()
    return devices


def run(*command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=os.environ
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def memory_by_pid(device: Device) -> dict[int, int | None]:
    return {process.pid: process.memory_used for process in device.processes or ()}


@needs_gpustat
def test_gpustat(seen: tuple[Device, ...]) -> None:
    report = json.loads(run("-m", "gpustat", "--json"))
    assert report["driver_version"] == seen[0].info.driver_version
    assert len(report["gpus"]) == len(seen) == 2
    for device, gpu in zip(seen, report["gpus"], strict=True):
        assert (gpu["index"], gpu["uuid"]) == (device.info.index, device.info.uuid)
        assert "imulated" in gpu["name"]
        assert gpu["utilization.gpu"] / 100 == device.get("utilization_ratio")
        assert gpu["temperature.gpu"] == device.get("temperature_celsius")
        assert gpu["power.draw"] == device.get("power_watts")
        assert gpu["memory.used"] * MIB == device.get("memory_used_bytes")
        processes = {p["pid"]: p["gpu_memory_usage"] * MIB for p in gpu["processes"]}
        assert processes == memory_by_pid(device)


NVITOP = """
import json, nvitop
print(json.dumps([
    {
        "uuid": d.uuid(), "name": d.name(), "gpu": d.gpu_utilization(),
        "memory": d.memory_utilization(), "temperature": d.temperature(),
        "power": d.power_usage(), "used": d.memory_used(), "total": d.memory_total(),
        "processes": {p.pid: p.gpu_memory() for p in d.processes().values()},
    }
    for d in nvitop.Device.all()
]))
"""


@needs_nvitop
def test_nvitop_as_a_library(seen: tuple[Device, ...]) -> None:
    report: list[dict[str, Any]] = json.loads(run("-c", NVITOP))
    for device, gpu in zip(seen, report, strict=True):
        assert (gpu["uuid"], gpu["name"]) == (device.info.uuid, device.info.name)
        assert gpu["gpu"] / 100 == device.get("utilization_ratio")
        assert gpu["memory"] / 100 == device.get("memory_utilization_ratio")
        assert gpu["temperature"] == device.get("temperature_celsius")
        assert gpu["power"] / 1000 == device.get("power_watts")
        assert gpu["used"] == device.get("memory_used_bytes")
        assert gpu["total"] == device.get("memory_size_bytes")
        processes = {int(pid): memory for pid, memory in gpu["processes"].items()}
        assert processes == memory_by_pid(device)


@needs_nvitop
def test_nvitop_on_screen(seen: tuple[Device, ...]) -> None:
    screen = run("-m", "nvitop", "--once", "--no-unicode")
    assert "61C" in screen
    assert "37%" in screen
    assert "123W" in screen
    for device in seen:
        assert str(device.info.pci_bus_id) in screen
        for pid in memory_by_pid(device):
            assert f" {pid} " in screen
