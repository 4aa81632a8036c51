"""The dashboard of a job."""

# ruff: noqa: E501  prose in a table
from __future__ import annotations

from deploy.monitoring import panels as p
from deploy.monitoring.panels import (
    BY_GPU,
    GPU,
    OF_JOB,
    STAT,
    TABLE,
    TIMESERIES,
    Board,
    Panel,
    Query,
    Row,
    where,
)


def _probed(group: str) -> str:
    return f"Nothing here: the job did none of it, or --probe {group} is off."


def _all(what: str) -> str:
    return f"sum(increase(gpubpf_job_{what}_seconds_total{where(OF_JOB)}[$__range]))"


def _step(part: str) -> str:
    return f'sum by (cluster, $step_label) (rate(${{step_time}}_{part}{{$step_label=~"$job_id"}}[$__rate_interval]))'


_NEEDS_JOBS = "Nothing here: no job is chosen or was there in this time; needs --jobs."
_BOTH = (p.TO_GPU, p.TO_PROCESSES)

JOB = Board(
    p.JOB,
    "gpubpf / Job",
    "A job on all its GPUs: is it stuck, what it asks, what it gets, what it wastes. Needs --jobs.",
    ("cluster", "job_id", "step_time", "step_label"),
    (
        Row("Is it well?", (
            Panel("Diagnoses", TIMESERIES, p.COUNT, "1 while it holds, by GPU.", "The README's table says what each means; RUNBOOK.md what to do.",
                  (Query(f"sum by (cluster, instance, gpu, job_id, diagnosis) (gpubpf_job_diagnosis{where(OF_JOB)} == 1)", "{{job_id}} on " + BY_GPU + " {{diagnosis}}"),), links=_BOTH,
                  empty="No diagnosis holds."),
            Panel("Job", TABLE, p.COUNT, "Its names, and its processes on each node.", "Who to ask.",
                  (Query(f"{p.most('gpubpf_job_processes', 'instance, job_id', OF_JOB)} * on (cluster, instance, job_id) group_left (scheduler, namespace, name, user) gpubpf_job_info{where(OF_JOB)}"),), links=(p.TO_NODE,), empty=_NEEDS_JOBS),
            Panel("GPUs", STAT, p.COUNT, "That it holds.", "Fewer than it was given: a rank is missing.",
                  (Query(f"count({p.rate('gpubpf_job_held_seconds_total', GPU, OF_JOB)} > 0)"),), width=2, empty="none: it holds no GPU now"),
            Panel("Efficiency", STAT, p.RATIO, "Active time as a share of held time, in the time shown.", "Low: see its pace below.",
                  (Query(f"{_all('active')} / {_all('held')}"),), width=3, empty="none: it held no GPU"),
            Panel("GPU-hours idle", STAT, p.HOURS, "Held and not used, in the time shown.", "Ask whether it may be ended, or made smaller.",
                  (Query(f"{_all('idle')} / 3600"),), width=3, empty="none: it held no GPU"),
        )),
        Row("Its pace", (
            Panel("Launches", TIMESERIES, p.RATE, "Kernels and graphs.", "Stopped on one GPU first: that rank is the culprit. Lower than before: data, stragglers, clocks.",
                  (Query(p.rate("gpubpf_job_kernel_launches_total", GPU, OF_JOB), BY_GPU),
                   Query(p.rate("gpubpf_job_graph_launches_total", GPU, OF_JOB), BY_GPU + " graphs")), links=_BOTH, empty=_probed("launch")),
            Panel("Step time", TIMESERIES, p.SECONDS, "The job's own histogram $step_time, by its label $step_label.", "Rises with launches that fall: the host feeds slower. Rises alone: longer steps, or waiting for ranks.",
                  (Query(f"{_step('sum')} / ({_step('count')} > 0)", "{{$step_label}}"),), empty="Nothing here: nobody exports a histogram of that name and label."),
            Panel("SM utilization", TIMESERIES, p.RATIO, "Its processes' sum, by the driver.", "High without launches: a collective that spins.",
                  (Query(p.total("gpubpf_job_sm_utilization_ratio", GPU, OF_JOB), BY_GPU),), "sm_utilization", True, links=_BOTH, empty="Nothing here: the driver tells no utilization by process of this board."),
            Panel("Time in waits", TIMESERIES, p.COUNT, "Threads that are blocked in synchronizing calls, on average.", "Near 0 with idle SMs: the host is late.",
                  (Query(p.rate("gpubpf_job_wait_seconds_total", GPU, OF_JOB), BY_GPU),), links=_BOTH, empty=_probed("wait")),
            Panel("Since the last launch", TIMESERIES, p.SECONDS, "By GPU.", "A rank that stopped first shows first.",
                  (Query(p.most("gpubpf_job_since_launch_seconds", GPU, OF_JOB), BY_GPU),), links=_BOTH, empty=_probed("launch")),
            Panel("Failed calls", TIMESERIES, p.COUNT, "Since the job came, by error: each step is a new one.", "CUDA_ERROR_OUT_OF_MEMORY: caching allocators try it on purpose. Others: the job's log.",
                  (Query(p.total("gpubpf_job_call_errors_total", "job_id, error", OF_JOB), "{{job_id}} {{error}}"),), empty="No call of the job failed."),
        )),
        Row("Its memory and copies", (
            Panel("Live memory", TIMESERIES, p.BYTES, "Requested and not freed.", "Grows each step: a leak; look for tensors kept alive.",
                  (Query(p.total("gpubpf_job_live_bytes", GPU, OF_JOB), BY_GPU),), links=_BOTH, empty=_probed("memory")),
            Panel("Allocations", TIMESERIES, p.RATE, "By kind of memory.", "Hundreds a second, not from a pool: allocate outside of the loop.",
                  (Query(p.rate("gpubpf_job_allocations_total", GPU + ", kind", OF_JOB), BY_GPU + " {{kind}}"),), links=_BOTH, empty=_probed("memory")),
            Panel("Copies", TIMESERIES, p.BYTES_PER_SECOND, "By direction.", "Much from the host: pin memory, overlap.",
                  (Query(p.rate("gpubpf_job_copied_bytes_total", GPU + ", direction", OF_JOB), BY_GPU + " {{direction}}"),), links=_BOTH, empty=_probed("copy")),
        )),
        Row("What it takes", (
            Panel("Power", TIMESERIES, p.WATTS, "By its share of SM utilization.", "Compare the GPUs: one that draws less does less.",
                  (Query(p.rate("gpubpf_job_energy_joules_total", GPU, OF_JOB), BY_GPU),), width=12, links=_BOTH, empty="Nothing here: the board counts no energy."),
            Panel("Energy per kernel", TIMESERIES, p.JOULES, "Of all its GPUs.", "Compare with itself: it rises when kernels get larger, or when the GPU waits.",
                  (Query(f"{p.rate('gpubpf_job_energy_joules_total', 'job_id', OF_JOB)} / ({p.kernels('job', 'job_id', OF_JOB)} > 0)", p.BY_JOB),), width=12, empty="Nothing here: the job ran no kernel."),
        )),
    ),
)  # fmt: skip
