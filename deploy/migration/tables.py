"""QUERIES, OPTIONS, LABELS and NEIGHBOURS: rows of deploy/MIGRATION.md.

The tests run every query of QUERIES and BESIDE against a real Prometheus that scrapes the simulated
node, nvitop-exporter's against the real one, and compare.
"""

# ruff: noqa: E501  tables
from __future__ import annotations

from typing import NamedTuple

DCGM, SMI, NVITOP = "dcgm-exporter", "nvidia_gpu_exporter", "nvitop-exporter"
NODE = "node_exporter"
OURS = "gpubpf"


class Port(NamedTuple):
    """Where a program listens unless it is told otherwise."""

    program: str
    ports: tuple[int, ...]
    names: str  # what its metrics begin with
    tried: str


NEIGHBOURS = (
    Port(OURS, (10440,), "`gpubpf_`", "real"),
    Port(NODE, (9100,), "`node_`, `process_`, `go_`, `promhttp_`", "real, Debian's"),
    Port(DCGM, (9400, 5555), "`DCGM_`", "no: its port, and nv-hostengine's, are only kept free"),
    Port(SMI, (9835,), "`nvidia_smi_`", "no: the port is only kept free"),
    Port(NVITOP, (8000,), "`gpu_`, `host_`, `process_`, `python_`, `nvitop_`", "real, PyPI's"),
)  # fmt: skip


class Query(NamedTuple):
    of: str
    what: str
    before: str
    after: str
    alike: bool = True  # the same figures; else the same GPUs
    note: str = ""


