"""Beside others on one node, each at its own default port: the real node_exporter, the real
nvitop-exporter, and a real Prometheus that scrapes all. And in their place: deploy/MIGRATION.md."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.migration import tables
from deploy.migration.__main__ import PROGRAM, document
from deploy.migration.tables import BESIDE, DCGM, NEIGHBOURS, NODE, NVITOP, OPTIONS, OURS, QUERIES
from deploy.monitoring.alerts import ALERTS
from gpubpf import config
from gpubpf.compat import coverage
from gpubpf.metrics import LATE, METRICS
from gpubpf.parse import DEFAULT_PORT
from tests.conftest import BUILD, GPUBPF, ROOT, Agent, eventually, get
from tests.deploy.network import own_network
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.node import Node
from tests.fakegpu.nvml_control import NvmlControl

GIB = 1 << 30
PORTS = {row.program: row.ports for row in NEIGHBOURS}
THERE = (OURS, NODE, NVITOP)  # what runs here
PAGES = {program: f"http://127.0.0.1:{PORTS[program][0]}/metrics" for program in THERE}
Figures = dict[str, float]


def _dropped(pattern: str, action: str) -> dict[str, Any]:
    return {"source_labels": ["__name__"], "regex": pattern, "action": action}


class Beside(Prometheus):
    """All at once, under jobs of their own. In dcgm-exporter's place is what gpubpf says by its
    names: it can't be had here."""

    def config(self, target: str) -> dict[str, Any]:
        shipped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        (node,) = shipped["scrape_configs"][0]["relabel_configs"]
        jobs = {
            OURS: (OURS, _dropped("(DCGM|nvidia_smi)_.+", "drop")),
            DCGM: (OURS, _dropped("DCGM_.+", "keep")),
            NODE: (NODE, _dropped("none", "drop")),
            NVITOP: (NVITOP, _dropped("none", "drop")),
        }
        config = super().config(target)
        config["scrape_configs"] = [
            {
                "job_name": job,
                "static_configs": [{"targets": [f"127.0.0.1:{PORTS[program][0]}"]}],
                "relabel_configs": [node],
                "metric_relabel_configs": [rule],
            }
            for job, (program, rule) in jobs.items()
        ]
        return config


class Switched(Prometheus):
    """gpubpf alone, with the names of the others; and nvitop-exporter, which has no --compat."""

    def config(self, target: str) -> dict[str, Any]:
        config = super().config(target)
        nvitop = {"targets": [f"127.0.0.1:{PORTS[NVITOP][0]}"]}
        config["scrape_configs"].append({"job_name": NVITOP, "static_configs": [nvitop]})
        return config


class Rig(NamedTuple):
    agent: Agent
    control: NvmlControl
    beside: Beside
    switched: Switched
    control_socket: str


def page(program: str) -> str:
    with contextlib.suppress(OSError):
        return get(PAGES[program])
    return ""


def names(program: str) -> set[str]:
    return {
        sample.name
        for family in text_string_to_metric_families(page(program))
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("neighbours")
    control_socket = str(directory / "control.sock")
    with ExitStack() as stack:
        stack.enter_context(own_network())
        node = stack.enter_context(Node(BUILD, directory / "state", devices=2))
        control = NvmlControl(node.path)
        stack.callback(control.close)
        for device in range(2):
            control.board(device, "hopper")
        control.state.devices[0].memory_used = 76 * GIB  # almost full
        control.figures(0, temperature=91, throttle_reasons=0x40)
        control.figures(1, utilization=12)

        def run(*command: str | Path) -> None:
            with (directory / "log").open("ab") as log:
                process = subprocess.Popen(command, env=node.environment(), stdout=log, stderr=log)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)

        run(node.workload, "--demo", "600")
        run("prometheus-node-exporter")
        run(Path(sys.executable).with_name("nvitop-exporter"))
        agent = Agent(
            *("--listen", f":{DEFAULT_PORT}", "--compat", "dcgm,nvidia-smi"),
            *("--library", str(node.library), "--nvml-library", str(node.nvml_library)),
            *("--process-metrics", "--control-socket", control_socket),
            environment=node.environment(),
        )
        stack.callback(agent.stop)
        for program in THERE:
            assert eventually(lambda program=program: page(program), bool, 20), program  # type: ignore[misc]
        beside = Beside(directory / "beside", "")
        stack.callback(beside.stop)
        switched = Switched(directory / "switched", f"127.0.0.1:{PORTS[OURS][0]}")
        stack.callback(switched.stop)
        yield Rig(agent, control, beside, switched, control_socket)


# --- ports and names ----------------------------------------------------------------------------


def listening() -> set[int]:
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
    ]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def test_default_ports_are_apart(rig: Rig) -> None:
    ports = [port for row in NEIGHBOURS for port in row.ports]
    assert len(set(ports)) == len(ports)
    assert PORTS[OURS] == (DEFAULT_PORT,)
    servers = {int(one.url.rpartition(":")[2]) for one in (rig.beside, rig.switched)}
    assert listening() - servers == {PORTS[program][0] for program in THERE}
    for program in {*PORTS} - {*THERE}:  # which could start now
        for port in PORTS[program]:
            socket.create_server(("0.0.0.0", port)).close()


