"""RECORDING: the rules that save queries, one row each, named level:metric:operation.

All keep the label cluster, here and in the alerts: a store of several clusters may evaluate them,
and two clusters may have a node and a job of the same name. Where there is none it is left out.
"""

from __future__ import annotations

from typing import NamedTuple


class Recording(NamedTuple):
    name: str
    expr: str
    what: str


_BY_JOB = "by (cluster, job_id)"
_KERNELS = """sum by (cluster, {by}) (rate(gpubpf_{of}_kernel_launches_total[5m]))
+ sum by (cluster, {by}) (rate(gpubpf_{of}_graph_kernels_total[5m]))"""

RECORDING: tuple[Recording, ...] = (
    Recording(
        "instance_gpu:gpubpf_kernels:rate5m",
        _KERNELS.format(by="instance, gpu, uuid", of="gpu"),
        "kernels run per second on a GPU, launched one by one or by graphs",
    ),
    Recording(
        "job:gpubpf_kernels:rate5m",
        _KERNELS.format(by="job_id", of="job"),
        "kernels run per second by a job, on all nodes",
    ),
    Recording(
        "job:gpubpf_launches:rate5m",
        f"sum {_BY_JOB} (rate(gpubpf_job_kernel_launches_total[5m]))\n"
        f"+ sum {_BY_JOB} (rate(gpubpf_job_graph_launches_total[5m]))",
        "launches per second by a job: kernels and graphs",
    ),
    Recording(
        "job:gpubpf_gpus:count",
        f"count {_BY_JOB} (rate(gpubpf_job_held_seconds_total[5m]) > 0)",
        "GPUs that a job holds",
    ),
    Recording(
        "job:gpubpf_efficiency:ratio_rate5m",
        f"sum {_BY_JOB} (rate(gpubpf_job_active_seconds_total[5m]))\n"
        f"/ (sum {_BY_JOB} (rate(gpubpf_job_held_seconds_total[5m])) > 0)",
        "share of its held time in which a job used its GPUs",
    ),
    Recording(
        "job:gpubpf_held_gpu_hours:increase1h",
        f"sum {_BY_JOB} (increase(gpubpf_job_held_seconds_total[1h])) / 3600",
        "GPU-hours that a job held in the last hour",
    ),
    Recording(
        "job:gpubpf_idle_gpu_hours:increase1h",
        f"sum {_BY_JOB} (increase(gpubpf_job_idle_seconds_total[1h])) / 3600",
        "of these, those that it did nothing with",
    ),
    Recording(
        "job:gpubpf_power_watts:rate5m",
        f"sum {_BY_JOB} (rate(gpubpf_job_energy_joules_total[5m]))",
        "power that goes to a job, by its share of SM utilization",
    ),
    Recording(
        "job:gpubpf_energy_per_kernel_joules:ratio_rate5m",
        "job:gpubpf_power_watts:rate5m / (job:gpubpf_kernels:rate5m > 0)",
        "energy per kernel of a job",
    ),
    Recording(
        "instance_gpu:gpubpf_sm_utilization:ratio",
        "gpubpf_gpu_sm_utilization_ratio or gpubpf_gpu_utilization_ratio",
        "SM utilization, or where the board doesn't tell it the share of time with a kernel",
    ),
    Recording(
        "cluster:gpubpf_sm_utilization:avg",
        "avg by (cluster) (instance_gpu:gpubpf_sm_utilization:ratio)",
        "mean SM utilization of all GPUs",
    ),
    Recording(
        "cluster:gpubpf_gpus:count",
        "count by (cluster) (gpubpf_gpu_up)",
        "GPUs",
    ),
    Recording(
        "cluster:gpubpf_idle_holders:count",
        'count by (cluster) (gpubpf_gpu_diagnosis{diagnosis="idle_holder"} == 1)\n'
        "or 0 * count by (cluster) (gpubpf_gpu_up)",
        "GPUs whose memory is held and that nobody uses",
    ),
)
