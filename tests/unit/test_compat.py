"""--compat: other exporters' names, units and labels, for what a Snapshot holds; COVERAGE.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from gpubpf.compat import DCGM, FLAVOURS, NVIDIA_SMI, coverage, dcgm, hostname, nvidia_smi
from gpubpf.compat.row import BARE
from gpubpf.compat.smi_rows import MIG_ROWS, ROWS
from gpubpf.config import load
from gpubpf.errors import UsageError
from gpubpf.metric import GAUGE
from gpubpf.metrics import COMPAT, METRICS
from gpubpf.model import (
    Device,
    DeviceInfo,
    DeviceProcess,
    Figures,
    MigDevice,
    MigInfo,
    Owner,
    Plane,
    Process,
    ProcessView,
    Snapshot,
    Source,
    Xid,
)
from gpubpf.nvml.facts import FACTS
from gpubpf.nvml.ways import REASON_BITS
from gpubpf.render import Renderer, families
from gpubpf.view import View
from tests.unit.snapshots import snapshots

ROOT = Path(__file__).parent.parent.parent
COVERAGE = ROOT / "deploy/COVERAGE.md"

# The names there are: dcgm-exporter 4.5.3-4.8.2 (its csv files, active rows and commented), without
# DCGM_, and nvidia_gpu_exporter of August 2026, without nvidia_smi_.
DCGM_NAMES = """
EXP_CLOCK_EVENTS_COUNT EXP_GPU_HEALTH_STATUS EXP_P2P_STATUS EXP_XID_ERRORS_COUNT
FI_DEV_BOARD_LIMIT_VIOLATION FI_DEV_BRAND FI_DEV_CORRECTABLE_REMAPPED_ROWS FI_DEV_DEC_UTIL
FI_DEV_ECC_DBE_AGG_TOTAL FI_DEV_ECC_DBE_VOL_TOTAL FI_DEV_ECC_INFOROM_VER
FI_DEV_ECC_SBE_AGG_TOTAL FI_DEV_ECC_SBE_VOL_TOTAL FI_DEV_ENC_UTIL FI_DEV_FB_FREE
FI_DEV_FB_RESERVED FI_DEV_FB_USED FI_DEV_GPU_TEMP FI_DEV_GPU_UTIL FI_DEV_INFOROM_IMAGE_VER
FI_DEV_LOW_UTIL_VIOLATION FI_DEV_MEMORY_TEMP FI_DEV_MEM_CLOCK FI_DEV_MEM_COPY_UTIL
FI_DEV_NVLINK_BANDWIDTH_L0 FI_DEV_NVLINK_BANDWIDTH_TOTAL
FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL
FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL
FI_DEV_OEM_INFOROM_VER FI_DEV_PCIE_REPLAY_COUNTER FI_DEV_PCIE_RX_THROUGHPUT
FI_DEV_PCIE_TX_THROUGHPUT FI_DEV_POWER_INFOROM_VER FI_DEV_POWER_USAGE FI_DEV_POWER_VIOLATION
FI_DEV_RELIABILITY_VIOLATION FI_DEV_RETIRED_DBE FI_DEV_RETIRED_PENDING FI_DEV_RETIRED_SBE
FI_DEV_ROW_REMAP_FAILURE FI_DEV_SERIAL FI_DEV_SM_CLOCK FI_DEV_SYNC_BOOST_VIOLATION
FI_DEV_THERMAL_VIOLATION FI_DEV_TOTAL_ENERGY_CONSUMPTION FI_DEV_UNCORRECTABLE_REMAPPED_ROWS
FI_DEV_VBIOS_VERSION FI_DEV_VGPU_LICENSE_STATUS FI_DEV_XID_ERRORS FI_DRIVER_VERSION
FI_NVML_VERSION FI_PROF_DRAM_ACTIVE FI_PROF_GR_ENGINE_ACTIVE FI_PROF_PCIE_RX_BYTES
FI_PROF_PCIE_TX_BYTES FI_PROF_PIPE_FP16_ACTIVE FI_PROF_PIPE_FP32_ACTIVE FI_PROF_PIPE_FP64_ACTIVE
FI_PROF_PIPE_TENSOR_ACTIVE FI_PROF_SM_ACTIVE FI_PROF_SM_OCCUPANCY
"""

SMI_NAMES = """
accounting_buffer_size accounting_mode addressing_mode c2c_mode
clocks_applications_graphics_clock_hz clocks_applications_memory_clock_hz
clocks_current_graphics_clock_hz clocks_current_memory_clock_hz clocks_current_sm_clock_hz
clocks_current_video_clock_hz clocks_default_applications_graphics_clock_hz
clocks_default_applications_memory_clock_hz clocks_event_reasons_active
clocks_event_reasons_applications_clocks_setting
clocks_event_reasons_counters_hw_power_brake_slowdown_seconds
clocks_event_reasons_counters_hw_thermal_slowdown_seconds
clocks_event_reasons_counters_sw_power_cap_seconds
clocks_event_reasons_counters_sw_thermal_slowdown_seconds
clocks_event_reasons_counters_sync_boost_seconds clocks_event_reasons_gpu_idle
clocks_event_reasons_hw_power_brake_slowdown clocks_event_reasons_hw_slowdown
clocks_event_reasons_hw_thermal_slowdown clocks_event_reasons_supported
clocks_event_reasons_sw_power_cap clocks_event_reasons_sw_thermal_slowdown
clocks_event_reasons_sync_boost clocks_max_graphics_clock_hz clocks_max_memory_clock_hz
clocks_max_sm_clock_hz command_exit_code compute_app_info compute_app_used_memory_bytes
compute_apps compute_apps_last_collect_success compute_cap compute_mode count display_active
display_attached display_mode dram_encryption_mode_current dram_encryption_mode_pending
driver_model_current driver_model_pending driver_version ecc_mode_current ecc_mode_pending
edpp_multiplier_ratio encoder_stats_average_fps encoder_stats_average_latency
encoder_stats_session_count energy_joules_total enforced_power_limit_watts fabric_clique_id
fabric_cluster_uuid fabric_state fabric_status failed_scrapes_total fan_speed_ratio gom_current
gom_pending gpu_info gpu_recovery_action gsp_mode_current gsp_mode_default hostname index
inforom_checksum_validation inforom_ecc inforom_img inforom_oem inforom_pwr kmd_version
last_collect_duration_seconds last_collect_success last_collect_success_timestamp_seconds
memory_free_bytes memory_reserved_bytes memory_total_bytes memory_used_bytes
mig_graphics_activity_ratio mig_info mig_memory_free_bytes mig_memory_reserved_bytes
mig_memory_total_bytes mig_memory_used_bytes mig_mode_current mig_mode_pending
mig_pcie_throughput_rx_bytes_per_second mig_pcie_throughput_tx_bytes_per_second
mig_sm_activity_ratio mig_sm_occupancy_ratio mig_tensor_activity_ratio name nvml_return_code
pci_base_class pci_bus pci_bus_id pci_device pci_device_id pci_domain pci_sub_class
pci_sub_device_id pcie_link_gen_current pcie_link_gen_gpucurrent pcie_link_gen_gpumax
pcie_link_gen_hostmax pcie_link_gen_max pcie_link_width_current pcie_link_width_max
pcie_throughput_rx_bytes_per_second pcie_throughput_tx_bytes_per_second persistence_mode
platform_chassis_serial_number platform_gpu_fabric_guid platform_host_id platform_module_id
platform_peer_type platform_slot_number platform_tray_index power_default_limit_watts
power_draw_average_watts power_draw_instant_watts power_draw_watts power_limit_watts
power_management power_max_limit_watts power_min_limit_watts protected_memory_free_bytes
protected_memory_total_bytes protected_memory_used_bytes pstate remapped_rows_correctable
remapped_rows_correctable_inactive remapped_rows_failure remapped_rows_histogram_high
remapped_rows_histogram_low remapped_rows_histogram_max remapped_rows_histogram_none
remapped_rows_histogram_partial remapped_rows_pending remapped_rows_uncorrectable
remapped_rows_uncorrectable_inactive retired_pages_double_bit_count retired_pages_pending
retired_pages_single_bit_ecc_count serial temperature_gpu temperature_gpu_tlimit
temperature_memory timestamp utilization_decoder_ratio utilization_encoder_ratio
utilization_gpu_ratio utilization_jpeg_ratio utilization_memory_ratio utilization_ofa_ratio uuid
vbios_version xid_errors_total xid_last_timestamp_seconds
"""

ECC_PLACES = (
    "device_memory", "dram", "register_file", "l1_cache", "l2_cache", "texture_memory", "cbu",
    "sram", "total",
)  # fmt: skip
ECC_SRAM = (
    "volatile_sram_parity", "volatile_sram_secded", "aggregate_sram_parity",
    "aggregate_sram_secded", "aggregate_sram_threshold_exceeded", "aggregate_sram_l2",
    "aggregate_sram_sm", "aggregate_sram_mcu", "aggregate_sram_pcie", "aggregate_sram_other",
)  # fmt: skip

# What the public dashboards ask for: Grafana's 12239, and 14574 and 25547 in all their revisions.
DASHBOARD_12239 = """
DCGM_FI_DEV_GPU_TEMP DCGM_FI_DEV_POWER_USAGE DCGM_FI_DEV_SM_CLOCK DCGM_FI_DEV_GPU_UTIL
DCGM_FI_DEV_FB_USED DCGM_FI_PROF_PIPE_TENSOR_ACTIVE
"""
DASHBOARD_14574 = """
clocks_current_graphics_clock_hz clocks_current_memory_clock_hz clocks_current_sm_clock_hz
clocks_current_video_clock_hz clocks_event_reasons_applications_clocks_setting
clocks_event_reasons_gpu_idle clocks_event_reasons_hw_power_brake_slowdown
clocks_event_reasons_hw_thermal_slowdown clocks_event_reasons_sw_power_cap
clocks_event_reasons_sw_thermal_slowdown clocks_event_reasons_sync_boost
clocks_max_graphics_clock_hz clocks_max_memory_clock_hz
clocks_throttle_reasons_applications_clocks_setting clocks_throttle_reasons_gpu_idle
clocks_throttle_reasons_hw_power_brake_slowdown clocks_throttle_reasons_hw_thermal_slowdown
clocks_throttle_reasons_sw_power_cap clocks_throttle_reasons_sw_thermal_slowdown
clocks_throttle_reasons_sync_boost compute_app_info compute_app_used_memory_bytes
compute_apps_last_collect_success compute_mode ecc_errors_uncorrected_aggregate_total
energy_joules_total enforced_power_limit_watts fabric_state fan_speed_ratio gpu_info
gpu_recovery_action index memory_total_bytes memory_used_bytes mig_info mig_memory_used_bytes
mig_sm_activity_ratio mig_tensor_activity_ratio pcie_throughput_rx_bytes_per_second
pcie_throughput_tx_bytes_per_second power_default_limit_watts power_draw_watts power_limit_watts
pstate temperature_gpu utilization_gpu_ratio utilization_memory_ratio xid_errors_total
xid_last_timestamp_seconds
"""

MIB = 1 << 20


def device(index: int, uuid: str, figures: Figures | None = None, **more: object) -> Device:
    info = DeviceInfo(
        index, uuid, "NVIDIA H100", "550.1.2", f"00000000:{index + 0x3A:02X}:00.0",
        minor=index + 4, cuda_version="12.4", serial="1650", vbios_version="96.0",
        compute_capability="9.0",
    )  # fmt: skip
    return replace(Device(info, figures or {}), **more)  # type: ignore[arg-type]


def snapshot(*devices: Device, **more: object) -> Snapshot:
    plane = Plane(devices, sampled={"compute": 90.0})
    indices = {d.info.uuid: d.info.index for d in devices}
    made = Snapshot(100.0, 2000.0, (), {}, 0, {}, plane, (), indices=indices)
    return replace(made, **more)  # type: ignore[arg-type]


def page(seen: Snapshot, *compat: str, openmetrics: bool = False, per_process: bool = False) -> str:
    view = View(seen, process_metrics=per_process, compat=compat, hostname="node1")
    return Renderer().page(view, openmetrics=openmetrics)[0]


def theirs(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(r"\b(DCGM|nvidia_smi)_", line)]


def samples(text: str) -> dict[str, float]:
    """By name and labels, empty ones left out: they are as good as none to Prometheus.

    prometheus_client's parser adds _total to whatever is a counter.
    """
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{n}={v}" for n, v in sorted(sample.labels.items()) if v)
            if sample.name.startswith(("DCGM", "nvidia_smi")):
                name = sample.name
                if name.startswith("DCGM"):
                    name = name.removesuffix("_total")
                found[f"{name}{{{labels}}}"] = sample.value
    return found


def values(seen: Snapshot, *compat: str, per_process: bool = False) -> dict[str, float]:
    """By name alone, of a node with one GPU."""
    found = samples(page(seen, *compat, per_process=per_process))
    return {name.partition("{")[0]: value for name, value in found.items()}


FIGURES: Figures = {
    "temperature_celsius": {(): 41},
    "power_watts": {(): 70.271},
    "energy_joules": {(): 12.3456},
    "utilization_ratio": {(): 0.29},
    "memory_utilization_ratio": {(): 0.07},
    "clock_hertz": {("sm",): 1_980_000_000, ("memory",): 2_619_000_000},
    "clock_reason_active": {(name,): name in ("gpu_idle", "sw_power_cap") for name in REASON_BITS},
    "memory_used_bytes": {(): 3 * MIB + 1},
    "memory_size_bytes": {(): 80 * MIB},
    "throttled_seconds": {("power",): 1.5, ("thermal",): 0.000000007},
    "nvlink_throughput_bytes_per_second": {("transmit",): 1_024_000, ("receive",): 2_048_001},
    "nvlink_link_errors": {("0", "replay"): 2, ("1", "replay"): 3, ("1", "crc_flit"): 7},
    "pcie_throughput_bytes_per_second": {("transmit",): 123_456, ("receive",): 7},
    "tensor_utilization_ratio": {(): 0.25},
    "ecc_errors": {("uncorrected", "aggregate"): 4},
    "encoder_latency_seconds": {(): 0.000033},
    "fan_speed_ratio": {("0",): 0.3, ("1",): 0.4},
}
H100 = device(0, "GPU-0A1b2c3d-4", FIGURES)
ON_0 = (
    'DCGM_FI_DRIVER_VERSION="550.1.2",GPU_I_ID="",GPU_I_PROFILE="",Hostname="node1",'
    'UUID="GPU-0A1b2c3d-4",device="nvidia4",gpu="0",modelName="NVIDIA H100",'
    'pci_bus_id="00000000:3A:00.0"'
)


# --- the option ---------------------------------------------------------------------------------


def test_the_option() -> None:
    assert load({}, {}).compat == ()
    assert load({"compat": "nvidia-smi,dcgm"}, {}).compat == FLAVOURS
    assert load({"compat": "none"}, {"GPUBPF_COMPAT": "dcgm"}).compat == ()
    assert load({}, {"GPUBPF_COMPAT": "nvidia-smi"}).compat == (NVIDIA_SMI,)
    with pytest.raises(UsageError, match=r"dcgm, nvidia-smi; or none"):
        load({"compat": "dcgm,telegraf"}, {})
    with pytest.raises(UsageError, match=r"dcgm, nvidia-smi; or none"):
        load({"compat": "none,dcgm"}, {})


def test_the_nodes_name_is_the_hosts_unless_it_is_told() -> None:
    assert hostname({"NODE_NAME": "node7"}) == "node7"
    assert hostname({"NODE_NAME": ""}) == hostname({}) != ""


@pytest.mark.parametrize("openmetrics", [False, True])
def test_without_it_there_is_nothing_of_theirs(openmetrics: bool) -> None:
    assert not theirs(page(snapshot(H100), openmetrics=openmetrics))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_ours_stays_as_it_is(flavour: str) -> None:
    plain = page(snapshot(H100))
    both = page(snapshot(H100), flavour)
    assert both.startswith(plain)
    assert len(theirs(both[len(plain) :])) == len(both[len(plain) :].splitlines())


# --- dcgm-exporter ------------------------------------------------------------------------------


@pytest.mark.parametrize(("openmetrics", "kind"), [(False, "counter"), (True, "unknown")])
def test_dcgm_as_it_stands_on_the_page(openmetrics: bool, kind: str) -> None:
    lines = page(snapshot(H100), DCGM, openmetrics=openmetrics).splitlines()
    place = lines.index("# TYPE DCGM_FI_DEV_GPU_TEMP gauge")
    assert lines[place - 1].startswith("# HELP DCGM_FI_DEV_GPU_TEMP ")
    assert lines[place + 1] == f"DCGM_FI_DEV_GPU_TEMP{{{ON_0}}} 41.0"
    place = lines.index(f"# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION {kind}")
    assert lines[place + 1] == f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{ON_0}}} 12346.0"
    assert f"DCGM_FI_DEV_POWER_USAGE{{{ON_0}}} 70.271" in lines
    assert f"# TYPE DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL {kind}" in lines


def test_dcgm_units() -> None:
    assert values(snapshot(H100), DCGM) == {
        "DCGM_FI_DEV_GPU_TEMP": 41,
        "DCGM_FI_DEV_POWER_USAGE": 70.271,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 12346,  # mJ
        "DCGM_FI_DEV_GPU_UTIL": 29,  # whole, though 0.29 * 100 isn't
        "DCGM_FI_DEV_MEM_COPY_UTIL": 7,
        "DCGM_FI_DEV_SM_CLOCK": 1980,
        "DCGM_FI_DEV_MEM_CLOCK": 2619,
        "DCGM_FI_DEV_FB_USED": 3,  # MiB, rounded down
        "DCGM_FI_DEV_POWER_VIOLATION": 1_500_000_000,  # ns
        "DCGM_FI_DEV_THERMAL_VIOLATION": 7,
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": 3,
        "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": 5,
        "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": 7,
        "DCGM_FI_PROF_PCIE_TX_BYTES": 123_456,
        "DCGM_FI_PROF_PCIE_RX_BYTES": 7,
        "DCGM_FI_DEV_PCIE_TX_THROUGHPUT": 123,
        "DCGM_FI_DEV_PCIE_RX_THROUGHPUT": 0,
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.25,
        "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": 4,
    }


def test_half_a_sum_is_none() -> None:
    half = device(0, "GPU-a", {"nvlink_throughput_bytes_per_second": {("transmit",): 5e9}})
    assert values(snapshot(half), DCGM) == {}


def test_what_a_gpu_does_not_tell_is_absent() -> None:
    lost = device(1, "GPU-b", reason="lost")
    assert not any("DCGM" in line for line in theirs(page(snapshot(lost), DCGM)))
    told = values(snapshot(lost), NVIDIA_SMI)
    assert {name for name in told if "temperature" in name or "memory" in name} == set()
    assert told["nvidia_smi_index"] == 1
    assert not theirs(page(replace(snapshot(), plane=None), *FLAVOURS))


def test_several_gpus() -> None:
    others = (device(1, "GPU-b", {"temperature_celsius": {(): 50}}), device(2, "GPU-c"))
    found = samples(page(snapshot(H100, *others), DCGM))
    rows = [key for key in found if key.startswith("DCGM_FI_DEV_GPU_TEMP{")]
    assert [found[key] for key in rows] == [41, 50]
    assert "UUID=GPU-b,device=nvidia5,gpu=1," in rows[1]
    found = samples(page(snapshot(H100, *others), NVIDIA_SMI))
    assert found["nvidia_smi_temperature_gpu{uuid=b}"] == 50
    assert found["nvidia_smi_index{uuid=c}"] == 2
    assert found["nvidia_smi_count{uuid=0a1b2c3d-4}"] == 3


def test_what_is_not_known_of_a_gpu_is_an_empty_label() -> None:
    bare = Device(DeviceInfo(3, "GPU-x", "", ""), {"temperature_celsius": {(): 1}})
    view = View(snapshot(bare), compat=(DCGM,))
    assert dcgm.labels(view, bare) == ("3", "GPU-x", "", "", "", "", "", "", "")
    (line,) = samples(Renderer().page(view, openmetrics=False)[0])
    assert line == "DCGM_FI_DEV_GPU_TEMP{UUID=GPU-x,gpu=3}"


def test_the_last_xid_error() -> None:
    xids = {("GPU-0A1b2c3d-4", 79): Xid(1, 50.0), ("GPU-0A1b2c3d-4", 31): Xid(9, 60.0)}
    seen = snapshot(H100, device(1, "GPU-b"))
    assert seen.plane is not None
    seen = replace(seen, plane=replace(seen.plane, xids=xids))
    found = {k: v for k, v in samples(page(seen, *FLAVOURS)).items() if "XID" in k or "xid" in k}
    (key,) = (key for key in found if key.startswith("DCGM"))
    assert "UUID=GPU-0A1b2c3d-4" in key
    assert "err_code=31" in key
    assert found.pop(key) == 31
    assert found == {
        "nvidia_smi_xid_errors_total{uuid=0a1b2c3d-4,xid=31}": 9,
        "nvidia_smi_xid_errors_total{uuid=0a1b2c3d-4,xid=79}": 1,
        "nvidia_smi_xid_last_timestamp_seconds{uuid=0a1b2c3d-4,xid=31}": 60,
        "nvidia_smi_xid_last_timestamp_seconds{uuid=0a1b2c3d-4,xid=79}": 50,
    }


# --- MIG ----------------------------------------------------------------------------------------


def mig(
    uuid: str, profile: str, gpu: int | None, compute: int, used: int | None, tensor: float
) -> MigDevice:
    figures: dict[str, Mapping[tuple[str, ...], float]] = {"tensor_utilization_ratio": {(): tensor}}
    if used is not None:
        figures["memory_used_bytes"] = {(): used}
    return MigDevice(MigInfo(uuid, profile, gpu, compute), figures)


DIVIDED = replace(
    H100,
    mig=(
        mig("MIG-Aa", "1c.2g.20gb", 5, 0, 5 * MIB + 7, 0.5),
        mig("MIG-Bb", "1c.2g.20gb", 5, 1, 5 * MIB + 7, 0.5),  # shares memory and GPM with the first
        mig("MIG-Cc", "1g.10gb", 7, 0, None, 0.75),
        mig("MIG-Dd", "", None, 0, 9 * MIB, 1.0),  # of what instance is not known
    ),
)
MIGS = tuple(part.info.uuid for part in DIVIDED.mig)


def test_gpu_instances_stand_in_the_place_of_the_board() -> None:
    found = samples(page(snapshot(DIVIDED), DCGM))
    used = {key: value for key, value in found.items() if "FB_USED" in key}
    assert len(used) == 1
    assert "GPU_I_ID=5,GPU_I_PROFILE=2g.20gb,Hostname=node1,UUID=GPU-0A1b2c3d-4" in next(iter(used))
    assert list(used.values()) == [5]
    tensor = {key: value for key, value in found.items() if "TENSOR" in key}
    assert list(tensor.values()) == [0.5, 0.75]
    assert "GPU_I_ID=7,GPU_I_PROFILE=1g.10gb" in list(tensor)[1]
    (heat,) = (key for key in found if "GPU_TEMP" in key)
    assert "GPU_I" not in heat


def test_mig_of_nvidia_smi() -> None:
    found = samples(page(snapshot(DIVIDED), NVIDIA_SMI))
    assert {key: value for key, value in found.items() if "_mig_" in key} == {
        "nvidia_smi_mig_memory_used_bytes{gpu_instance_id=5,uuid=0a1b2c3d-4}": 5 * MIB + 7,
        "nvidia_smi_mig_tensor_activity_ratio{gpu_instance_id=5,uuid=0a1b2c3d-4}": 0.5,
        "nvidia_smi_mig_tensor_activity_ratio{gpu_instance_id=7,uuid=0a1b2c3d-4}": 0.75,
        **{
            f"nvidia_smi_mig_info{{compute_instance_id={compute}{gpu},mig_uuid={uuid}{profile},"
            "uuid=0a1b2c3d-4}": 1
            for compute, gpu, uuid, profile in (
                (0, ",gpu_instance_id=5", "aa", ",profile=1c.2g.20gb"),
                (1, ",gpu_instance_id=5", "bb", ",profile=1c.2g.20gb"),
                (0, ",gpu_instance_id=7", "cc", ",profile=1g.10gb"),
                (0, "", "dd", ""),
            )
        },
    }
    assert found["nvidia_smi_memory_used_bytes{uuid=0a1b2c3d-4}"] == 4 * MIB


# --- nvidia_gpu_exporter ------------------------------------------------------------------------


@pytest.mark.parametrize(("openmetrics", "kind"), [(False, "gauge"), (True, "info")])
def test_nvidia_smi_as_it_stands_on_the_page(openmetrics: bool, kind: str) -> None:
    lines = page(snapshot(H100), NVIDIA_SMI, openmetrics=openmetrics).splitlines()
    suffix = "" if openmetrics else "_info"
    place = lines.index(f"# TYPE nvidia_smi_gpu{suffix} {kind}")
    assert lines[place + 1] == (
        'nvidia_smi_gpu_info{compute_cap="9.0",cuda_version="12.4",driver_model_current="[N/A]",'
        'driver_model_pending="[N/A]",driver_version="550.1.2",index="0",name="NVIDIA H100",'
        'pci_bus_id="00000000:3A:00.0",pci_sub_device_id="[N/A]",serial="1650",uuid="0a1b2c3d-4",'
        'vbios_version="96.0"} 1.0'
    )
    place = lines.index("# TYPE nvidia_smi_temperature_gpu gauge")
    assert lines[place + 1] == 'nvidia_smi_temperature_gpu{uuid="0a1b2c3d-4"} 41.0'
    suffix = "" if openmetrics else "_total"
    place = lines.index(f"# TYPE nvidia_smi_energy_joules{suffix} counter")
    assert lines[place + 1] == 'nvidia_smi_energy_joules_total{uuid="0a1b2c3d-4"} 12.3456'


def test_nvidia_smi_units() -> None:
    reasons = {name for name in REASON_BITS if name != "display_clock_setting"}
    prefixes = ("nvidia_smi_clocks_event_reasons_", "nvidia_smi_clocks_throttle_reasons_")
    assert values(snapshot(H100), NVIDIA_SMI) == {
        "nvidia_smi_gpu_info": 1,
        "nvidia_smi_index": 0,
        "nvidia_smi_count": 1,
        "nvidia_smi_serial": 1650,
        "nvidia_smi_compute_cap": 9.0,
        "nvidia_smi_pci_domain": 0,
        "nvidia_smi_pci_bus": 0x3A,
        "nvidia_smi_pci_device": 0,
        "nvidia_smi_utilization_gpu_ratio": 0.29,
        "nvidia_smi_utilization_memory_ratio": 0.07,
        "nvidia_smi_encoder_stats_average_latency": 33,
        "nvidia_smi_clocks_current_sm_clock_hz": 1.98e9,
        "nvidia_smi_clocks_current_memory_clock_hz": 2.619e9,
        **{f"{prefix}active": 0x5 for prefix in prefixes},
        **{
            f"{prefix}{reason}": float(reason in ("gpu_idle", "sw_power_cap"))
            for prefix, reason in product(prefixes, reasons)
        },
        "nvidia_smi_clocks_event_reasons_counters_sw_power_cap_seconds": 1.5,
        "nvidia_smi_memory_used_bytes": 4 * MIB,  # rounded up
        "nvidia_smi_memory_total_bytes": 80 * MIB,
        "nvidia_smi_ecc_errors_uncorrected_aggregate_total": 4,
        "nvidia_smi_pcie_throughput_tx_bytes_per_second": 123_456,
        "nvidia_smi_pcie_throughput_rx_bytes_per_second": 7,
        "nvidia_smi_temperature_gpu": 41,
        "nvidia_smi_fan_speed_ratio": 0.3,
        "nvidia_smi_power_draw_watts": 70.271,
        "nvidia_smi_energy_joules_total": 12.3456,
        "nvidia_smi_compute_apps_last_collect_success": 0,
        "nvidia_smi_last_collect_success_timestamp_seconds": 1990,
    }


def test_the_mask_of_reasons_needs_all_of_them() -> None:
    some = device(0, "GPU-a", {"clock_reason_active": {("gpu_idle",): 1}})
    told = values(snapshot(some), NVIDIA_SMI)
    assert told["nvidia_smi_clocks_event_reasons_gpu_idle"] == 1
    assert "nvidia_smi_clocks_event_reasons_active" not in told


def test_identity_that_is_a_number() -> None:
    info = DeviceInfo(
        0, "GPU-a", "", "", pci_device_id="0x233010DE", pci_subsystem_id="0x16C110DE",
        inforom_ecc_version="6.16", inforom_oem_version="N/A",
    )  # fmt: skip
    told = values(snapshot(Device(info)), NVIDIA_SMI)
    assert told["nvidia_smi_pci_device_id"] == 0x233010DE
    assert told["nvidia_smi_pci_sub_device_id"] == 0x16C110DE
    assert told["nvidia_smi_inforom_ecc"] == 6.16
    assert "nvidia_smi_inforom_oem" not in told
    (text,) = (
        key for key in samples(page(snapshot(Device(info)), NVIDIA_SMI)) if "gpu_info" in key
    )
    assert "pci_sub_device_id=0x16C110DE" in text


def test_class_and_place_that_are_numbers() -> None:
    info = DeviceInfo(
        0, "GPU-a", "", "", pci_class="0302", slot="23", fabric_guid="0x3B5F000100020003",
    )  # fmt: skip
    told = values(snapshot(Device(info)), NVIDIA_SMI)
    assert (told["nvidia_smi_pci_base_class"], told["nvidia_smi_pci_sub_class"]) == (3, 2)
    assert told["nvidia_smi_platform_slot_number"] == 23
    assert told["nvidia_smi_platform_gpu_fabric_guid"] == float(0x3B5F000100020003)
    assert "nvidia_smi_platform_tray_index" not in told


def test_peers() -> None:
    info = replace(H100.info, p2p=(("GPU-b", 0), ("GPU-gone", 9)))
    told = samples(page(snapshot(replace(H100, info=info), device(1, "GPU-b")), DCGM))
    found = {name: value for name, value in told.items() if "P2P" in name}
    assert list(found.values()) == [0, 9]
    one, other = found
    assert "link_status=OK" in one
    assert "peer_gpu=1" in one
    assert "link_status=Unknown" in other
    assert "peer_gpu" not in other


def test_pcie_is_the_boards_to_dcgm() -> None:
    figures: Figures = {"pcie_throughput_bytes_per_second": {("transmit",): 5}}
    instance = MigDevice(MigInfo("MIG-a", "1g.10gb", 7, 0), figures)
    divided = replace(H100, mig=(instance,))
    told = samples(page(snapshot(divided), DCGM))
    (one,) = (name for name in told if "PROF_PCIE_TX" in name)
    assert told[one] == 123_456
    told = samples(page(snapshot(divided), NVIDIA_SMI))
    (one,) = (name for name in told if "mig_pcie_throughput_tx" in name)
    assert told[one] == 5


@pytest.mark.parametrize("bus", [None, "", "3A:00.0", "x:y:z.0"])
def test_identity_that_is_no_number(bus: str | None) -> None:
    odd = Device(DeviceInfo(0, "GPU-a", "", "", bus, serial="A1"))
    told = values(snapshot(odd), NVIDIA_SMI)
    assert not {name for name in told if "pci" in name or "serial" in name or "cap" in name}
    (info,) = (key for key in samples(page(snapshot(odd), NVIDIA_SMI)) if "gpu_info" in key)
    assert "name=[N/A]" in info
    assert "cuda_version" not in info


def test_processes() -> None:
    held = DeviceProcess(7, 3 * MIB + 1, ("compute",))
    on_mig = DeviceProcess(8, 2 * MIB, ("compute",), mig="MIG-Aa")
    unknown = DeviceProcess(9, None, ("compute", "graphics"))
    drawing = DeviceProcess(10, 5, ("graphics",))
    board = replace(DIVIDED, processes=(held, on_mig, unknown, drawing))
    gpu = board.info.uuid
    on: tuple[tuple[int, dict[str, DeviceProcess]], ...] = (
        (7, {gpu: held}),
        (8, {"MIG-Aa": on_mig, "MIG-Cc": replace(on_mig, mig="MIG-Cc")}),
        (9, {gpu: unknown}),
        (10, {gpu: drawing}),
    )
    views = tuple(
        ProcessView(Owner(pid, 0), None if pid == 8 else Process(pid, 1.0, "train"), 0, gpus=gpus)
        for pid, gpus in on
    )
    seen = snapshot(board, processes=views)
    without = values(seen, NVIDIA_SMI)
    assert without["nvidia_smi_compute_apps"] == 3
    assert without["nvidia_smi_compute_apps_last_collect_success"] == 1
    assert "nvidia_smi_compute_app_info" not in without
    found = samples(page(seen, NVIDIA_SMI, per_process=True))
    at = "uuid=0a1b2c3d-4"
    assert {key: value for key, value in found.items() if "compute_app_" in key} == {
        f"nvidia_smi_compute_app_info{{pid=7,process_name=train,{at}}}": 1,
        f"nvidia_smi_compute_app_info{{pid=8,{at}}}": 1,
        f"nvidia_smi_compute_app_info{{pid=9,process_name=train,{at}}}": 1,
        f"nvidia_smi_compute_app_used_memory_bytes{{pid=7,process_name=train,{at}}}": 4 * MIB,
        f"nvidia_smi_compute_app_used_memory_bytes{{pid=8,{at}}}": 4 * MIB,
    }


@pytest.mark.parametrize("up", [True, False])
def test_the_last_look(up: bool) -> None:
    seen = snapshot(H100, sources=(Source("bpf", not up, None, 9.0), Source("nvml", up, None, 0.5)))
    told = values(seen, NVIDIA_SMI)
    assert told["nvidia_smi_last_collect_success"] == up
    assert told["nvidia_smi_last_collect_duration_seconds"] == 0.5


# --- the format ---------------------------------------------------------------------------------


class Reference(Collector):
    def __init__(self, view: View, created: bool) -> None:
        self._view, self._created = view, created

    def collect(self) -> list[Metric]:
        return list(families(self._view, created=self._created))


@settings(max_examples=40, deadline=None)
@given(seen=snapshots(), divided=st.booleans(), openmetrics=st.booleans())
def test_a_page_is_what_prometheus_client_makes_of_it(
    seen: Snapshot, divided: bool, openmetrics: bool
) -> None:
    """But for the counters without _total, which it can't write in the text format."""
    if seen.plane is not None and divided:
        devices = (*seen.plane.devices, replace(DIVIDED, info=replace(H100.info, index=9)))
        indices = {**seen.indices, **dict.fromkeys(["GPU-0A1b2c3d-4", *MIGS], 9)}
        seen = replace(seen, plane=replace(seen.plane, devices=devices), indices=indices)
    view = View(seen, process_metrics=True, compat=FLAVOURS, hostname='no"de')
    text, series = Renderer().page(view, openmetrics=openmetrics)
    registry = CollectorRegistry()
    registry.register(Reference(view, openmetrics))
    encode = openmetrics_exposition.generate_latest if openmetrics else generate_latest
    expected = encode(registry).decode()
    if openmetrics:
        expected = expected.removesuffix("# EOF\n")
    else:
        expected = re.sub(r"(?m)^(# TYPE DCGM_\w+) untyped$", r"\1 counter", expected)
    assert text == expected
    parse = (
        openmetrics_parser.text_string_to_metric_families
        if openmetrics
        else text_string_to_metric_families
    )
    parsed = [s for family in parse(text + "# EOF\n" * openmetrics) for s in family.samples]
    assert len(parsed) == series
    added = [sample for sample in parsed if not sample.name.startswith("gpubpf_")]
    assert len({(s.name, frozenset(s.labels.items())) for s in added}) == len(added)


