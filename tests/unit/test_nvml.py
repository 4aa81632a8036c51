"""gpubpf.nvml against the simulated NVML, loaded through pynvml as the real one is."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from gpubpf.model import Device
from gpubpf.nvml import Nvml, NvmlError, gpm, plan, processes
from tests.fakegpu.nvml_control import StagedNode, build_nvml

MIB = 1 << 20
REAL = Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")


class Clock:
    """Seconds since the epoch, and the time between attempts, as a test sets them."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds

    @property
    def us(self) -> int:
        return int(self.seconds * 1e6)


@pytest.fixture(scope="module")
def built() -> Path:
    return build_nvml()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StagedNode]:
    path = tmp_path / "state"
    node = StagedNode(path, devices=3)
    monkeypatch.setenv("FAKEGPU_STATE", str(path))
    yield node
    node.stop()


@pytest.fixture
def library(node: StagedNode, built: Path) -> str:
    """A copy of the simulated NVML for this test alone: it maps the state it finds first."""
    copy = node.path.with_name("libnvidia-ml.so.1")
    copy.write_bytes(built.read_bytes())
    return str(copy)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvml(library: str, clock: Clock) -> Iterator[Nvml]:
    nvml = Nvml(library, clock=clock, monotonic=clock)
    yield nvml
    nvml.close()


def sm(device: Device) -> list[float | None]:
    """SM utilization of each process."""
    return [process.share and process.share.sm for process in device.processes or ()]