QUERIES = (
    # --- dcgm-exporter: what its dashboard asks, and the usual alerts ---------------------------
    Query(DCGM, "Temperature by GPU", "max by (Hostname, gpu) (DCGM_FI_DEV_GPU_TEMP)",
          "max by (instance, gpu) (gpubpf_gpu_temperature_celsius)"),
    Query(DCGM, "… on average", "avg(DCGM_FI_DEV_GPU_TEMP)", "avg(gpubpf_gpu_temperature_celsius)"),
    Query(DCGM, "Power of all GPUs", "sum(DCGM_FI_DEV_POWER_USAGE)", "sum(gpubpf_gpu_power_watts)"),
    Query(DCGM, "SM clock, in hertz", "DCGM_FI_DEV_SM_CLOCK * 1000000", 'gpubpf_gpu_clock_hertz{clock="sm"}'),
    Query(DCGM, "Utilization, in percent", "avg by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL)",
          "avg by (instance, gpu) (gpubpf_gpu_utilization_ratio) * 100"),
    Query(DCGM, "Engine active", "max by (Hostname, gpu) (DCGM_FI_PROF_GR_ENGINE_ACTIVE)",
          "max by (instance, gpu) (gpubpf_gpu_graphics_engine_utilization_ratio)"),
    Query(DCGM, "Tensor cores active", "avg by (Hostname, gpu) (DCGM_FI_PROF_PIPE_TENSOR_ACTIVE)",
          "avg by (instance, gpu) (gpubpf_gpu_tensor_utilization_ratio)"),
    Query(DCGM, "Memory in use, in bytes", "DCGM_FI_DEV_FB_USED * 1024 * 1024", "gpubpf_gpu_memory_used_bytes"),
    Query(DCGM, "NVLink, in bytes per second", "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL * 1024000",
          "sum by (instance, gpu) (gpubpf_gpu_nvlink_throughput_bytes_per_second)"),
    Query(DCGM, "Energy in an hour, in kWh", "increase(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION[1h]) / 3.6e9",
          "increase(gpubpf_gpu_energy_joules_total[1h]) / 3.6e6"),
    Query(DCGM, "GPUs by model", "count by (modelName) (DCGM_FI_DEV_GPU_TEMP)", "count by (name) (gpubpf_gpu_info)"),
    Query(DCGM, "Alert: too hot", "DCGM_FI_DEV_GPU_TEMP > 85", "gpubpf_gpu_temperature_celsius > 85",
          note="`GpubpfTooHot`"),
    Query(DCGM, "Alert: memory almost full", "DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE) > 0.9",
          "gpubpf_gpu_memory_used_bytes / (gpubpf_gpu_memory_used_bytes + gpubpf_gpu_memory_free_bytes) > 0.9",
          note="`GpubpfNearFull`"),
    Query(DCGM, "Alert: little used", "avg_over_time(DCGM_FI_DEV_GPU_UTIL[5m]) < 30",
          "avg_over_time(gpubpf_gpu_utilization_ratio[5m]) * 100 < 30", note="`GpubpfLowUtilization`"),
    Query(DCGM, "Alert: XID error", "DCGM_FI_DEV_XID_ERRORS > 0",
          "time() - max by (instance, gpu, uuid) (gpubpf_gpu_xid_last_timestamp_seconds) < 300", alike=False,
          note="`GpubpfXid`. There the last code stays until the next; here each code has a time and a count"),
    Query(DCGM, "Alert: uncorrected ECC errors", "increase(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL[10m]) > 0",
          'increase(gpubpf_gpu_ecc_errors_total{error="uncorrected",counter="volatile"}[10m]) > 0',
          note="`GpubpfEccUncorrected`"),
    Query(DCGM, "Alert: a row can't be remapped", "DCGM_FI_DEV_ROW_REMAP_FAILURE > 0",
          "gpubpf_gpu_row_remap_failure > 0", note="`GpubpfRowRemapFailed`"),
    Query(DCGM, "Alert: heat holds the clocks down", "rate(DCGM_FI_DEV_THERMAL_VIOLATION[5m]) / 1e9 > 0.05",
          'rate(gpubpf_gpu_throttled_seconds_total{reason="thermal"}[5m]) > 0.05', note="`GpubpfThrottled`"),
    Query(DCGM, "Alert: PCIe replays", "rate(DCGM_FI_DEV_PCIE_REPLAY_COUNTER[5m]) > 0",
          "rate(gpubpf_gpu_pcie_replays_total[5m]) > 0"),
    # --- nvidia_gpu_exporter --------------------------------------------------------------------
    Query(SMI, "Utilization", "nvidia_smi_utilization_gpu_ratio", "gpubpf_gpu_utilization_ratio"),
    Query(SMI, "Memory in use, of all", "nvidia_smi_memory_used_bytes / nvidia_smi_memory_total_bytes",
          "gpubpf_gpu_memory_used_bytes / gpubpf_gpu_memory_size_bytes"),
    Query(SMI, "Power, of its limit", "nvidia_smi_power_draw_watts / nvidia_smi_enforced_power_limit_watts",
          "gpubpf_gpu_power_watts / gpubpf_gpu_power_limit_watts"),
    Query(SMI, "Temperature by name", "nvidia_smi_temperature_gpu * on (uuid) group_left (name) nvidia_smi_gpu_info",
          "gpubpf_gpu_temperature_celsius * on (instance, uuid) group_left (name) gpubpf_gpu_info"),
    Query(SMI, "Alert: held down by heat", "nvidia_smi_clocks_event_reasons_hw_thermal_slowdown == 1",
          'gpubpf_gpu_clock_reason_active{reason="hw_thermal_slowdown"} == 1', note="`GpubpfThrottled`"),
    Query(SMI, "Alert: it fails", "nvidia_smi_last_collect_success == 0", 'gpubpf_agent_source_up{source="nvml"} == 0',
          note="`GpubpfNothingCounted`"),
    # --- nvitop-exporter ------------------------------------------------------------------------
    Query(NVITOP, "Utilization", "gpu_utilization_Percentage / 100", "gpubpf_gpu_utilization_ratio"),
    Query(NVITOP, "Memory in use, in bytes", "gpu_memory_used_MiB * 1024 * 1024", "gpubpf_gpu_memory_used_bytes"),
    Query(NVITOP, "Power", "gpu_power_usage_W", "gpubpf_gpu_power_watts"),
    Query(NVITOP, "Temperature", "gpu_temperature_C", "gpubpf_gpu_temperature_celsius"),
    Query(NVITOP, "SM clock, in hertz", "gpu_clock_sm_MHz * 1e6", 'gpubpf_gpu_clock_hertz{clock="sm"}'),
    Query(NVITOP, "Memory of processes, in bytes", "sum by (uuid) (process_gpu_memory_MiB) * 1024 * 1024",
          "sum by (uuid) (gpubpf_process_memory_used_bytes)", note="needs `--process-metrics`"),
)  # fmt: skip

COMPARE = """\
# by how many percent points the two differ, GPU by GPU: nothing, or a sample's age
DCGM_FI_DEV_GPU_UTIL{job="dcgm-exporter"} - on (UUID)
  label_replace(gpubpf_gpu_utilization_ratio{job="gpubpf"} * 100, "UUID", "$1", "uuid", "(.+)")"""

MISSING = """\
# GPUs that the one knows and the other doesn't: nothing
DCGM_FI_DEV_GPU_TEMP{job="dcgm-exporter"} unless on (UUID)
  label_replace(gpubpf_gpu_temperature_celsius{job="gpubpf"}, "UUID", "$1", "uuid", "(.+)")"""

BESIDE = (
    ("the part of the node's memory that its GPU processes hold",
     "gpubpf_node_gpu_process_resident_bytes\n  / on (node) node_memory_MemTotal_bytes"),
    ("the part of the node's CPU time that they use",
     "rate(gpubpf_node_gpu_process_cpu_seconds_total[5m])\n"
     "  / on (node) sum by (node) (rate(node_cpu_seconds_total[5m]))"),
    ("memory that is left on nodes with GPU processes",
     "node_memory_MemAvailable_bytes\n  and on (node) gpubpf_node_gpu_processes > 0"),
)  # fmt: skip
"""gpubpf's and node_exporter's together: what, and how."""

