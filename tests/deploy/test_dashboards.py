"""The dashboards: drawn from their tables, complete, and each panel's query returns data from a
real Prometheus that scrapes the simulated node."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from deploy.monitoring import panels
from deploy.monitoring.__main__ import main
from deploy.monitoring.dashboards import files, json_of
from deploy.monitoring.panels import BOARDS, Board, Panel
from deploy.monitoring.thresholds import THRESHOLDS
from gpubpf.metrics import METRICS
from tests.conftest import ROOT, eventually
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.nvml_control import NvmlControl
from tests.fakegpu.scenes import played

SHIPPED = ROOT / "deploy" / "grafana"
ALL = [
    pytest.param(board, panel, id=f"{board.uid}: {panel.title}")
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
]
EMPTY = {
    ("gpubpf-job", "Errors"): {0},  # no call fails
    ("gpubpf-node", "Shared memory"): {1},  # no process is in a container
}
"""Queries of panels that have no data on the simulated node, by their place."""

VARIABLES = {
    "$__rate_interval": "10s",
    "$__range": "60s",
    "$instance": ".+",
    "$gpu": ".+",
    "$job_id": ".+",
    "${step_time}": "gpubpf_gpu_allocation_size_bytes",  # a histogram that is there
    "$step_label": "uuid",
}


def asked(expr: str) -> str:
    """A query with the dashboard's variables as Grafana puts them in."""
    for name, text in VARIABLES.items():
        expr = expr.replace(name, text)
    assert "$" not in expr
    return expr


def test_they_are_what_the_tables_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--dashboards", str(SHIPPED)]) == 0, capsys.readouterr().out
    assert {path.name for path in SHIPPED.glob("*.json")} == {name for name, _ in files()}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_each_is_whole(board: Board) -> None:
    drawn = json.loads(json_of(board))
    assert (drawn["uid"], drawn["title"]) == (board.uid, board.title)
    ids = [panel["id"] for panel in drawn["panels"]]
    assert len(set(ids)) == len(ids)
    names = [variable["name"] for variable in drawn["templating"]["list"]]
    assert names == ["datasource", *board.variables]
    used = {
        name
        for row in board.rows
        for panel in row.panels
        for query in panel.queries
        for name in re.findall(r"\$\{?(?!__)(\w+)", query.expr)
    }
    assert used == set(board.variables)
    places = [panel["gridPos"] for panel in drawn["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)  # none lies over another


@pytest.mark.parametrize(("board", "panel"), ALL)
def test_each_panel_is_whole(board: Board, panel: Panel) -> None:
    assert panel.title
    assert panel.what
    assert panel.unit
    assert not panel.threshold or panel.threshold in THRESHOLDS
    assert panel.link in ("", *(board.uid for board in BOARDS))
    drawn = json.loads(json_of(board))
    (mine,) = [
        p
        for p in drawn["panels"]
        if p["title"] == panel.title and p.get("description") == panel.what
    ]
    assert mine["fieldConfig"]["defaults"]["unit"] == panel.unit
    steps = mine["fieldConfig"]["defaults"]["thresholds"]["steps"]
    values = [THRESHOLDS[panel.threshold].value] if panel.threshold else []
    assert [step["value"] for step in steps] == [None, *values]
    exported = {metric.sample_name for metric in METRICS}
    for query in panel.queries:
        expr = asked(query.expr)
        promql_parser.parse(expr)
        names = {*re.findall(r"\bgpubpf_\w+", query.expr)}
        assert names <= exported
        for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
            assert label in expr or label in (
                label for m in METRICS if m.sample_name in names for label in m.labels
            ) or label == "instance"  # fmt: skip


class Often(Prometheus):
    def config(self, target: str) -> dict[str, Any]:
        config = super().config(target)
        config["global"] = {"scrape_interval": "1s"}
        return config


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Of a node with seven boards that have everything, on which something happens."""
    directory = tmp_path_factory.mktemp("dashboards")
    with played(directory, board="hopper") as (agent, _):
        one = Often(directory / "prometheus", agent.url.removeprefix("http://"))
        nvml = NvmlControl(directory / "scenes")
        try:
            eventually(lambda: one.query("gpubpf_gpu_up"), bool, 30)
            nvml.event(0, "xid", 79)
            time.sleep(15)  # rates are taken over ten seconds
            yield one
        finally:
            one.stop()
            nvml.close()


@pytest.mark.parametrize(("board", "panel"), ALL)
def test_each_query_returns_data(prometheus: Prometheus, board: Board, panel: Panel) -> None:
    found = [bool(prometheus.query(asked(query.expr))) for query in panel.queries]
    empty = EMPTY.get((board.uid, panel.title), set())
    assert found == [place not in empty for place in range(len(found))], panel.queries


def test_variables_have_values(prometheus: Prometheus) -> None:
    for metric, label in (("gpubpf_agent_info", "instance"), ("gpubpf_gpu_up", "gpu")):
        assert {labels[label] for labels, _ in prometheus.query(metric)} != {""}
    jobs = {labels["job_id"] for labels, _ in prometheus.query("gpubpf_job_info")}
    assert "trainer" in jobs
    assert Path(SHIPPED / f"{panels.JOB.uid}.json").exists()