@pytest.mark.parametrize(
    ("row", "structure", "members"),
    [
        (plan._FIELD, "c_nvmlFieldValue_t", ("valueType", "nvmlReturn", "value")),
        (gpm._METRIC, "c_nvmlGpmMetric_t", ("metricId", "nvmlReturn", "value")),
        (
            processes._LISTED,
            "c_nvmlProcessInfo_v2_t",
            ("pid", "usedGpuMemory", "gpuInstanceId", "computeInstanceId"),
        ),
        (
            processes._OLDER,
            "c_nvmlProcessUtilizationSample_t",
            ("pid", "timeStamp", "smUtil", "memUtil", "encUtil", "decUtil"),
        ),
        (
            processes._NEWER,
            "c_nvmlProcessUtilizationInfo_v1_t",
            ("timeStamp", "pid", "smUtil", "memUtil", "encUtil", "decUtil", "jpgUtil", "ofaUtil"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_are_unpacked_as_pynvml_has_them(
    row: struct.Struct, structure: str, members: tuple[str, ...]
) -> None:
    """Each member from its own place, and the next row from where it begins."""
    kind = getattr(pynvml, structure)
    assert row.size == ctypes.sizeof(kind)
    unpacked = row.unpack(bytes(range(1, row.size + 1)))
    for member, value in zip(members, unpacked, strict=True):
        place = getattr(kind, member)
        there = bytes(range(1 + place.offset, 1 + place.offset + place.size))
        number = struct.unpack("<d", there)[0] if isinstance(value, float) else None
        assert value == (int.from_bytes(there, "little") if number is None else number), member


def test_static_facts_are_asked_once(node: StagedNode, nvml: Nvml) -> None:
    nvml.open()
    devices = nvml.read()
    assert [device.info.index for device in devices] == [0, 1, 2]
    info = devices[1].info
    assert info.uuid == "GPU-02000000-0000-0000-0000-000000000000"
    assert (info.name, info.driver_version) == ("Simulated GPU", "535.1.2")
    assert (info.pci_bus_id, info.cuda_version) == ("00000000:08:00.0", "12.2")
    node.fault("nvmlDeviceGetUUID", pynvml.NVML_ERROR_UNKNOWN)
    assert nvml.read()[1].info is info
    assert node.node.inits == 1


def test_every_figure_in_base_units(node: StagedNode, nvml: Nvml) -> None:
    node.figures(0, utilization=37, memory_utilization=0, temperature=61)
    node.figures(0, power_mw=123_456, power_limit_mw=300_000, energy_mj=7_654_321)
    node.start(0, 64 * MIB)
    device = nvml.read()[0]
    assert device.get("utilization_ratio") == 0.37
    assert device.get("memory_utilization_ratio") == 0.0
    assert device.get("power_watts") == 123.456
    assert device.get("power_limit_watts") == 300.0
    assert device.get("energy_joules") == 7654.321
    assert device.get("temperature_celsius") == 61.0
    assert device.get("memory_used_bytes") == 64 * MIB
    assert device.get("memory_size_bytes") == 1024 * MIB
    assert device.get("memory_reserved_bytes") == 256 * MIB
    assert device.get("memory_free_bytes") == (1024 - 64 - 256) * MIB


MEMORY = "nvmlDeviceGetMemoryInfo"
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"


@pytest.mark.parametrize(
    ("functions", "facts"),
    [
        (("nvmlDeviceGetUtilizationRates",), {"utilization_ratio", "memory_utilization_ratio"}),
        ((MEMORY,), {f"memory_{what}_bytes" for what in ("used", "free", "reserved", "size")}),
        (("nvmlDeviceGetTemperature",), {"temperature_celsius"}),
        (("nvmlDeviceGetPowerUsage",), {"power_watts"}),
        (("nvmlDeviceGetEnforcedPowerLimit",), {"power_limit_watts"}),
        ((ENERGY, "nvmlDeviceGetFieldValues"), {"energy_joules"}),  # a field tells it too
    ],
)
def test_unsupported_is_absent_never_zero(
    node: StagedNode, nvml: Nvml, functions: tuple[str, ...], facts: set[str]
) -> None:
    for function in functions:
        node.fault(function, pynvml.NVML_ERROR_NOT_SUPPORTED, device=1)
    follows = facts & {"utilization_ratio"} and {"sm_busy_seconds"}
    for _ in range(2):  # as it is asked for the first time, and after
        devices = nvml.read()
        assert devices[0].figures.keys() - devices[1].figures.keys() == facts | follows
        assert {devices[1].get(fact) for fact in facts} == {None}
        assert None not in {devices[0].get(fact) for fact in facts}
        assert devices[1].missing["unsupported"] > devices[0].missing["unsupported"]
        assert devices[1].reason is None
        assert devices[1].processes is not None
        assert nvml.problems == ()


def test_processes_that_can_not_be_listed_are_none(node: StagedNode, nvml: Nvml) -> None:
    function = "nvmlDeviceGetComputeRunningProcesses"
    node.fault(function, pynvml.NVML_ERROR_NOT_SUPPORTED, device=1)
    devices = nvml.read()
    assert devices[1].processes is None
    assert devices[0].processes == ()
    assert devices[1].figures.keys() == devices[0].figures.keys()
    assert nvml.problems == ()


def test_utilization_above_one_is_dropped_and_counted(node: StagedNode, nvml: Nvml) -> None:
    node.figures(0, utilization=101, memory_utilization=100)
    device = nvml.read()[0]
    assert device.get("utilization_ratio") is None
    assert device.get("memory_utilization_ratio") == 1.0
    assert device.missing["garbage"] == 1
    assert nvml.plane().garbage == 1


def test_processes_are_those_that_live(node: StagedNode, nvml: Nvml) -> None:
    first, second = node.start(0, 5 * MIB), node.start(0, 7 * MIB)
    third = node.start(2, 11 * MIB)
    devices = nvml.read()
    assert {p.pid: p.memory_used for p in devices[0].processes or ()} == {
        first: 5 * MIB,
        second: 7 * MIB,
    }
    assert devices[1].processes == ()
    assert [p.pid for p in devices[2].processes or ()] == [third]
    node.children[1].kill()
    os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)  # a zombie holds no memory
    device = nvml.read()[0]
    assert [p.pid for p in device.processes or ()] == [first]
    assert device.get("memory_used_bytes") == 5 * MIB


def test_a_process_lives_on_in_its_other_threads(node: StagedNode, nvml: Nvml) -> None:
    program = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    pid = node.start(0, 5 * MIB, sys.executable, "-c", program)
    for _ in range(100):
        if Path(f"/proc/{pid}/statm").read_text().startswith("0 "):
            break
        time.sleep(0.02)
    device = nvml.read()[0]
    assert [(p.pid, p.memory_used) for p in device.processes or ()] == [(pid, 5 * MIB)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a pid namespace of its own")
def test_processes_in_containers_have_their_pid_outside(node: StagedNode, nvml: Nvml) -> None:
    pid = node.start_in_a_container(1, 5 * MIB)
    device = nvml.read()[1]
    assert [(p.pid, p.memory_used) for p in device.processes or ()] == [(pid, 5 * MIB)]
    node.stop()
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)
    device = nvml.read()[1]
    assert (device.processes, device.get("memory_used_bytes")) == ((), 0)


def test_lists_are_merged_by_pid(node: StagedNode, nvml: Nvml) -> None:
    rows = [
        (41, "compute", MIB),
        (41, "graphics", None),
        (42, "compute", 3 * MIB),
        (42, "graphics", 2 * MIB),
        (44, "graphics", 7 * MIB),
        (43, "mps", None),
        (43, "compute", 5 * MIB),
        (0, "compute", MIB),
    ]
    node.processes(0, *rows)
    processes = nvml.read()[0].processes or ()
    assert {p.pid: p.memory_used for p in processes} == {
        41: MIB,
        42: 3 * MIB,
        43: 5 * MIB,
        44: 7 * MIB,
    }
    assert {p.pid: p.kinds for p in processes} == {
        41: ("compute", "graphics"),
        42: ("compute", "graphics"),
        43: ("compute", "mps"),
        44: ("graphics",),
    }
    assert len(processes) == 4
    assert nvml.plane().garbage == 1
    node.fault("nvmlDeviceGetGraphicsRunningProcesses", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert {p.pid for p in nvml.read()[0].processes or ()} == {41, 42, 43}


def test_memory_not_available_is_none(node: StagedNode, nvml: Nvml) -> None:
    pid = node.start(0, 5 * MIB)
    node.processes(0, hide_memory=True)
    (process,) = nvml.read()[0].processes or ()
    assert (process.pid, process.memory_used) == (pid, None)
    assert process.share == (0.0, 0.0, 0.0, 0.0, None, None)


def test_many_processes_and_samples(node: StagedNode, nvml: Nvml) -> None:
    node.processes(0, *[(1000 + n, "compute", n) for n in range(701)])
    node.samples(0, *[(1000 + n, n % 101, 0, 0, 0) for n in range(503)])
    processes = nvml.read()[0].processes or ()
    assert [p.pid for p in processes] == [1000 + n for n in range(701)]
    assert [p.memory_used for p in processes] == list(range(701))


def samples_node(node: StagedNode, clock: Clock, *rows: tuple[int, ...]) -> None:
    node.samples(0, *[(*row, clock.us) for row in rows])


def test_utilization_of_processes(node: StagedNode, nvml: Nvml, clock: Clock) -> None:
    node.processes(0, (41, "compute", 1), (42, "compute", 1))
    nvml.open()
    clock.seconds += 1
    samples_node(node, clock, (41, 50, 25, 7, 3), (99, 12, 0, 0, 0))
    busy, idle = nvml.read()[0].processes or ()
    assert busy.share == (0.5, 0.25, 0.07, 0.03, None, None)
    assert (idle.pid, idle.share) == (42, (0.0, 0.0, 0.0, 0.0, None, None))  # in no sample: idle
    # no sample newer than the last: held while one may be due, then everybody is idle
    clock.seconds += 0.4
    assert sm(nvml.read()[0]) == [0.5, 0.0]
    clock.seconds += 0.7
    assert sm(nvml.read()[0]) == [0.0, 0.0]
    # and a sample that comes after that is seen
    clock.seconds += 5
    samples_node(node, clock, (42, 9, 0, 0, 0))
    assert sm(nvml.read()[0]) == [0.0, 0.09]
    # the window doesn't grow while nobody is busy: a sample from its midst is not of now
    clock.seconds += 30
    nvml.read()
    clock.seconds += 1
    node.samples(0, (41, 77, 0, 0, 0, clock.us - 20_000_000))
    assert sm(nvml.read()[0]) == [0.0, 0.0]
    assert nvml.plane().garbage == 0


def test_load_from_before_the_start_is_not_shown(
    node: StagedNode, nvml: Nvml, clock: Clock
) -> None:
    node.processes(0, (41, "compute", 1))
    samples_node(node, clock, (41, 100, 0, 0, 0))
    clock.seconds += 30
    assert sm(nvml.read()[0]) == [0.0]


def test_the_newest_sample_of_a_process_counts(node: StagedNode, nvml: Nvml, clock: Clock) -> None:
    node.processes(0, (41, "compute", 1))
    nvml.open()
    now = clock.us
    clock.seconds += 1
    samples = [(now + 300, 30), (now + 500, 50), (now + 400, 40)]
    node.samples(0, *[(41, sm, 0, 0, 0, at) for at, sm in samples])
    assert sm(nvml.read()[0]) == [0.5]


def test_garbage_samples_are_dropped_and_counted(
    node: StagedNode, nvml: Nvml, clock: Clock
) -> None:
    node.processes(0, (41, "compute", 1), (42, "compute", 1))
    nvml.open()
    clock.seconds += 1
    rows = [(41, 101, 0, 0, 0), (42, 20, 4294967295, 0, 0), (0, 5, 5, 0, 0), (42, 33, 0, 0, 0)]
    samples_node(node, clock, *rows)
    assert sm(nvml.read()[0]) == [0.0, 0.33]
    assert nvml.plane().garbage == 3
    clock.seconds += 1
    nvml.read()
    assert nvml.plane().garbage == 3  # each row once


def test_samples_from_the_future_and_a_clock_set_back(
    node: StagedNode, nvml: Nvml, clock: Clock
) -> None:
    node.processes(0, (41, "compute", 1))
    nvml.open()
    clock.seconds += 1
    node.samples(0, (41, 10, 0, 0, 0, clock.us + 3_600_000_000))
    assert sm(nvml.read()[0]) == [0.1]
    clock.seconds -= 1000
    samples_node(node, clock, (41, 20, 0, 0, 0))
    assert sm(nvml.read()[0]) == [0.2]


def test_unsupported_process_utilization_is_none(node: StagedNode, nvml: Nvml) -> None:
    node.processes(0, (41, "compute", 17))
    node.fault("nvmlDeviceGetProcessUtilization", pynvml.NVML_ERROR_NOT_SUPPORTED)
    (process,) = nvml.read()[0].processes or ()
    assert (process.pid, process.memory_used, process.share) == (41, 17, None)


def test_utilization_follows_simulated_work(node: StagedNode, library: str) -> None:
    nvml = Nvml(library)
    pid = node.start(1, MIB)
    nvml.read()
    time.sleep(0.25)
    device, activity = node.state.devices[1], node.state.processes[0].activity[1]
    device.busy_ns = activity.busy_ns = 10**9  # more than fits in the window
    read = nvml.read()[1]
    assert read.get("utilization_ratio") == 1.0
    assert [(p.pid, p.share and p.share.sm) for p in read.processes or ()] == [(pid, 1.0)]
    nvml.close()


def calls_of_a_device(node: StagedNode, nvml: Nvml) -> int:
    """How many a later read makes for one of three devices that are well; besides, it makes one for
    the events."""
    calls = node.node.calls
    nvml.read()
    each: int
    each, rest = divmod(node.node.calls - calls - 1, 3)
    assert each > 10
    assert rest == 0
    return each


def test_a_lost_gpu_does_not_hide_the_others(node: StagedNode, nvml: Nvml, clock: Clock) -> None:
    before = nvml.read()
    each = calls_of_a_device(node, nvml)
    node.lose(1)
    devices = nvml.read()
    assert devices[1].info == before[1].info
    assert (devices[1].figures, devices[1].processes, devices[1].reason) == ({}, None, "lost")
    for device in (devices[0], devices[2]):
        assert device.get("temperature_celsius") is not None
        assert device.get("memory_used_bytes") is not None
        assert device.processes is not None
        assert device.reason is None
    (problem,) = nvml.problems
    assert problem.startswith(f"GPU 1 ({before[1].info.uuid}): the GPU is lost")
    # initialised again at the next read, then ever less often; the others are read all the while
    inits = []
    for _ in range(100):
        devices = nvml.read()
        assert devices[1].info.uuid == before[1].info.uuid
        assert devices[2].get("temperature_celsius") is not None
        assert (devices[1].figures, devices[1].reason) == ({}, "lost")
        inits.append(node.node.inits)
        clock.seconds += 1
    assert inits[0] == 2
    assert inits[-1] == 8  # after 0, 1, 2, 4, 8, 16, 32 seconds
    assert node.node.inits - node.node.shutdowns == 1
    # nor is it asked more than once a read
    clock.seconds = nvml._retry_at - 1
    calls = node.node.calls
    nvml.read()
    assert node.node.calls - calls == 1 + 2 * each
    node.lose(1, lost=False)
    clock.seconds += 60
    assert nvml.read()[1].get("temperature_celsius") is not None
    assert nvml.problems == ()


def test_the_calls_that_a_lost_gpu_is_spared(node: StagedNode, nvml: Nvml) -> None:
    """It is asked for its MIG mode, and one figure."""
    nvml.read()
    each = calls_of_a_device(node, nvml)
    node.lose(0)
    calls = node.node.calls
    nvml.read()
    assert node.node.calls - calls == 1 + 2 * each + 2


def test_a_lost_gpu_takes_no_other_identity(node: StagedNode, nvml: Nvml) -> None:
    second = nvml.read()[1].info.uuid
    node.state.devices[0].uuid[0] = 2  # the indices moved with the reload
    node.reload_driver()
    node.lose(1)
    with pytest.raises(NvmlError):
        nvml.read()
    devices = nvml.read()
    assert [(d.info.index, d.info.uuid == second, d.reason) for d in devices] == [
        (0, True, None), (0, False, "not_found"), (2, False, None),
    ]  # fmt: skip


def test_an_init_that_fails_half_way_is_shut_down(node: StagedNode, nvml: Nvml) -> None:
    node.fault("nvmlDeviceGetCount", pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(NvmlError, match="gives no reason"):
        nvml.open()
    assert (node.node.inits, node.node.shutdowns) == (1, 1)


def test_a_gpu_lost_before_the_start_has_no_identity(node: StagedNode, nvml: Nvml) -> None:
    node.lose(0)
    assert [device.info.index for device in nvml.read()] == [1, 2]
    assert nvml.problems[0].startswith("GPU 0: the GPU is lost")


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_UNKNOWN])
def test_a_failing_library_raises_and_is_initialised_again(
    node: StagedNode, nvml: Nvml, error: int
) -> None:
    nvml.open()
    node.fault("*", error)
    with pytest.raises(NvmlError) as raised:
        nvml.read()
    assert raised.value.code == error
    assert "\n" not in str(raised.value)
    node.clear_faults()
    assert len(nvml.read()) == 3
    assert node.node.inits == 2


def test_a_reloaded_driver(node: StagedNode, nvml: Nvml) -> None:
    nvml.open()
    node.state.driver_branch = b"550.1"
    node.reload_driver()
    with pytest.raises(NvmlError):
        nvml.read()
    assert nvml.read()[0].info.driver_version == "550.1"


def test_no_driver_then_a_driver(node: StagedNode, nvml: Nvml, clock: Clock) -> None:
    node.unload_driver()
    with pytest.raises(NvmlError, match="no NVIDIA driver is loaded"):
        nvml.open()
    for _ in range(3):
        with pytest.raises(NvmlError, match="no NVIDIA driver is loaded"):
            nvml.read()
    assert (node.node.inits, node.node.shutdowns) == (0, 0)  # nothing to shut down
    node.clear_faults()
    clock.seconds += 2
    assert len(nvml.read()) == 3
    nvml.close()
    nvml.close()
    assert (node.node.inits, node.node.shutdowns) == (1, 1)


def test_a_failed_init_is_not_shut_down(node: StagedNode, nvml: Nvml) -> None:
    node.fault("nvmlInit", pynvml.NVML_ERROR_NO_PERMISSION)
    with pytest.raises(NvmlError, match="no permission"):
        nvml.open()
    nvml.close()
    assert node.node.shutdowns == 0


def test_a_blocked_call_delays_only(node: StagedNode, nvml: Nvml) -> None:
    node.fault("nvmlDeviceGetTemperature", device=2, block_ms=80, times=1)
    began = time.monotonic()
    assert nvml.read()[2].get("temperature_celsius") is not None
    assert time.monotonic() - began > 0.08


def test_an_older_driver_without_memory_v2(node: StagedNode, built: Path, tmp_path: Path) -> None:
    text = built.read_bytes()
    older = tmp_path / "older.so"
    older.write_bytes(
        text.replace(b"nvmlDeviceGetMemoryInfo_v2\0", b"nvmlDeviceGetMemoryInfo_xx\0")
    )
    # a renamed export is only found by the name's hash, so look-ups of both names fail
    nvml = Nvml(str(older))
    device = nvml.read()[0]
    assert device.get("memory_size_bytes") == 1024 * MIB
    assert device.get("memory_reserved_bytes") is None
    assert device.get("memory_used_bytes") == 256 * MIB  # v1 counts the reserved part as used
    nvml.close()


def test_a_library_that_is_not_nvml(tmp_path: Path) -> None:
    with pytest.raises(NvmlError, match="is not an NVML library") as raised:
        Nvml("libm.so.6").open()
    assert raised.value.fatal
    text = tmp_path / "libnvidia-ml.so.1"
    text.write_text("not a library")
    for path in (text, tmp_path / "absent"):
        with pytest.raises(NvmlError, match="can't load the NVML library") as raised:
            Nvml(str(path)).open()
        assert "\n" not in str(raised.value)
        assert raised.value.fatal


@pytest.mark.skipif(not REAL.exists(), reason="libnvidia-ml1 is not installed")
@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="a driver is loaded")
def test_the_real_library_without_a_device() -> None:
    with pytest.raises(NvmlError) as raised:
        Nvml(str(REAL)).open()
    assert raised.value.code == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert not raised.value.fatal
    assert str(raised.value).startswith("no NVIDIA driver is loaded")


def test_no_export_that_the_real_library_lacks(built: Path) -> None:
    if not REAL.exists():
        pytest.skip("libnvidia-ml1 is not installed")
    ours, real = (
        {
            line.split()[-1].split("@")[0]
            for line in subprocess.run(
                ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
            ).stdout.splitlines()
        }
        for path in (built, REAL)
    )
    assert len(ours) > 50
    assert ours <= real


def test_importing_needs_no_driver() -> None:
    program = "import gpubpf.nvml, pynvml; assert pynvml.nvmlLib is None"
    subprocess.run([sys.executable, "-c", program], check=True)