LABELS = (
    ("`gpu`", "`gpu`", "the index that NVML gives, in both"),
    ("`UUID`", "`uuid`", "`GPU-…`; of nvidia_gpu_exporter `uuid` is in small letters and without `GPU-`"),
    ("`Hostname`", "`instance`, `node`", "Prometheus's own: `node` is made by `deploy/prometheus`"),
    ("`modelName`", "`name` of `gpubpf_gpu_info`", "joined on `instance`, `gpu`"),
    ("`device`, `pci_bus_id`, `DCGM_FI_DRIVER_VERSION`", "`minor`, `pci_bus_id`, `driver_version` of `gpubpf_gpu_info`", ""),
    ("`GPU_I_ID`, `GPU_I_PROFILE`", "`gpubpf_mig_…`", "series of their own; with `--compat dcgm` they stand in the place of the board's, as with `-d f`"),
    ("`pod`, `namespace`, `container` (`exported_…`)", "`job_id` of `gpubpf_job_…`", "`gpubpf_job_info` has `namespace` and `name`. `--compat dcgm` has no such labels: a GPU may be several pods'"),
    ("`hpc_job`", "`job_id` of `gpubpf_job_…`", "as Slurm calls it"),
)  # fmt: skip
"""dcgm-exporter's label, ours, and what to know."""


class Option(NamedTuple):
    of: str
    theirs: str
    ours: str
    note: str = ""


OPTIONS = (
    Option(DCGM, "`-f`, `--collectors`; `-m`, `--configmap-data`", "",
           "nothing is chosen: what the board has is there. `metric_relabel_configs` drops series"),
    Option(DCGM, "`-a`, `--address`", "`--listen`"),
    Option(DCGM, "`-c`, `--collect-interval`", "`--compute-interval`, `--memory-interval`, `--link-interval`, `--heat-interval`",
           "seconds, not milliseconds"),
    Option(DCGM, "`-k`, `--kubernetes`", "`--jobs kubernetes`", "by the process, not by the device plugin's list"),
    Option(DCGM, "`--kubernetes-enable-pod-labels`, `--kubernetes-pod-label-allowlist-regex`",
           "`--kubernetes-api`, `--kubernetes-labels`", "keys, not expressions"),
    Option(DCGM, "`--kubernetes-enable-pod-uid`", "", "the `job_id` is the UID"),
    Option(DCGM, "`--kubernetes-gpu-id-type`, `--nvidia-resource-names`, `--kubernetes-virtual-gpus`", "",
           "not needed: shared GPUs are told apart by their processes"),
    Option(DCGM, "`--pod-resources-kubelet-socket`", "`--kubelet-socket`"),
    Option(DCGM, "`--hpc-job-mapping-dir`", "`--jobs slurm`", "no files, no prolog"),
    Option(DCGM, "`-r`, `--remote-hostengine-info`", "", "NVML is read in the agent itself"),
    Option(DCGM, "`-d`, `--devices`", "", "all boards, and all MIG devices"),
    Option(DCGM, "`-s`, `-p`: NVSwitches, CPUs", "", "not there: keep dcgm-exporter for those"),
    Option(DCGM, "`-x`, `--clock-events-count-window-size`", "", "the window is the query's: `increase(…[5m])`"),
    Option(DCGM, "`-n`, `--no-hostname`", "", "`Hostname` is only with `--compat`; `labeldrop` in Prometheus"),
    Option(DCGM, "`--web-config-file`", "`--web-config`", "the same format"),
    Option(SMI, "`--web.listen-address`, `--web.config.file`", "`--listen`, `--web-config`"),
    Option(SMI, "`--nvidia-smi-command`, `--collect.backend`", "`--nvml-library`", "no command is run, so none over ssh"),
    Option(SMI, "`--query-field-names`, `--query-field-names-exclude`", "", "as with dcgm-exporter"),
    Option(SMI, "`--collect.interval`, `--collect.timeout`", "`--compute-interval` …, `--nvml-timeout`",
           "a scrape never asks the driver"),
    Option(SMI, "`--collect.compute-apps`", "`--process-metrics`"),
    Option(SMI, "`--collect.pcie-throughput`", "", "always there"),
    Option(NVITOP, "`--bind-address`, `--port`", "`--listen`"),
    Option(NVITOP, "`--interval`", "`--compute-interval` …"),
    Option(NVITOP, "`--certfile`, `--keyfile`, `--client-cafile`", "`--web-config`"),
)  # fmt: skip
