"""PANELS: the dashboards as tables, one row per panel. `deploy.monitoring.dashboards` draws them.

Variables of a dashboard stand in its queries as $instance, $gpu, $job_id. A threshold is a row of
THRESHOLDS, the alerts' own.
"""

# ruff: noqa: E501  prose in a table
from __future__ import annotations

from typing import NamedTuple

TIMESERIES, STAT, TABLE, GAUGE = "timeseries", "stat", "table", "gauge"

# Grafana's names of units (grafana-data, valueFormats).
COUNT, RATE, BYTES, BYTES_PER_SECOND = "short", "cps", "bytes", "Bps"
RATIO, SECONDS, CELSIUS, WATTS, JOULES, HOURS = "percentunit", "s", "celsius", "watt", "joule", "h"


class Query(NamedTuple):
    expr: str
    legend: str = ""


class Panel(NamedTuple):
    title: str
    kind: str
    unit: str
    what: str
    queries: tuple[Query, ...]
    threshold: str = ""
    below: bool = False  # what is below the threshold is bad
    width: int = 8  # of 24
    link: str = ""  # uid of the dashboard that a series opens


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


class Board(NamedTuple):
    uid: str
    title: str
    what: str
    variables: tuple[str, ...]
    rows: tuple[Row, ...]


_GPU = '{instance=~"$instance",gpu=~"$gpu"}'
_NODE = '{instance=~"$instance"}'
_JOB = '{job_id=~"$job_id"}'
_BY_GPU = "{{instance}} GPU {{gpu}}"
_BY_NODE = "{{instance}}"
_BY_JOB = "{{job_id}}"


def _rate(name: str, by: str, where: str) -> str:
    return f"sum by ({by}) (rate({name}{where}[$__rate_interval]))"


def _diagnoses(metric: str, where: str, by: str) -> str:
    return f"sum by ({by}, diagnosis) ({metric}{where} == 1)"


