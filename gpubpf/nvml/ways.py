"""The ways in which NVML is asked for the facts: functions, fields and what makes series of them.

Functions, fields and units are NVML's (NVML API Reference; `nvml.h` of the CUDA toolkit says the
units of the fields).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import Labels
from gpubpf.nvml.ask import INT, UINT, ULONG, Field, Gpm, Part, Query, Scaled, Way, Ways

MEGA, MEBI, KIBI = 1_000_000, 1 << 20, 1 << 10
MILLI, MICRO, NANO = 1_000, 1_000_000, 1_000_000_000  # of NVML's units in one of ours
PERCENT = 100
NVLINKS = 18  # of the boards that there are; a link that a board hasn't is left out
OLD_LINKS = 12  # those that have fields of their own; later ones are asked by scope
FANS = 4


def call(function: str, *arguments: int, result: type[ctypes._SimpleCData[int]] = UINT) -> Part:
    return Part(Query(function, (result,), arguments))


def one(*ways: Way) -> Mapping[Labels, Ways]:
    return {(): ways}


def by(ways: Mapping[str, Way | Ways]) -> Mapping[Labels, Ways]:
    return {(label,): way if isinstance(way, tuple) else (way,) for label, way in ways.items()}


def field(name: str, scope: int = 0) -> Field:
    return Field(getattr(pynvml, f"NVML_FI_DEV_{name}"), scope)


def gpm(name: str) -> Gpm:
    return Gpm(getattr(pynvml, f"NVML_GPM_METRIC_{name}"))


RATES = Query("nvmlDeviceGetUtilizationRates", (pynvml.c_nvmlUtilization_t,))
# v1 counts what the driver reserves as used, v2 doesn't (as nvidia-smi).
_MEMORY = Query(
    "nvmlDeviceGetMemoryInfo_v2", (pynvml.c_nvmlMemory_v2_t,), version=pynvml.nvmlMemory_v2
)
_OLD_MEMORY = Query("nvmlDeviceGetMemoryInfo", (pynvml.c_nvmlMemory_t,))
PROTECTED = Query("nvmlDeviceGetConfComputeProtectedMemoryUsage", (pynvml.c_nvmlMemory_t,))
ENCRYPTION = Query("nvmlDeviceGetDramEncryptionMode", (pynvml.c_nvmlDramEncryptionInfo_t,) * 2)
BAR1 = Query("nvmlDeviceGetBAR1MemoryInfo", (pynvml.c_nvmlBAR1Memory_t,))
ENCODER = Query("nvmlDeviceGetEncoderUtilization", (UINT, UINT))
DECODER = Query("nvmlDeviceGetDecoderUtilization", (UINT, UINT))
JPEG = Query("nvmlDeviceGetJpgUtilization", (UINT, UINT))
OFA = Query("nvmlDeviceGetOfaUtilization", (UINT, UINT))
ENCODING = Query("nvmlDeviceGetEncoderStats", (UINT, UINT, UINT))
CAPTURE = Query("nvmlDeviceGetFBCStats", (pynvml.c_nvmlFBCStats_t,))
GSP_MODE = Query("nvmlDeviceGetGspFirmwareMode", (UINT, UINT))
MIG_MODE = Query("nvmlDeviceGetMigMode", (UINT, UINT))
LIMITS = Query("nvmlDeviceGetPowerManagementLimitConstraints", (UINT, UINT))
REASONS = (
    Query("nvmlDeviceGetCurrentClocksEventReasons", (ULONG,)),
    Query("nvmlDeviceGetCurrentClocksThrottleReasons", (ULONG,)),  # before driver 535
)
POSSIBLE_REASONS = (
    Query("nvmlDeviceGetSupportedClocksEventReasons", (ULONG,)),
    Query("nvmlDeviceGetSupportedClocksThrottleReasons", (ULONG,)),
)


class _Licences(ctypes.Structure):
    """nvmlGridLicensableFeatures_t as far as the first feature's state."""

    _fields_ = (
        ("supported", INT),
        ("count", UINT),
        ("code", UINT),
        ("state", UINT),
        ("rest", ctypes.c_char * (ctypes.sizeof(pynvml.c_nvmlGridLicensableFeatures_v4_t) - 16)),
    )


