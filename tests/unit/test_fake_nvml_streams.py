"""The simulated NVML itself, through pynvml: MIG devices, GPM samples and events."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import pynvml as nv
import pytest

from tests.fakegpu.nvml_boards import BOARDS, MIG_ROWS
from tests.unit.test_fake_nvml import UNSUPPORTED_ERROR, Load, ask, fields, handle, load

__all__ = ["load"]  # the fixture

MIB = 1 << 20
NOT_FOUND = f"error {nv.NVML_ERROR_NOT_FOUND}"
INVALID = f"error {nv.NVML_ERROR_INVALID_ARGUMENT}"
NO_INSTANCE = 2**32 - 1


def mig(index: int, device: int = 0) -> Any:
    return nv.nvmlDeviceGetMigDeviceHandleByIndex(handle(device), index)


# --- MIG --------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", ["ampere_mig", "hopper_mig"])
def test_mig_devices(load: Load, board: str) -> None:
    load(board)
    assert nv.nvmlDeviceGetMigMode(handle()) == [1, 1]
    assert nv.nvmlDeviceGetMaxMigDeviceCount(handle()) == 7
    name, uuids = BOARDS[board].name, set()
    for index, (profile, gpu_instance, compute_instance, memory, *_) in enumerate(MIG_ROWS):
        device = mig(index)
        assert nv.nvmlDeviceIsMigDeviceHandle(device).value == 1
        assert nv.nvmlDeviceGetName(device) == f"{name} MIG {profile}"
        assert nv.nvmlDeviceGetGpuInstanceId(device) == gpu_instance
        assert nv.nvmlDeviceGetComputeInstanceId(device) == compute_instance
        assert nv.nvmlDeviceGetMemoryInfo(device).total == memory
        attributes = nv.nvmlDeviceGetAttributes_v2(device)
        assert attributes.gpuInstanceSliceCount == int(profile[0])
        assert attributes.memorySizeMB == memory // MIB
        assert attributes.multiprocessorCount == BOARDS[board].slice_multiprocessors * int(
            profile[0]
        )
        uuid = nv.nvmlDeviceGetUUID(device)
        uuids.add(uuid)
        assert uuid.startswith("MIG-")
        found = nv.nvmlDeviceGetHandleByUUID(uuid)
        assert nv.nvmlDeviceGetUUID(found) == uuid
        parent = nv.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
        assert nv.nvmlDeviceGetUUID(parent) == nv.nvmlDeviceGetUUID(handle())
    assert len(uuids) == 3
    assert ask("nvmlDeviceGetMigDeviceHandleByIndex", handle(), 3) == NOT_FOUND
    assert ask("nvmlDeviceGetMigDeviceHandleByIndex", handle(), 7) == INVALID
    assert ask("nvmlDeviceGetHandleByUUID", "MIG-0000") == NOT_FOUND


def test_what_mig_devices_and_their_parent_can_not_tell(load: Load) -> None:
    load("hopper_mig", "hopper", "turing")
    of_the_whole: dict[str, tuple[Any, ...]] = {
        "UtilizationRates": (),
        "ProcessUtilization": (0,),
        "EncoderUtilization": (),
        "DecoderUtilization": (),
        "JpgUtilization": (),
    }
    for function, arguments in of_the_whole.items():
        for device in (handle(), mig(0)):
            got = ask(f"nvmlDeviceGet{function}", device, *arguments)
            assert got == UNSUPPORTED_ERROR, function
    of_the_parent: dict[str, tuple[Any, ...]] = {
        "PowerUsage": (),
        "Temperature": (0,),
        "ClockInfo": (0,),
        "FieldValues": ([82],),
        "TotalEnergyConsumption": (),
        "MigMode": (),
    }
    for function, arguments in of_the_parent.items():
        assert ask(f"nvmlDeviceGet{function}", mig(0), *arguments) == UNSUPPORTED_ERROR
        assert not isinstance(ask(f"nvmlDeviceGet{function}", handle(), *arguments), str)
    assert ask("nvmlDeviceGetGpuInstanceId", handle()) == UNSUPPORTED_ERROR
    assert ask("nvmlDeviceGetMigDeviceHandleByIndex", handle(1), 0) == NOT_FOUND
    assert ask("nvmlDeviceGetMigDeviceHandleByIndex", handle(2), 0) == UNSUPPORTED_ERROR
    assert nv.nvmlDeviceGetMaxMigDeviceCount(handle(1)) == 0
    assert nv.nvmlDeviceGetMigMode(handle(1)) == [0, 0]
    assert ask("nvmlDeviceGetMigMode", handle(2)) == UNSUPPORTED_ERROR


def test_processes_of_mig_devices(load: Load) -> None:
    node = load("hopper_mig")
    own, other = node.start(0, 5 * MIB), node.start(0, 7 * MIB)
    node.place(0, other, 9)
    node.processes(0, (4242, "compute", 11 * MIB, 7, 0), (4243, "graphics", None, 7, 0))
    rows = nv.nvmlDeviceGetComputeRunningProcesses(handle())
    found = {row.pid: (row.gpuInstanceId, row.computeInstanceId) for row in rows}
    assert found == {own: (2, 0), other: (9, 0), 4242: (7, 0)}
    for index, pids in enumerate(([own], [4242], [other])):
        own_rows = nv.nvmlDeviceGetComputeRunningProcesses(mig(index))
        assert [row.pid for row in own_rows] == pids
    assert [nv.nvmlDeviceGetMemoryInfo(mig(n)).used // MIB for n in range(3)] == [5, 11, 7]
    (row,) = nv.nvmlDeviceGetGraphicsRunningProcesses(mig(1))
    assert (row.pid, row.usedGpuMemory) == (4243, None)
    node.mig(0, None)
    rows = nv.nvmlDeviceGetComputeRunningProcesses(handle())
    assert {row.gpuInstanceId for row in rows if row.pid != 4242} == {NO_INSTANCE}


def test_mig_devices_come_and_go(load: Load) -> None:
    node = load("hopper")
    uuid = bytes(range(16))
    node.mig(0, [None, ("1c.3g.40gb", 1, 2, 1 << 30, uuid)])
    assert ask("nvmlDeviceGetMigDeviceHandleByIndex", handle(), 0) == NOT_FOUND
    device = mig(1)
    assert nv.nvmlDeviceGetUUID(device) == "MIG-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert nv.nvmlDeviceGetAttributes_v2(device).computeInstanceSliceCount == 1
    assert nv.nvmlDeviceGetComputeInstanceId(device) == 2
    node.mig(0, [("1g.10gb", 3, 0, 1 << 29)])
    assert ask("nvmlDeviceGetMemoryInfo", device) == INVALID
    assert nv.nvmlDeviceGetGpuInstanceId(mig(0)) == 3
    node.mig(0, None)
    assert ask("nvmlDeviceGetMigDeviceHandleByIndex", handle(), 0) == NOT_FOUND
    assert nv.nvmlDeviceGetUtilizationRates(handle()).gpu == 37
    node.mig(0, [("1g.10gb", 5, 0, 1 << 29, uuid)])
    assert nv.nvmlDeviceGetGpuInstanceId(device) == 5  # the same uuid is there again


# --- GPM --------------------------------------------------------------------------------------


def metrics(older: Any, newer: Any, *ids: int, version: int = 1) -> Any:
    """Each metric's value, or its error."""
    request = nv.c_nvmlGpmMetricsGet_t()
    request.version, request.numMetrics = version, len(ids)
    request.sample1, request.sample2 = older, newer
    for place, number in enumerate(ids):
        request.metrics[place].metricId = number
    nv.nvmlGpmMetricsGet(request)
    rows = request.metrics[: len(ids)]
    return [f"error {row.nvmlReturn}" if row.nvmlReturn else row.value for row in rows]


