"""The simulated NVML itself, asked through pynvml: what each board tells, and the real quirks."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml as nv
import pytest

from tests.fakegpu import nvml_control
from tests.fakegpu.nvml_boards import BOARDS, UNSUPPORTED, Board
from tests.fakegpu.nvml_control import (
    FIGURES,
    LINK_FIGURES,
    SIMULATED,
    TEXTS,
    StagedNode,
    build_nvml,
)

MIB = 1 << 20
REAL = Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
ALL_LINKS = 2**32 - 1
Load = Callable[..., StagedNode]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Starts NVML over a new node of these boards; pynvml is given back as it was."""
    kept, functions = nv.nvmlLib, dict(nv._nvmlGetFunctionPointer_cache)
    nodes: list[StagedNode] = []

    def start(*boards: str, newer: bool = False) -> StagedNode:
        node = StagedNode(tmp_path / "state", devices=len(boards))
        for device, board in enumerate(boards):
            node.board(device, board)
        nodes.append(node)
        monkeypatch.setenv("FAKEGPU_STATE", str(node.path))
        copy = tmp_path / "libnvidia-ml.so.1"  # it maps the state that it finds first
        copy.write_bytes(build_nvml(newer=newer).read_bytes())
        nv.nvmlLib = ctypes.CDLL(str(copy))
        nv._nvmlGetFunctionPointer_cache.clear()
        assert nv.nvmlLib.nvmlInit_v2() == 0
        return node

    yield start
    for node in nodes:
        node.stop()
    nv.nvmlLib = kept
    nv._nvmlGetFunctionPointer_cache.clear()
    nv._nvmlGetFunctionPointer_cache.update(functions)


def handle(device: int = 0) -> Any:
    return nv.nvmlDeviceGetHandleByIndex(device)


def ask(function: str, *arguments: Any) -> Any:
    """What pynvml's function gives, or the error's number."""
    try:
        return getattr(nv, function)(*arguments)
    except nv.NVMLError as error:
        return f"error {error.value}"


def value_of(field: Any) -> Any:
    """The member of the union that valueType names."""
    members = {1: "uiVal", 3: "ullVal", 5: "siVal"}
    return getattr(field.value, members[field.valueType])


def fields(device: Any, *ids: Any) -> list[Any]:
    """Each field's value, or its error."""
    answers = nv.nvmlDeviceGetFieldValues(device, list(ids))
    return [f"error {a.nvmlReturn}" if a.nvmlReturn else value_of(a) for a in answers]


UNSUPPORTED_ERROR = f"error {nv.NVML_ERROR_NOT_SUPPORTED}"
INVALID = f"error {nv.NVML_ERROR_INVALID_ARGUMENT}"


def expected(board: Board, name: str) -> Any:
    value = board.figures.get(name, UNSUPPORTED)
    return UNSUPPORTED_ERROR if value is UNSUPPORTED else value


# --- what is one figure -----------------------------------------------------------------------

