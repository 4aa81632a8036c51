"""gpubpf.nvml.sampler on the simulated NVML: classes, calls that hang, letting go."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from gpubpf.model import CLASSES, COMPUTE, HEAT, LINKS, MEMORY, PROCESSES, Device, Plane
from gpubpf.nvml import Nvml, NvmlError
from gpubpf.nvml.sampler import Sampler
from tests.fakegpu.nvml_control import StagedNode, build_nvml

OFTEN = dict.fromkeys(CLASSES, 0.0)
DEADLINE = 0.3


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StagedNode]:
    node = StagedNode(tmp_path / "state", devices=3, board="hopper")
    monkeypatch.setenv("FAKEGPU_STATE", str(node.path))
    yield node
    node.clear_faults()
    node.stop()


@pytest.fixture
def library(node: StagedNode) -> str:
    copy = node.path.with_name("libnvidia-ml.so.1")
    shutil.copyfile(build_nvml(), copy)
    return str(copy)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def sampler(library: str) -> Iterator[Sampler]:
    sampler = Sampler(Nvml(library), OFTEN, DEADLINE)
    yield sampler
    sampler.close()


def plane(sampler: Sampler) -> Plane:
    reading = sampler.poll()
    assert reading.value is not None, reading.error
    return reading.value


def reasons(devices: tuple[Device, ...]) -> list[str | None]:
    return [device.reason for device in devices]


def until_answered(sampler: Sampler) -> Plane:
    for _ in range(100):
        reading = sampler.poll()
        if reading.value is not None and reasons(reading.value.devices) == [None, None, None]:
            return reading.value
        time.sleep(0.05)
    raise AssertionError("it doesn't come back")


def test_every_class_at_its_interval(node: StagedNode, library: str) -> None:
    clock = Clock()
    intervals = {COMPUTE: 5.0, PROCESSES: 5.0, MEMORY: 10.0, LINKS: 15.0, HEAT: 30.0}
    nvml = Nvml(library, monotonic=clock)
    sampler = Sampler(nvml, intervals, DEADLINE, monotonic=clock)
    functions = {
        COMPUTE: "nvmlDeviceGetUtilizationRates",
        PROCESSES: "nvmlDeviceGetComputeRunningProcesses",
        MEMORY: "nvmlDeviceGetMemoryInfo",
        LINKS: "nvmlDeviceGetCurrPcieLinkWidth",
        HEAT: "nvmlDeviceGetPowerUsage",
    }
    facts = {
        COMPUTE: "utilization_ratio",
        MEMORY: "memory_used_bytes",
        LINKS: "pcie_link_width",
        HEAT: "power_watts",
    }
    plane(sampler)
    for second in range(1, 61):
        clock.seconds += 1
        before = plane(sampler).sampled
        for name, interval in intervals.items():
            assert clock.seconds - before[name] == second % interval, (name, second)
    # What isn't due isn't asked, and stays; what is due and fails is absent.
    for name, fact in facts.items():
        node.fault(functions[name], pynvml.NVML_ERROR_NO_PERMISSION)
        device = plane(sampler).devices[0]
        assert device.get(fact) is not None
        clock.seconds += intervals[name]
        device = plane(sampler).devices[0]
        assert device.get(fact) is None
        assert device.missing["no_permission"] > 0
        node.clear_faults()
    sampler.close()


def test_what_is_urgent_is_read_now(node: StagedNode, library: str) -> None:
    sampler = Sampler(Nvml(library), dict.fromkeys(CLASSES, 3600.0), DEADLINE)
    plane(sampler)
    pid = node.start(1, 1 << 20)
    assert plane(sampler).devices[1].processes == ()
    reading = sampler.poll(PROCESSES)
    assert reading.value is not None
    assert [process.pid for process in reading.value.devices[1].processes or ()] == [pid]
    sampler.close()


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetPowerUsage",  # of a plan
        "nvmlDeviceGetFieldValues",
        "nvmlGpmSampleGet",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetProcessUtilization",
        "nvmlDeviceGetMigMode",
    ],
)
def test_a_call_that_hangs_costs_its_gpu_only(
    node: StagedNode, sampler: Sampler, function: str
) -> None:
    plane(sampler)
    node.figures(0, utilization=11)
    node.figures(2, utilization=13)
    node.fault(function, device=1, block_ms=3000, times=1)
    deadline = time.monotonic() + 2.9
    while reasons(plane(sampler).devices) != [None, "timeout", None]:
        assert time.monotonic() < deadline
    devices = plane(sampler).devices
    assert [device.get("utilization_ratio") for device in devices] == [0.11, None, 0.13]
    assert devices[1].info.uuid.startswith("GPU-")  # it is still known
    inits = node.node.inits
    node.figures(1, utilization=17)
    devices = until_answered(sampler).devices
    assert devices[1].get("utilization_ratio") == 0.17
    assert node.node.inits == inits  # it was only slow


def test_hanging_calls_are_not_piled_up(node: StagedNode, sampler: Sampler) -> None:
    import threading

    plane(sampler)
    node.fault("nvmlDeviceGetPowerUsage", block_ms=4000, times=3)
    deadline = time.monotonic() + 3.9
    while reasons(plane(sampler).devices) != ["timeout"] * 3:
        assert time.monotonic() < deadline
    threads = threading.active_count()
    for _ in range(20):
        sampler.poll()
    assert threading.active_count() == threads
    with pytest.raises(NvmlError, match="can't let go of the driver: a call for GPU-0"):
        sampler.release()
    until_answered(sampler)
    assert threading.active_count() < threads
    sampler.release()


def test_nvml_that_hangs_at_the_start(node: StagedNode, sampler: Sampler) -> None:
    node.fault("nvmlInit", block_ms=3000, times=1)
    with pytest.raises(NvmlError, match=r"no answer for 0\.3 s"):
        sampler.open()
    reading = sampler.poll()
    assert (reading.value, reading.reason) == (None, "timeout")
    until_answered(sampler)
    assert node.node.inits - node.node.shutdowns == 1


def test_let_go_and_take_up_again(node: StagedNode, sampler: Sampler) -> None:
    counted = plane(sampler).devices[0].get("energy_joules")
    assert counted is not None
    sampler.release()
    assert node.node.inits == node.node.shutdowns
    calls = node.node.calls
    reading = sampler.poll()
    assert (reading.value, reading.reason) == (None, "released")
    assert reading.error == "gpubpf was asked to let go of the driver"
    assert node.node.calls == calls
    node.figures(0, energy_mj=5_000)  # the driver was loaded anew
    assert sampler.resume()
    assert plane(sampler).devices[0].get("energy_joules") == counted + 5
    assert not sampler.resume()


def test_taken_up_again_by_itself(node: StagedNode, library: str) -> None:
    clock = Clock()
    sampler = Sampler(Nvml(library, monotonic=clock), OFTEN, DEADLINE, monotonic=clock)
    plane(sampler)
    sampler.release(60)
    clock.seconds += 59
    assert sampler.poll().reason == "released"
    clock.seconds += 1
    plane(sampler)
    sampler.close()
    assert node.node.inits == node.node.shutdowns


def test_no_driver_is_waited_for(node: StagedNode, library: str) -> None:
    clock = Clock()
    sampler = Sampler(Nvml(library, monotonic=clock), OFTEN, DEADLINE, monotonic=clock)
    node.unload_driver()
    with pytest.raises(NvmlError, match="no NVIDIA driver is loaded"):
        sampler.open()
    assert sampler.poll().reason == "no_driver"
    node.clear_faults()
    clock.seconds += 61
    assert len(plane(sampler).devices) == 3
    sampler.close()


def test_the_driver_is_reloaded(node: StagedNode, sampler: Sampler) -> None:
    node.figures(0, energy_mj=7_000)
    assert plane(sampler).devices[0].get("energy_joules") == 7
    node.reload_driver()
    assert sampler.poll().reason == "failed"
    node.figures(0, energy_mj=1_000)
    assert until_answered(sampler).devices[0].get("energy_joules") == 8


def test_a_lost_gpu(node: StagedNode, sampler: Sampler) -> None:
    plane(sampler)
    node.lose(1)
    devices = plane(sampler).devices
    assert reasons(devices) == [None, "lost", None]
    assert devices[1].figures == {}
    assert devices[1].processes is None
    node.lose(1, lost=False)
    until_answered(sampler)


@pytest.mark.parametrize("function", ["nvmlDeviceGetName", "nvmlDeviceGetUUID"])
def test_a_gpu_that_hangs_at_the_start_costs_no_other(
    node: StagedNode, sampler: Sampler, function: str
) -> None:
    node.fault(function, device=1, block_ms=3000, times=1)
    deadline = time.monotonic() + 2.9
    while len((sampler.poll().value or Plane()).devices) != 2:
        assert time.monotonic() < deadline
    devices = plane(sampler).devices
    assert [device.info.index for device in devices] == [0, 2]
    assert reasons(devices) == [None, None]
    assert len(until_answered(sampler).devices) == 3
    assert node.node.inits == 1


def test_a_gpu_that_is_slow_again_and_again_costs_the_others_little(
    node: StagedNode, library: str
) -> None:
    sampler = Sampler(Nvml(library), dict.fromkeys(CLASSES, 0.4), DEADLINE)
    plane(sampler)
    node.fault("nvmlDeviceGetPowerUsage", device=1, block_ms=450)
    asked = 0
    end = time.monotonic() + 5
    while time.monotonic() < end:
        before = node.node.calls
        devices = plane(sampler).devices
        asked += reasons(devices)[1] is None
        assert reasons(devices)[::2] == [None, None]
        assert node.node.calls - before < 3000
        time.sleep(0.05)
    assert asked < 40
    sampler.close()


def test_no_work_is_made_up_over_a_hang(node: StagedNode, library: str) -> None:
    clock = Clock()
    sampler = Sampler(Nvml(library, monotonic=clock), OFTEN, DEADLINE, monotonic=clock)
    for _ in range(3):
        plane(sampler)
        clock.seconds += 1
    before = plane(sampler).devices[1].get("sm_busy_seconds")
    sampler.release()
    clock.seconds += 7200
    sampler.resume()
    plane(sampler)
    assert plane(sampler).devices[1].get("sm_busy_seconds") == before
    sampler.close()


def test_resuming_waits_for_nothing(node: StagedNode, library: str) -> None:
    clock = Clock()
    sampler = Sampler(Nvml(library, monotonic=clock), OFTEN, DEADLINE, monotonic=clock)
    plane(sampler)
    node.lose(1)
    for _ in range(200):
        sampler.poll()
        clock.seconds += 1
    sampler.release()
    node.lose(1, lost=False)
    sampler.resume()
    assert reasons(plane(sampler).devices) == [None, None, None]
    sampler.close()


def test_nothing_of_an_unloaded_library_is_called(node: StagedNode, library: str) -> None:
    """Whatever goes wrong in opening it again."""
    nvml = Nvml(library)
    nvml.read()
    nvml.close()
    Path(library).rename(f"{library}.away")
    for _ in range(3):
        with pytest.raises(NvmlError):
            nvml.read()
    Path(f"{library}.away").rename(library)
    nvml.retry_now()
    assert len(nvml.read()) == 3
    nvml.close()
