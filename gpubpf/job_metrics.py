"""The rows of METRICS that are by job: only with --jobs."""

from __future__ import annotations

from gpubpf.job_view import (
    errors,
    held_by_job,
    info,
    kept,
    on_gpu,
    processes,
    share,
    since_launch,
    states,
    unattributed,
    usage,
)
from gpubpf.metric import COUNTER, GAUGE, GPU, INFO, Metric
from gpubpf.symbols import DIRECTIONS, KINDS
from gpubpf.view import inputs, jobs, lane, variants, verdicts

JOB = ("job_id",)
"""The first label of every row here: the account that it is charged to (`gpubpf.accounts`)."""
JOB_ON = (*JOB, *GPU)

# fmt: off
JOB_METRICS: tuple[Metric, ...] = (
    Metric(
        "gpubpf_job", INFO,
        "The job: constant 1, to join on.",
        (*JOB, "scheduler", "namespace", "name", "user"), info,
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
    Metric(
        "gpubpf_job_kernel_launches", COUNTER,
        "Kernels launched directly by the job.",
        JOB_ON, lane(jobs, "kernel_launches"), group="launch",
    ),
    Metric(
        "gpubpf_job_captured_launches", COUNTER,
        "Kernel launches of the job that became graph nodes.",
        JOB_ON, lane(jobs, "captured_launches"), group="launch state",
    ),
    Metric(
        "gpubpf_job_graph_launches", COUNTER,
        "CUDA graphs launched by the job.",
        JOB_ON, lane(jobs, "graph_launches"), group="launch",
    ),
    Metric(
        "gpubpf_job_graph_kernels", COUNTER,
        "Kernels run by the job's graph launches.",
        JOB_ON, lane(jobs, "graph_kernels"), group="launch state",
    ),
    Metric(
        "gpubpf_job_graph_launches_of_unknown_size", COUNTER,
        "Of the job's graph launches, those of graphs whose kernels are not known.",
        JOB_ON, lane(jobs, "unknown_graph_launches"), group="launch",
    ),
    Metric(
        "gpubpf_job_host_functions", COUNTER,
        "Host functions that the job enqueued to a stream.",
        JOB_ON, lane(jobs, "host_functions"), group="launch",
    ),
    Metric(
        "gpubpf_job_allocations", COUNTER,
        "Successful allocations of the job, by kind of memory.",
        (*JOB_ON, "kind"), variants(jobs, "allocations", KINDS[:-1]), group="memory",
    ),
    Metric(
        "gpubpf_job_allocated_bytes", COUNTER,
        "Bytes requested by the job's successful allocations, by kind of memory.",
        (*JOB_ON, "kind"), variants(jobs, "allocated_bytes", KINDS[:-1]), "bytes", "memory",
    ),
    Metric(
        "gpubpf_job_frees", COUNTER,
        "Allocations that the job freed by a call, by kind of memory.",
        (*JOB_ON, "kind"), variants(jobs, "frees", KINDS), group="memory",
    ),
    Metric(
        "gpubpf_job_freed_bytes", COUNTER,
        "Bytes of the allocations that the job freed by a call, by kind of memory.",
        (*JOB_ON, "kind"), variants(jobs, "freed_bytes", KINDS[:-1]), "bytes", "memory",
    ),
    Metric(
        "gpubpf_job_implicit_frees", COUNTER,
        "Allocations that went with their context or their process.",
        (*JOB_ON, "kind"), variants(jobs, "implicit_frees", KINDS[:-1]), group="memory",
    ),
    Metric(
        "gpubpf_job_implicitly_freed_bytes", COUNTER,
        "Bytes of the allocations that went with their context or their process.",
        (*JOB_ON, "kind"), variants(jobs, "implicitly_freed_bytes", KINDS[:-1]), "bytes", "memory",
    ),
    Metric(
        "gpubpf_job_live_allocations", GAUGE,
        "Allocations that the job's processes hold, by kind of memory.",
        (*JOB_ON, "kind"), held_by_job("allocations", "frees", "implicit_frees"), group="memory",
    ),
    Metric(
        "gpubpf_job_live_bytes", GAUGE,
        "Bytes that the job's processes requested and have not freed, by kind of memory.",
        (*JOB_ON, "kind"),
        held_by_job("allocated_bytes", "freed_bytes", "implicitly_freed_bytes"), "bytes", "memory",
    ),
    Metric(
        "gpubpf_job_copied_bytes", COUNTER,
        "Bytes that the job's copies asked for, by direction.",
        (*JOB_ON, "direction"), variants(jobs, "copied_bytes", DIRECTIONS), "bytes", "copy",
    ),
    Metric(
        "gpubpf_job_set_bytes", COUNTER,
        "Bytes that the job's memory sets asked for.",
        JOB_ON, lane(jobs, "set_bytes"), "bytes", "copy",
    ),
    Metric(
        "gpubpf_job_captured_copied_bytes", COUNTER,
        "Bytes of the job's copies that became graph nodes.",
        JOB_ON, lane(jobs, "captured_copied_bytes"), "bytes", "copy state",
    ),
    Metric(
        "gpubpf_job_captured_set_bytes", COUNTER,
        "Bytes of the job's memory sets that became graph nodes.",
        JOB_ON, lane(jobs, "captured_set_bytes"), "bytes", "copy state",
    ),
    Metric(
        "gpubpf_job_waits", COUNTER,
        "Synchronizing calls of the job.",
        JOB_ON, lane(jobs, "waits"), group="wait",
    ),
    Metric(
        "gpubpf_job_wait_seconds", COUNTER,
        "Host time that the job's threads spent blocked in synchronizing calls.",
        JOB_ON, lane(jobs, "wait_nanoseconds", 1e-9), "seconds", "wait",
    ),
    # --- from NVML --------------------------------------------------------------------------------
    Metric(
        "gpubpf_job_memory_used_bytes", GAUGE,
        "Device memory that the driver says the job's processes use.",
        JOB_ON, on_gpu(lambda row: row.memory_used), "bytes",
    ),
    Metric(
        "gpubpf_job_sm_utilization_ratio", GAUGE,
        "Utilization of the GPU's SMs by the job's processes, their sum.",
        JOB_ON, share(lambda part: part.sm), "ratio",
    ),
    Metric(
        "gpubpf_job_memory_utilization_ratio", GAUGE,
        "Utilization of the GPU's memory controller by the job's processes, their sum.",
        JOB_ON, share(lambda part: part.memory), "ratio",
    ),
    Metric(
        "gpubpf_job_encoder_utilization_ratio", GAUGE,
        "Utilization of the GPU's encoder by the job's processes, their sum.",
        JOB_ON, share(lambda part: part.encoder), "ratio",
    ),
    Metric(
        "gpubpf_job_decoder_utilization_ratio", GAUGE,
        "Utilization of the GPU's decoder by the job's processes, their sum.",
        JOB_ON, share(lambda part: part.decoder), "ratio",
    ),
    Metric(
        "gpubpf_job_jpeg_utilization_ratio", GAUGE,
        "Utilization of the GPU's JPEG engine by the job's processes, their sum.",
        JOB_ON, share(lambda part: part.jpeg), "ratio",
    ),
    Metric(
        "gpubpf_job_ofa_utilization_ratio", GAUGE,
        "Utilization of the GPU's optical-flow engine by the job's processes, their sum.",
        JOB_ON, share(lambda part: part.ofa), "ratio",
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