ONE = {
    "PowerUsage": "power_mw",
    "EnforcedPowerLimit": "enforced_power_limit_mw",
    "PowerManagementLimit": "power_limit_mw",
    "PowerManagementDefaultLimit": "power_limit_default_mw",
    "TotalEnergyConsumption": "energy_mj",
    "NumFans": "fans",
    "FanSpeed": "fan",
    "PerformanceState": "performance_state",
    "CurrentClocksThrottleReasons": "throttle_reasons",
    "CurrentClocksEventReasons": "throttle_reasons",
    "SupportedClocksThrottleReasons": "supported_throttle_reasons",
    "SupportedClocksEventReasons": "supported_throttle_reasons",
    "ComputeMode": "compute_mode",
    "PersistenceMode": "persistence",
    "Brand": "brand",
    "Architecture": "architecture",
    "BoardId": "board_id",
    "MultiGpuBoard": "multi_gpu_board",
    "NumGpuCores": "cores",
    "MemoryBusWidth": "memory_bus_bits",
    "IrqNum": "irq",
    "VirtualizationMode": "virtualization",
    "PowerSource": "power_source",
    "RetiredPagesPendingStatus": "retired_pending",
    "CurrPcieLinkGeneration": "pcie_generation",
    "CurrPcieLinkWidth": "pcie_width",
    "MaxPcieLinkGeneration": "pcie_generation_max",
    "MaxPcieLinkWidth": "pcie_width_max",
    "GpuMaxPcieLinkGeneration": "pcie_generation_gpu_max",
    "PcieSpeed": "pcie_speed_mbps",
    "PcieLinkMaxSpeed": "pcie_max_speed",
    "PcieReplayCounter": "pcie_replays",
    "SupportedEventTypes": "event_types",
}
THRESHOLDS = [
    *("shutdown", "slowdown", "memory_max", "gpu_max"),
    *("acoustic_min", "acoustic_current", "acoustic_max", "gps"),
]
INDEXED = {
    "Temperature": ["temperature"],
    "TemperatureThreshold": [
        f"temperature_{name}"
        for name in [
            "shutdown",
            "slowdown",
            "memory_max",
            "gpu_max",
            "acoustic_min",
            "acoustic_current",
            "acoustic_max",
            "gps",
        ]
    ],
    "FanSpeed_v2": ["fan", "fan_1"],
    **{
        function: [f"{prefix}{kind}_clock_mhz" for kind in ("graphics", "sm", "memory", "video")]
        for function, prefix in {
            "ClockInfo": "",
            "MaxClockInfo": "max_",
            "ApplicationsClock": "app_",
            "DefaultApplicationsClock": "default_",
            "MaxCustomerBoostClock": "boost_",
        }.items()
    },
}
PAIRS = {
    "PowerManagementLimitConstraints": ("power_limit_min_mw", "power_limit_max_mw"),
    "EccMode": ("ecc_mode", "ecc_pending"),
    "GspFirmwareMode": ("gsp_enabled", "gsp_default"),
}
ENGINES = {"Encoder": "encoder", "Decoder": "decoder", "Jpg": "jpeg", "Ofa": "ofa"}
TEXT = {
    "VbiosVersion": "vbios",
    "Serial": "serial",
    "BoardPartNumber": "board_part_number",
    "InforomImageVersion": "inforom_image",
}
ROWS = ["remapped_correctable", "remapped_uncorrectable", "remapped_pending", "remapped_failure"]
WHOLE = [name for name in BOARDS if name not in ("plain", "ampere_mig", "hopper_mig")]


@pytest.mark.parametrize("name", WHOLE)
def test_each_board_tells_its_figures(load: Load, name: str) -> None:
    load(name)
    board, device = BOARDS[name], handle()
    for function, figure in ONE.items():
        assert ask(f"nvmlDeviceGet{function}", device) == expected(board, figure), function
    for function, figures in INDEXED.items():
        for index, figure in enumerate(figures):
            got = ask(f"nvmlDeviceGet{function}", device, index)
            assert got == expected(board, figure), (function, figure)
    for function, pair in PAIRS.items():
        both = [expected(board, figure) for figure in pair]
        wanted = UNSUPPORTED_ERROR if UNSUPPORTED_ERROR in both else both
        assert ask(f"nvmlDeviceGet{function}", device) == wanted, function
    for engine, figure in ENGINES.items():
        got = ask(f"nvmlDeviceGet{engine}Utilization", device)
        assert (got if isinstance(got, str) else got[0]) == expected(board, figure)
    for function, text in TEXT.items():
        wanted = board.texts.get(text, UNSUPPORTED_ERROR)
        assert ask(f"nvmlDeviceGet{function}", device) == wanted, function
    rows = [expected(board, figure) for figure in ROWS]
    if UNSUPPORTED_ERROR in rows:
        assert ask("nvmlDeviceGetRemappedRows", device) == UNSUPPORTED_ERROR
    else:
        assert list(nv.nvmlDeviceGetRemappedRows(device)) == rows
    assert nv.nvmlDeviceGetName(device).startswith("Simulated ")
    rates = nv.nvmlDeviceGetUtilizationRates(device)
    assert (rates.gpu, rates.memory) == (37, 23)


