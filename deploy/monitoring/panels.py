"""What the tables of dashboards in `deploy.monitoring.boards` are made of: the rows' types, and
the pieces of PromQL that they share. `deploy.monitoring.dashboards` draws them.

Variables of a dashboard stand in its queries as $cluster, $instance, $gpu, $job_id, $pid. Every
query groups by `cluster` too, an external label that only a store of several Prometheus servers
has: where it is absent that changes nothing, where it is there no two clusters become one line.
"""

# ruff: noqa: E501  tables
from __future__ import annotations

from typing import NamedTuple

TIMESERIES, STAT, TABLE = "timeseries", "stat", "table"

# Grafana's names of units (grafana-data, valueFormats).
COUNT, RATE, BYTES, BYTES_PER_SECOND = "short", "cps", "bytes", "Bps"
RATIO, SECONDS, CELSIUS, WATTS, JOULES = "percentunit", "s", "celsius", "watt", "joule"
HERTZ, HOURS, AGO = "hertz", "h", "dateTimeFromNow"

ANY = "any"  # a threshold: of what should never be, the first is bad


class Query(NamedTuple):
    expr: str
    legend: str = ""


class Link(NamedTuple):
    """To a dashboard, which is told the values of these labels of the series or row."""

    uid: str
    labels: tuple[str, ...]


class Panel(NamedTuple):
    title: str
    kind: str
    unit: str
    what: str  # it shows
    do: str  # about it
    queries: tuple[Query, ...]
    threshold: str = ""  # a row of THRESHOLDS, the alerts' own, or ANY
    below: bool = False  # what is below the threshold is bad
    width: int = 8  # of 24
    links: tuple[Link, ...] = ()
    empty: str = ""  # what it means when there is nothing to see; else there always is

    @property
    def description(self) -> str:
        return "\n\n".join(text for text in (self.what, self.do, self.empty) if text)


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


class Board(NamedTuple):
    uid: str
    title: str
    what: str
    variables: tuple[str, ...]
    rows: tuple[Row, ...]


FLEET, NODE, JOB, PROCESS = "gpubpf-fleet", "gpubpf-node", "gpubpf-job", "gpubpf-process"

TO_NODE = Link(NODE, ("instance",))
TO_GPU = Link(NODE, ("instance", "gpu"))
TO_JOB = Link(JOB, ("job_id",))
TO_PROCESSES = Link(PROCESS, ("instance", "gpu"))
TO_PROCESS = Link(PROCESS, ("instance", "pid"))

# Scopes: matchers, besides the cluster's.
ALL = ""
OF_NODE = 'instance=~"$instance"'
OF_GPU = f'{OF_NODE},gpu=~"$gpu"'
OF_JOB = 'job_id=~"$job_id"'

GPU = "instance, gpu"  # to group by
BY_GPU = "{{instance}} GPU {{gpu}}"
BY_NODE = "{{instance}}"
BY_JOB = "{{job_id}}"


def where(scope: str) -> str:
    return "{" + ",".join(text for text in ('cluster=~"$cluster"', scope) if text) + "}"


def rate(name: str, by: str, scope: str) -> str:
    return f"sum by (cluster, {by}) (rate({name}{where(scope)}[$__rate_interval]))"


def total(name: str, by: str, scope: str) -> str:
    return f"sum by (cluster, {by}) ({name}{where(scope)})"


def most(name: str, by: str, scope: str) -> str:
    """Of a gauge with one series for each group; for a while there are two when an agent's labels
    change, and their sum would be wrong."""
    return f"max by (cluster, {by}) ({name}{where(scope)})"


def kernels(of: str, by: str, scope: str) -> str:
    """Run per second, launched one by one or by graphs."""
    names = (f"gpubpf_{of}_kernel_launches_total", f"gpubpf_{of}_graph_kernels_total")
    return "(" + " + ".join(rate(name, by, scope) for name in names) + ")"


def sm_utilization(scope: str) -> str:
    """Where a board doesn't tell it, the share of time with a kernel."""
    return f"(gpubpf_gpu_sm_utilization_ratio{where(scope)} or gpubpf_gpu_utilization_ratio{where(scope)})"


def alerts(scope: str) -> str:
    return "ALERTS" + where(
        ",".join(filter(None, ('alertname=~"Gpubpf.*",alertstate="firing"', scope)))
    )


# What is wrong: a text, in which $1 is the value of the label behind it; a query. First come those
# of a GPU, then those of a node.
_GPU_PROBLEMS = (
    ("doesn't answer", "", "gpubpf_gpu_up{where} == 0"),
    ("$1", "diagnosis", "gpubpf_gpu_diagnosis{where} == 1"),
    ("XID $1 in the last hour", "xid", "gpubpf_gpu_xid_last_timestamp_seconds{where} > time() - 3600"),
    ("the driver wants a recovery", "", "gpubpf_gpu_recovery_action{where} > 0"),
    ("no spare memory left", "", "gpubpf_gpu_row_remap_failure{where} == 1"),
    ("bad memory waits for a reset", "", "(gpubpf_gpu_row_remap_pending{where} or gpubpf_gpu_retired_pages_pending{where}) == 1"),
)  # fmt: skip
_NODE_PROBLEMS = (
    ("can't be scraped", "", 'up{where} == 0'),
    ("the agent can't read $1", "source", "gpubpf_agent_source_up{where} == 0"),
)  # fmt: skip
_SCRAPED = 'job=~".*gpubpf.*"'  # as in the alert AgentDown


def problems(of_gpus: str, of_nodes: str) -> str:
    """One row for each: cluster, instance, gpu, problem."""
    rows = [(GPU, of_gpus, *row) for row in _GPU_PROBLEMS]
    rows += [("instance", of_nodes, *row) for row in _NODE_PROBLEMS]
    found = []
    for by, scope, text, label, expr in rows:
        if expr.startswith("up{"):
            scope = ",".join(filter(None, (_SCRAPED, scope)))
        expr = expr.replace("{where}", where(scope))
        replaced = (
            f'label_replace({expr}, "problem", "{text}", "{label}", "{"(.*)" if label else ""}")'
        )
        found.append(f"max by (cluster, {by}, problem) ({replaced})")
    return "topk(100, " + "\nor ".join(found) + ")"
