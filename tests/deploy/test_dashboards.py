"""The dashboards: drawn from their tables, complete, and each query of each panel, variable and
annotation returns data from a real Prometheus that scrapes the simulated node, with the labels that
its legend and its links need."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest

from deploy.monitoring import panels
from deploy.monitoring.__main__ import main
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.boards import BOARDS
from deploy.monitoring.dashboards import BAD, WELL, files, json_of, limit
from deploy.monitoring.panels import Board, Panel, Query
from deploy.monitoring.recording import RECORDING
from deploy.monitoring.thresholds import THRESHOLDS
from gpubpf.metrics import LATE, METRICS
from tests.conftest import BUILD, ROOT, eventually
from tests.deploy.test_serve import Prometheus
from tests.fakegpu import scenes
from tests.fakegpu.nvml_control import NvmlControl
from tests.fakegpu.scenes import SCENES, played
from tests.fakekube.kubelet import FakeKubelet

SHIPPED = ROOT / "deploy" / "grafana"
RULES = ROOT / "deploy" / "prometheus" / "rules"
ALL = [
    pytest.param(board, panel, id=f"{board.uid}: {panel.title}")
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
]
BY_UID = {board.uid: board for board in BOARDS}
NODES = ("node-a", "node-b")
LOST = str(len(SCENES))  # the GPU that falls off the bus

# MISSION's classes of metrics, and what of each must be on some dashboard.
VISIBLE = {
    "B1 compute": "gpu_sm_utilization_ratio gpu_tensor_utilization_ratio",
    "B2 memory": "gpu_memory_used_bytes gpu_memory_size_bytes gpu_memory_fragmentation_ratio",
    "B3 links": "gpu_nvlink_utilization_ratio gpu_pcie_throughput_bytes_per_second "
    "gpu_pcie_utilization_ratio",
    "B4 heat and power": "gpu_temperature_celsius gpu_power_watts gpu_energy_joules_total "
    "job_energy_joules_total",
    "B5 CUDA calls": "process_kernel_launches_total gpu_allocations_total gpu_wait_seconds_total "
    "gpu_copied_bytes_total gpu_diagnosis job_diagnosis",
    "B6 node": "node_shm_used_bytes node_container_shm_fullest_ratio "
    "node_gpu_process_cpu_seconds_total node_gpu_process_resident_bytes",
    "B7 faults": "gpu_xid_errors_total gpu_ecc_errors_total gpu_remapped_rows_total "
    "gpu_row_remap_pending gpu_nvlink_link_errors_total gpu_throttled_seconds_total",
}

VARIABLES = {
    "$__rate_interval": "5s",
    "$__range": "60s",
    "$cluster": ".*",
    "$instance": ".+",
    "$gpu": ".+",
    "$job_id": ".+",
    "$pid": ".+",
    # No job here has step times: a histogram of the agent stands in, to try the query's form.
    "${step_time}": "gpubpf_gpu_allocation_size_bytes",
    "$step_label": "uuid",
}


def asked(expr: str, **chosen: str) -> str:
    """A query with the dashboard's variables as Grafana puts them in, where all are chosen."""
    for name, text in {**VARIABLES, **{f"${name}": text for name, text in chosen.items()}}.items():
        expr = expr.replace(name, text)
    assert "$" not in expr.replace('"$1', "").replace("XID $1", "").replace("read $1", "")
    return expr


def drawn(board: Board) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_of(board))
    return found


def queries(board: Board) -> list[Query]:
    return [query for row in board.rows for panel in row.panels for query in panel.queries]


def metrics_in(text: str) -> set[str]:
    return {*re.findall(r"\bgpubpf_\w+", text)}


# --- the tables and the files --------------------------------------------------------------------


