"""Grafana's dashboards, drawn from the tables in `boards/`: `python -m deploy.monitoring`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.monitoring import panels
from deploy.monitoring.boards import BOARDS
from deploy.monitoring.panels import Board, Link, Panel, alerts, where
from deploy.monitoring.thresholds import THRESHOLDS

_KINDS: dict[str, Any] = {
    panels.TIMESERIES: timeseries.Panel,
    panels.STAT: stat.Panel,
    panels.TABLE: table.Panel,
}
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
_MIN_STEP = "15s"  # nothing is scraped more often by default: no query asks for more points
# Blue and vermilion of Okabe and Ito: people who are colour-blind tell them apart, too.
WELL, BAD = "#0072B2", "#D55E00"
_INSTANCE = panels.where(panels.OF_NODE)
_LABELS = {  # variable -> the query that lists its values
    "cluster": "label_values(gpubpf_agent_info, cluster)",
    "instance": f"label_values(gpubpf_agent_info{where(panels.ALL)}, instance)",
    "gpu": f"label_values(gpubpf_gpu_up{_INSTANCE}, gpu)",
    "job_id": f"label_values(gpubpf_job_info{where(panels.ALL)}, job_id)",
    "pid": f"label_values(gpubpf_process_info{_INSTANCE}, pid)",
}
# An external label is absent in the Prometheus that scrapes: all of them are none, too.
_ALL = {"cluster": ".*"}
_TEXTS = {"step_time": "training_batch_time_seconds", "step_label": "job_id"}
_SCOPES = {"instance": panels.OF_NODE, "gpu": 'gpu=~"$gpu|"', "job_id": 'job_id=~"$job_id|"'}


def json_of(board: Board) -> str:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.what)
        .tags(["gpubpf"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("gpubpf")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["gpubpf"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for name in board.variables:
        made = made.with_variable(_variable(name))
    number = itertools.count(1)  # Grafana wants each panel to have one of its own
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(next(number)))
        for panel in row.panels:
            made = made.with_panel(_panel(panel).id(next(number)))
    drawn = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for panel in drawn["panels"]:
        if panel.get("options", panel) is None:  # Grafana's schema wants some
            panel["options"] = {}
    drawn["annotations"] = {"list": [*_annotations(board)]}
    return json.dumps(drawn, indent=1, sort_keys=True) + "\n"


def _annotations(board: Board) -> Iterator[dict[str, Any]]:
    """Prometheus's own form, which the library's model lacks."""
    scope = ",".join(text for name, text in _SCOPES.items() if name in board.variables)
    source = {"type": "prometheus", "uid": "$datasource"}
    yield {
        "name": "Alerts",
        "datasource": source,
        "enable": True,
        "iconColor": BAD,
        "expr": alerts(scope),
        "step": _MIN_STEP,
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}} {{instance}} {{gpu}} {{job_id}}",
    }
    xids = f"gpubpf_gpu_xid_last_timestamp_seconds{where(scope)} * 1000"
    if "job_id" in board.variables:  # it has no label of a job: those of its GPUs
        held = f"gpubpf_job_held_seconds_total{where(panels.OF_JOB)}"
        xids = f"gpubpf_gpu_xid_last_timestamp_seconds{where(panels.ALL)} * 1000"
        xids += f" and on (cluster, instance, gpu) {held}"
    yield {
        "name": "XIDs",
        "datasource": source,
        "enable": True,
        "iconColor": "#CC79A7",
        "expr": xids,
        "useValueForTime": True,  # when it came, not when it was scraped
        "step": _MIN_STEP,
        "titleFormat": "XID {{xid}}",
        "textFormat": "{{instance}} GPU {{gpu}}",
    }


def _variable(name: str) -> Any:
    if name in _TEXTS:
        return dashboard.TextBoxVariable(name).default_value(_TEXTS[name])
    return (
        dashboard.QueryVariable(name)
        .datasource(_SOURCE)
        .query(_LABELS[name])
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NUMERICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(_ALL.get(name, ".+"))
        .current(models.VariableOption(text="All", value="$__all"))
    )


def _panel(panel: Panel) -> Any:
    made = (
        _KINDS[panel.kind]()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_SOURCE)
        .span(panel.width)
        .height(4 if panel.kind == panels.STAT else 8)
        .thresholds(_thresholds(panel))
        .interval(_MIN_STEP)
    )
    if panel.threshold and panel.kind == panels.TIMESERIES:
        style = common.GraphThresholdsStyleConfig().mode(shapes.GraphTresholdsStyleMode.DASHED)
        made = made.thresholds_style(style)
    if panel.kind == panels.TABLE:  # Grafana's names of columns, and ours
        columns = {"excludeByName": {"Time": True}, "renameByName": {"Value": panel.title}}
        organize = models.DataTransformerConfig(id_val="organize", options=columns)
        made = made.with_transformation(organize)
    if panel.unit == panels.RATIO:
        made = made.min(0.0)
    if panel.empty:
        made = made.no_value(panel.empty)
    if panel.links:
        made = made.data_links([_link(link, panel.kind) for link in panel.links])
    for letter, query in zip("ABCD", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend)
        if panel.kind == panels.TABLE:
            target = target.instant().format(PromQueryFormat.TABLE)
        elif panel.kind == panels.STAT:
            target = target.instant()
        made = made.with_target(target)
    return made


def limit(panel: Panel) -> float | None:
    if panel.threshold == panels.ANY:
        return 1
    return THRESHOLDS[panel.threshold].value if panel.threshold else None


def _thresholds(panel: Panel) -> Any:
    steps = [models.Threshold(value=None, color=WELL)]
    value = limit(panel)
    if value is not None:
        low, high = (BAD, WELL) if panel.below else (WELL, BAD)
        steps = [models.Threshold(None, low), models.Threshold(value, high)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _link(link: Link, kind: str) -> Any:
    """In a table a row's values are fields, elsewhere a series' are labels."""
    place = "__data.fields" if kind == panels.TABLE else "__field.labels"
    told = "".join(f"&var-{label}=${{{place}.{label}}}" for label in link.labels)
    kept = "${__url_time_range}&${datasource:queryparam}&${cluster:queryparam}"
    title = "this process" if link == panels.TO_PROCESS else link.uid.removeprefix("gpubpf-")
    made = dashboard.DashboardLink(f"open {title}").type(models.DashboardLinkType.LINK)
    return made.url(f"/d/{link.uid}?{kept}{told}").target_blank(False)


def files() -> Iterator[tuple[str, str]]:
    for board in BOARDS:
        yield f"{board.uid}.json", json_of(board)
