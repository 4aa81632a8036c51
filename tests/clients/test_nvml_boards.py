"""nvitop and gpustat on each generation of simulated boards: independent readers say the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from gpubpf.model import Device
from gpubpf.nvml import Nvml
from tests.fakegpu.nvml_control import StagedNode, build_nvml

nvitop = pytest.importorskip("nvitop")
pytest.importorskip("gpustat")
MIB = 1 << 20

Figure = tuple[str, str, tuple[str, ...], float]

# What nvitop calls a figure, ours, its labels, and its units in one of ours.
FIGURES: tuple[Figure, ...] = (
    ("gpu_utilization", "utilization_ratio", (), 100),
    ("memory_utilization", "memory_utilization_ratio", (), 100),
    ("encoder_utilization", "encoder_utilization_ratio", (), 100),
    ("decoder_utilization", "decoder_utilization_ratio", (), 100),
    ("memory_total", "memory_size_bytes", (), 1),
    ("memory_used", "memory_used_bytes", (), 1),
    ("memory_free", "memory_free_bytes", (), 1),
    ("bar1_memory_total", "bar1_size_bytes", (), 1),
    ("bar1_memory_used", "bar1_used_bytes", (), 1),
    ("bar1_memory_free", "bar1_free_bytes", (), 1),
    ("fan_speed", "fan_speed_ratio", ("0",), 100),
    ("temperature", "temperature_celsius", (), 1),
    ("power_usage", "power_watts", (), 1000),
    ("power_limit", "power_limit_set_watts", (), 1000),
    ("graphics_clock", "clock_hertz", ("graphics",), 1e-6),
    ("sm_clock", "clock_hertz", ("sm",), 1e-6),
    ("memory_clock", "clock_hertz", ("memory",), 1e-6),
    ("video_clock", "clock_hertz", ("video",), 1e-6),
    ("max_sm_clock", "clock_max_hertz", ("sm",), 1e-6),
    (
        "total_volatile_uncorrected_ecc_errors",
        "ecc_errors",
        ("uncorrected", "volatile"),
        1,
    ),
)

GPUSTAT: tuple[Figure, ...] = (  # the same of gpustat's, which rounds down
    ("utilization.gpu", "utilization_ratio", (), 100),
    ("utilization.enc", "encoder_utilization_ratio", (), 100),
    ("utilization.dec", "decoder_utilization_ratio", (), 100),
    ("temperature.gpu", "temperature_celsius", (), 1),
    ("fan.speed", "fan_speed_ratio", ("0",), 100),
    ("power.draw", "power_watts", (), 1),
    ("enforced.power.limit", "power_limit_watts", (), 1),
    ("memory.total", "memory_size_bytes", (), 1 / MIB),
    ("memory.used", "memory_used_bytes", (), 1 / MIB),
)

READER = """
import json, nvitop, sys
def told(device, name):
    value = getattr(device, name)()
    return None if value is nvitop.NA else value
print(json.dumps([
    {
        **{name: told(device, name) for name in sys.argv[1:]},
        "uuid": device.uuid(),
        "state": device.performance_state(),
        "persistence": device.persistence_mode(),
        "mig": [
            {"uuid": m.uuid(), "total": m.memory_total(), "used": m.memory_used(),
             "gi": m.gpu_instance_id(), "ci": m.compute_instance_id()}
            for m in device.mig_devices()
        ] if device.is_mig_mode_enabled() else [],
        "processes": {p.pid: [p.gpu_memory(), p.gpu_sm_utilization()]
                      for p in device.processes().values()},
    }
    for device in nvitop.PhysicalDevice.all()
]))
"""


@pytest.mark.parametrize(
    "board", ["turing", "ampere", "ampere_mig", "hopper", "hopper_mig", "blackwell", "consumer"]
)
def test_others_agree(board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build_nvml()
    node = StagedNode(tmp_path / "state", devices=8, board=board)
    try:
        monkeypatch.setenv("FAKEGPU_STATE", str(node.path))
        pid = node.start(3, 53 * MIB)
        divided = board.endswith("_mig")
        if divided:
            node.place(3, pid, 7, 0)
        else:
            node.samples(3, (pid, 41, 23, 7, 5))
        copy = tmp_path / "libnvidia-ml.so.1"  # it maps the state it finds first
        shutil.copyfile(library, copy)
        nvml = Nvml(str(copy))
        devices = nvml.read()
        nvml.close()
        theirs, gpustat = _theirs(library)
        assert len(devices) == len(theirs) == 8
        for ours, seen in zip(devices, theirs, strict=True):
            _agree(ours, seen)
        for ours, seen in zip(devices, gpustat["gpus"], strict=True):
            assert (seen["uuid"], seen["name"]) == (ours.info.uuid, ours.info.name)
            _same_figures(ours, seen, GPUSTAT, lambda value: int(value + 1e-9))
        if not divided:  # gpustat doesn't look into MIG devices
            assert [p["gpu_memory_usage"] for p in gpustat["gpus"][3]["processes"]] == [53]
        row = theirs[3]["processes"][str(pid)]
        assert row[0] == 53 * MIB
        mine = next(process for process in devices[3].processes or () if process.pid == pid)
        assert (mine.memory_used, mine.kinds) == (53 * MIB, ("compute",))
        if divided:
            assert mine.mig in devices[3].info.children
        else:
            assert mine.share is not None
            assert row[1] == 100 * mine.share.sm == 41
    finally:
        node.stop()


def _theirs(library: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What nvitop says, and what gpustat does."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}

    def said(*arguments: str) -> Any:
        command = [sys.executable, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return said("-c", READER, *(name for name, *_ in FIGURES)), said("-m", "gpustat", "--json")


def _same_figures(
    ours: Device,
    theirs: dict[str, Any],
    figures: Iterable[Figure],
    rounded: Callable[[float], float] = float,
) -> None:
    for name, fact, labels, per in figures:
        mine = ours.get(fact, *labels)
        if theirs[name] is None:
            assert mine is None, name
        else:
            assert mine is not None, name
            assert rounded(mine * per) == pytest.approx(theirs[name]), name


def _agree(ours: Device, theirs: dict[str, Any]) -> None:
    assert theirs["uuid"] == ours.info.uuid
    _same_figures(ours, theirs, FIGURES)
    state = ours.get("performance_state")
    assert theirs["state"] == (None if state is None else f"P{state:.0f}")
    enabled = ours.get("persistence_enabled")
    assert theirs["persistence"] == {1: "Enabled", 0: "Disabled"}.get(int(enabled or 0))
    for mine_, seen in zip(ours.mig, theirs["mig"], strict=True):
        assert seen["uuid"] == mine_.info.uuid
        assert (seen["gi"], seen["ci"]) == (mine_.info.gpu_instance, mine_.info.compute_instance)
        assert seen["total"] == mine_.figures["memory_size_bytes"][()]
        assert seen["used"] == mine_.figures["memory_used_bytes"][()]
