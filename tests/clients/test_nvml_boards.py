"""nvitop on each generation of simulated boards: an independent reader gives the same figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpubpf.model import Device
from gpubpf.nvml import Nvml
from tests.fakegpu.nvml_control import StagedNode, build_nvml

nvitop = pytest.importorskip("nvitop")
MIB = 1 << 20

# What nvitop calls a figure, ours, its labels, and its units in one of ours.
FIGURES = (
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
    "board", ["turing", "ampere", "ampere_mig", "hopper", "hopper_mig", "consumer"]
)
def test_nvitop_agrees(board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        theirs = _theirs(library)
        assert len(devices) == len(theirs) == 8
        for ours, seen in zip(devices, theirs, strict=True):
            _agree(ours, seen)
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


def _theirs(library: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    names = [name for name, *_ in FIGURES]
    result = subprocess.run(
        [sys.executable, "-c", READER, *names], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout))


def _agree(ours: Device, theirs: dict[str, Any]) -> None:
    assert theirs["uuid"] == ours.info.uuid
    for name, fact, labels, per in FIGURES:
        mine = ours.get(fact, *labels)
        if theirs[name] is None:
            assert mine is None, name
        else:
            assert mine is not None, name
            assert mine == pytest.approx(theirs[name] / per), name
    state = ours.get("performance_state")
    assert theirs["state"] == (None if state is None else f"P{state:.0f}")
    enabled = ours.get("persistence_enabled")
    assert theirs["persistence"] == {1: "Enabled", 0: "Disabled"}.get(int(enabled or 0))
    for mine_, seen in zip(ours.mig, theirs["mig"], strict=True):
        assert seen["uuid"] == mine_.info.uuid
        assert (seen["gi"], seen["ci"]) == (mine_.info.gpu_instance, mine_.info.compute_instance)
        assert seen["total"] == mine_.figures["memory_size_bytes"][()]
        assert seen["used"] == mine_.figures["memory_used_bytes"][()]