@pytest.mark.parametrize("name", WHOLE)
def test_each_board_tells_its_errors_by_place(load: Load, name: str) -> None:
    load(name)
    board, device = BOARDS[name], handle()
    places = ["l1", "l2", "memory", "registers", "texture", "texture_shm", "cbu", "sram"]
    for type_, kind in enumerate(("corrected", "uncorrected")):
        for counter, suffix in enumerate(("", "_aggregate")):
            total = ask("nvmlDeviceGetTotalEccErrors", device, type_, counter)
            assert total == expected(board, f"ecc_{kind}{suffix}")
            for location, place in enumerate(places):
                got = ask("nvmlDeviceGetMemoryErrorCounter", device, type_, counter, location)
                assert got == expected(board, f"ecc_{kind}{suffix}_{place}")
    assert ask("nvmlDeviceGetMemoryErrorCounter", device, 0, 0, 8) == INVALID


def test_why_clocks_were_low(load: Load) -> None:
    load("hopper")
    policies = [0, 1, 2, 3, 4, 5, 10, 11]
    by_call = [nv.nvmlDeviceGetViolationStatus(handle(), p).violationTime for p in policies]
    assert by_call == fields(handle(), *range(74, 82))
    assert len(set(by_call)) == 8
    assert ask("nvmlDeviceGetViolationStatus", handle(), 7) == INVALID


def test_figures_are_set_and_given_back(load: Load) -> None:
    node = load("hopper")
    node.figures(0, temperature=71, jpeg=UNSUPPORTED, tlimit_shutdown=-1, serial="other")
    assert nv.nvmlDeviceGetTemperature(handle(), 0) == 71
    assert ask("nvmlDeviceGetJpgUtilization", handle()) == UNSUPPORTED_ERROR
    assert fields(handle(), 193) == [-1]
    assert nv.nvmlDeviceGetSerial(handle()) == "other"
    node.figures(0, temperature=None, jpeg=None, tlimit_shutdown=None, serial=None)
    assert nv.nvmlDeviceGetTemperature(handle(), 0) == 61
    assert nv.nvmlDeviceGetJpgUtilization(handle())[0] == 29
    assert fields(handle(), 193) == [-11]
    node.figures(0, utilization=SIMULATED)
    assert nv.nvmlDeviceGetUtilizationRates(handle()).gpu == 0
    node.board(0, "plain")
    assert ask("nvmlDeviceGetSerial", handle()) == UNSUPPORTED_ERROR
    assert nv.nvmlDeviceGetFanSpeed(handle()) == 30


def test_every_figure_of_a_board_has_a_name_and_no_two_counters_are_the_same() -> None:
    for board in BOARDS.values():
        assert set(board.figures) <= set(FIGURES)
        assert set(board.texts) <= set(TEXTS)
        assert all(set(link) <= set(LINK_FIGURES) for link in board.links)
        values = [v for v in board.figures.values() if isinstance(v, int) and v > 128]
        counters = [v for link in board.links for v in link.values() if v > 1000]
        large = [v for v in values + counters if v not in (256, 384, 511, 5120, 8000, 16000)]
        assert len(large) == len(set(large))


# --- fields -----------------------------------------------------------------------------------


def test_fields_of_every_board_are_numbers_or_not_supported(load: Load) -> None:
    load(*BOARDS, newer=True)
    for device in range(len(BOARDS)):
        answers = fields(handle(device), *((number, 0) for number in range(1, 275)))
        assert {a for a in answers if isinstance(a, str)} <= {UNSUPPORTED_ERROR}
        assert fields(handle(device), 0, 275) == [INVALID, INVALID]


