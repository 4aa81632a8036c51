"""nvidia_gpu_exporter's names and units of what is told of each GPU, and of each GPU instance.

Its names without their prefix, `nvidia_smi_`. Memory is rounded as there: that of a GPU
instance isn't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpubpf.compat.row import Row, Told, fact, times, whole_mebibytes
from gpubpf.metric import COUNTER, GAUGE
from gpubpf.model import Device
from gpubpf.nvml.ways import REASON_BITS
from gpubpf.view import View

_INFO = "gpubpf_gpu_info"


def _number(text: str, base: int = 10) -> float | None:
    try:
        return float(text) if base == 10 else int(text, base)
    except ValueError:
        return None


def _pci(place: int) -> Callable[[View, Device], float | None]:
    """Of "00000000:3B:00.0": the domain, the bus or the device."""

    def value(_: View, device: Device) -> float | None:
        parts = (device.info.pci_bus_id or "").partition(".")[0].split(":")
        try:
            return int(parts[place], 16) if len(parts) == 3 else None
        except ValueError:
            return None

    return value


def _reasons(fact: str) -> Told:
    """The bits of all reasons of which the fact is true, where all are known."""

    def value(_: View, device: Device) -> float | None:
        known = {name: device.get(fact, name) for name in REASON_BITS}
        if None in known.values():
            return None
        return float(sum(bit for name, bit in REASON_BITS.items() if known[name]))

    return Told(f"gpubpf_gpu_{fact}", value)


def _info(field: str, base: int = 10, shift: int = 0, mask: int = -1) -> Told:
    """A number that is a label of ours."""

    def value(_: View, device: Device) -> float | None:
        number = _number(getattr(device.info, field), base)
        return number if number is None or base == 10 else int(number) >> shift & mask

    return Told(f"{_INFO}{{{field}}}", value)


# fmt: off
def _clock_reasons() -> Iterable[Row]:
    """Under the names of drivers from 555 on, and under those before: dashboards ask for either."""
    for prefix in ("clocks_event_reasons", "clocks_throttle_reasons"):
        yield Row(f"{prefix}_active", GAUGE, "Bits of the reasons for the present clocks.",
                  _reasons("clock_reason_active"))
        yield Row(f"{prefix}_supported", GAUGE, "Bits of the reasons that there can be.",
                  _reasons("clock_reason_possible"))
        for reason in REASON_BITS:
            if reason != "display_clock_setting":  # it has no such name
                words = reason.replace("_", " ")
                yield Row(f"{prefix}_{reason}", GAUGE, f"1 where the clocks are so for {words}.",
                          fact("clock_reason_active", reason))


def _ecc() -> Iterable[Row]:
    places = {"device_memory": "device_memory", "dram": "device_memory"}  # NVML: the same number
    places |= {p: p for p in ("register_file", "l1_cache", "l2_cache", "texture_memory", "cbu",
                                "sram")}
    for error in ("corrected", "uncorrected"):
        for counter, since in (("volatile", "since the driver was loaded"),
                               ("aggregate", "in the board's life")):
            prefix, what = f"ecc_errors_{error}_{counter}", f"ECC errors, {error}, {since}"
            yield Row(f"{prefix}_total", GAUGE, f"{what}.", fact("ecc_errors", error, counter))
            for theirs, ours in places.items():
                yield Row(f"{prefix}_{theirs}", GAUGE, f"{what}, by place: {theirs}.",
                          fact("ecc_location_errors", error, counter, ours))
    what = "Uncorrected ECC errors in caches and registers"
    for counter in ("volatile", "aggregate"):
        for kind in ("parity", "secded"):
            yield Row(f"ecc_errors_uncorrected_{counter}_sram_{kind}", GAUGE,
                      f"{what}, {counter}, found by {kind}.",
                      fact("ecc_sram_errors", counter, kind))
    prefix = "ecc_errors_uncorrected_aggregate_sram"
    for unit in ("l2", "sm", "mcu", "pcie", "other"):
        yield Row(f"{prefix}_{unit}", GAUGE, f"{what}, aggregate: {unit}.",
                  fact("ecc_sram_uncorrected_errors", unit))
    yield Row(f"{prefix}_threshold_exceeded", GAUGE,
              "1 where there were more of them than there may be, else 0.",
              fact("ecc_sram_threshold_exceeded"))


ROWS = (
    # --- which GPU it is ----------------------------------------------------------------------
    Row("index", GAUGE, "Index of the GPU in NVML.",
        Told(f"{_INFO}{{gpu}}", lambda _, d: d.info.index)),
    Row("count", GAUGE, "GPUs of the node.",
        Told(f"count({_INFO})", lambda view, _: len(view.snapshot.devices or ()))),
    Row("serial", GAUGE, "Serial number of the board, where it is a number.", _info("serial")),
    Row("compute_cap", GAUGE, "Compute capability.", _info("compute_capability")),
    *(
        Row(f"pci_{name}", GAUGE, f"PCI {name} number.",
            Told(f"{_INFO}{{pci_bus_id}}", _pci(place)))
        for place, name in enumerate(("domain", "bus", "device"))
    ),
    *(
        Row(f"inforom_{name}", GAUGE, f"Version of the inforom's part for {what}.",
            _info(f"inforom_{what}_version"))
        for name, what in (("oem", "oem"), ("ecc", "ecc"), ("pwr", "power"))
    ),
    Row("pci_device_id", GAUGE, "PCI ids of device and vendor, as one number.",
        _info("pci_device_id", 16)),
    Row("pci_sub_device_id", GAUGE, "PCI ids of the subsystem, as one number.",
        _info("pci_subsystem_id", 16)),
    Row("pci_base_class", GAUGE, "PCI base class.", _info("pci_class", 16, 8)),
    Row("pci_sub_class", GAUGE, "PCI sub-class.", _info("pci_class", 16, 0, 0xFF)),
    *(
        Row(f"platform_{name}", GAUGE, f"{what}.", _info(ours, base))
        for name, what, ours, base in (
            ("slot_number", "Slot in the chassis, switches counted", "slot", 10),
            ("tray_index", "Place among the compute trays of the chassis", "tray", 10),
            ("host_id", "Number of the node in its tray", "host_id", 10),
            ("module_id", "Number of the GPU in its node", "module_id", 10),
            ("gpu_fabric_guid", "GUID of the GPU in the fabric", "fabric_guid", 16),
        )
    ),
    # --- use ----------------------------------------------------------------------------------
    *(
        Row(f"utilization_{name}_ratio", GAUGE, f"Utilization, as a ratio: {name}.",
            fact("utilization_ratio" if name == "gpu" else f"{name}_utilization_ratio"))
        for name in ("gpu", "memory", "encoder", "decoder", "jpeg", "ofa")
    ),
    Row("encoder_stats_session_count", GAUGE, "Encoder sessions.", fact("encoder_sessions")),
    Row("encoder_stats_average_fps", GAUGE, "Frames per second of the encoder sessions.",
        fact("encoder_frames_per_second")),
    Row("encoder_stats_average_latency", GAUGE,
        "Latency of the encoder sessions, in microseconds.",
        fact("encoder_latency_seconds", scale=times(1_000_000))),
    Row("pstate", GAUGE, "Performance state: 0 is the highest.", fact("performance_state")),
    # --- clocks -------------------------------------------------------------------------------
    *(
        Row(f"clocks_{when}_{clock}_clock_hz", GAUGE, f"{what}: {clock}.", fact(ours, clock))
        for when, what, ours, names in (
            ("current", "Clock at present", "clock_hertz", ("graphics", "sm", "memory", "video")),
            ("max", "Highest clock", "clock_max_hertz", ("graphics", "sm", "memory")),
            ("applications", "Clock for applications", "clock_application_hertz",
             ("graphics", "memory")),
            ("default_applications", "Default clock for applications",
             "clock_application_default_hertz", ("graphics", "memory")),
        )
        for clock in names
    ),
    *_clock_reasons(),
    *(
        Row(f"clocks_event_reasons_counters_{reason}_seconds", GAUGE,
            f"Time in which the clocks were held down: {reason.replace('_', ' ')}.",
            fact("throttled_seconds", ours))
        for reason, ours in (
            ("sw_power_cap", "power"),  # NVML has one number for both
            ("sync_boost", "sync_boost"),
            ("sw_thermal_slowdown", "sw_thermal_slowdown"),
            ("hw_thermal_slowdown", "hw_thermal_slowdown"),
            ("hw_power_brake_slowdown", "hw_power_brake_slowdown"),
        )
    ),
    # --- memory -------------------------------------------------------------------------------
    *(
        Row(f"memory_{name}_bytes", GAUGE, f"Device memory in bytes, whole MiB: {name}.",
            fact(f"memory_{ours}_bytes", scale=whole_mebibytes))
        for name, ours in (("total", "size"), ("reserved", "reserved"), ("used", "used"),
                           ("free", "free"))
    ),
    *(
        Row(f"protected_memory_{name}_bytes", GAUGE,
            f"Memory of confidential computing in bytes, whole MiB: {name}.",
            fact(f"protected_memory_{ours}_bytes", scale=whole_mebibytes))
        for name, ours in (("total", "size"), ("used", "used"), ("free", "free"))
    ),
    Row("dram_encryption_mode_current", GAUGE, "1 where device memory is encrypted, else 0.",
        fact("dram_encryption_enabled")),
    Row("dram_encryption_mode_pending", GAUGE, "1 where it is so after the next reset, else 0.",
        fact("dram_encryption_enabled_after_reset")),
    Row("ecc_mode_current", GAUGE, "1 where ECC is on, else 0.", fact("ecc_enabled")),
    Row("ecc_mode_pending", GAUGE, "1 where ECC is on after the next reboot, else 0.",
        fact("ecc_enabled_after_reboot")),
    *_ecc(),
    Row("retired_pages_single_bit_ecc_count", GAUGE, "Pages retired for corrected errors.",
        fact("retired_pages", "single_bit")),
    Row("retired_pages_double_bit_count", GAUGE, "Pages retired for uncorrected errors.",
        fact("retired_pages", "double_bit")),
    Row("retired_pages_pending", GAUGE, "1 where a page waits for a reset to be retired, else 0.",
        fact("retired_pages_pending")),
    *(
        Row(f"remapped_rows_{error}", GAUGE, f"Rows remapped after {error} errors.",
            fact("remapped_rows", error))
        for error in ("correctable", "uncorrectable")
    ),
    Row("remapped_rows_pending", GAUGE, "1 where a row remapping waits for a reset, else 0.",
        fact("row_remap_pending")),
    Row("remapped_rows_failure", GAUGE, "1 where a row could not be remapped, else 0.",
        fact("row_remap_failure")),
    *(
        Row(f"remapped_rows_histogram_{spare}", GAUGE, f"Memory banks with spare rows: {spare}.",
            fact("row_remap_banks", spare))
        for spare in ("max", "high", "partial", "low", "none")
    ),
    # --- links --------------------------------------------------------------------------------
    *(
        Row(f"pcie_link_{name}", GAUGE, f"{what}.", fact(ours))
        for name, what, ours in (
            ("gen_current", "PCIe generation at present", "pcie_link_generation"),
            ("gen_gpucurrent", "PCIe generation of the GPU at present", "pcie_link_generation"),
            ("gen_max", "Highest PCIe generation here", "pcie_link_generation_max"),
            ("gen_gpumax", "Highest PCIe generation of the GPU", "pcie_device_generation_max"),
            ("width_current", "PCIe lanes at present", "pcie_link_width"),
            ("width_max", "Most PCIe lanes", "pcie_link_width_max"),
        )
    ),
    *(
        Row(f"pcie_throughput_{short}_bytes_per_second", GAUGE, f"Bytes per second: {direction}.",
            fact("pcie_throughput_bytes_per_second", direction))
        for short, direction in (("tx", "transmit"), ("rx", "receive"))
    ),
    # --- heat and power -----------------------------------------------------------------------
    Row("temperature_gpu", GAUGE, "Temperature of the GPU, in degrees Celsius.",
        fact("temperature_celsius")),
    Row("temperature_gpu_tlimit", GAUGE, "How much hotter the GPU may get, in degrees Celsius.",
        fact("temperature_margin_celsius")),
    Row("temperature_memory", GAUGE, "Temperature of the device memory, in degrees Celsius.",
        fact("memory_temperature_celsius")),
    Row("fan_speed_ratio", GAUGE, "Intended speed of the first fan.",
        fact("fan_speed_ratio", "0")),
    *(
        Row(name, GAUGE, f"{what}.", fact(ours))
        for name, what, ours in (
            ("power_draw_watts", "Power drawn", "power_watts"),
            ("power_draw_average_watts", "Power drawn, on average", "power_average_watts"),
            ("power_draw_instant_watts", "Power drawn at one moment", "power_instant_watts"),
            ("power_limit_watts", "Power limit that was set", "power_limit_set_watts"),
            ("enforced_power_limit_watts", "Power limit in force", "power_limit_watts"),
            ("power_default_limit_watts", "Default power limit", "power_limit_default_watts"),
            ("power_min_limit_watts", "Lowest power limit possible", "power_limit_min_watts"),
            ("power_max_limit_watts", "Highest power limit possible", "power_limit_max_watts"),
        )
    ),
    Row("energy_joules_total", COUNTER, "Energy used since the driver was loaded.",
        fact("energy_joules")),
    # --- what an operator sets ----------------------------------------------------------------
    Row("compute_mode", GAUGE,
        "0 default, 1 exclusive thread, 2 prohibited, 3 exclusive process.", fact("compute_mode")),
    Row("persistence_mode", GAUGE, "1 where persistence mode is on, else 0.",
        fact("persistence_enabled")),
    Row("mig_mode_current", GAUGE, "1 where MIG mode is on, else 0.", fact("mig_enabled")),
    Row("mig_mode_pending", GAUGE, "1 where MIG mode is on after the next reset, else 0.",
        fact("mig_enabled_after_reset")),
    Row("gpu_recovery_action", GAUGE,
        "0 none, 1 reset, 2 reboot, 3 drain peer-to-peer, 4 drain and reset.",
        fact("recovery_action")),
    Row("c2c_mode", GAUGE, "1 where the chip-to-chip link to the CPU is on, else 0.",
        fact("c2c_enabled")),
    Row("fabric_state", GAUGE, "1 not started, 2 in progress, 3 completed.",
        fact("fabric_state")),
    Row("fabric_clique_id", GAUGE, "Clique of the NVLink fabric that the GPU belongs to.",
        fact("fabric_clique")),
    *(
        Row(name, GAUGE, f"1 where {what}, else 0.", fact(ours))
        for name, what, ours in (
            ("accounting_mode", "accounting of processes is on", "accounting_enabled"),
            ("gsp_mode_current", "the GPU runs GSP firmware", "gsp_firmware_enabled"),
            ("gsp_mode_default", "the GPU runs GSP firmware by default",
             "gsp_firmware_enabled_by_default"),
            ("display_attached", "a display is attached to the GPU", "display_attached"),
        )
    ),
    Row("accounting_buffer_size", GAUGE, "Processes of which accounting keeps figures.",
        fact("accounting_buffer_processes")),
    Row("edpp_multiplier_ratio", GAUGE, "Factor of the limit on the peak electrical power.",
        fact("edpp_multiplier_ratio")),
    Row("display_active", GAUGE, "1 where a display is active on the GPU, else 0.",
        fact("display_active")),
)
"""Of each GPU. Names without nvidia_smi_."""

MIG_ROWS = (
    *(
        Row(f"mig_memory_{name}_bytes", GAUGE, f"Memory of a GPU instance: {name}.",
            fact(f"memory_{ours}_bytes"))
        for name, ours in (("total", "size"), ("used", "used"), ("free", "free"),
                           ("reserved", "reserved"))
    ),
    *(
        Row(f"mig_{name}_ratio", GAUGE, f"Of a GPU instance: {what}.", fact(ours))
        for name, what, ours in (
            ("graphics_activity", "graphics or compute engine busy",
             "graphics_engine_utilization_ratio"),
            ("sm_activity", "multiprocessors with a warp", "sm_utilization_ratio"),
            ("sm_occupancy", "warps of those that fit", "sm_occupancy_ratio"),
            ("tensor_activity", "tensor pipes active", "tensor_utilization_ratio"),
        )
    ),
    *(
        Row(f"mig_pcie_throughput_{short}_bytes_per_second", GAUGE,
            f"Bytes per second of a GPU instance over PCIe: {direction}.",
            fact("pcie_throughput_bytes_per_second", direction))
        for short, direction in (("tx", "transmit"), ("rx", "receive"))
    ),
)
"""Of each GPU instance, with its id. Names without nvidia_smi_."""
# fmt: on
