"""VictoriaMetrics with the shipped configuration: it scrapes the agent and is written to, the rules
say what they say in Prometheus, and a second server keeps what they made."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from deploy.monitoring.__main__ import HERE
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.recording import RECORDING
from deploy.monitoring.thresholds import THRESHOLDS
from tests.conftest import ROOT, eventually, get
from tests.deploy.programs import VERSIONS, later, says
from tests.deploy.test_descriptions import TOLD, told
from tests.deploy.test_rules import CASES, checked
from tests.deploy.test_serve import Prometheus
from tests.deploy.test_stack import Server, bare
from tests.fakegpu.scenes import played

SHIPPED = ROOT / "deploy" / "victoriametrics"
RULES = HERE / "rules" / "*.yml"
DRY = "-promscrape.config.dryRun"
LENIENT = "-promscrape.config.strictParse=false"


class VictoriaMetrics(Prometheus):
    """With a shipped configuration, whose addresses and intervals are the test's."""

    program = later("victoria-metrics")

    def __init__(self, directory: Path, name: str, target: str, retention: str) -> None:
        self._name, self._retention = name, retention
        super().__init__(directory, target)

    def command(self, address: str, *options: str) -> list[str]:
        return [
            self.program,
            f"-promscrape.config={self._directory}/prometheus.yml",
            f"-storageDataPath={self._directory}/data",
            f"-retentionPeriod={self._retention}",
            f"-httpListenAddr={address}",
            "-search.latencyOffset=0s",  # else what is younger than 30 s isn't told
            *options,
        ]

    def config(self, target: str) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load((SHIPPED / f"{self._name}.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        if "external_labels" in config["global"]:
            config["global"]["external_labels"]["cluster"] = "own"
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        return config


class Vmalert(Prometheus):
    """The shipped rules, asked of a store every second, which it also writes to."""

    program = later("victoria-metrics", "vmalert")

    def command(self, address: str, *options: str) -> list[str]:
        blackhole = "-notifier.blackhole"
        return [
            self.program, f"-rule={RULES}", f"-httpListenAddr={address}", blackhole,
            "-evaluationInterval=1s", "-rule.evalDelay=0s", *options,
        ]  # fmt: skip

    def rules(self) -> list[dict[str, Any]]:
        groups = json.loads(get(f"{self.url}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


class Writing(Server):
    """prometheus.yml, and the writing of prometheus-agent.yml."""

    def config(self, target: str) -> dict[str, Any]:
        config = super().config(target)
        agent = yaml.safe_load((HERE / "prometheus-agent.yml").read_text())
        (write,) = agent["remote_write"]
        write["url"] = f"{self._store}/api/v1/write"
        write["queue_config"]["batch_send_deadline"] = "1s"
        return {**config, "remote_write": [write]}


def at(server: Prometheus, query: str, when: float, cluster: str = "") -> dict[frozenset[str], Any]:
    """Labels, but for the cluster, and values. VictoriaMetrics keeps the name in a comparison."""
    url = f"{server.url}/api/v1/query?query={quote(query)}&time={when}&nocache=1"
    rows = json.loads(get(url))["data"]["result"]
    return {
        frozenset(f"{k}={v}" for k, v in row["metric"].items() if k not in ("cluster", "__name__")):
        float(row["value"][1])
        for row in rows
        if row["metric"].get("cluster", "") == cluster
    }  # fmt: skip


# Figures of the scenes come near these: two servers that scrape at different moments may differ.
FAR = {"sm_utilization": "2", "held_memory": "-1"}
LIMITS = {name: f"{row.value:g}" for name, row in THRESHOLDS.items()} | FAR
QUERIES = {row.name: row.expr for row in RECORDING} | {
    row.name: row.expr.format_map(LIMITS) for row in ALERTS
}
ESTIMATES = re.compile(r"rate|increase|predict_linear|:gpubpf_")
"""The same series, not just the same values: VictoriaMetrics doesn't extrapolate to the ends of a
window, and what rules made of rules is of the moment at which each server evaluated them."""


def test_it_reads_what_is_shipped() -> None:
    for name in ("scrape", "year"):
        says(VictoriaMetrics.program, f"-promscrape.config={SHIPPED}/{name}.yml", DRY)
    for name in ("prometheus", "prometheus-kubernetes"):
        says(VictoriaMetrics.program, f"-promscrape.config={HERE}/{name}.yml", DRY, LENIENT)
    says(Vmalert.program, f"-rule={RULES}", "-dryRun")


def test_alerts_fire_for_their_cause(tmp_path: Path) -> None:
    """Two, which ask in different ways: all of them take more than a minute."""
    some = ("MemoryRunsOut", "StepsSlower")
    text = yaml.dump(checked(HERE, {name: CASES[name] for name in some}))
    (tmp_path / "test.yml").write_text(text.replace("promql_expr_test", "metricsql_expr_test"))
    says(later("victoria-metrics", "vmalert-tool"), "unittest", f"--files={tmp_path}/test.yml")


@pytest.mark.parametrize("name", TOLD)
def test_values_are_told(tmp_path: Path, name: str) -> None:
    """It fills in what an alert says as Prometheus does."""
    test = told(name)
    (group,) = (alert.group for alert in ALERTS if alert.name == name)
    test["tests"][0]["alert_rule_test"][0]["groupname"] = f"gpubpf.{group}"  # it wants to know
    (tmp_path / "test.yml").write_text(yaml.dump(test))
    says(later("victoria-metrics", "vmalert-tool"), "unittest", f"--files={tmp_path}/test.yml")


def _agrees(told: Any, written: Any, *, estimate: bool) -> bool:
    return bool(told.keys() == written.keys() and (estimate or written == pytest.approx(told)))


def _compared(near: Prometheus, store: Prometheus, query: str, when: float) -> Any:
    """What Prometheus says, and what VictoriaMetrics does of either cluster; None: the same."""
    told, own = at(near, query, when), at(store, query, when, "own")
    agrees = partial(_agrees, told, estimate=bool(ESTIMATES.search(query)))
    # what was written may take its time on the way, where other tests run
    written = eventually(partial(at, store, query, when, "lab"), agrees, 10)
    return None if told.keys() == own.keys() and agrees(written) else (told, own, written)


def test_scraping_written_to_and_asked_as_prometheus_is(tmp_path: Path) -> None:
    """The rules of both clusters are asked of one store: "lab" is written by a Prometheus, "own" it
    scrapes itself."""
    with played(tmp_path) as (agent, _), ExitStack() as running:

        def started(server: Any) -> Any:
            running.callback(server.stop)
            return server

        target = bare(agent.url)
        store = started(VictoriaMetrics(tmp_path / "store", "scrape", target, "30d"))
        year = started(VictoriaMetrics(tmp_path / "year", "year", bare(store.url), "1y"))
        near = started(
            Writing(tmp_path / "near", VERSIONS["3"], "prometheus", target, store=store.url)
        )
        urls = (f"-datasource.url={store.url}", f"-remoteWrite.url={store.url}")
        vmalert = started(Vmalert(tmp_path / "vmalert", target, *urls))

        assert eventually(partial(near.query, QUERIES["MemoryGrowth"]), bool, 60)
        made = 'job:gpubpf_power_watts:rate5m{cluster="own"} > 0'  # of which another rule is made
        eventually(partial(store.query, made), bool, 60)
        time.sleep(5)
        left: dict[str, Any] = dict.fromkeys(QUERIES)
        for _ in range(3):  # what changed at that moment doesn't at the next: what is wrong stays
            when = time.time()
            time.sleep(4)  # until all of then is written
            compared = {name: _compared(near, store, QUERIES[name], when) for name in left}
            left = {name: difference for name, difference in compared.items() if difference}
            if not left:
                break
        assert left == {}
        assert at(near, QUERIES["IdleHolder"], when)  # there was something to compare

        assert len(vmalert.rules()) == len(QUERIES) + 2  # and the two of a job's step time
        assert [rule["name"] for rule in vmalert.rules() if rule["lastError"]] == []
        kept = 'cluster:gpubpf_gpus:count{cluster="own"}'
        assert [number for _, number in eventually(partial(year.query, kept), bool)] == [7]
        assert year.query("gpubpf_gpu_up") == []