def test_fields_by_link_and_their_totals(load: Load) -> None:
    node = load("ampere", "turing", "hopper")
    links = BOARDS["ampere"].links
    first_ids = {"crc_flit": (32, 96, 38), "crc_data": (39, 102, 45), "replays": (46, 108, 52)}
    first_ids |= {"recoveries": (53, 114, 59), "ecc_data": (148, 154, 160)}
    for name, (low, high, total) in first_ids.items():
        numbers = [*range(low, low + 6), *range(high, high + 6)]
        counts = [link[name] for link in links]
        assert fields(handle(), *numbers) == counts
        assert fields(handle(), total) == [sum(counts)]
    for number, name in enumerate(["data_tx_kib", "data_rx_kib", "raw_tx_kib", "raw_rx_kib"], 138):
        counts = [link[name] for link in links]
        assert fields(handle(), (number, 3), (number, ALL_LINKS)) == [counts[3], sum(counts)]
    assert fields(handle(), (138, 12), (164, 12)) == [INVALID, INVALID]
    assert fields(handle(), 91, (165, 1), (166, 1)) == [12, 1, 5]
    assert fields(handle(1), 91, 32, 138, 90) == [UNSUPPORTED_ERROR] * 4
    assert fields(handle(2), 91, (138, 17)) == [18, BOARDS["hopper"].links[17]["data_tx_kib"]]
    node.link(0, 1, active=0)
    assert fields(handle(), (165, 1), 33) == [0, UNSUPPORTED_ERROR]
    assert fields(handle(), 38) == [sum(link["crc_flit"] for link in links) - links[1]["crc_flit"]]


def test_nvlink_by_call(load: Load) -> None:
    node = load("ampere", "turing")
    link = BOARDS["ampere"].links[5]
    names = ["replays", "recoveries", "crc_flit", "crc_data", "ecc_data"]
    counters = [nv.nvmlDeviceGetNvLinkErrorCounter(handle(), 5, n) for n in range(5)]
    assert counters == [link[name] for name in names]
    assert nv.nvmlDeviceGetNvLinkState(handle(), 5) == 1
    assert nv.nvmlDeviceGetNvLinkVersion(handle(), 5) == 5
    assert nv.nvmlDeviceGetNvLinkRemoteDeviceType(handle(), 5) == nv.NVML_NVLINK_DEVICE_TYPE_SWITCH
    assert nv.nvmlDeviceGetNvLinkCapability(handle(), 5, nv.NVML_NVLINK_CAP_VALID) == 1
    assert nv.nvmlDeviceGetNvLinkRemotePciInfo(handle(), 5).bus == 0xC1
    assert ask("nvmlDeviceGetNvLinkState", handle(), 12) == INVALID
    assert ask("nvmlDeviceGetNvLinkState", handle(1), 0) == UNSUPPORTED_ERROR
    node.link(0, 5, active=0)
    assert nv.nvmlDeviceGetNvLinkState(handle(), 5) == 0
    assert ask("nvmlDeviceGetNvLinkVersion", handle(), 5) == UNSUPPORTED_ERROR
    node.link(0, 5, active=None, replays=3)
    assert nv.nvmlDeviceGetNvLinkErrorCounter(handle(), 5, 0) == 3


def test_value_types(load: Load) -> None:
    load("hopper", "blackwell", newer=True)
    kinds = {1: 1, 3: 3, 74: 3, 82: 1, 83: 3, 94: 1, 138: 3, 142: 1, 186: 1, 193: 5, 197: 3, 269: 3}
    answers = nv.nvmlDeviceGetFieldValues(handle(), list(kinds))
    assert {a.fieldId: a.valueType for a in answers} == kinds
    assert all(a.nvmlReturn == 0 and a.timestamp > 1e15 for a in answers)
    assert answers[0].value.ullVal > 2**32  # the rest of the union is not the value's
    assert fields(handle(), (201, 0)) == [UNSUPPORTED_ERROR]
    last = BOARDS["blackwell"].links[17]
    numbers = [last[name] for name in ("tx_packets", "tx_bytes", "rx_packets", "rx_bytes")]
    assert fields(handle(1), *((number, 17) for number in range(201, 205))) == numbers
    names = ("power_average_mw", "power_instant_mw", "power_limit_min_mw", "power_limit_max_mw")
    figures = BOARDS["hopper"].figures
    assert fields(handle(), *range(185, 189)) == [figures[name] for name in names]
    assert fields(handle(), (186, 1), (186, 3)) == [UNSUPPORTED_ERROR, INVALID]


def test_driver_535_knows_no_newer_fields(load: Load) -> None:
    load("blackwell")
    assert fields(handle(), 201, 269, 196) == [INVALID, INVALID, -2]


