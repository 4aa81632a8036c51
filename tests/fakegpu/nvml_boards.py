"""The boards that a simulated device can be: what each supports, and what it says by default.

A figure that a board doesn't name isn't supported by it. The defaults are prime where nothing else
fixes them, so that no two are the same and a wrong unit or a swapped figure shows. What the boards
support follows NVIDIA's documentation of these generations; the values are made up.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

MIB = 1 << 20
GIB = 1 << 30


class Told(enum.Enum):
    """What a figure can be instead of a value."""

    SIMULATED = 0  # over what the simulated CUDA processes do
    UNSUPPORTED = 1


SIMULATED, UNSUPPORTED = Told.SIMULATED, Told.UNSUPPORTED
Figure = int | Told
# a MIG device: profile, GPU instance, compute instance, bytes, and its uuid if that matters
Instance = tuple[str, int, int, int] | tuple[str, int, int, int, bytes]

GPM_UTILIZATIONS = (*range(1, 14), *range(30, 38), *range(40, 48), 50)
GPM_PCIE = (20, 21)
GPM_OF_INSTANCES = (*range(1, 14), *GPM_PCIE)
GPM_NVLINK_TOTALS = (60, 61)
GPM_NVLINK = 62  # received and sent of link 0, then of link 1 …


@dataclass(frozen=True)
class Board:
    """One kind of device."""

    name: str
    memory_bytes: int = GIB
    compute: tuple[int, int] = (0, 0)
    multiprocessors: int = 0
    clock_mhz: int = 0
    memory_clock_mhz: int = 0
    memory_bus_bits: int = 0
    figures: dict[str, Figure] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    links: tuple[dict[str, int], ...] = ()
    metrics: dict[int, float] = field(default_factory=dict)
    mig: tuple[Instance, ...] | None = None
    slice_multiprocessors: int = 0
    engines: tuple[int, int, int] = (0, 0, 0)  # decoders, JPEG engines, OFAs of a whole board


@functools.cache
def prime(least: int) -> int:
    """The first prime number from `least` on."""
    number = least | 1
    while any(number % divisor == 0 for divisor in range(3, int(number**0.5) + 1, 2)):
        number += 2
    return number


def primes(least: int) -> Iterator[int]:
    """Prime numbers from `least` on."""
    while True:
        yield (number := prime(least))
        least = number + 1


def numbered(least: int, names: str, step: int = 0) -> dict[str, Figure]:
    """A prime for each name, at least `step` apart."""
    values: dict[str, Figure] = {}
    for name in names.split():
        number = prime(least)
        values[name] = number
        least = number + 1 + step
    return values


SECOND_NS = 1_000_000_000
SRAM = (
    "sram_aggregate_parity sram_aggregate_secded sram_aggregate_corrected sram_volatile_parity"
    " sram_volatile_secded sram_volatile_corrected sram_l2 sram_sm sram_pcie sram_mcu sram_other"
)
CLOCK_KINDS = ("graphics", "sm", "memory", "video")
PCIE_ERRORS = (
    "pcie_correctable_errors pcie_naks_received pcie_receiver_errors pcie_bad_tlps pcie_naks_sent"
    " pcie_bad_dllps pcie_non_fatal_errors pcie_fatal_errors pcie_unsupported_requests"
    " pcie_lcrc_errors pcie_lane_errors"
)
VIOLATIONS = (
    "violation_power_ns violation_thermal_ns violation_sync_boost_ns violation_board_limit_ns"
    " violation_low_utilization_ns violation_reliability_ns violation_app_clocks_ns"
    " violation_base_clocks_ns"
)
LINK_COUNTERS = (
    "crc_flit crc_data replays recoveries ecc_data data_tx_kib data_rx_kib raw_tx_kib raw_rx_kib"
    " dl_replays dl_recoveries dl_crc"
)
LINK_5_COUNTERS = (
    "data_tx_kib data_rx_kib raw_tx_kib raw_rx_kib tx_packets tx_bytes rx_packets rx_bytes"
)


def clocks(prefix: str, graphics: int, memory: int, *kinds: str) -> dict[str, Figure]:
    """Clocks of one sort in MHz: a prime near each, so that none is another."""
    near = {"graphics": graphics, "sm": graphics - 30, "memory": memory, "video": graphics - 150}
    return {f"{prefix}{kind}_clock_mhz": prime(near[kind]) for kind in kinds or CLOCK_KINDS}


def ecc(least: int, *places: str) -> dict[str, Figure]:
    """Memory error counts: the totals, and by place."""
    names = [
        f"ecc_{kind}{place}"
        for place in ("", *(f"_{place}" for place in places))
        for kind in ("corrected", "uncorrected", "corrected_aggregate", "uncorrected_aggregate")
    ]
    modes: dict[str, Figure] = {"ecc_mode": 1, "ecc_pending": 0, "ecc_default": 1}
    return modes | numbered(least, " ".join(names))


def pcie(generation: int, board: int) -> dict[str, Figure]:
    """A link that runs below what it could, and its counters."""
    return {
        "pcie_generation": generation - 1,
        "pcie_width": 8,
        "pcie_generation_max": generation,
        "pcie_width_max": 16,
        "pcie_generation_gpu_max": generation + 1,
        "pcie_speed_mbps": {3: 5000, 4: 8000, 5: 16000}[generation],
        "pcie_max_speed": generation,
        **numbered(board + 100, "pcie_replays pcie_replay_rollovers pcie_l0_to_recovery"),
        **numbered(board + 300, PCIE_ERRORS),
        **numbered(1_000_000 + board, "pcie_tx_kb_s pcie_rx_kb_s", 100_000),
        **numbered(7_000_000_000 + board, "pcie_tx_bytes pcie_rx_bytes", 1_000_000_000),
    }


def power(watts: int, board: int) -> dict[str, Figure]:
    """Power in mW, energy in mJ."""
    return {
        "power_mw": prime(watts * 610),
        "power_average_mw": prime(watts * 620),
        "power_instant_mw": prime(watts * 630),
        "power_limit_mw": prime(watts * 950),
        "enforced_power_limit_mw": prime(watts * 940),
        "power_limit_requested_mw": prime(watts * 960),
        "power_limit_default_mw": prime(watts * 1000),
        "power_limit_min_mw": prime(watts * 300),
        "power_limit_max_mw": prime(watts * 1001),
        "energy_mj": prime(123_456_000_000 + board),
    }


def common(board: int) -> dict[str, Figure]:
    """What every board says. `board`: a number that sets its counters apart."""
    return {
        "utilization": 37,
        "memory_utilization": 23,
        "temperature": 61,
        "decoder": 19,
        "performance_state": 2,
        "throttle_reasons": 0x44,
        "supported_throttle_reasons": 0x1EF,
        "temperature_shutdown": 97,
        "temperature_slowdown": 89,
        "temperature_gpu_max": 83,
        "compute_mode": 0,
        "persistence": 1,
        "display_active": 0,
        "display_mode": 1,
        "accounting_mode": 0,
        "accounting_buffer": 4001,
        "pci_device_id": prime(board) << 16 | 0x10DE,
        "pci_subsystem_id": prime(board + 100) << 16 | 0x10DE,
        "board_id": prime(board + 1700),
        "multi_gpu_board": 0,
        "irq": prime(board + 150),
        "gsp_enabled": 1,
        "gsp_default": 1,
        "virtualization": 0,
        "power_source": 0,
        "bar1_used_bytes": 11 * MIB,
        "reserved_bytes": 557 * MIB,
        "license_supported": 0,
        "license_features": 0,
        "fbc_sessions": 0,
        "fbc_fps": 0,
        "fbc_latency_us": 0,
        "event_types": 0x1F,
        **numbered(board + 9 * SECOND_NS, VIOLATIONS, SECOND_NS),
        **numbered(
            board + 31 * SECOND_NS,
            "sw_thermal_slowdown_ns hw_thermal_slowdown_ns hw_power_brake_ns",
            SECOND_NS,
        ),
    }


SESSIONS: dict[str, Figure] = {
    "encoder": 13,
    "encoder_sessions": 3,
    "encoder_fps": 59,
    "encoder_latency_us": 1549,
}
LICENSED: dict[str, Figure] = {
    "license_supported": 1,
    "license_features": 1,
    "license_code": 4,
    "license_state": 1,
    "license_enabled": 0,
    "license_expiry_status": 0,
    "license_expiry_year": 0,
}
ROWS: dict[str, Figure] = {
    "remapped_correctable": 5,
    "remapped_uncorrectable": 7,
    "remapped_pending": 1,
    "remapped_failure": 0,
    "remap_banks_max": 631,
    "remap_banks_high": 17,
    "remap_banks_partial": 11,
    "remap_banks_low": 3,
    "remap_banks_none": 2,
}


def texts(board: str) -> dict[str, str]:
    """Versions and numbers that no real board has."""
    return {
        "vbios": f"00.00.{board}.00.01",
        "serial": f"0000{board}00000001",
        "board_part_number": f"SIM-{board}-0001",
        "inforom_image": f"SIM{board}.0001",
        "inforom_oem": "2.0",
        "inforom_ecc": "6.16",
        "inforom_power": "1.1",
        "gsp_firmware": "535.0.0",
    }


def nvlinks(count: int, version: int, mbps: int, board: int) -> dict[str, Figure]:
    """The figures of a board with NVLinks, all of them to switches."""
    return {
        "nvlinks": count,
        "nvlink_version": version,
        "nvlink_speed_mbps": prime(mbps),
        "nvlink_switch_links": count,
    }


def links(count: int, least: int, counters: str = LINK_COUNTERS) -> tuple[dict[str, int], ...]:
    """Each link's own counters, all different."""
    number = primes(least)
    return tuple(
        {
            "active": 1,
            "remote_type": 2,  # a switch
            "remote_bus": 0xC0 + link % 4,
            "remote_link": link + 40,
            **dict(zip(counters.split(), number, strict=False)),
        }
        for link in range(count)
    )