def test_they_are_what_the_tables_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--dashboards", str(SHIPPED)]) == 0, capsys.readouterr().out
    assert {path.name for path in SHIPPED.glob("*.json")} == {name for name, _ in files()}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_each_is_whole(board: Board) -> None:
    found = drawn(board)
    assert (found["uid"], found["title"]) == (board.uid, board.title)
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names == ["datasource", *board.variables]
    for variable in found["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["multi"]
            assert variable["includeAll"]
            assert variable["allValue"] in (".+", ".*")
    used = {
        name
        for query in queries(board)
        for name in re.findall(r"\$\{?(?!__)([a-z]\w+)", query.expr)
    }
    assert used == set(board.variables)
    (back,) = found["links"]  # to the others
    assert (back["tags"], back["keepTime"], back["includeVars"]) == (["gpubpf"], True, True)
    assert found["tags"] == ["gpubpf"]
    places = [panel["gridPos"] for panel in found["panels"]]
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
    assert all((panel.title, panel.what, panel.do, panel.unit))
    (mine,) = [p for p in drawn(board)["panels"] if p.get("description") == panel.description]
    defaults = mine["fieldConfig"]["defaults"]
    assert defaults["unit"] == panel.unit
    assert defaults.get("noValue", "") == panel.empty
    assert mine["interval"]
    assert panel.threshold in (*THRESHOLDS, panels.ANY, "")
    steps = defaults["thresholds"]["steps"]
    wanted = [None] if limit(panel) is None else [None, limit(panel)]
    assert [step["value"] for step in steps] == wanted
    assert {step["color"] for step in steps} <= {WELL, BAD}
    assert len(mine["targets"]) == len(panel.queries)
    exported = {metric.sample_name for metric in (*METRICS, *LATE)}
    for query in panel.queries:
        promql_parser.parse(asked(query.expr))
        assert metrics_in(query.expr) <= exported
        assert "vector(" not in query.expr  # it says 0 where nothing is known
        assert "cluster" in query.expr
    links = defaults.get("links", [])
    assert len(links) == len(panel.links)
    for link, made in zip(panel.links, links, strict=True):
        target = BY_UID[link.uid]
        assert {*link.labels} <= {*target.variables}
        assert made["url"].startswith(f"/d/{link.uid}?${{__url_time_range}}&")
        place = "__data.fields" if panel.kind == panels.TABLE else "__field.labels"
        told = re.findall(r"&var-(\w+)=\$\{([\w.]+)\}", made["url"])
        assert told == [(label, f"{place}.{label}") for label in link.labels]


@pytest.mark.parametrize("what", VISIBLE)
def test_each_class_of_metrics_is_on_a_dashboard(what: str) -> None:
    shown = {
        name for board in BOARDS for query in queries(board) for name in metrics_in(query.expr)
    }
    assert {f"gpubpf_{name}" for name in VISIBLE[what].split()} <= shown


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_what_an_alert_is_about_is_on_a_dashboard(alert: Any) -> None:
    shown = {
        name for board in BOARDS for query in queries(board) for name in metrics_in(query.expr)
    }
    recorded = {row.name: row.expr for row in RECORDING}
    text = alert.query
    for _ in range(2):  # rules are made of rules
        for name, expr in recorded.items():
            text = text.replace(name, expr)
    names = {name for name in metrics_in(text) if not name.startswith("gpubpf_step_seconds")}
    assert names <= shown


def test_each_dashboard_leads_to_the_next() -> None:
    leads = {
        (board.uid, link.uid)
        for board in BOARDS
        for row in board.rows
        for panel in row.panels
        for link in panel.links
    }
    fleet, node, job, process = (board.uid for board in BOARDS)
    assert {(fleet, node), (fleet, job), (node, job), (node, process), (job, process)} <= leads
    assert {(job, node), (process, node), (process, job)} <= leads


# --- with a real Prometheus ----------------------------------------------------------------------


class Twice(Prometheus):
    """Scrapes one agent as two nodes: what mixes up the GPUs of two is seen."""

    when: float | None = None

    def config(self, target: str) -> dict[str, Any]:
        targets = [{"targets": [target], "labels": {"instance": node}} for node in NODES]
        targets.append({"targets": ["127.0.0.1:1"], "labels": {"instance": "node-down"}})
        return {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "2s",
            },
            "rule_files": [f"{RULES}/*.yml"],
            "scrape_configs": [{"job_name": "gpubpf", "static_configs": targets}],
        }

    def labels(self, expr: str, at: float | None = None) -> list[dict[str, str]]:
        place = f"{expr}" if at is None else f"{expr} @ {at}"
        return [labels for labels, _ in self.query(place)]


