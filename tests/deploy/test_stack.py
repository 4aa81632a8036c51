"""The shipped Prometheus configurations, with real servers: scraped, written on, and federated."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Agent, eventually
from tests.deploy.programs import VERSIONS, Version, both, says
from tests.deploy.test_jobs import run_as
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.node import Node

SHIPPED = ROOT / "deploy" / "prometheus"
ALL = ("prometheus", "prometheus-kubernetes", "prometheus-agent", "prometheus-federation")
Start = Callable[..., "Server"]


class Server(Prometheus):
    """With a shipped configuration, whose addresses and intervals are the test's; without a name,
    it scrapes nothing."""

    def __init__(
        self,
        directory: Path,
        version: Version,
        name: str,
        target: str,
        *options: str,
        store: str = "",
    ) -> None:
        self.program, self._name, self._store = version.prometheus, name, store
        super().__init__(directory, target, *options)

    def config(self, target: str) -> dict[str, Any]:
        if not self._name:
            return {}
        config: dict[str, Any] = yaml.safe_load((SHIPPED / f"{self._name}.yml").read_text())
        config["global"].update({"scrape_interval": "1s", "scrape_timeout": "1s"})
        if "evaluation_interval" in config["global"]:
            config["global"]["evaluation_interval"] = "1s"
        if "rule_files" in config:
            config["rule_files"] = [f"{SHIPPED}/rules/*.yml"]
        config.pop("alerting", None)
        for scrape in config["scrape_configs"]:
            for group in scrape["static_configs"]:
                group["targets"] = [target]
        for write in config.get("remote_write", ()):
            write["url"] = f"{self._store}/api/v1/write"
        return config


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(version: Version, name: str, target: str, *options: str, **of: str) -> Server:
            directory = tmp_path / f"server{time.monotonic_ns()}"
            one = Server(directory, version, name, target, *options, **of)
            stack.callback(one.stop)
            return one

        yield start


def test_they_are_two_major_versions() -> None:
    for major, version in VERSIONS.items():
        for program in (version.prometheus, version.promtool):
            assert f", version {major}." in says(program, "--version")


@both
@pytest.mark.parametrize("name", ALL)
def test_promtool_reads_it(tmp_path: Path, version: Version, name: str) -> None:
    """Debian's own is built without discovery on Kubernetes: it reads all but that."""
    path = SHIPPED / f"{name}.yml"
    if version == VERSIONS["2"]:
        config = yaml.safe_load(path.read_text())
        for scrape in config["scrape_configs"]:
            found = scrape.pop("kubernetes_sd_configs", None)
            assert (found == [{"role": "pod"}]) == (name == "prometheus-kubernetes")
        path = tmp_path / "prometheus.yml"
        path.write_text(yaml.dump(config))
    options = ["--agent"] if name == "prometheus-agent" else []
    assert "SUCCESS" in says(version.promtool, "check", "config", str(path), *options)


def test_each_says_which_cluster_it_is_of() -> None:
    """Else two clusters' series are one another's in whatever has both."""
    for name in ALL:
        config = yaml.safe_load((SHIPPED / f"{name}.yml").read_text())
        above = name == "prometheus-federation"
        assert ("cluster" in config["global"].get("external_labels", {})) != above
        assert all(scrape.get("honor_labels") for scrape in config["scrape_configs"] if above)


def test_relabelling_on_kubernetes(watch: Callable[..., Agent], tmp_path: Path) -> None:
    """With what discovery says of four pods, one of which is to be scraped."""
    agent = watch("--jobs", "user")
    pod = {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": "gpubpf",
        "__meta_kubernetes_pod_container_port_name": "metrics",
        "__meta_kubernetes_pod_node_name": "gpu-node-7",
        "__meta_kubernetes_namespace": "monitoring",
        "__meta_kubernetes_pod_phase": "Running",
    }
    others = {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": "web",
        "__meta_kubernetes_pod_container_port_name": "control",
        "__meta_kubernetes_pod_phase": "Succeeded",
    }
    pods = [pod, *({**pod, label: text} for label, text in others.items())]

    class Discovered(Server):
        def config(self, target: str) -> dict[str, Any]:
            path = SHIPPED / "prometheus-kubernetes.yml"
            config: dict[str, Any] = yaml.safe_load(path.read_text())
            config["global"] = {"scrape_interval": "1s"}
            del config["rule_files"]
            (scrape,) = config["scrape_configs"]
            del scrape["kubernetes_sd_configs"]
            scrape["static_configs"] = [{"targets": [target], "labels": of} for of in pods]
            return config

    with ExitStack() as running:
        servers = [
            Discovered(tmp_path / name, version, "prometheus-kubernetes", bare(agent.url))
            for name, version in VERSIONS.items()
        ]
        for server in servers:
            running.callback(server.stop)
        for server in servers:
            rows = eventually(partial(server.query, "up"), lambda seen: seen and seen[0][1], 30)
            expected = {
                "__name__": "up",
                "job": "gpubpf",
                "instance": "gpu-node-7",
                "node": "gpu-node-7",
                "agent_namespace": "monitoring",
            }
            assert rows == [(expected, 1.0)]


def bare(url: str) -> str:
    return url.removeprefix("http://")


def launches(server: Prometheus) -> list[tuple[dict[str, str], float]]:
    return server.query('gpubpf_job_kernel_launches_total{job_id="a"} > 0')