LICENCE = Query("nvmlDeviceGetGridLicensableFeatures_v4", (_Licences,))


def memory(attribute: str) -> Mapping[Labels, Ways]:
    old = () if attribute == "reserved" else (Part(_OLD_MEMORY, attribute),)
    return {(): (Part(_MEMORY, attribute), *old)}


_CLOCKS = {
    "graphics": pynvml.NVML_CLOCK_GRAPHICS,
    "sm": pynvml.NVML_CLOCK_SM,
    "memory": pynvml.NVML_CLOCK_MEM,
    "video": pynvml.NVML_CLOCK_VIDEO,
}


def clocks(function: str, *only: str) -> Mapping[Labels, Ways]:
    return by({name: call(function, _CLOCKS[name]) for name in only or _CLOCKS})


REASON_BITS = {
    "gpu_idle": pynvml.nvmlClocksEventReasonGpuIdle,
    "applications_clocks_setting": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "sw_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake_slowdown": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    "display_clock_setting": pynvml.nvmlClocksEventReasonDisplayClockSetting,
}


def reasons(*queries: Query) -> Mapping[Labels, Ways]:
    return by({name: tuple(Part(q, bit=bit) for q in queries) for name, bit in REASON_BITS.items()})


def _policy(policy: str) -> Ways:
    number = getattr(pynvml, f"NVML_PERF_POLICY_{policy}")
    query = Query("nvmlDeviceGetViolationStatus", (pynvml.c_nvmlViolationTime_t,), (number,))
    return field(f"PERF_POLICY_{policy}"), Part(query, "violationTime")


THROTTLED: Mapping[str, Way | Ways] = {
    "power": _policy("POWER"),
    "thermal": _policy("THERMAL"),
    "sync_boost": _policy("SYNC_BOOST"),
    "board_limit": _policy("BOARD_LIMIT"),
    "low_utilization": _policy("LOW_UTILIZATION"),
    "reliability": _policy("RELIABILITY"),
    "applications_clocks": _policy("TOTAL_APP_CLOCKS"),
    "base_clocks": _policy("TOTAL_BASE_CLOCKS"),
    "sw_thermal_slowdown": field("CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN"),
    "hw_thermal_slowdown": field("CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN"),
    "hw_power_brake_slowdown": field("CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN"),
}

PCIE_ERRORS = {
    "l0_to_recovery": "PCIE_L0_TO_RECOVERY_COUNTER",
    "replay_rollover": "PCIE_REPLAY_ROLLOVER_COUNTER",
    "correctable": "PCIE_COUNT_CORRECTABLE_ERRORS",
    "nak_received": "PCIE_COUNT_NAKS_RECEIVED",
    "nak_sent": "PCIE_COUNT_NAKS_SENT",
    "receiver": "PCIE_COUNT_RECEIVER_ERROR",
    "bad_tlp": "PCIE_COUNT_BAD_TLP",
    "bad_dllp": "PCIE_COUNT_BAD_DLLP",
    "non_fatal": "PCIE_COUNT_NON_FATAL_ERROR",
    "fatal": "PCIE_COUNT_FATAL_ERROR",
    "unsupported_request": "PCIE_COUNT_UNSUPPORTED_REQ",
    "lcrc": "PCIE_COUNT_LCRC_ERROR",
    "lane": "PCIE_COUNT_LANE_ERROR",
}


def _links(name: str) -> Mapping[Labels, Ways]:
    return {(str(link),): (field(name, link),) for link in range(NVLINKS)}


WHOLE = 0xFFFFFFFF  # the scope that stands for all links together
FLOWS = {"transmit": "TX", "receive": "RX"}


def nvlink_bytes(*scopes: int) -> Mapping[Labels, Ways]:
    newer = {"transmit": "XMIT", "receive": "RCV"}  # NVLink 5 counts bytes, those before KiB
    return {
        (*(str(scope) for scope in scopes if scope != WHOLE), flow): (
            Scaled(field(f"NVLINK_THROUGHPUT_DATA_{short}", scope), KIBI),
            field(f"NVLINK_COUNT_{newer[flow]}_BYTES", scope),
        )
        for scope in scopes
        for flow, short in FLOWS.items()
    }


