"""dcgm-exporter's names, labels and units (its default-counters.csv, active rows and commented).

Where a board is divided, its GPU instances stand in the place of the board, for what is measured
of them, as with dcgm-exporter's `-d f`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpubpf.compat.row import BARE, MEBIBYTES, Figure, Row, fact, instances, per, times, total
from gpubpf.metric import GAUGE, Metric
from gpubpf.model import Device, Labels, Plane
from gpubpf.view import Samples, View

LABELS = (
    "gpu",
    "UUID",
    "pci_bus_id",
    "device",
    "modelName",
    "GPU_I_PROFILE",
    "GPU_I_ID",
    "Hostname",
    "DCGM_FI_DRIVER_VERSION",
)

MILLI, NANO, MEGA, PERCENT = times(1_000), times(1_000_000_000), per(1_000_000), times(100)
KIBI_TIMES_KILO = per(1_024_000)  # DCGM divides KiB/s by 1000 and says MB/s

# fmt: off
ROWS = (
    # --- clocks, heat and power ---------------------------------------------------------------
    Row("DCGM_FI_DEV_SM_CLOCK", GAUGE, "Clock of the multiprocessors, in MHz.",
        fact("clock_hertz", "sm", scale=MEGA)),
    Row("DCGM_FI_DEV_MEM_CLOCK", GAUGE, "Clock of the device memory, in MHz.",
        fact("clock_hertz", "memory", scale=MEGA)),
    Row("DCGM_FI_DEV_GPU_TEMP", GAUGE, "Temperature of the GPU, in degrees Celsius.",
        fact("temperature_celsius")),
    Row("DCGM_FI_DEV_MEMORY_TEMP", GAUGE, "Temperature of the device memory, in degrees Celsius.",
        fact("memory_temperature_celsius")),
    Row("DCGM_FI_DEV_POWER_USAGE", GAUGE, "Power drawn by the board, in watts.",
        fact("power_watts")),
    Row("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", BARE,
        "Energy used since the driver was loaded, in millijoules.",
        fact("energy_joules", scale=MILLI)),
    # --- use ----------------------------------------------------------------------------------
    Row("DCGM_FI_DEV_GPU_UTIL", GAUGE, "Time in which a kernel ran, in percent.",
        fact("utilization_ratio", scale=PERCENT)),
    Row("DCGM_FI_DEV_MEM_COPY_UTIL", GAUGE,
        "Time in which device memory was read or written, in percent.",
        fact("memory_utilization_ratio", scale=PERCENT)),
    Row("DCGM_FI_DEV_ENC_UTIL", GAUGE, "Utilization of the video encoder, in percent.",
        fact("encoder_utilization_ratio", scale=PERCENT)),
    Row("DCGM_FI_DEV_DEC_UTIL", GAUGE, "Utilization of the video decoder, in percent.",
        fact("decoder_utilization_ratio", scale=PERCENT)),
    Row("DCGM_FI_DEV_VGPU_LICENSE_STATUS", GAUGE, "1 where a vGPU licence is held, else 0.",
        fact("vgpu_licensed")),
    # --- profiling: GPM, Hopper and later -----------------------------------------------------
    Row("DCGM_FI_PROF_GR_ENGINE_ACTIVE", GAUGE,
        "Share of time in which the graphics or compute engine was busy.",
        fact("graphics_engine_utilization_ratio")),
    Row("DCGM_FI_PROF_SM_ACTIVE", GAUGE,
        "Share of time in which a multiprocessor had a warp, over all of them.",
        fact("sm_utilization_ratio")),
    Row("DCGM_FI_PROF_SM_OCCUPANCY", GAUGE,
        "Warps on the multiprocessors as a share of those that fit.",
        fact("sm_occupancy_ratio")),
    Row("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", GAUGE,
        "Share of cycles in which a tensor pipe was active.",
        fact("tensor_utilization_ratio")),
    Row("DCGM_FI_PROF_DRAM_ACTIVE", GAUGE,
        "Bandwidth of the device memory in use, as a share of the possible.",
        fact("dram_utilization_ratio")),
    Row("DCGM_FI_PROF_PIPE_FP64_ACTIVE", GAUGE,
        "Share of cycles in which the 64-bit floating point pipe was active.",
        fact("pipe_utilization_ratio", "fp64")),
    Row("DCGM_FI_PROF_PIPE_FP32_ACTIVE", GAUGE,
        "Share of cycles in which the 32-bit floating point pipe was active.",
        fact("pipe_utilization_ratio", "fp32")),
    Row("DCGM_FI_PROF_PIPE_FP16_ACTIVE", GAUGE,
        "Share of cycles in which the 16-bit floating point pipe was active.",
        fact("pipe_utilization_ratio", "fp16")),
    Row("DCGM_FI_PROF_PCIE_TX_BYTES", GAUGE, "Bytes per second sent over PCIe.",
        fact("pcie_throughput_bytes_per_second", "transmit")),
    Row("DCGM_FI_PROF_PCIE_RX_BYTES", GAUGE, "Bytes per second received over PCIe.",
        fact("pcie_throughput_bytes_per_second", "receive")),
    # --- links --------------------------------------------------------------------------------
    Row("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", BARE, "PCIe packets that were sent again.",
        fact("pcie_replays")),
    Row("DCGM_FI_DEV_PCIE_TX_THROUGHPUT", BARE, "Sent over PCIe: a rate, in kB per second.",
        fact("pcie_throughput_bytes_per_second", "transmit", scale=per(1_000))),
    Row("DCGM_FI_DEV_PCIE_RX_THROUGHPUT", BARE, "Received over PCIe: a rate, in kB per second.",
        fact("pcie_throughput_bytes_per_second", "receive", scale=per(1_000))),
    Row("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", BARE,
        "Sent and received over all NVLinks: a rate, in units of 1,024,000 bytes per second.",
        total("nvlink_throughput_bytes_per_second", None, scale=KIBI_TIMES_KILO, least=2)),
    *(
        Row(f"DCGM_FI_DEV_NVLINK_{name}_ERROR_COUNT_TOTAL", BARE, f"{what}, over all NVLinks.",
            total("nvlink_link_errors", None, error))
        for name, error, what in (
            ("CRC_FLIT", "crc_flit", "Checksum errors of flits"),
            ("CRC_DATA", "crc_data", "Checksum errors of data"),
            ("REPLAY", "replay", "Transmissions that were repeated"),
            ("RECOVERY", "recovery", "Recoveries from an error"),
        )
    ),
    # --- memory -------------------------------------------------------------------------------
    Row("DCGM_FI_DEV_FB_FREE", GAUGE, "Device memory free, in MiB.",
        fact("memory_free_bytes", scale=MEBIBYTES)),
    Row("DCGM_FI_DEV_FB_USED", GAUGE, "Device memory in use, in MiB.",
        fact("memory_used_bytes", scale=MEBIBYTES)),
    Row("DCGM_FI_DEV_FB_RESERVED", GAUGE, "Device memory that the driver keeps, in MiB.",
        fact("memory_reserved_bytes", scale=MEBIBYTES)),
    *(
        Row(f"DCGM_FI_DEV_ECC_{bit}_{when}_TOTAL", BARE, f"{what} ECC errors {since}.",
            fact("ecc_errors", what.lower(), counter))
        for bit, what in (("SBE", "Corrected"), ("DBE", "Uncorrected"))
        for when, counter, since in (
            ("VOL", "volatile", "since the driver was loaded"),
            ("AGG", "aggregate", "in the board's life"),
        )
    ),
    Row("DCGM_FI_DEV_RETIRED_SBE", BARE, "Pages retired for corrected errors.",
        fact("retired_pages", "single_bit")),
    Row("DCGM_FI_DEV_RETIRED_DBE", BARE, "Pages retired for uncorrected errors.",
        fact("retired_pages", "double_bit")),
    Row("DCGM_FI_DEV_RETIRED_PENDING", BARE,
        "1 where a page waits for a reset to be retired, else 0.",
        fact("retired_pages_pending")),
    Row("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", BARE,
        "Rows of memory remapped after uncorrectable errors.",
        fact("remapped_rows", "uncorrectable")),
    Row("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", BARE,
        "Rows of memory remapped after correctable errors.",
        fact("remapped_rows", "correctable")),
    Row("DCGM_FI_DEV_ROW_REMAP_FAILURE", GAUGE, "1 where a row could not be remapped, else 0.",
        fact("row_remap_failure")),
    # --- clocks held down ---------------------------------------------------------------------
    *(
        Row(f"DCGM_FI_DEV_{name}_VIOLATION", BARE,
            f"Time in which {what} held the clocks down, in nanoseconds.",
            fact("throttled_seconds", reason, scale=NANO))
        for name, reason, what in (
            ("POWER", "power", "the power limit"),
            ("THERMAL", "thermal", "heat"),
            ("SYNC_BOOST", "sync_boost", "sync boost"),
            ("BOARD_LIMIT", "board_limit", "the board's limits"),
            ("LOW_UTIL", "low_utilization", "low utilization"),
            ("RELIABILITY", "reliability", "reliability"),
        )
    ),
)
# fmt: on


def labels(view: View, device: Device, profile: str = "", instance: str = "") -> Labels:
    """The values of LABELS; the last two say the GPU instance, if it is one."""
    info = device.info
    return (
        str(info.index),
        info.uuid,
        info.pci_bus_id or "",
        "" if info.minor is None else f"nvidia{info.minor}",
        info.name,
        profile,
        instance,
        view.hostname,
        info.driver_version,
    )


# GPM tells it of GPU instances, too; to DCGM it is the board's.
_OF_THE_BOARD = ("pcie_throughput_bytes_per_second",)


def _reader(row: Row) -> Callable[[View], Samples]:
    figure = row.source
    assert isinstance(figure, Figure)
    of_the_board = figure.fact in _OF_THE_BOARD

    def read(view: View) -> Samples:
        for device in view.snapshot.devices or ():
            divided = False
            for number, profile, mig in () if of_the_board else instances(device):
                value = figure.of(mig.figures)
                if value is not None:
                    divided = True
                    yield labels(view, device, profile, str(number)), value
            value = None if divided else figure.of(device.figures)
            if value is not None:
                yield labels(view, device), value

    return read


def _last_xids(view: View) -> Samples:
    plane = view.snapshot.plane or Plane()
    for device in plane.devices:
        seen = [
            (xid.last, code) for (uuid, code), xid in plane.xids.items() if uuid == device.info.uuid
        ]
        if seen:
            _, code = max(seen)
            yield (*labels(view, device), str(code)), code


_P2P = (
    "OK",
    "ChipsetNotSupported",
    "GPUNotSupported",
    "TopologyNotSupported",
    "DisabledByRegKey",
    "NotSupported",
    "Unknown",
)


def _p2p(view: View) -> Samples:
    for device in view.snapshot.devices or ():
        for uuid, status in device.info.p2p:
            peer = str(view.snapshot.indices.get(uuid, ""))
            yield (*labels(view, device), peer, _P2P[min(status, len(_P2P) - 1)]), status


def _metrics() -> Iterable[Metric]:
    for row in ROWS:
        yield Metric(row.name, row.kind, row.help, LABELS, _reader(row))
    yield Metric(
        "DCGM_FI_DEV_XID_ERRORS",
        GAUGE,
        "Code of the last XID error since the agent's start.",
        (*LABELS, "err_code"),
        _last_xids,
    )
    yield Metric(
        "DCGM_EXP_P2P_STATUS",
        GAUGE,
        "NVLink between the GPU and a peer: 0 works, else why not.",
        (*LABELS, "peer_gpu", "link_status"),
        _p2p,
    )


METRICS = tuple(_metrics())

OTHERS = {
    "DCGM_EXP_P2P_STATUS": "gpubpf_gpu_p2p_status{peer_uuid}",
    "DCGM_FI_DEV_XID_ERRORS": "gpubpf_gpu_xid_last_timestamp_seconds{xid}",
    "DCGM_FI_DRIVER_VERSION": "gpubpf_gpu_info{driver_version}",
}
"""What is no row, and where it is with us."""