def gpm(count: int) -> dict[int, float]:
    """Metrics: percent, and MiB/s for PCIe and NVLink."""
    odd = primes(11)
    percent = {metric: next(odd) % 97 + metric / 128 for metric in GPM_UTILIZATIONS}
    rates = itertools.chain(GPM_PCIE, range(GPM_NVLINK, GPM_NVLINK + 2 * count))
    metrics = percent | {metric: prime(2000 + 20 * metric) + 0.25 for metric in rates}
    for place, total in enumerate(GPM_NVLINK_TOTALS):
        metrics[total] = sum(metrics[GPM_NVLINK + 2 * link + place] for link in range(count))
    return metrics


TURING = Board(
    name="Simulated T4",
    memory_bytes=15 * GIB,
    compute=(7, 5),
    multiprocessors=40,
    clock_mhz=1590,
    memory_clock_mhz=5001,
    memory_bus_bits=256,
    figures=common(10_000)
    | pcie(3, 10_000)
    | power(70, 10_000)
    | ecc(10_500, "l1", "l2", "memory", "registers", "sram")
    | SESSIONS
    | LICENSED
    | clocks("", 1300, 5001)
    | clocks("max_", 1590, 5101)
    | clocks("app_", 585, 5201, "graphics", "sm", "memory")
    | clocks("default_", 685, 5301, "graphics", "sm", "memory")
    | clocks("boost_", 1690, 5401, "graphics", "sm", "memory")
    | {
        "retired_sbe": 3,
        "retired_dbe": 2,
        "retired_pending": 1,
        "retired_pending_sbe": 0,
        "retired_pending_dbe": 1,
        "brand": 14,
        "architecture": 6,
        "cores": 2560,
        "memory_bus_bits": 256,
        "bar1_total_bytes": 256 * MIB,
        "power_average_mw": UNSUPPORTED,
        "power_instant_mw": UNSUPPORTED,
    },
    texts=texts("7500")
    | {"license_info": "simulated licence", "license_product": "simulated product"},
)

