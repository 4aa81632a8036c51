"""The dashboard of processes."""

# ruff: noqa: E501  prose in a table
from __future__ import annotations

from deploy.monitoring import panels as p
from deploy.monitoring.panels import (
    BYTES,
    OF_GPU,
    OF_NODE,
    RATE,
    STAT,
    TABLE,
    TIMESERIES,
    Board,
    Panel,
    Query,
    Row,
    where,
)

_OF = OF_NODE + ',pid=~"$pid"'
_ON = OF_GPU + ',pid=~"$pid"'
_BY = "instance, pid, gpu"
_LEGEND = "{{name}} {{pid}} ({{user}}) on {{instance}} GPU {{gpu}}"
_EMPTY = "Nothing here: needs --process-metrics on the agent"
_LINKS = (p.TO_PROCESS, p.TO_GPU)


def _named(expr: str) -> str:
    """The 20 with most, with the process's name and user. A pid is of one node."""
    info = f"max by (cluster, instance, pid, name, user) (gpubpf_process_info{where(_OF)})"
    return f"topk(20, {expr}) * on (cluster, instance, pid) group_left (name, user) {info}"


def _lines(expr: str, more: str = "") -> tuple[Query, ...]:
    return (Query(_named(expr), _LEGEND + more),)


PROCESS = Board(
    p.PROCESS,
    "gpubpf / Process",
    "What each process asks of the GPUs: the 20 with most in each panel. Needs --process-metrics, which is off by default: "
    "each process has series of its own, at most --max-processes of a node. For a look now, without it: `gpubpf top` on the node.",
    ("cluster", "instance", "gpu", "pid"),
    (
        Row("Who is it?", (
            Panel("Processes by memory held", TABLE, BYTES, "By the driver's count; the 20 with most.", "Much memory and no kernels below: an idle holder. Click its pid to see it alone.",
                  (Query(_named(p.total("gpubpf_process_memory_used_bytes", _BY, _ON))),), width=12, links=_LINKS, empty=f"{_EMPTY}."),
            Panel("Jobs on these GPUs", TABLE, p.RATIO, "With the share of the last five minutes in which each did something.", "A process has no label of its job; these are the candidates.",
                  (Query(f"topk(20, sum by (cluster, instance, gpu, job_id) (rate(gpubpf_job_active_seconds_total{where(OF_GPU)}[5m])) and sum by (cluster, instance, gpu, job_id) (rate(gpubpf_job_held_seconds_total{where(OF_GPU)}[5m])) > 0)"),), width=6, links=(p.TO_JOB,), empty="Nothing here: needs --jobs."),
            Panel("Started", TABLE, p.AGO, "The 20 that started last.", "One that started just now may explain what changed.",
                  (Query(_named(p.most("gpubpf_process_start_time_seconds", "instance, pid", _OF)) + " * 1000"),), width=6, links=(p.TO_PROCESS,), empty=f"{_EMPTY}."),
        )),
        Row("What it asks", (
            Panel("Kernels", TIMESERIES, RATE, "Run per second, launched one by one or by graphs.", "Stopped while the others go on: this one hangs, or has ended its work.",
                  _lines(p.kernels("process", _BY, _ON)), width=12, links=_LINKS, empty=f"{_EMPTY}, and --probe launch."),
            Panel("Calls", TIMESERIES, RATE, "Into the driver, by function.", "Which function is it busy with? One that only synchronizes or queries events waits.",
                  (Query(_named(p.rate("gpubpf_process_calls_total", "instance, pid, function", _OF)), "{{name}} {{pid}} ({{user}}) on {{instance}} {{function}}"),), width=12, links=(p.TO_PROCESS, p.TO_NODE), empty=f"{_EMPTY}."),
            Panel("Allocated", TIMESERIES, p.BYTES_PER_SECOND, "Bytes requested per second.", "All the time, not from a pool: it allocates in its inner loop.",
                  _lines(p.rate("gpubpf_process_allocated_bytes_total", _BY + ", kind", _ON), " {{kind}}"), links=_LINKS, empty=f"{_EMPTY}, and --probe memory."),
            Panel("Copies", TIMESERIES, p.BYTES_PER_SECOND, "By direction.", "Much from the host: pin memory, overlap.",
                  _lines(p.rate("gpubpf_process_copied_bytes_total", _BY + ", direction", _ON), " {{direction}}"), links=_LINKS, empty=f"{_EMPTY}, and --probe copy."),
            Panel("Time in waits", TIMESERIES, p.COUNT, "Threads of it that are blocked in synchronizing calls, on average.", "Near 0 with idle SMs: the host is late.",
                  _lines(p.rate("gpubpf_process_wait_seconds_total", _BY, _ON)), links=_LINKS, empty=f"{_EMPTY}, and --probe wait."),
        )),
        Row("What it gets", (
            Panel("SM utilization", TIMESERIES, p.RATIO, "Share of time in which its kernels ran, by the driver.", "High without kernels above: a kernel that doesn't end.",
                  _lines(p.total("gpubpf_process_sm_utilization_ratio", _BY, _ON)), "sm_utilization", True, links=_LINKS, empty=f"{_EMPTY}, and a driver and board that tell utilization by process."),
            Panel("Live memory", TIMESERIES, BYTES, "Requested and not freed, by kind.", "Grows each step: a leak.",
                  _lines(p.total("gpubpf_process_live_bytes", _BY + ", kind", _ON), " {{kind}}"), links=_LINKS, empty=f"{_EMPTY}, and --probe memory."),
            Panel("Without series", STAT, p.COUNT, "Processes beyond --max-processes, by node: they are in no panel here.", "Raise --max-processes, or look with `gpubpf top` on the node.",
                  (Query(p.most("gpubpf_agent_processes_without_series", "instance", OF_NODE), p.BY_NODE),), p.ANY, links=(p.TO_NODE,)),
        )),
    ),
)  # fmt: skip