def nvlink_link_bytes() -> Mapping[Labels, Ways]:
    ways: dict[Labels, Ways] = {}
    for link in range(NVLINKS):
        ways.update(nvlink_bytes(link))
    return ways


_NVLINK_ERRORS = {
    "crc_flit": ("CRC_FLIT_ERROR_COUNT", "ERROR_DL_CRC"),
    "crc_data": ("CRC_DATA_ERROR_COUNT", None),
    "replay": ("REPLAY_ERROR_COUNT", "ERROR_DL_REPLAY"),
    "recovery": ("RECOVERY_ERROR_COUNT", "ERROR_DL_RECOVERY"),
    "ecc_data": ("ECC_DATA_ERROR_COUNT", None),
}


def nvlink_errors() -> Mapping[Labels, Ways]:
    ways: dict[Labels, Ways] = {}
    for error, (own, scoped) in _NVLINK_ERRORS.items():
        for link in range(NVLINKS):
            old = (field(f"NVLINK_{own}_L{link}"),) if link < OLD_LINKS else ()
            new = (field(f"NVLINK_{scoped}", link),) if scoped else ()
            if old or new:
                ways[str(link), error] = (*new, *old)
    return ways


def nvlink_speeds() -> Mapping[Labels, Ways]:
    def old(link: int) -> Ways:
        return (field(f"NVLINK_SPEED_MBPS_L{link}"),) if link < OLD_LINKS else ()

    return {(str(link),): (field("NVLINK_GET_SPEED", link), *old(link)) for link in range(NVLINKS)}


def nvlink_up() -> Mapping[Labels, Ways]:
    return {
        (str(link),): (field("NVLINK_GET_STATE", link), call("nvmlDeviceGetNvLinkState", link))
        for link in range(NVLINKS)
    }


def nvlink_versions() -> Mapping[Labels, Ways]:
    return {
        (str(link),): (field("NVLINK_GET_VERSION", link), call("nvmlDeviceGetNvLinkVersion", link))
        for link in range(NVLINKS)
    }


def pcie_rate(flow: str) -> Ways:
    """In MiB/s."""
    counter = getattr(pynvml, f"NVML_PCIE_UTIL_{FLOWS[flow]}_BYTES")
    return (
        gpm(f"PCIE_{FLOWS[flow]}_PER_SEC"),
        # In kB/s. It measures for 20 ms, in which it blocks.
        Scaled(call("nvmlDeviceGetPcieThroughput", counter), 1_000 / MEBI),
    )


def engines() -> Mapping[Labels, Ways]:
    counts = {"NVDEC": 8, "NVJPG": 8, "NVOFA": 2}
    return {
        (f"{kind.lower()}{n}",): (gpm(f"{kind}_{n}_UTIL"),)
        for kind, count in counts.items()
        for n in range(count)
    }


THRESHOLDS = {
    "shutdown": pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN,
    "slowdown": pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
    "memory_max": pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX,
    "gpu_max": pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX,
}
MARGINS = {
    "shutdown": "TEMPERATURE_SHUTDOWN_TLIMIT",
    "slowdown": "TEMPERATURE_SLOWDOWN_TLIMIT",
    "memory_max": "TEMPERATURE_MEM_MAX_TLIMIT",
    "gpu_max": "TEMPERATURE_GPU_MAX_TLIMIT",
}
MARGIN = Query(
    "nvmlDeviceGetMarginTemperature",
    (pynvml.c_nvmlMarginTemperature_v1_t,),
    version=pynvml.nvmlMarginTemperature_v1,
)
POWER = "nvmlDeviceGetPowerUsage"


def fans() -> Mapping[Labels, Ways]:
    return {
        (str(fan),): (
            call("nvmlDeviceGetFanSpeed_v2", fan),
            *((call("nvmlDeviceGetFanSpeed"),) if fan == 0 else ()),
        )
        for fan in range(FANS)
    }