def test_promtool_reads_it() -> None:
    """Its exit code is 1 where it can't, 3 where it finds a name or a label badly chosen."""
    text = page(snapshot(DIVIDED), *FLAVOURS)
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert check.returncode == 3
    assert all(" should " in line for line in check.stderr.splitlines())
    disliked = {line.split()[0] for line in check.stderr.splitlines()}
    assert {name for name in disliked if not name.startswith("DCGM_FI_")} == {
        "nvidia_smi_count",
        "nvidia_smi_ecc_errors_uncorrected_aggregate_total",
    }


# --- the tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_tables_laws(flavour: str) -> None:
    rows = COMPAT[flavour]
    names = [row.sample_name for row in rows]
    assert len(set(names)) == len(names)
    assert not set(names) & {row.sample_name for row in METRICS}
    for row in rows:
        assert re.fullmatch(r"(DCGM_(FI|EXP)_[A-Z0-9_]+|nvidia_smi_[a-z0-9_]+)", row.name)
        assert row.help.endswith(".")
        assert len(row.help) < 100
        assert len(set(row.labels)) == len(row.labels)
        assert row.kind == GAUGE or not row.name.endswith(("_total", "_info"))
        assert (row.kind == BARE) <= (flavour == DCGM)


def test_rows_read_what_is_measured() -> None:
    assert all(row.source.ours for row in (*dcgm.ROWS, *ROWS, *MIG_ROWS))
    facts = {fact.name: fact for fact in FACTS}
    for row in MIG_ROWS:
        name = row.source.ours.partition("{")[0].removeprefix("gpubpf_gpu_")
        assert facts[name].mig, row.name