def test_structures_of_another_version_are_refused(load: Load) -> None:
    load("hopper", newer=True)
    for function, kind in (
        ("nvmlDeviceGetSramEccErrorStatus", nv.c_nvmlEccSramErrorStatus_v1_t),
        ("nvmlDeviceGetGpuFabricInfoV", nv.c_nvmlGpuFabricInfo_v2_t),
    ):
        result = kind()
        assert getattr(nv, function)(handle(), ctypes.byref(result)) == nv.NVML_SUCCESS
        result.version += 1
        with pytest.raises(nv.NVMLError_ArgumentVersionMismatch):
            getattr(nv, function)(handle(), ctypes.byref(result))


def test_one_field_fails(load: Load) -> None:
    node = load("hopper", "hopper")
    node.field(0, 82, error=nv.NVML_ERROR_UNKNOWN)
    node.field(0, 138, 12345, scope=2)
    node.field(0, 400, 77)
    assert fields(handle(), 82, (138, 2), 400, 83)[:3] == ["error 999", 12345, 77]
    assert fields(handle(), (138, 1)) == [BOARDS["hopper"].links[1]["data_tx_kib"]]
    assert fields(handle(1), 82) == [67]
    node.field(0, 82)
    assert fields(handle(), 82) == [67]


# --- quirks -----------------------------------------------------------------------------------


def test_retired_pages_ask_for_a_size(load: Load) -> None:
    load("turing", "ampere")
    pages = nv.nvmlDeviceGetRetiredPages_v2(handle(), 0)
    assert len(pages) == 3
    assert nv.nvmlDeviceGetRetiredPages(handle(), 1) != [page["address"] for page in pages[:2]]
    count = ctypes.c_uint(0)
    function = nv.nvmlLib.nvmlDeviceGetRetiredPages
    assert function(handle(), 0, ctypes.byref(count), None) == nv.NVML_ERROR_INSUFFICIENT_SIZE
    assert count.value == 3
    assert ask("nvmlDeviceGetRetiredPages", handle(), 2) == INVALID
    assert ask("nvmlDeviceGetRetiredPages", handle(1), 0) == UNSUPPORTED_ERROR


def test_pcie_throughput_takes_its_window(load: Load) -> None:
    load("ampere")
    begun = time.monotonic()
    both = [nv.nvmlDeviceGetPcieThroughput(handle(), n) for n in range(2)]
    assert 0.04 <= time.monotonic() - begun < 1
    assert both == [BOARDS["ampere"].figures[n] for n in ("pcie_tx_kb_s", "pcie_rx_kb_s")]


def test_licences_and_sessions(load: Load) -> None:
    load("turing", "hopper")
    answer = nv.nvmlDeviceGetGridLicensableFeatures_v4(handle())
    assert (answer.isGridLicenseSupported, answer.licensableFeaturesCount) == (1, 1)
    assert answer.gridLicensableFeatures[0].featureCode == 4
    assert answer.gridLicensableFeatures[0].licenseInfo == "simulated licence"
    assert answer.gridLicensableFeatures[0].productName == "simulated product"
    assert nv.nvmlDeviceGetGridLicensableFeatures_v4(handle(1)).isGridLicenseSupported == 0
    assert nv.nvmlDeviceGetEncoderStats(handle()) == (3, 59, 1549)
    assert ask("nvmlDeviceGetEncoderStats", handle(1)) == UNSUPPORTED_ERROR
    assert nv.nvmlDeviceGetFBCStats(handle()).sessionsCount == 0
    assert nv.nvmlDeviceGetInforomVersion(handle(), 1) == "6.16"
    assert nv.nvmlDeviceGetGspFirmwareVersion(handle()) == b"535.0.0"
    histogram = nv.nvmlDeviceGetRowRemapperHistogram(handle(1))
    assert [getattr(histogram, n) for n, _ in histogram._fields_] == [631, 17, 11, 3, 2]
    assert nv.nvmlDeviceGetClock(handle(), 0, 2) == nv.nvmlDeviceGetDefaultApplicationsClock(
        handle(), 0
    )