def sample(device: Any, instance: int | None = None) -> Any:
    taken = nv.nvmlGpmSampleAlloc()
    if instance is None:
        return nv.nvmlGpmSampleGet(device, taken)
    return nv.nvmlGpmMigSampleGet(device, instance, taken)


def test_gpm_metrics(load: Load) -> None:
    node = load("hopper", "ampere", "hopper")
    assert nv.nvmlGpmQueryDeviceSupport(handle()).isSupportedDevice == 1
    assert nv.nvmlGpmQueryDeviceSupport(handle(1)).isSupportedDevice == 0
    assert ask("nvmlGpmSampleGet", handle(1), nv.nvmlGpmSampleAlloc()) == UNSUPPORTED_ERROR
    first = sample(handle())
    assert metrics(first, sample(handle()), 2) == [f"error {nv.NVML_ERROR_NO_DATA}"]  # too soon
    node.gpm(0, 2, 41.25)
    node.gpm(0, 5, error=nv.NVML_ERROR_UNKNOWN)
    time.sleep(0.1)
    second = sample(handle())
    own = BOARDS["hopper"].metrics
    assert metrics(first, second, 2, 5, 1, 60, 97) == [41.25, "error 999", own[1], own[60], own[97]]
    assert own[60] == sum(own[62 + 2 * link] for link in range(18))
    assert metrics(first, second, 14, 0, 98) == [UNSUPPORTED_ERROR, INVALID, INVALID]
    node.gpm(0, 2, 43.0)
    assert metrics(first, second, 2) == [41.25]  # a sample is of its time
    for wrong in ((second, first), (first, first), (first, sample(handle(2)))):
        with pytest.raises(nv.NVMLError_InvalidArgument):
            metrics(*wrong, 2)
    with pytest.raises(nv.NVMLError) as raised:
        metrics(first, second, 2, version=2)
    assert raised.value.value == nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    for taken in (first, second):
        nv.nvmlGpmSampleFree(taken)