FLEET = Board(
    "gpubpf-fleet",
    "gpubpf / Fleet",
    "All GPUs of all nodes: how many, how busy, who wastes them, what is broken.",
    (),
    (
        Row("Now", (
            Panel("GPUs", STAT, COUNT, "GPUs that are known.",
                  (Query("count(gpubpf_gpu_up)"),), width=4),
            Panel("Without an answer", STAT, COUNT, "GPUs of which every call of NVML fails.",
                  (Query("count(gpubpf_gpu_up == 0) or vector(0)"),), width=4),
            Panel("SM utilization", STAT, RATIO, "Mean over all GPUs; where a board doesn't tell it, the share of time with a kernel.",
                  (Query("avg(gpubpf_gpu_sm_utilization_ratio or gpubpf_gpu_utilization_ratio)"),),
                  "sm_utilization", True, width=4),
            Panel("Idle holders", STAT, COUNT, "GPUs whose memory is held, and on which nothing was launched for a while.",
                  (Query('count(gpubpf_gpu_diagnosis{diagnosis="idle_holder"} == 1) or vector(0)'),), width=4, link="gpubpf-node"),
            Panel("Stalled", STAT, COUNT, "GPUs on which launches stopped while a kernel runs on.",
                  (Query('count(gpubpf_gpu_diagnosis{diagnosis="stalled"} == 1) or vector(0)'),), width=4, link="gpubpf-node"),
            Panel("Power", STAT, WATTS, "Drawn by all boards.",
                  (Query("sum(gpubpf_gpu_power_watts)"),), width=4),
        )),
        Row("Use", (
            Panel("SM utilization by node", TIMESERIES, RATIO, "Mean over a node's GPUs.",
                  (Query("avg by (instance) (gpubpf_gpu_sm_utilization_ratio or gpubpf_gpu_utilization_ratio)", _BY_NODE),),
                  "sm_utilization", True, link="gpubpf-node"),
            Panel("Kernels per second by node", TIMESERIES, RATE, "Launched one by one or by graphs.",
                  (Query(_rate("gpubpf_gpu_kernel_launches_total", "instance", "") + " + " + _rate("gpubpf_gpu_graph_kernels_total", "instance", ""), _BY_NODE),), link="gpubpf-node"),
            Panel("Memory in use", TIMESERIES, RATIO, "Share of all device memory of a node.",
                  (Query("sum by (instance) (gpubpf_gpu_memory_used_bytes) / sum by (instance) (gpubpf_gpu_memory_size_bytes)", _BY_NODE),), link="gpubpf-node"),
        )),
        Row("Jobs", (
            Panel("GPU-hours idle by job", TABLE, HOURS, "Held and not used in the time shown.",
                  (Query("topk(20, sum by (job_id) (increase(gpubpf_job_idle_seconds_total[$__range])) / 3600)", _BY_JOB),), width=12, link="gpubpf-job"),
            Panel("GPU-hours held by job", TABLE, HOURS, "In the time shown.",
                  (Query("topk(20, sum by (job_id) (increase(gpubpf_job_held_seconds_total[$__range])) / 3600)", _BY_JOB),), width=12, link="gpubpf-job"),
            Panel("Efficiency by job", TIMESERIES, RATIO, "Active time as a share of held time.",
                  (Query(_rate("gpubpf_job_active_seconds_total", "job_id", "") + " / (" + _rate("gpubpf_job_held_seconds_total", "job_id", "") + " > 0)", _BY_JOB),), width=12, link="gpubpf-job"),
            Panel("Diagnoses by job", TIMESERIES, COUNT, "GPUs of a job on which a diagnosis holds.",
                  (Query("sum by (job_id, diagnosis) (gpubpf_job_diagnosis == 1)", "{{job_id}} {{diagnosis}}"),), width=12, link="gpubpf-job"),
        )),
        Row("Faults", (
            Panel("XID errors", TIMESERIES, COUNT, "In an hour, by code.",
                  (Query("sum by (instance, gpu, xid) (increase(gpubpf_gpu_xid_errors_total[1h]))", _BY_GPU + " XID {{xid}}"),), link="gpubpf-node"),
            Panel("Uncorrected ECC errors", TIMESERIES, COUNT, "In an hour.",
                  (Query('sum by (instance, gpu) (increase(gpubpf_gpu_ecc_errors_total{error="uncorrected",counter="volatile"}[1h]))', _BY_GPU),), link="gpubpf-node"),
            Panel("Waiting for a reset", TIMESERIES, COUNT, "GPUs with a row remapping, or a page to be retired, that waits for a reset.",
                  (Query("sum by (instance) (gpubpf_gpu_row_remap_pending or gpubpf_gpu_retired_pages_pending)", _BY_NODE),), link="gpubpf-node"),
        )),
        Row("The agents", (
            Panel("CPU", TIMESERIES, RATIO, "Of one core.",
                  (Query(_rate("gpubpf_agent_cpu_seconds_total", "instance", ""), _BY_NODE),), width=6),
            Panel("Memory", TIMESERIES, BYTES, "Resident.",
                  (Query("gpubpf_agent_memory_bytes", _BY_NODE),), width=6),
            Panel("Sources that are down", TIMESERIES, COUNT, "0 is well.",
                  (Query("sum by (instance) (gpubpf_agent_source_up == bool 0)", _BY_NODE),), width=6),
            Panel("Not kept", TIMESERIES, COUNT, "In five minutes, by what was full.",
                  (Query("sum by (instance, map) (increase(gpubpf_agent_lost_total[5m]))", "{{instance}} {{map}}"),), width=6),
        )),
    ),
)  # fmt: skip