def test_the_dashboards_have_what_they_ask_for() -> None:
    given_ = {row.sample_name for row in COMPAT[DCGM]}
    assert set(DASHBOARD_12239.split()) <= given_
    assert {"gpu", "modelName", "Hostname", "UUID", "pci_bus_id", "device"} <= set(dcgm.LABELS)
    given_ = {row.sample_name for row in COMPAT[NVIDIA_SMI]}
    assert {nvidia_smi.PREFIX + name for name in DASHBOARD_14574.split()} <= given_
    labels = {row.sample_name: row.labels for row in COMPAT[NVIDIA_SMI]}
    assert {"uuid", "name", "index"} <= set(labels["nvidia_smi_gpu_info"])
    assert {"uuid", "gpu_instance_id", "profile"} <= set(labels["nvidia_smi_mig_info"])


# --- the coverage -------------------------------------------------------------------------------


def test_every_metric_of_theirs_is_covered_or_says_why() -> None:
    ecc = {
        *(f"{e}_{c}_{p}" for e, c, p in product(
            ("corrected", "uncorrected"), ("volatile", "aggregate"), ECC_PLACES)),
        *(f"uncorrected_{name}" for name in ECC_SRAM),
    }  # fmt: skip
    there = {entry.name for entry in coverage.COVERAGE["dcgm-exporter"]}
    assert there == {*(f"DCGM_{name}" for name in DCGM_NAMES.split()), "dcgm_*"}
    there = {entry.name for entry in coverage.COVERAGE["nvidia_gpu_exporter"]}
    wanted = {*SMI_NAMES.split(), *(f"ecc_errors_{name}" for name in ecc)}
    older = {name for name in there if "_clocks_throttle_reasons_" in name}
    assert there - older == {nvidia_smi.PREFIX + name for name in wanted}
    assert {name.replace("throttle", "event") for name in older} < there


