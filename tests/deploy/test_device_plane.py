"""The device plane of a real agent: what a node's driver goes through, and `gpubpf release`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import GPUBPF, Agent, eventually, get, value
from tests.fakegpu.node import Node
from tests.fakegpu.nvml_control import NvmlControl

Serve = Callable[..., Agent]
REAL = Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")


@pytest.fixture
def control(node: Node) -> Iterator[NvmlControl]:
    control = NvmlControl(node.path)
    for device in range(2):
        control.board(device, "hopper")
    yield control
    control.clear_faults()


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "control.sock")


@pytest.fixture
def agent(
    serve: Serve, node: Node, control: NvmlControl, alone: tuple[str, ...], socket: str
) -> Agent:
    return serve(
        *("--nvml-library", str(node.nvml_library), "--library", str(node.library), *alone),
        *("--nvml-timeout", "0.5", "--process-metrics", "--control-socket", socket),
        environment={"FAKEGPU_STATE": str(node.path)},
    )


def gpu(agent: Agent, name: str, **labels: str) -> dict[str, float]:
    """The figure by GPU index."""
    return {
        dict(found)["gpu"]: number
        for (sample, found), number in agent.metrics().items()
        if sample == name and labels.items() <= dict(found).items()
    }


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GPUBPF, *arguments], capture_output=True, text=True, timeout=60)


def up(agent: Agent) -> float:
    return value(agent.metrics(), "gpubpf_agent_source_up", source="nvml")


def why(agent: Agent, reason: str) -> float:
    name = "gpubpf_agent_source_down_reason"
    return value(agent.metrics(), name, source="nvml", reason=reason)


def test_all_classes_are_on_the_page(agent: Agent) -> None:
    for name, wanted in {
        "gpubpf_gpu_sm_utilization_ratio": 0.13015625,
        "gpubpf_gpu_memory_size_bytes": 80 << 30,
        "gpubpf_gpu_pcie_link_generation": 4,
        "gpubpf_gpu_memory_temperature_celsius": 67,
    }.items():
        seen = eventually(lambda name=name: gpu(agent, name), lambda found: len(found) == 2)  # type: ignore[misc]
        assert seen["0"] == wanted, name
    ages = {
        dict(labels)["class"]: age
        for (name, labels), age in agent.metrics().items()
        if name == "gpubpf_agent_sample_age_seconds"
    }
    assert ages.keys() == {"compute", "processes", "memory", "links", "heat"}
    assert max(ages.values()) < 5


def test_what_needs_no_gpu_is_there_without_one(serve: Serve) -> None:
    """NVIDIA's own library, and no driver: the agent says why, and goes on."""
    assert REAL.exists(), "libnvidia-ml1 is not installed"
    agent = serve("--nvml-library", str(REAL))
    assert "no GPU figures: no NVIDIA driver is loaded" in agent.ready
    assert up(agent) == 0
    assert why(agent, "no_driver") == 1
    metrics = agent.metrics()
    assert value(metrics, "gpubpf_node_shm_size_bytes") == os.statvfs("/dev/shm").f_blocks * 4096
    assert not [name for name, _ in metrics if name.startswith("gpubpf_gpu_utilization")]
    assert agent.calls()["cuLaunchKernel"] >= 0


def test_a_gpu_that_hangs_costs_its_own_figures(agent: Agent, control: NvmlControl) -> None:
    control.fault("nvmlDeviceGetPowerUsage", device=1, block_ms=6_000, times=1)
    seen = eventually(lambda: gpu(agent, "gpubpf_gpu_up"), lambda found: found.get("1") == 0)
    assert seen == {"0": 1, "1": 0}
    assert gpu(agent, "gpubpf_gpu_down_reason", reason="timeout") == {"1": 1}
    assert gpu(agent, "gpubpf_gpu_power_watts").keys() == {"0"}
    assert up(agent) == 1
    seen = eventually(lambda: gpu(agent, "gpubpf_gpu_up"), lambda found: found.get("1") == 1)
    assert seen == {"0": 1, "1": 1}


def test_the_driver_is_reloaded(agent: Agent, control: NvmlControl) -> None:
    before = gpu(agent, "gpubpf_gpu_energy_joules_total")["0"]
    control.unload_driver()
    control.node.generation += 1
    assert eventually(lambda: up(agent), lambda is_up: not is_up) == 0
    control.figures(0, energy_mj=5_000)
    control.clear_faults()
    assert eventually(lambda: up(agent), bool, seconds=20) == 1
    assert gpu(agent, "gpubpf_gpu_energy_joules_total")["0"] == pytest.approx(before + 5)