def test_how_devices_are_connected(load: Load) -> None:
    load(*["hopper"] * 8)
    level = nv.nvmlDeviceGetTopologyCommonAncestor
    assert level(handle(0), handle(3)) == nv.NVML_TOPOLOGY_NODE
    assert level(handle(0), handle(4)) == nv.NVML_TOPOLOGY_SYSTEM
    assert nv.nvmlDeviceGetP2PStatus(handle(0), handle(7), nv.NVML_P2P_CAPS_INDEX_NVLINK) == 0
    assert len({nv.nvmlDeviceGetUUID(handle(n)) for n in range(8)}) == 8


def test_what_only_the_newer_driver_has(load: Load) -> None:
    node = load("hopper", "consumer", newer=True)
    node.samples(0, (4242, 11, 7, 5, 3, 0, 13, 17), only=True)
    (row,) = nv.nvmlDeviceGetProcessesUtilizationInfo(handle(), 0)
    assert (row.pid, row.smUtil, row.memUtil, row.jpgUtil, row.ofaUtil) == (4242, 11, 7, 13, 17)
    assert (row.encUtil, row.decUtil) == (5, 3)
    node.samples(0)
    assert ask("nvmlDeviceGetProcessesUtilizationInfo", handle(), 0) == "error 6"
    assert nv.nvmlDeviceGetMarginTemperature(handle()) == 43
    assert nv.nvmlDeviceGetTemperatureV(handle(), 0) == 61
    assert nv.nvmlDeviceGetFanSpeedRPM(handle(1)) == 1823
    for function, size in {"ProcessesUtilizationInfo": 24, "MarginTemperature": 8}.items():
        old = (ctypes.c_uint32 * 8)(size | 9 << 24)
        call = getattr(nv.nvmlLib, f"nvmlDeviceGet{function}")
        assert call(handle(), old) == nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_faults_of_any_function(load: Load) -> None:
    node = load("hopper", "hopper")
    calls: dict[str, Callable[[int], Any]] = {
        "nvmlDeviceGetFieldValues": lambda n: fields(handle(n), 82),
        "nvmlDeviceGetFanSpeed": lambda n: nv.nvmlDeviceGetFanSpeed_v2(handle(n), 0),
        "nvmlGpmQueryDeviceSupport": lambda n: nv.nvmlGpmQueryDeviceSupport(handle(n)),
        "nvmlDeviceGetNvLinkState": lambda n: nv.nvmlDeviceGetNvLinkState(handle(n), 0),
    }
    for function, call in calls.items():
        node.fault(function, nv.NVML_ERROR_GPU_NOT_FOUND, device=1)
        with pytest.raises(nv.NVMLError) as raised:
            call(1)
        assert raised.value.value == nv.NVML_ERROR_GPU_NOT_FOUND


def test_lost_reloaded_and_unloaded(load: Load) -> None:
    node = load("hopper", "hopper_mig")
    mig = nv.nvmlDeviceGetMigDeviceHandleByIndex(handle(1), 0)
    first = handle()
    node.lose(0)
    node.lose(1)
    for function in ("PcieReplayCounter", "EccMode", "NumFans"):
        assert ask(f"nvmlDeviceGet{function}", first) == f"error {nv.NVML_ERROR_GPU_IS_LOST}"
    assert ask("nvmlDeviceGetMemoryInfo", mig) == f"error {nv.NVML_ERROR_GPU_IS_LOST}"
    assert nv.nvmlDeviceGetSerial(first)  # remembered
    node.lose(0, False)
    node.reload_driver()
    assert ask("nvmlDeviceGetPcieReplayCounter", first) == "error 999"
    nv.nvmlLib.nvmlShutdown()
    assert ask("nvmlDeviceGetPcieReplayCounter", first) == f"error {nv.NVML_ERROR_UNINITIALIZED}"
    assert nv.nvmlLib.nvmlInit_v2() == 0
    assert nv.nvmlDeviceGetPcieReplayCounter(handle()) > 0


# --- the library's shape ----------------------------------------------------------------------