class Seen(NamedTuple):
    """What each query returned: while all was well but the scenes, and after the faults."""

    before: dict[str, list[dict[str, str]]]
    after: dict[str, list[dict[str, str]]]
    values: dict[str, list[dict[str, str]]]  # of variables and annotations, by their queries


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Of a node with boards that have everything; kubelet gave a GPU away."""
    directory = tmp_path_factory.mktemp("dashboards")
    options = ("--process-metrics", "--kubelet-socket", str(directory / "kubelet.sock"))
    inside: subprocess.Popen[bytes] | None = None
    with (
        FakeKubelet(directory) as kubelet,
        played(directory, "hopper", 1, f"kubernetes,{scenes.JOBS}", options) as (agent, players),
    ):
        node = next(iter(players.values()))._node
        given = {"nvidia.com/gpu": [node.uuid(0)]}
        kubelet.say([("ml", "trainer-0", {"main": given})], given)
        one = Twice(directory / "prometheus", agent.url.removeprefix("http://"))
        nvml = NvmlControl(directory / "scenes")
        try:
            eventually(lambda: one.query("gpubpf_gpu_kubernetes_slots"), bool, 30)
            time.sleep(6)  # rates are taken over five seconds
            before = {
                query.expr: one.labels(asked(query.expr, gpu="0", job_id=scenes.WELL))
                for board in BOARDS
                for query in queries(board)
            }
            nvml.event(0, "xid", 79)
            nvml.lose(int(LOST))
            inside = subprocess.Popen(  # in a container, whose calls fail
                [
                    *("unshare", "--mount", "sh", "-c"),
                    'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"',
                    *(str(BUILD / "workload"), "--launches", "3", "--failures", "5"),
                    *("--lifetime-ms", "120000"),
                ],
                env={**node.environment(), "JOB": scenes.WELL},
                stdout=subprocess.DEVNULL,
            )
            come = (
                "gpubpf_gpu_up == 0",
                "gpubpf_job_call_errors_total",
                "gpubpf_node_container_shm_fullest_ratio",
                'ALERTS{alertname="GpubpfXid",alertstate="firing"}',
                # The container's first launch was for a GPU that wasn't known yet: any of them.
                *(
                    f'gpubpf_gpu_diagnosis{{diagnosis="{name}"}} == 1'
                    for name in SCENES
                    if name != scenes.WELL
                ),
            )
            missing = eventually(
                lambda: [expr for expr in come if not one.query(expr)], lambda left: not left, 30
            )
            assert not missing
            time.sleep(7)  # what ended is in no rate any more, of neither
            # The two scrapes of one agent aren't of one instant: what changed between them is
            # asked again. What mixes up two nodes does so each time.
            after = eventually(partial(answers, one), lambda rows: not differing(rows), 10)
            values: dict[str, list[dict[str, str]]] = {}
            for board in BOARDS:
                for variable in drawn(board)["templating"]["list"]:
                    if variable["type"] == "query":
                        selector = listed(variable)[0]
                        values[selector] = one.labels(asked(selector))
                for annotation in drawn(board)["annotations"]["list"]:
                    values[annotation["expr"]] = one.labels(asked(annotation["expr"]))
            yield Seen(before, after, values)
        finally:
            if inside is not None:
                inside.kill()
                inside.wait()
            one.stop()
            nvml.close()


def answers(one: Twice) -> dict[str, list[dict[str, str]]]:
    exprs = [query.expr for board in BOARDS for query in queries(board)]
    return {expr: one.labels(asked(expr)) for expr in exprs}


def differing(answers: dict[str, list[dict[str, str]]]) -> set[str]:
    """Queries whose answers for the two nodes, which say the same, aren't the same."""

    def of(node: str, rows: list[dict[str, str]]) -> set[frozenset[tuple[str, str]]]:
        return {
            frozenset((row | {"instance": ""}).items())
            for row in rows
            if row.get("instance") == node
        }

    cut = re.compile(r"topk\(20|bottomk")  # ties are cut anywhere
    return {
        expr
        for expr, rows in answers.items()
        if not cut.search(expr) and of(NODES[0], rows) != of(NODES[1], rows)
    }


def listed(variable: dict[str, Any]) -> tuple[str, str]:
    """The selector and the label of a variable's label_values()."""
    query = variable["query"]
    text = query if isinstance(query, str) else query["query"]
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", text)
    assert found, text
    return found[1], found[2]


def test_the_faults_were_not_there_before(seen: Seen) -> None:
    """What they were made for: each is seen only after."""
    (failed,) = [expr for expr in seen.after if "job_call_errors" in expr]
    (shm,) = [expr for expr in seen.after if "container_shm" in expr]
    assert [seen.before[expr] for expr in (failed, shm)] == [[], []]