def test_no_name_is_anothers(rig: Rig) -> None:
    found = {program: names(program) for program in THERE}
    ours = {name for name in found[OURS] if not name.startswith(("DCGM_", "nvidia_smi_"))}
    assert len(ours) > 100
    assert all(name.startswith("gpubpf_") for name in ours)
    assert not found[OURS] & (found[NODE] | found[NVITOP])
    for row in NEIGHBOURS:
        prefixes = tuple(re.findall(r"`(\w+_)`", row.names))
        others = found.get(row.program, set()) - (found[OURS] - ours)
        assert {name for name in others if not name.startswith(prefixes)} == set()


def test_no_name_of_ours_is_in_a_coverage_table() -> None:
    theirs = {entry.name for entries in coverage.COVERAGE.values() for entry in entries}
    assert not {metric.sample_name for metric in METRICS + LATE} & theirs


def test_all_are_scraped_at_once(rig: Rig) -> None:
    rows = eventually(
        lambda: rig.beside.query("up"), lambda rows: sum(number for _, number in rows) == 4, 20
    )
    assert {labels["job"]: number for labels, number in rows} == dict.fromkeys(
        (OURS, DCGM, NODE, NVITOP), 1.0
    )


# --- together -----------------------------------------------------------------------------------


def test_with_node_exporter(rig: Rig) -> None:
    """Each query gives one figure of the node, which is made of both."""
    for what, query in BESIDE:
        rows = eventually(lambda query=query: rig.beside.query(query), bool, 20)  # type: ignore[misc]
        assert [labels["node"] for labels, _ in rows] == ["127.0.0.1"], what
    memory = int(re.findall(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024

    def both() -> tuple[float, float]:
        rows = (
            rig.beside.query(BESIDE[0][1]),
            rig.beside.query("gpubpf_node_gpu_process_resident_bytes"),
        )
        part, held = (row[0][1] for row in rows)
        return part, held / memory

    part, expected = eventually(both, lambda seen: math.isclose(*seen))
    assert part == pytest.approx(expected)
    assert 0 < part < 1


def test_compared_with_dcgm_exporter(rig: Rig) -> None:
    """Both by their own names, under their own jobs: they differ by nothing."""
    rows = eventually(lambda: rig.beside.query(tables.COMPARE), lambda rows: len(rows) == 2, 20)
    assert [number for _, number in rows] == [0, 0]
    assert rig.beside.query(tables.MISSING) == []
    less = tables.MISSING.replace('{job="gpubpf"}', '{job="gpubpf",gpu="0"}')
    assert [labels["gpu"] for labels, _ in rig.beside.query(less)] == ["1"]


def test_nothing_of_the_driver_is_changed() -> None:
    """No function of NVML's that sets, makes or clears something; but event sets, its own."""
    text = "".join(path.read_text() for path in (ROOT / "gpubpf").rglob("*.py"))
    called = {*re.findall(r"\bnvml[A-Z]\w+", text)}
    assert "nvmlDeviceGetHandleByIndex" in {name.removesuffix("_v2") for name in called}
    changing = re.compile(r"nvml\w*?(Set|Reset|Clear|Create|Destroy|Modify|Freeze)([A-Z]|$)")
    assert {name for name in called if changing.match(name)} <= {
        "nvmlEventSetCreate",
        "nvmlEventSetFree",
        "nvmlEventSetWait",
        "nvmlEventSetWait_v2",
    }
    assert "libdcgm" not in text


def test_driver_is_let_go_while_another_reads_it(rig: Rig) -> None:
    def up() -> float:
        return rig.agent.metrics()["gpubpf_agent_source_up", frozenset({("source", "nvml")})]

    def ask(what: str) -> None:
        command = [str(GPUBPF), what, "--control-socket", rig.control_socket]
        assert subprocess.run(command, capture_output=True, timeout=30).returncode == 0

    ask("release")
    try:
        assert eventually(up, lambda seen: not seen) == 0
        assert "gpu_temperature_C" in page(NVITOP)
    finally:
        ask("resume")
    assert eventually(up, bool) == 1


# --- before and after ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def later(rig: Rig) -> Rig:
    """When what counts has counted, between two scrapes and more."""

    def counted() -> float:
        rows = rig.switched.query("min(count_over_time(gpubpf_gpu_energy_joules_total[1m]))")
        return rows[0][1] if rows else 0

    eventually(counted, lambda scrapes: scrapes >= 2, 20)
    begun = counted()
    rig.control.figures(
        0, energy_mj=10**9, violation_thermal_ns=10**12, pcie_replays=10**6, ecc_uncorrected=10**6,
        remapped_failure=1,
    )  # fmt: skip
    rig.control.event(0, "xid", 79)
    eventually(counted, lambda scrapes: scrapes >= begun + 3, 20)
    return rig


def figures(rows: list[tuple[dict[str, str], float]]) -> Figures:
    """By GPU: its index, or its UUID as nvidia_gpu_exporter writes it."""
    found = {}
    for labels, number in rows:
        uuid = labels.get("uuid", "").lower().removeprefix("gpu-")
        key = labels.get("gpu") or labels.get("index") or uuid
        assert key not in found, labels
        found[key] = number
    return found


def asked(server: Prometheus, *queries: str) -> list[Figures]:
    """At one moment, of which every scrape is in."""
    at = time.time() - 1
    return [figures(server.query(query, at)) for query in queries]


def indices(server: Prometheus) -> Mapping[str, str]:
    rows = server.query("gpubpf_gpu_info")
    return {labels["uuid"].lower().removeprefix("gpu-"): labels["gpu"] for labels, _ in rows}


def alike(server: Prometheus, before: str, after: str) -> tuple[Figures, Figures]:
    by_uuid = indices(server)
    found = [
        {by_uuid.get(gpu, gpu): number for gpu, number in figures.items()}
        for figures in asked(server, before, after)
    ]
    return found[0], found[1]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.of}: {query.what}")
def test_before_and_after(later: Rig, query: tables.Query) -> None:
    def close(seen: tuple[Figures, Figures]) -> bool:
        before, after = seen
        if not before or before.keys() != after.keys():
            return False
        return not query.alike or after == pytest.approx(before, rel=1e-3)

    if query.what == "Alert: it fails":  # which it doesn't
        query = query._replace(before=query.before[:-1] + "1", after=query.after[:-1] + "1")
    seen = eventually(lambda: alike(later.switched, query.before, query.after), close, 15)
    assert close(seen), seen


def test_an_alert_is_of_the_gpu_that_has_it(later: Rig) -> None:
    of_gpu_1 = {"Alert: little used"}
    for query in QUERIES:
        if query.what.startswith("Alert") and query.of == DCGM:
            (found,) = asked(later.switched, query.after)
            assert found.keys() == {"1" if query.what in of_gpu_1 else "0"}, query.what


GIVEN = [
    (exporter, entry)
    for exporter, entries in coverage.COVERAGE.items()
    for entry in entries
    if entry.given and entry.query and "gpubpf_mig_" not in entry.query
]
NOT_ON_THE_BOARD = {"ENC_UTIL", "RETIRED_SBE", "RETIRED_DBE", "RETIRED_PENDING"}  # DCGM_FI_DEV_…


def test_every_metric_with_a_query_gives_the_same(later: Rig) -> None:
    """deploy/COVERAGE.md, all of it that this board has."""
    absent: dict[str, set[str]] = {exporter: set() for exporter in coverage.COVERAGE}
    for exporter, entry in GIVEN:
        rounded = 1.0 if exporter == DCGM and " / " in entry.query else 0.0
        before, after = alike(later.switched, entry.name, entry.query)
        assert before.keys() == after.keys(), entry
        assert after == pytest.approx(before, rel=1e-6, abs=rounded), entry
        if not before:
            absent[exporter].add(entry.name.removeprefix("DCGM_FI_DEV_"))
    assert absent[DCGM] == NOT_ON_THE_BOARD
    assert len(GIVEN) - sum(map(len, absent.values())) > 120


# --- the page -----------------------------------------------------------------------------------


def test_the_page_is_fresh() -> None:
    path = str(ROOT / "deploy" / "MIGRATION.md")
    assert coverage.main(["--check", path], document, PROGRAM) == 0, "deploy.migration --write it"


def test_queries_are_promql_of_what_there_is() -> None:
    ours = {metric.sample_name for metric in METRICS + LATE}
    theirs = {entry.name for entries in coverage.COVERAGE.values() for entry in entries}
    for query in QUERIES:
        promql_parser.parse(query.before)
        promql_parser.parse(query.after)
        assert {*re.findall(r"gpubpf_\w+", query.after)} <= ours
        if query.of != NVITOP:
            assert {*re.findall(r"(?:DCGM|nvidia_smi)_\w+", query.before)} <= theirs
        assert {*re.findall(r"`(Gpubpf\w+)`", query.note)} <= {a.full_name for a in ALERTS}
    for block in re.findall(r"```promql\n(.+?)```", document(), re.S):
        for text in block.split("\n\n"):
            promql_parser.parse("\n".join(re.findall(r"^(?!#).+", text, re.M)))
            assert {*re.findall(r"gpubpf_\w+", text)} <= ours


def test_options_of_ours_exist() -> None:
    ours = {option.name for option in config.OPTIONS}
    for option in OPTIONS:
        for name in re.findall(r"--([\w-]+)", option.ours):
            assert name in ours
    for name in re.findall(r"`--([\w-]+)", document().partition("## Options")[0]):
        assert name in ours
