"""Grafana's dashboards, drawn from the tables in panels.py: `python -m deploy.monitoring`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    gauge,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.monitoring import panels
from deploy.monitoring.panels import Board, Panel
from deploy.monitoring.thresholds import THRESHOLDS

_KINDS: dict[str, Any] = {
    panels.TIMESERIES: timeseries.Panel,
    panels.STAT: stat.Panel,
    panels.TABLE: table.Panel,
    panels.GAUGE: gauge.Panel,
}
_HEIGHT = {panels.TIMESERIES: 8, panels.STAT: 4, panels.TABLE: 8, panels.GAUGE: 4}
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
_LABELS = {  # variable -> the query that lists its values
    "instance": "label_values(gpubpf_agent_info, instance)",
    "gpu": 'label_values(gpubpf_gpu_up{instance=~"$instance"}, gpu)',
    "job_id": "label_values(gpubpf_job_info, job_id)",
}
_TEXTS = {"step_time": "training_batch_time_seconds", "step_label": "job_id"}


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
        if panel.get("options", panel) is None:  # a plugin's own defaults, else
            del panel["options"]
    return json.dumps(drawn, indent=1, sort_keys=True) + "\n"


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
        .all_value(".+")
        .current(models.VariableOption(text="All", value="$__all"))
    )


def _panel(panel: Panel) -> Any:
    made = (
        _KINDS[panel.kind]()
        .title(panel.title)
        .description(panel.what)
        .unit(panel.unit)
        .datasource(_SOURCE)
        .span(panel.width)
        .height(_HEIGHT[panel.kind])
        .thresholds(_thresholds(panel))
    )
    if panel.threshold and panel.kind == panels.TIMESERIES:
        style = common.GraphThresholdsStyleConfig().mode(shapes.GraphTresholdsStyleMode.DASHED)
        made = made.thresholds_style(style)
    if panel.unit == panels.RATIO:
        made = made.min(0.0)
    if panel.link:
        made = made.data_links([_link(panel.link)])
    for letter, query in zip("ABCD", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend)
        if panel.kind == panels.TABLE:
            target = target.instant().format(PromQueryFormat.TABLE)
        made = made.with_target(target)
    return made


def _thresholds(panel: Panel) -> Any:
    green, red = "green", "red"
    steps = [models.Threshold(value=None, color=green)]
    if panel.threshold:
        value = THRESHOLDS[panel.threshold].value
        low, high = (red, green) if panel.below else (green, red)
        steps = [models.Threshold(None, low), models.Threshold(value, high)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _link(uid: str) -> Any:
    label = {panels.NODE.uid: "instance", panels.JOB.uid: "job_id"}[uid]
    url = f"/d/{uid}?${{__url_time_range}}&var-{label}=${{__field.labels.{label}}}"
    made = dashboard.DashboardLink(f"open {uid}").type(models.DashboardLinkType.LINK)
    return made.url(url).target_blank(False)


def files() -> Iterator[tuple[str, str]]:
    for board in panels.BOARDS:
        yield f"{board.uid}.json", json_of(board)
