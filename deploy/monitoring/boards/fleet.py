"""The dashboard of all nodes."""

# ruff: noqa: E501  prose in a table
from __future__ import annotations

from deploy.monitoring import panels as p
from deploy.monitoring.panels import ALL, STAT, TABLE, TIMESERIES, Board, Panel, Query, Row, where

_NEEDS_JOBS = "Nothing here: the agents run without --jobs, or there is no job."


def _diagnosed(name: str) -> str:
    return "sum(gpubpf_gpu_diagnosis" + where(f'diagnosis="{name}"') + ")"


def _hours(what: str) -> str:
    increase = f"increase(gpubpf_job_{what}_seconds_total{where(ALL)}[$__range])"
    return f"topk(20, sum by (cluster, job_id) ({increase}) / 3600)"


FLEET = Board(
    p.FLEET,
    "gpubpf / Fleet",
    "All GPUs of all nodes: is anything wrong and where, how busy they are, who wastes them.",
    ("cluster",),
    (
        Row("Is anything wrong?", (
            Panel("Alerts", STAT, p.COUNT, "Alerts of gpubpf that fire, by severity.",
                  "Their descriptions and RUNBOOK.md say what to do; the table below says where.",
                  (Query(f"count by (severity) ({p.alerts(ALL)})", "{{severity}}"),), p.ANY, width=4,
                  empty="No alert fires; or this Prometheus hasn't loaded the alert rules."),
            Panel("GPUs", STAT, p.COUNT, "GPUs that are known.", "Fewer than yesterday? The table below says which nodes can't be scraped.",
                  (Query(f"count(gpubpf_gpu_up{where(ALL)})"),), width=4),
            Panel("Without an answer", STAT, p.COUNT, "GPUs of which every call of NVML fails.", "Drain the node; reset the GPU or reboot.",
                  (Query(f"sum(gpubpf_gpu_up{where(ALL)} == bool 0)"),), p.ANY, width=4),
            Panel("Stalled", STAT, p.COUNT, "GPUs on which launches stopped while a kernel runs on.", "Open the node from the table below, then the job: the rank that stopped first is the culprit.",
                  (Query(_diagnosed("stalled")),), p.ANY, width=4),
            Panel("Idle holders", STAT, p.COUNT, "GPUs whose memory is held, and on which nothing was launched for a while.", "Ask the job's owner; the table of idle GPU-hours says what it costs.",
                  (Query(_diagnosed("idle_holder")),), p.ANY, width=4),
            Panel("SM utilization", STAT, p.RATIO, "Mean over all GPUs; where a board doesn't tell it, the share of time with a kernel.", "Low: which nodes, which jobs? See Use and Jobs.",
                  (Query(f"avg({p.sm_utilization(ALL)})"),), "sm_utilization", True, width=4),
            Panel("What is wrong, and where", TABLE, p.COUNT, "GPUs that don't answer or want a reset, XIDs of the last hour, diagnoses, and agents that can't be scraped or can't read a source; 100 at most.",
                  "Open the node. A line without a GPU is of the node's agent.",
                  (Query(p.problems(ALL, ALL)),), width=12, links=(p.TO_GPU,), empty="Nothing is wrong."),
            Panel("Alerts that fire", TABLE, p.COUNT, "By node, GPU and job; 100 at most.", "RUNBOOK.md has a section for each.",
                  (Query(f"topk(100, count by (cluster, instance, gpu, job_id, alertname, severity) ({p.alerts(ALL)}))"),), width=12, links=(p.TO_GPU,),
                  empty="No alert fires; or this Prometheus hasn't loaded the alert rules."),
        )),
        Row("Use", (
            Panel("SM utilization by node", TIMESERIES, p.RATIO, "Mean over a node's GPUs.", "A node that stays low: open it, and look at its diagnoses.",
                  (Query(f"avg by (cluster, instance) ({p.sm_utilization(ALL)})", p.BY_NODE),), "sm_utilization", True, 6, (p.TO_NODE,)),
            Panel("Kernels by node", TIMESERIES, p.RATE, "Run per second, launched one by one or by graphs.", "Busy SMs without kernels: a hang, or one very long kernel.",
                  (Query(p.kernels("gpu", "instance", ALL), p.BY_NODE),), width=6, links=(p.TO_NODE,)),
            Panel("Memory in use", TIMESERIES, p.RATIO, "Share of all device memory of a node.", "High with low utilization is held in vain.",
                  (Query(f"{p.total('gpubpf_gpu_memory_used_bytes', 'instance', ALL)} / {p.total('gpubpf_gpu_memory_size_bytes', 'instance', ALL)}", p.BY_NODE),), width=6, links=(p.TO_NODE,)),
            Panel("Power", TIMESERIES, p.WATTS, "Drawn by a node's boards.", "A drop without a drop in utilization often is a collective that hangs.",
                  (Query(p.total("gpubpf_gpu_power_watts", "instance", ALL), p.BY_NODE),), width=6, links=(p.TO_NODE,)),
        )),
        Row("Jobs", (
            Panel("GPU-hours idle by job", TABLE, p.HOURS, "Held and not used, in the time shown; the 20 with most.", "Ask the owner; open the job to see since when.",
                  (Query(_hours("idle")),), width=12, links=(p.TO_JOB,), empty=_NEEDS_JOBS),
            Panel("GPU-hours held by job", TABLE, p.HOURS, "In the time shown; the 20 with most.", "Compare with the idle ones beside.",
                  (Query(_hours("held")),), width=12, links=(p.TO_JOB,), empty=_NEEDS_JOBS),
            Panel("Efficiency by job", TIMESERIES, p.RATIO, "Active time as a share of held time; the 20 that use least.", "Near 0: an idle holder. Half: look at its waits, copies and launches.",
                  (Query(f"bottomk(20, {p.rate('gpubpf_job_active_seconds_total', 'job_id', ALL)} / ({p.rate('gpubpf_job_held_seconds_total', 'job_id', ALL)} > 0))", p.BY_JOB),), width=12, links=(p.TO_JOB,), empty=_NEEDS_JOBS),
            Panel("Diagnoses by job", TIMESERIES, p.COUNT, "GPUs of a job on which a diagnosis holds; the 20 with most.", "The README's table says what each means; RUNBOOK.md what to do.",
                  (Query(f"topk(20, sum by (cluster, job_id, diagnosis) (gpubpf_job_diagnosis{where(ALL)} == 1))", "{{job_id}} {{diagnosis}}"),), width=12, links=(p.TO_JOB,),
                  empty=f"No diagnosis holds of any job. {_NEEDS_JOBS}"),
        )),
        Row("Faults", (
            Panel("XID errors", TIMESERIES, p.COUNT, "Since the agent's start, by code: each step is a new one.", "NVIDIA's list says which codes are a program's fault and which the board's.",
                  (Query(p.total("gpubpf_gpu_xid_errors_total", "instance, gpu, xid", ALL), p.BY_GPU + " XID {{xid}}"),), links=(p.TO_GPU,),
                  empty="No XID since the agents started."),
            Panel("Uncorrected ECC errors", TIMESERIES, p.COUNT, "Since the driver was loaded: each step is new; the 20 GPUs with most.", "Drain the node and reset the GPU; return the board if it comes again.",
                  (Query("topk(20, " + p.total("gpubpf_gpu_ecc_errors_total", p.GPU, 'error="uncorrected",counter="volatile"') + ")", p.BY_GPU),), p.ANY, links=(p.TO_GPU,)),
            Panel("Waiting for a reset", TIMESERIES, p.COUNT, "GPUs with a row remapping, or a page to be retired, that waits for a reset.", "Drain the node when convenient, and reset the GPU.",
                  (Query(f"sum by (cluster, instance) (gpubpf_gpu_row_remap_pending{where(ALL)} or gpubpf_gpu_retired_pages_pending{where(ALL)})", p.BY_NODE),), p.ANY, links=(p.TO_NODE,)),
        )),
        Row("The agents", (
            Panel("CPU", TIMESERIES, p.RATIO, "Of one core; the 20 agents with most.", "Much more than a few percent: how many series and jobs has it?",
                  (Query(f"topk(20, {p.rate('gpubpf_agent_cpu_seconds_total', 'instance', ALL)})", p.BY_NODE),), width=6, links=(p.TO_NODE,)),
            Panel("Memory", TIMESERIES, p.BYTES, "Resident; the 20 agents with most.", "Compare with the limit of the pod or unit.",
                  (Query(f"topk(20, {p.most('gpubpf_agent_memory_bytes', 'instance', ALL)})", p.BY_NODE),), width=6, links=(p.TO_NODE,)),
            Panel("Series", TIMESERIES, p.COUNT, "On an agent's page, and jobs that share job_id other; the 20 agents with most.", "More than was planned for, or jobs in other: --max-jobs, --max-processes, --probe.",
                  (Query(f"topk(20, {p.most('gpubpf_agent_series', 'instance', ALL)})", p.BY_NODE),
                   Query("topk(20, " + p.total("gpubpf_agent_jobs", "instance", 'state="other"') + ")", "{{instance}} jobs in other")), width=6, links=(p.TO_NODE,)),
            Panel("Sources that are down", TIMESERIES, p.COUNT, "0 is well.", "Open the node; the agent's front page says why, in one line.",
                  (Query(f"sum by (cluster, instance) (gpubpf_agent_source_up{where(ALL)} == bool 0)", p.BY_NODE),), p.ANY, width=6, links=(p.TO_NODE,)),
        )),
    ),
)  # fmt: skip