def test_an_entry_is_there_once_and_says_something() -> None:
    for flavour, entries in zip(FLAVOURS, coverage.COVERAGE.values(), strict=True):
        names = [entry.name for entry in entries]
        assert len(set(names)) == len(names)
        assert all(entry.ours for entry in entries)
        given_ = {entry.name for entry in entries if entry.given} - {"DCGM_FI_DRIVER_VERSION"}
        assert given_ == {row.sample_name for row in COMPAT[flavour]}
        assert not any("not yet" in entry.ours for entry in entries)


def test_ours_in_it_exist() -> None:
    labels = {row.sample_name: row.labels for row in METRICS}
    named = re.findall(r"(gpubpf_\w+)(?:\{([^}]*)\})?", coverage.document())
    assert len(named) > 200
    for name, inner in named:
        assert name in labels
        assert {part.partition("=")[0] for part in inner.split(",") if part} <= {*labels[name]}


def test_the_document_is_fresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--check", str(COVERAGE)]) == 0, "gpubpf.compat.coverage --write it"
    copy = tmp_path / "COVERAGE.md"
    assert coverage.main(["--check", str(copy)]) == 1
    assert coverage.main(["--write", str(copy)]) == 0
    assert copy.read_text() == COVERAGE.read_text()
    copy.write_text(copy.read_text().replace("`DCGM_FI_DEV_GPU_TEMP`", "`it`"))
    capsys.readouterr()
    assert coverage.main(["--check", str(copy)]) == 1
    assert "-| `it` |" in capsys.readouterr().out