def test_scraped_written_on_and_federated(
    watch: Callable[..., Agent], node: Node, start: Start
) -> None:
    """The node's Prometheus, one that keeps nothing and writes to a store, and one above: in both
    versions at once."""
    agent = watch("--jobs", "environ:JOB")
    run_as(node, 19, {"JOB": "a"})
    each: list[tuple[Server, Server, Server]] = []
    for name, version in VERSIONS.items():
        near = start(version, "prometheus", bare(agent.url))
        above = start(version, "prometheus-federation", bare(near.url))
        store = start(version, "", "", "--web.enable-remote-write-receiver")
        keeps_nothing = "--enable-feature=agent" if name == "2" else "--agent"
        start(version, "prometheus-agent", bare(agent.url), keeps_nothing, store=store.url)
        each.append((near, above, store))
    for near, above, store in each:
        (row,) = eventually(partial(launches, near), bool, 30)
        labels, number = row
        assert number == 19
        assert labels["node"] == "127.0.0.1"  # by relabelling
        assert "cluster" not in labels  # it is on what leaves the server
        assert near.query('count({__name__=~"gpubpf_.+_created"})') == []

        (row,) = eventually(partial(launches, store), bool, 30)  # by the one that keeps nothing
        labels, number = row
        assert (number, labels["cluster"], labels["job"]) == (19, "lab", "gpubpf")
        assert labels["node"] == "127.0.0.1"
        assert store.query("gpubpf_gpu_temperature_threshold_celsius") == []

        federated = 'cluster:gpubpf_gpus:count{cluster="lab"}'
        (row,) = eventually(partial(above.query, federated), bool, 30)
        assert row[1] == 2
        infos = eventually(
            partial(above.query, 'gpubpf_job_info{job_id="a",node="127.0.0.1"}'), bool, 30
        )
        assert [(of["scheduler"], of["cluster"]) for of, _ in infos] == [("environ", "lab")]


def test_more_series_than_are_taken(tmp_path: Path, watch: Callable[..., Agent]) -> None:
    """The second line: a page past the limit is taken whole or not at all."""
    agent = watch("--no-nvml")

    class Small(Server):
        def config(self, target: str) -> dict[str, Any]:
            config = super().config(target)
            config["scrape_configs"][0]["sample_limit"] = 10
            return config

    small = Small(tmp_path / "small", VERSIONS["3"], "prometheus", bare(agent.url))
    try:
        assert eventually(lambda: small.query('up{job="gpubpf"} == 0'), bool, 30)
        assert small.query("gpubpf_calls_total") == []
    finally:
        small.stop()


def test_what_version_3_asks_for(watch: Callable[..., Agent], node: Node, tmp_path: Path) -> None:
    """It takes no page whose type isn't said. What was counted before the first scrape it takes
    from the times of creation, with a feature: the series begins at 0."""
    agent = watch("--jobs", "environ:JOB")
    run_as(node, 19, {"JOB": "a"})

    class Strict(Server):
        def config(self, target: str) -> dict[str, Any]:
            config = super().config(target)
            config["global"]["metric_name_validation_scheme"] = "legacy"  # as it was before 3
            return config

    feature = "--enable-feature=created-timestamp-zero-ingestion"
    with ExitStack() as running:
        plain, creation = (
            kind(tmp_path / kind.__name__, VERSIONS["3"], "prometheus", bare(agent.url), *options)
            for kind, options in ((Server, ()), (Strict, (feature,)))
        )
        running.callback(plain.stop)
        running.callback(creation.stop)
        for server in (plain, creation):
            eventually(partial(launches, server), bool, 30)
        of = 'job_id="a",gpu="unknown"'  # of a process that asks for no UUID
        first = f"min_over_time(gpubpf_job_kernel_launches_total{{{of}}}[5m])"
        assert [number for _, number in plain.query(first)] == [19]
        assert [number for _, number in creation.query(first)] == [0]
        growth = 'increase(gpubpf_job_kernel_launches_total{job_id="a"}[5m]) > 0'
        assert plain.query(growth) == []
        assert creation.query(growth)


@both
@pytest.mark.parametrize("store", ["thanos", "mimir"])
def test_promtool_reads_what_writes_to_a_store(
    tmp_path: Path, version: Version, store: str
) -> None:
    """The remote_write of its README, in place of prometheus-agent.yml's."""
    text = (ROOT / "deploy" / store / "README.md").read_text()
    (written,) = re.findall(r"```yaml\n(.+?)```", text, re.DOTALL)
    config = yaml.safe_load((SHIPPED / "prometheus-agent.yml").read_text())
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.dump(config | yaml.safe_load(written)))
    assert "SUCCESS" in says(version.promtool, "check", "config", str(path), "--agent")


def test_mimirs_limits_hold_what_was_measured() -> None:
    """For 1,000 GPUs. There was no Mimir to run."""
    limits = yaml.safe_load((ROOT / "deploy" / "mimir" / "mimir.yml").read_text())["limits"]
    sizing = (ROOT / "deploy" / "SIZING.md").read_text()
    row = next(row for row in sizing.splitlines() if row.startswith("| 1,000 |"))
    series, rate = (float(cell.replace(",", "")) for cell in row.split(" | ")[2:4])
    assert 1.4 * series < limits["max_global_series_per_user"] < 2 * series
    assert 1.4 * rate < limits["ingestion_rate"] < 2 * rate
    for path in (SHIPPED / "rules").glob("*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            assert len(group["rules"]) <= 20, group["name"]  # its default