STRUCTURES = {  # ours, by the file that defines it, and pynvml's
    "libnvidia_ml.c pci_info": "nvmlPciInfo_t",
    "nvml_links.c remote_pci": "nvmlPciInfo_t",
    "nvml_memory.c memory_v1": "c_nvmlBAR1Memory_t",
    "nvml_memory.c memory_v2": "c_nvmlMemory_v2_t",
    "nvml_memory.c process_v2": "c_nvmlProcessInfo_v3_t",
    "nvml_memory.c process_utilization": "c_nvmlProcessUtilizationSample_t",
    "nvml_figures.c rates": "c_nvmlUtilization_t",
    "nvml_clocks.c violation": "c_nvmlViolationTime_t",
    "nvml_ecc.c ecc_counts": "c_nvmlEccErrorCounts_t",
    "nvml_ecc.c sram_status": "c_nvmlEccSramErrorStatus_v1_t",
    "nvml_links.c fabric_info": "c_nvmlGpuFabricInfo_t",
    "nvml_links.c fabric_info_v2": "c_nvmlGpuFabricInfo_v2_t",
    "nvml_fields.c field_value": "c_nvmlFieldValue_t",
    "nvml_events.c event_data": "c_nvmlEventData_t",
    "nvml_gpm.c gpm_metric": "c_nvmlGpmMetric_t",
    "nvml_gpm.c gpm_support": "c_nvmlGpmSupport_t",
    "nvml_mig.c attributes": "c_nvmlDeviceAttributes",
    "nvml_license.c expiry": "c_nvmlGridLicenseExpiry_t",
    "nvml_license.c feature": "c_nvmlGridLicensableFeature_v4_t",
    "nvml_newer.c utilization_row": "c_nvmlProcessUtilizationInfo_v1_t",
    "nvml_newer.c utilization_rows": "c_nvmlProcessesUtilizationInfo_v1_t",
    "nvml_newer.c margin": "c_nvmlMarginTemperature_v1_t",
    "nvml_newer.c temperature": "c_nvmlTemperature_v1_t",
    "nvml_newer.c fan_speed": "c_nvmlFanSpeedInfo_t",
    "nvml_newer.c pci_info_ext": "nvmlPciInfoExt_v1_t",
    "nvml_newer.c platform_info": "c_nvmlPlatformInfo_v2_t",
    "nvml_newer.c encryption": "c_nvmlDramEncryptionInfo_t",
}


def test_structures_are_as_long_as_pynvmls(tmp_path: Path) -> None:
    lines = ['#include "nvml_api.h"']
    for ours, theirs in STRUCTURES.items():
        file, name = ours.split()
        text = (nvml_control.HERE / file).read_text()
        found = re.search(rf"^struct {name} \{{\n.*?^\}};", text, re.M | re.S)
        assert found, ours
        size = ctypes.sizeof(getattr(nv, theirs))
        lines += [found[0], f'_Static_assert(sizeof(struct {name}) == {size}, "{ours}");']
    source = tmp_path / "sizes.c"
    source.write_text("\n".join(lines))
    command = ["cc", "-std=gnu11", f"-I{nvml_control.HERE}", "-c", "-o", os.devnull, str(source)]
    subprocess.run(command, check=True)


def exports(path: Path) -> set[str]:
    command = ["nm", "-D", "--defined-only", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def test_exports_are_the_drivers() -> None:
    newer = {"nvmlDeviceGetProcessesUtilizationInfo", "nvmlDeviceGetMarginTemperature"}
    newer |= {"nvmlDeviceGetTemperatureV", "nvmlDeviceGetFanSpeedRPM"}
    newer |= {"nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetC2cModeInfoV"}
    newer |= {"nvmlDeviceGetPciInfoExt", "nvmlDeviceGetPlatformInfo"}
    newer |= {"nvmlDeviceGetDramEncryptionMode"}
    ours = exports(build_nvml())
    assert exports(build_nvml(newer=True)) - ours == newer
    if REAL.exists():  # driver 535
        assert ours <= exports(REAL)
        assert not newer & exports(REAL)


def test_all_figures_have_a_place() -> None:
    for names, room in ((FIGURES, "FGN_FIGURES"), (LINK_FIGURES, "FGN_LINK_FIGURES")):
        assert 10 < len(names) <= nvml_control.CONSTANTS[room]