@pytest.mark.parametrize(("board", "panel"), ALL)
def test_each_query_returns_data(seen: Seen, board: Board, panel: Panel) -> None:
    for query in panel.queries:
        assert seen.after[query.expr], query.expr


@pytest.mark.parametrize(("board", "panel"), ALL)
def test_who_is_empty_where_all_is_well_says_why(seen: Seen, board: Board, panel: Panel) -> None:
    assert panel.empty or all(seen.before[query.expr] for query in panel.queries)


def named(legend: str, labels: dict[str, str]) -> str:
    """A series' name, as Grafana makes it."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels[found[1]], legend)


@pytest.mark.parametrize(("board", "panel"), ALL)
def test_legends_and_links_have_their_labels(seen: Seen, board: Board, panel: Panel) -> None:
    some_have = {
        label for query in panel.queries for row in seen.after[query.expr] for label in row
    }
    for link in panel.links:
        assert {*link.labels} <= some_have
    names: list[str] = []
    for query in panel.queries:
        rows = seen.after[query.expr]
        legend = asked(query.legend)
        wanted = {*re.findall(r"\{\{(\w+)\}\}", legend)}
        assert all(wanted <= row.keys() for row in rows)
        if panel.kind != panels.TABLE:
            names += [named(legend, row) for row in rows]
    assert len({*names}) == len(names)  # no two lines have one name


@pytest.mark.parametrize(("board", "panel"), ALL)
def test_nodes_are_not_mixed_up(seen: Seen, board: Board, panel: Panel) -> None:
    """Both nodes say the same: what is by GPU is there for each, and nothing is of a GPU alone."""
    for query in panel.queries:
        rows = seen.after[query.expr]
        assert all("instance" in row for row in rows if "gpu" in row or "pid" in row)
        assert query.expr not in differing({query.expr: rows})


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_variables_have_values(seen: Seen, board: Board) -> None:
    found = {
        variable["name"]: {row.get(label, "") for row in seen.values[selector]}
        for variable in drawn(board)["templating"]["list"]
        if variable["type"] == "query"
        for selector, label in (listed(variable),)
    }
    wanted = {  # no Prometheus that scrapes has the label cluster: it is empty, and all match
        "cluster": {""},
        "instance": {*NODES},
        "gpu": {*map(str, range(len(SCENES))), LOST},
        "job_id": {*SCENES, "none", "other"} & found.get("job_id", set()) | {*SCENES},
    }
    assert {name: values for name, values in found.items() if name != "pid"} == {
        name: values for name, values in wanted.items() if name in board.variables
    }
    if "pid" in found:
        assert len(found["pid"]) > len(SCENES)
        assert all(pid.isdecimal() for pid in found["pid"])


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_annotations_are_there(seen: Seen, board: Board) -> None:
    alerts, xids = drawn(board)["annotations"]["list"]
    names = {row["alertname"] for row in seen.values[alerts["expr"]]}
    assert "GpubpfXid" in names or board.uid == panels.JOB
    assert {row["xid"] for row in seen.values[xids["expr"]]} == {"79"}
    for annotation in (alerts, xids):
        promql_parser.parse(asked(annotation["expr"]))
        assert annotation["enable"]


def test_the_first_row_says_what_is_wrong_and_where(seen: Seen) -> None:
    for board in (BY_UID[panels.FLEET], BY_UID[panels.NODE]):
        first = board.rows[0]
        (table,) = [panel for panel in first.panels if panel.title == "What is wrong, and where"]
        rows = seen.after[table.queries[0].expr]
        found = {(row["instance"], row.get("gpu", ""), row["problem"]) for row in rows}
        for node in NODES:
            assert {(node, LOST, "doesn't answer"), (node, "0", "XID 79 in the last hour")} <= found
            diagnosed = {name for where, _, name in found if where == node and name in SCENES}
            assert diagnosed == {*SCENES} - {scenes.WELL}
        assert ("node-down", "", "can't be scraped") in found


def test_the_chart_has_them_too() -> None:
    linked = ROOT / "deploy" / "chart" / "gpubpf" / "dashboards"
    assert {p.name for p in Path(linked).glob("*.json")} == {
        f"{board.uid}.json" for board in BOARDS
    }
