"""The rows of METRICS that are by job: only with --jobs."""

from __future__ import annotations

from gpubpf.counted import OF_JOBS, counted
from gpubpf.device_metrics import OF_EACH_PROCESS
from gpubpf.diagnosis_view import inputs, verdicts
from gpubpf.job_view import (
    errors,
    given,
    info,
    kept,
    labels,
    on_gpu,
    processes,
    since_launch,
    states,
    unattributed,
    usage,
)
from gpubpf.metric import COUNTER, GAUGE, GPU, INFO, JOB, JOB_ON, Metric

# fmt: off
JOB_METRICS: tuple[Metric, ...] = (
    Metric(
        "gpubpf_job", INFO,
        "The job: constant 1, to join on.",
        (*JOB, "scheduler", "namespace", "name", "user"), info,
    ),
    Metric(
        "gpubpf_job_label", INFO,
        "A label of the job's pod, of those in --kubernetes-labels: constant 1, to join on.",
        (*JOB, "key", "value"), labels,
    ),
    Metric(
        "gpubpf_job_processes", GAUGE,
        "Processes of the job that call the driver, or that NVML lists.",
        JOB, processes,
    ),
    Metric(
        "gpubpf_job_held_seconds", COUNTER,
        "Time in which the job had memory or a context on the GPU.",
        JOB_ON, usage(lambda used: used.held), "seconds",
    ),
    Metric(
        "gpubpf_job_active_seconds", COUNTER,
        "Of the held time, that in which the job launched something or used SMs.",
        JOB_ON, usage(lambda used: used.active), "seconds",
    ),
    Metric(
        "gpubpf_job_idle_seconds", COUNTER,
        "Of the held time, the rest.",
        JOB_ON, usage(lambda used: used.idle), "seconds",
    ),
    Metric(
        "gpubpf_job_since_launch_seconds", GAUGE,
        "Time since the job's last kernel or graph launch; absent where it made none.",
        JOB_ON, since_launch, "seconds", "launch",
    ),
    Metric(
        "gpubpf_job_energy_joules", COUNTER,
        "Energy of the GPU by the job's share of SM utilization.",
        JOB_ON, usage(lambda used: used.energy), "joules",
    ),
    Metric(
        "gpubpf_gpu_unattributed_energy_joules", COUNTER,
        "Energy of the GPU that no process's SM utilization accounts for; only with --jobs.",
        GPU, unattributed, "joules",
    ),
    Metric(
        "gpubpf_job_call_errors", COUNTER,
        "Calls of the job that returned an error, where the return is probed.",
        (*JOB, "error"), errors,
    ),
    *counted(OF_JOBS),
    # --- from NVML --------------------------------------------------------------------------------
    *(
        Metric(
            f"gpubpf_job_{row.name}", GAUGE, f"Of the job, the sum over its processes. {row.help}",
            JOB_ON, on_gpu(row.value), row.unit,
        )
        for row in OF_EACH_PROCESS
    ),
    # --- what follows from both ------------------------------------------------------------------
    Metric(
        "gpubpf_job_diagnosis", GAUGE,
        "1 where it is so of the job on the GPU (see Diagnoses), else 0; absent where not known.",
        (*JOB_ON, "diagnosis"), verdicts(jobs=True),
    ),
    Metric(
        "gpubpf_job_diagnosis_input", GAUGE,
        "What the job's diagnoses follow from, in seconds, bytes, ratios and per second.",
        (*JOB_ON, "input"), inputs(jobs=True),
    ),
    # --- what Kubernetes gives to whom ------------------------------------------------------------
    Metric(
        "gpubpf_gpu_kubernetes_containers", GAUGE,
        "Containers that kubelet has given the GPU to; only with --jobs kubernetes.",
        GPU, given(lambda row: row.containers),
    ),
    Metric(
        "gpubpf_gpu_kubernetes_slots", GAUGE,
        "To how many containers kubelet may give the GPU: 1, more where it is shared, or 0.",
        GPU, given(lambda row: row.slots),
    ),
    # --- how well it is kept ----------------------------------------------------------------------
    Metric(
        "gpubpf_agent_jobs", GAUGE,
        "Jobs: running with series of their own; ended, whose series are kept for a while; and "
        "those that share job_id other.",
        ("state",), states,
    ),
    Metric(
        "gpubpf_agent_jobs_merged", COUNTER,
        "Jobs that had to share job_id other when they came: all --max-jobs were taken.",
        (), kept(lambda jobs: jobs.merged),
    ),
    Metric(
        "gpubpf_agent_jobs_dropped", COUNTER,
        "Jobs whose series ended, --job-retention after the jobs did.",
        (), kept(lambda jobs: jobs.closed),
    ),
    Metric(
        "gpubpf_agent_jobs_unseen", COUNTER,
        "Processes that ended before they could be looked at, or could not be read: they are in "
        "job_id none.",
        (), kept(lambda jobs: jobs.unseen),
    ),
)
# fmt: on