def test_release_and_resume(agent: Agent, control: NvmlControl, node: Node, socket: str) -> None:
    assert up(agent) == 1
    told = ask("release", "--control-socket", socket)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == (
        f"the agent (pid {agent.pid}) let go of every device file of the NVIDIA driver;"
        " the agent takes them up again in 3600 s, or at `gpubpf resume`\n"
    )
    assert control.node.inits == control.node.shutdowns
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    assert str(node.nvml_library) not in maps  # another version may come
    assert eventually(lambda: why(agent, "released"), bool) == 1
    subprocess.run(
        [node.workload, "--library", node.library, "--launches", "211"],
        env=node.environment(), stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    assert eventually(lambda: agent.calls()["cuLaunchKernel"], lambda n: n == 211) == 211
    told = ask("resume", "--control-socket", socket)
    assert told.stdout == (
        f"the agent (pid {agent.pid}) takes the NVIDIA driver up again at its next look\n"
    )
    assert sum("let go of every" in line for line in agent.lines) == 1  # in its log, too
    assert eventually(lambda: up(agent), bool) == 1
    told = ask("resume", "--control-socket", socket)
    assert told.stdout == "nothing was let go of\n"


def test_release_by_signal_and_back_by_itself(
    serve: Serve, node: Node, control: NvmlControl, alone: tuple[str, ...]
) -> None:
    agent = serve(
        *("--nvml-library", str(node.nvml_library), "--library", str(node.library), *alone),
        *("--resume-after", "6"),
        environment={"FAKEGPU_STATE": str(node.path)},
    )
    os.kill(agent.pid, signal.SIGUSR1)
    assert eventually(lambda: why(agent, "released"), bool) == 1
    assert any("let go of every device file" in line for line in agent.lines)
    assert eventually(lambda: up(agent), bool) == 1
    os.kill(agent.pid, signal.SIGUSR1)
    assert eventually(lambda: why(agent, "released"), bool) == 1
    os.kill(agent.pid, signal.SIGUSR2)
    assert eventually(lambda: up(agent), bool, seconds=4) == 1
    assert agent.stop() == 0


def test_a_release_that_can_not_be(agent: Agent, control: NvmlControl, socket: str) -> None:
    control.fault("nvmlDeviceGetPowerUsage", device=1, block_ms=8_000, times=1)
    eventually(lambda: gpu(agent, "gpubpf_gpu_up"), lambda found: found.get("1") == 0)
    told = ask("release", "--control-socket", socket)
    assert told.returncode == 5
    assert "can't let go of the driver: a call for GPU-" in told.stderr
    assert up(agent) == 1


def test_nvml_that_is_upgraded_while_it_is_let_go_of(
    serve: Serve, node: Node, control: NvmlControl, alone: tuple[str, ...], tmp_path: Path
) -> None:
    """The library in memory goes, so that the new driver's is loaded."""
    library, socket = tmp_path / "libnvidia-ml.so.1", str(tmp_path / "control.sock")
    shutil.copyfile(node.nvml_library, library)
    agent = serve(
        *("--nvml-library", str(library), "--library", str(node.library), *alone),
        *("--control-socket", socket),
        environment={"FAKEGPU_STATE": str(node.path)},
    )
    assert ask("release", "--control-socket", socket).returncode == 0
    assert eventually(lambda: why(agent, "released"), bool) == 1
    other = tmp_path / "other"
    shutil.copyfile(node.nvml_library, other)
    other.rename(library)
    inode = library.stat().st_ino
    assert ask("resume", "--control-socket", socket).returncode == 0
    assert eventually(lambda: up(agent), bool) == 1
    mapped = [
        line.split()[4]
        for line in Path(f"/proc/{agent.pid}/maps").read_text().splitlines()
        if line.endswith("/libnvidia-ml.so.1")
    ]
    assert set(mapped) == {str(inode)}


def test_compat_is_off_by_default(agent: Agent) -> None:
    page = get(f"{agent.url}/metrics")
    assert "DCGM_FI" not in page
    assert "nvidia_smi" not in page