AMPERE = Board(
    name="Simulated A100 80GB",
    memory_bytes=80 * GIB,
    compute=(8, 0),
    multiprocessors=108,
    clock_mhz=1410,
    memory_clock_mhz=1593,
    memory_bus_bits=5120,
    figures=common(20_000)
    | pcie(4, 20_000)
    | power(400, 20_000)
    | ecc(20_500, "l2", "memory", "sram")
    | ROWS
    | nvlinks(12, 5, 25_781, 20_000)
    | clocks("", 1330, 1593)
    | clocks("max_", 1410, 1693)
    | clocks("app_", 1200, 1793, "graphics", "sm", "memory")
    | clocks("default_", 1100, 1893, "graphics", "sm", "memory")
    | clocks("boost_", 1510, 1993, "graphics", "sm", "memory")
    | {
        "jpeg": 29,
        "ofa": 31,
        "memory_temperature": 67,
        "temperature_memory_max": 79,
        "brand": 14,
        "architecture": 7,
        "cores": 6912,
        "memory_bus_bits": 5120,
        "bar1_total_bytes": 128 * GIB,
        "mig_capable": 1,
        "mig_pending": SIMULATED,
        "max_mig_devices": 7,
    },
    texts=texts("8000"),
    links=links(12, 50_000),
    slice_multiprocessors=14,
    engines=(5, 1, 1),
)