NODE = Board(
    "gpubpf-node",
    "gpubpf / Node",
    "The GPUs of one node: what runs on them and how they are.",
    ("instance", "gpu"),
    (
        Row("What is asked of the GPUs", (
            Panel("Kernel launches", TIMESERIES, RATE, "Launched one by one.",
                  (Query(_rate("gpubpf_gpu_kernel_launches_total", "gpu", _GPU), "GPU {{gpu}}"),)),
            Panel("Kernels by graphs", TIMESERIES, RATE, "Run by graph launches.",
                  (Query(_rate("gpubpf_gpu_graph_kernels_total", "gpu", _GPU), "GPU {{gpu}}"),)),
            Panel("Time in waits", TIMESERIES, COUNT, "Threads that are blocked in synchronizing calls, on average.",
                  (Query(_rate("gpubpf_gpu_wait_seconds_total", "gpu", _GPU), "GPU {{gpu}}"),)),
            Panel("Allocations", TIMESERIES, RATE, "Successful ones, by kind of memory.",
                  (Query(_rate("gpubpf_gpu_allocations_total", "gpu, kind", _GPU), "GPU {{gpu}} {{kind}}"),)),
            Panel("Live memory", TIMESERIES, BYTES, "Requested by living processes and not freed.",
                  (Query("sum by (gpu, kind) (gpubpf_gpu_live_bytes" + _GPU + ")", "GPU {{gpu}} {{kind}}"),)),
            Panel("Copies", TIMESERIES, BYTES_PER_SECOND, "By direction.",
                  (Query(_rate("gpubpf_gpu_copied_bytes_total", "gpu, direction", _GPU), "GPU {{gpu}} {{direction}}"),)),
        )),
        Row("How busy they are", (
            Panel("Utilization", TIMESERIES, RATIO, "Share of time in which a kernel ran.",
                  (Query("gpubpf_gpu_utilization_ratio" + _GPU, "GPU {{gpu}}"),), "sm_utilization", True),
            Panel("SM utilization", TIMESERIES, RATIO, "Share of time in which a multiprocessor had a warp (GPM).",
                  (Query("gpubpf_gpu_sm_utilization_ratio" + _GPU, "GPU {{gpu}}"),), "sm_utilization", True),
            Panel("Tensor cores", TIMESERIES, RATIO, "Share of cycles in which a tensor pipe was active (GPM).",
                  (Query("gpubpf_gpu_tensor_utilization_ratio" + _GPU, "GPU {{gpu}}"),)),
            Panel("Memory", TIMESERIES, RATIO, "In use, as a share of the board's.",
                  (Query("gpubpf_gpu_memory_used_bytes" + _GPU + " / gpubpf_gpu_memory_size_bytes" + _GPU, "GPU {{gpu}}"),)),
            Panel("Fragmentation", TIMESERIES, RATIO, "Of the granules that live allocations touch, what isn't theirs.",
                  (Query("gpubpf_gpu_memory_fragmentation_ratio" + _GPU, "GPU {{gpu}}"),), "fragmentation"),
            Panel("Diagnoses", TIMESERIES, COUNT, "1 while it holds.",
                  (Query(_diagnoses("gpubpf_gpu_diagnosis", _GPU, "gpu"), "GPU {{gpu}} {{diagnosis}}"),)),
        )),
        Row("Links", (
            Panel("PCIe", TIMESERIES, BYTES_PER_SECOND, "Throughput by direction.",
                  (Query("gpubpf_gpu_pcie_throughput_bytes_per_second" + _GPU, "GPU {{gpu}} {{direction}}"),), width=6),
            Panel("PCIe in use", TIMESERIES, RATIO, "As a share of what the link can.",
                  (Query("gpubpf_gpu_pcie_utilization_ratio" + _GPU, "GPU {{gpu}} {{direction}}"),), "link_utilization", width=6),
            Panel("NVLink in use", TIMESERIES, RATIO, "All links together, as a share of what they can.",
                  (Query("gpubpf_gpu_nvlink_utilization_ratio" + _GPU, "GPU {{gpu}} {{direction}}"),), "link_utilization", width=6),
            Panel("NVLink errors", TIMESERIES, COUNT, "In five minutes, by link and kind.",
                  (Query("sum by (gpu, link, error) (increase(gpubpf_gpu_nvlink_link_errors_total" + _GPU + "[5m]))", "GPU {{gpu}} link {{link}} {{error}}"),), width=6),
        )),
        Row("Heat and power", (
            Panel("Temperature", TIMESERIES, CELSIUS, "Of the GPU.",
                  (Query("gpubpf_gpu_temperature_celsius" + _GPU, "GPU {{gpu}}"),), "temperature", width=6),
            Panel("Power", TIMESERIES, WATTS, "Drawn, and the limit.",
                  (Query("gpubpf_gpu_power_watts" + _GPU, "GPU {{gpu}}"),
                   Query("gpubpf_gpu_power_limit_watts" + _GPU, "GPU {{gpu}} limit")), width=6),
            Panel("Clocks", TIMESERIES, "hertz", "At present.",
                  (Query("gpubpf_gpu_clock_hertz" + _GPU, "GPU {{gpu}} {{clock}}"),), width=6),
            Panel("Clocks held down", TIMESERIES, RATIO, "Share of time, by reason; reasons overlap.",
                  (Query(_rate("gpubpf_gpu_throttled_seconds_total", "gpu, reason", _GPU), "GPU {{gpu}} {{reason}}"),), "throttled", width=6),
        )),
        Row("The host", (
            Panel("Shared memory", TIMESERIES, RATIO, "The node's, and the fullest of its containers.",
                  (Query("gpubpf_node_shm_used_bytes" + _NODE + " / gpubpf_node_shm_size_bytes" + _NODE, "node"),
                   Query("gpubpf_node_container_shm_fullest_ratio" + _NODE, "fullest container")), "shared_memory"),
            Panel("CPU of GPU processes", TIMESERIES, COUNT, "Cores.",
                  (Query("rate(gpubpf_node_gpu_process_cpu_seconds_total" + _NODE + "[$__rate_interval])", "cores"),)),
            Panel("Memory of GPU processes", TIMESERIES, BYTES, "Resident host memory.",
                  (Query("gpubpf_node_gpu_process_resident_bytes" + _NODE, "resident"),)),
        )),
    ),
)  # fmt: skip