def test_gpm_of_mig_instances(load: Load) -> None:
    node = load("hopper_mig")
    node.figures(0, gpm_interval_ms=0)
    node.gpm(0, 2, 71.5, instance=7)
    first, second = sample(handle(), 7), sample(handle(), 7)
    assert metrics(first, second, 2, 3, 60) == [71.5, 21 + 7 / 16, UNSUPPORTED_ERROR]
    other = (sample(handle(), 9), sample(handle(), 9))
    assert metrics(*other, 2) == [14 + 9 / 16]
    with pytest.raises(nv.NVMLError_InvalidArgument):
        sample(handle(), 5)
    with pytest.raises(nv.NVMLError_InvalidArgument):
        metrics(first, other[1], 2)
    node.gpm(0, 2, instance=7)
    assert metrics(sample(handle(), 7), sample(handle(), 7), 2) == [UNSUPPORTED_ERROR]


# --- events -----------------------------------------------------------------------------------


def waited(event_set: Any, milliseconds: int = 0) -> Any:
    """Device, type, data and instance of the next event, or the error."""
    try:
        event = nv.nvmlEventSetWait_v2(event_set, milliseconds)
    except nv.NVMLError as error:
        return error.value
    device = nv.nvmlDeviceGetIndex(event.device)
    return device, event.eventType, event.eventData, event.gpuInstanceId


def test_events_reach_every_registered_set(load: Load) -> None:
    node = load("hopper", "hopper_mig", "consumer")
    node.event(0, "xid", 13)  # before anybody registered
    first, second = nv.nvmlEventSetCreate(), nv.nvmlEventSetCreate()
    xid, pstate = nv.nvmlEventTypeXidCriticalError, nv.nvmlEventTypePState
    for device in range(2):
        nv.nvmlDeviceRegisterEvents(handle(device), xid | pstate, first)
    nv.nvmlDeviceRegisterEvents(handle(0), xid, second)
    assert waited(first) == nv.NVML_ERROR_TIMEOUT
    node.event(0, "xid", 79)
    node.event(1, "pstate", 5)
    node.event(1, "clock", 0)  # nobody's
    node.event(1, "xid", 31, gpu_instance=7, compute_instance=0)
    assert waited(first) == (0, xid, 79, NO_INSTANCE)
    assert waited(first) == (1, pstate, 5, NO_INSTANCE)
    assert waited(first) == (1, xid, 31, 7)
    assert waited(first) == nv.NVML_ERROR_TIMEOUT
    assert waited(second) == (0, xid, 79, NO_INSTANCE)
    assert waited(second) == nv.NVML_ERROR_TIMEOUT
    ecc = nv.nvmlEventTypeDoubleBitEccError
    assert ask("nvmlDeviceRegisterEvents", handle(2), ecc, first) == UNSUPPORTED_ERROR
    assert ask("nvmlDeviceRegisterEvents", handle(2), 1 << 40, first) == INVALID
    nv.nvmlEventSetFree(first)
    nv.nvmlEventSetFree(second)


def test_waiting_ends_with_the_event_the_timeout_or_the_driver(load: Load) -> None:
    node = load("hopper")
    events = nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(handle(), nv.nvmlEventTypeXidCriticalError, events)
    begun = time.monotonic()
    assert waited(events, 50) == nv.NVML_ERROR_TIMEOUT
    assert 0.05 <= time.monotonic() - begun < 1
    timer = threading.Timer(0.05, node.event, (0, "xid", 94))
    timer.start()
    assert waited(events, 5000)[2] == 94
    timer = threading.Timer(0.05, node.reload_driver)
    timer.start()
    assert waited(events, 5000) == nv.NVML_ERROR_UNKNOWN
    assert time.monotonic() - begun < 4


def test_a_lost_device_ends_the_wait_and_old_events_are_dropped(load: Load) -> None:
    node = load("hopper")
    events = nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(handle(), nv.nvmlEventTypeXidCriticalError, events)
    for number in range(300):
        node.event(0, "xid", number)
    assert waited(events)[2] == 300 - 256
    seen = [waited(events)[2] for _ in range(255)]
    assert seen[-1] == 299
    node.lose(0)
    assert waited(events, 5000) == nv.NVML_ERROR_GPU_IS_LOST


def test_a_set_that_is_none(load: Load) -> None:
    load("hopper")
    data = nv.c_nvmlEventData_t()
    call = nv.nvmlLib.nvmlEventSetWait_v2
    assert call(None, ctypes.byref(data), 0) == nv.NVML_ERROR_INVALID_ARGUMENT
    assert fields(handle(), 82) == [67]