HOPPER = Board(
    name="Simulated H100 80GB",
    memory_bytes=80 * GIB,
    compute=(9, 0),
    multiprocessors=132,
    clock_mhz=1980,
    memory_clock_mhz=2619,
    memory_bus_bits=5120,
    figures=common(30_000)
    | pcie(5, 30_000)
    | power(700, 30_000)
    | ecc(30_500, "memory", "sram")
    | numbered(31_500, SRAM)
    | ROWS
    | nvlinks(18, 6, 26_562, 30_000)
    | clocks("", 1755, 2619)
    | clocks("max_", 1980, 2719)
    | clocks("app_", 1655, 2819, "graphics", "sm", "memory")
    | clocks("default_", 1555, 2919, "graphics", "sm", "memory")
    | clocks("boost_", 2080, 3019, "graphics", "sm", "memory")
    | {
        "jpeg": 29,
        "ofa": 31,
        "memory_temperature": 67,
        "temperature_memory_max": 79,
        "margin_temperature": 43,
        "sram_threshold_exceeded": 0,
        "fabric_state": 3,
        "fabric_status": 0,
        "fabric_clique": 271,
        "protected_total_bytes": 79 * GIB,
        "protected_used_bytes": 7 * GIB,
        "recovery_action": 0,
        "tlimit_shutdown": -11,
        "tlimit_slowdown": -5,
        "tlimit_memory_max": -3,
        "tlimit_gpu_max": -2,
        "brand": 14,
        "architecture": 9,
        "cores": 16896,
        "memory_bus_bits": 5120,
        "bar1_total_bytes": 128 * GIB,
        "mig_capable": 1,
        "mig_pending": SIMULATED,
        "max_mig_devices": 7,
        "gpm_supported": 1,
        "gpm_interval_ms": 100,
    },
    texts=texts("9000"),
    links=links(18, 70_000),
    metrics=gpm(18),
    slice_multiprocessors=16,
    engines=(7, 7, 1),
)

BLACKWELL = Board(  # drivers before 570 don't know its NVLink counters
    **vars(HOPPER)
    | {
        "name": "Simulated B200",
        "compute": (10, 0),
        "figures": HOPPER.figures
        | nvlinks(18, 7, 53_125, 60_000)
        | {"architecture": 10, "brand": 14, "cores": 18944, "board_id": 61_001}
        | {"recovery_action": 1, "edpp_multiplier": 97, "fabric_clique": 277}
        | {"fabric_health": 0x4A_5_A6, "c2c": 1, "dram_encryption": 0, "dram_encryption_pending": 1}
        | {"pci_class": 0x0302, "platform_guid": 0x3B5F_0001_0002_0003, "platform_slot": 23}
        | {"platform_tray": 13, "platform_host": 2, "platform_module": 3},
        "texts": texts("1000") | {"chassis_serial": "SIM1000000000017"},
        "links": links(18, 90_000, LINK_5_COUNTERS),
    }
)

CONSUMER = Board(
    name="Simulated RTX 4090",
    memory_bytes=24 * GIB,
    compute=(8, 9),
    multiprocessors=128,
    clock_mhz=2520,
    memory_clock_mhz=10501,
    memory_bus_bits=384,
    figures=common(40_000)
    | pcie(4, 40_000)
    | power(450, 40_000)
    | SESSIONS
    | clocks("", 2400, 10501)
    | clocks("max_", 3105, 10601)
    | dict.fromkeys(VIOLATIONS.split(), UNSUPPORTED)
    | {
        "jpeg": 29,
        "ofa": 31,
        "fans": 2,
        "fan": 41,
        "fan_1": 47,
        "fan_rpm": 1823,
        "fan_1_rpm": 1931,
        "fan_min": 30,
        "fan_max": 100,
        "temperature_acoustic_min": 53,
        "temperature_acoustic_current": 71,
        "temperature_acoustic_max": 73,
        "brand": 5,
        "architecture": 8,
        "cores": 16384,
        "memory_bus_bits": 384,
        "bar1_total_bytes": 32 * GIB,
        "event_types": 0x1C,
    },
    texts={name: text for name, text in texts("8900").items() if name != "serial"},
)

MIG_ROWS: tuple[Instance, ...] = (
    ("3g.40gb", 2, 0, 40_192 * MIB),
    ("1g.10gb", 7, 0, 9_728 * MIB),
    ("1g.10gb", 9, 0, 9_728 * MIB),
)


def _in_mig_mode(board: Board) -> Board:
    return Board(**vars(board) | {"mig": MIG_ROWS})


# "plain": what is simulated, a few constants, and nothing else; no row sets anything of it
BOARDS = {
    "plain": Board(name="Simulated GPU"),
    "turing": TURING,
    "ampere": AMPERE,
    "ampere_mig": _in_mig_mode(AMPERE),
    "hopper": HOPPER,
    "hopper_mig": _in_mig_mode(HOPPER),
    "blackwell": BLACKWELL,
    "consumer": CONSUMER,
}