JOB = Board(
    "gpubpf-job",
    "gpubpf / Job",
    "One job on all its GPUs: what it asks, what it gets, what it wastes. Needs --jobs.",
    ("job_id", "step_time", "step_label"),
    (
        Row("The job", (
            Panel("Job", TABLE, COUNT, "Its names.", (Query("gpubpf_job_info" + _JOB),), width=12),
            Panel("GPUs", STAT, COUNT, "On which it has processes.",
                  (Query("count(sum by (instance, gpu) (rate(gpubpf_job_held_seconds_total" + _JOB + "[$__rate_interval])) > 0)"),), width=4),
            Panel("Efficiency", STAT, RATIO, "Active time as a share of held time, in the time shown.",
                  (Query("sum(increase(gpubpf_job_active_seconds_total" + _JOB + "[$__range])) / sum(increase(gpubpf_job_held_seconds_total" + _JOB + "[$__range]))"),), width=4),
            Panel("GPU-hours idle", STAT, HOURS, "Held and not used, in the time shown.",
                  (Query("sum(increase(gpubpf_job_idle_seconds_total" + _JOB + "[$__range])) / 3600"),), width=4),
        )),
        Row("Its pace", (
            Panel("Launches", TIMESERIES, RATE, "Kernels and graphs.",
                  (Query(_rate("gpubpf_job_kernel_launches_total", "instance, gpu", _JOB), _BY_GPU),
                   Query(_rate("gpubpf_job_graph_launches_total", "instance, gpu", _JOB), _BY_GPU + " graphs"))),
            Panel("Step time", TIMESERIES, SECONDS, "The job's own histogram $step_time, by its label $step_label.",
                  (Query('sum(rate(${step_time}_sum{$step_label=~"$job_id"}[$__rate_interval])) / sum(rate(${step_time}_count{$step_label=~"$job_id"}[$__rate_interval]))', "step"),)),
            Panel("SM utilization", TIMESERIES, RATIO, "Its processes' sum.",
                  (Query("sum by (instance, gpu) (gpubpf_job_sm_utilization_ratio" + _JOB + ")", _BY_GPU),), "sm_utilization", True),
            Panel("Time in waits", TIMESERIES, COUNT, "Threads that are blocked in synchronizing calls, on average.",
                  (Query(_rate("gpubpf_job_wait_seconds_total", "instance, gpu", _JOB), _BY_GPU),)),
            Panel("Since the last launch", TIMESERIES, SECONDS, "A rank that stopped first shows first.",
                  (Query("gpubpf_job_since_launch_seconds" + _JOB, _BY_GPU),)),
            Panel("Diagnoses", TIMESERIES, COUNT, "1 while it holds.",
                  (Query(_diagnoses("gpubpf_job_diagnosis", _JOB, "instance, gpu"), _BY_GPU + " {{diagnosis}}"),)),
        )),
        Row("Its memory and copies", (
            Panel("Live memory", TIMESERIES, BYTES, "Requested and not freed.",
                  (Query("sum by (instance, gpu) (gpubpf_job_live_bytes" + _JOB + ")", _BY_GPU),)),
            Panel("Allocations", TIMESERIES, RATE, "By kind of memory.",
                  (Query(_rate("gpubpf_job_allocations_total", "instance, gpu, kind", _JOB), _BY_GPU + " {{kind}}"),)),
            Panel("Copies", TIMESERIES, BYTES_PER_SECOND, "By direction.",
                  (Query(_rate("gpubpf_job_copied_bytes_total", "instance, gpu, direction", _JOB), _BY_GPU + " {{direction}}"),)),
        )),
        Row("What it takes", (
            Panel("Power", TIMESERIES, WATTS, "By its share of SM utilization.",
                  (Query(_rate("gpubpf_job_energy_joules_total", "instance, gpu", _JOB), _BY_GPU),)),
            Panel("Energy per kernel", TIMESERIES, JOULES, "Of all its GPUs.",
                  (Query(_rate("gpubpf_job_energy_joules_total", "job_id", _JOB) + " / ((" + _rate("gpubpf_job_kernel_launches_total", "job_id", _JOB) + " + " + _rate("gpubpf_job_graph_kernels_total", "job_id", _JOB) + ") > 0)", _BY_JOB),)),
            Panel("Errors", TIMESERIES, RATE, "Calls that failed, by error.",
                  (Query(_rate("gpubpf_job_call_errors_total", "error", _JOB), "{{error}}"),)),
        )),
    ),
)  # fmt: skip

BOARDS = (FLEET, NODE, JOB)
