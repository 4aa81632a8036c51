"""What dcgm-exporter and nvidia_gpu_exporter have and --compat has not: why, and what says it."""

from __future__ import annotations

_LABEL = "a text: label `{}` of gpubpf_gpu_info"
_WINDOW = "a count over a window that slides, which PromQL takes of a counter: increase() of "
_WINDOWS = "Windows alone has it"
_NEW = "needs a driver newer than 590"
_EXPORTER = "about the other exporter; ours: "

DCGM = {
    "DCGM_EXP_CLOCK_EVENTS_COUNT": _WINDOW + "gpubpf_gpu_throttled_seconds_total",
    "DCGM_EXP_XID_ERRORS_COUNT": _WINDOW + "gpubpf_gpu_xid_errors_total",
    "DCGM_EXP_GPU_HEALTH_STATUS": "DCGM's own judgement; what it judges by is here: "
    "gpubpf_gpu_row_remap_failure, gpubpf_gpu_xid_errors_total, gpubpf_gpu_ecc_errors_total, "
    "gpubpf_gpu_pcie_replays_total",
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_L0": "a rate that PromQL takes of a counter: "
    'rate() of gpubpf_gpu_nvlink_link_bytes_total{link="0"}',
    "DCGM_FI_NVML_VERSION": _LABEL.format("nvml_version"),
    "DCGM_FI_DEV_BRAND": _LABEL.format("brand"),
    "DCGM_FI_DEV_SERIAL": _LABEL.format("serial"),
    "DCGM_FI_DEV_INFOROM_IMAGE_VER": _LABEL.format("inforom_version"),
    "DCGM_FI_DEV_OEM_INFOROM_VER": _LABEL.format("inforom_oem_version"),
    "DCGM_FI_DEV_ECC_INFOROM_VER": _LABEL.format("inforom_ecc_version"),
    "DCGM_FI_DEV_POWER_INFOROM_VER": _LABEL.format("inforom_power_version"),
    "DCGM_FI_DEV_VBIOS_VERSION": _LABEL.format("vbios_version"),
    "dcgm_*": "names of dcgm-exporter 1.x, given up by it",
}

NVIDIA_SMI = {
    "timestamp": "never a number there; Prometheus has the time of the scrape",
    "driver_version": _LABEL.format("driver_version"),
    "name": _LABEL.format("name"),
    "uuid": _LABEL.format("uuid"),
    "pci_bus_id": _LABEL.format("pci_bus_id"),
    "vbios_version": _LABEL.format("vbios_version"),
    "inforom_img": _LABEL.format("inforom_version"),
    "display_mode": "deprecated, and no longer read there",
    "power_management": "deprecated, and no longer read there",
    "driver_model_current": _WINDOWS,
    "driver_model_pending": _WINDOWS,
    "addressing_mode": "a text, never a number there",
    "inforom_checksum_validation": "a text, never a number there; and the check takes long",
    "gom_current": "a text, never a number there; of boards before Volta",
    "gom_pending": "a text, never a number there; of boards before Volta",
    "fabric_status": "a text, never a number there",
    "fabric_cluster_uuid": "a text, never a number there",
    "platform_peer_type": "a text, never a number there",
    "platform_chassis_serial_number": _LABEL.format("chassis_serial"),
    "hostname": "a text; Prometheus has the target's `instance`",
    "remapped_rows_correctable_inactive": _NEW,
    "remapped_rows_uncorrectable_inactive": _NEW,
    "failed_scrapes_total": _EXPORTER + "gpubpf_agent_source_up",
    "command_exit_code": "no command is run; ours: gpubpf_agent_source_up",
    "nvml_return_code": _EXPORTER + "gpubpf_agent_source_down_reason",
    "kmd_version": "of the program nvidia-smi, not of NVML",
    "pcie_link_gen_hostmax": "of the program nvidia-smi, not of NVML",
}
