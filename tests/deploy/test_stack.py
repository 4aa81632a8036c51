"""The shipped Prometheus configurations, with real servers: scraped, written on, and federated."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Agent, eventually
from tests.deploy.test_jobs import run_as
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.node import Node

SHIPPED = ROOT / "deploy" / "prometheus"
ALL = ("prometheus", "prometheus-kubernetes", "prometheus-agent", "prometheus-federation")
Start = Callable[..., "Server"]


class Server(Prometheus):
    """With a shipped configuration, whose addresses and intervals are the test's."""

    def __init__(
        self, directory: Path, name: str, target: str, *options: str, store: str = ""
    ) -> None:
        self._name, self._store = name, store
        super().__init__(directory, target, *options)

    def config(self, target: str) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load((SHIPPED / f"{self._name}.yml").read_text())
        config["global"].update({"scrape_interval": "1s", "scrape_timeout": "1s"})
        if "evaluation_interval" in config["global"]:
            config["global"]["evaluation_interval"] = "1s"
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

        def start(name: str, target: str, *options: str, store: str = "") -> Server:
            directory = tmp_path / f"server{time.monotonic_ns()}"
            one = Server(directory, name, target, *options, store=store)
            stack.callback(one.stop)
            return one

        yield start


@pytest.mark.parametrize("name", ALL)
def test_promtool_reads_it(tmp_path: Path, name: str) -> None:
    """Debian's is built without discovery on Kubernetes: all but that is read."""
    config = yaml.safe_load((SHIPPED / f"{name}.yml").read_text())
    for scrape in config["scrape_configs"]:
        found = scrape.pop("kubernetes_sd_configs", None)
        assert (found == [{"role": "pod"}]) == (name == "prometheus-kubernetes")
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.dump(config))
    options = ["--agent"] if name == "prometheus-agent" else []
    command = ("promtool", "check", "config", str(path), *options)
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


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

    server = Discovered(tmp_path / "discovered", "prometheus-kubernetes", bare(agent.url))
    try:
        rows = eventually(lambda: server.query("up"), lambda seen: seen and seen[0][1], 30)
        expected = {
            "__name__": "up",
            "job": "gpubpf",
            "instance": "gpu-node-7",
            "node": "gpu-node-7",
            "agent_namespace": "monitoring",
        }
        assert rows == [(expected, 1.0)]
    finally:
        server.stop()


def bare(url: str) -> str:
    return url.removeprefix("http://")


def launches(server: Prometheus) -> list[tuple[dict[str, str], float]]:
    return server.query('gpubpf_job_kernel_launches_total{job_id="a"} > 0')


def test_scraped_written_on_and_federated(
    watch: Callable[..., Agent], node: Node, start: Start
) -> None:
    """The node's Prometheus, one that keeps nothing and writes to a store, and one above."""
    agent = watch("--jobs", "environ:JOB")
    run_as(node, 19, {"JOB": "a"})
    near = start("prometheus", bare(agent.url))
    store = start("prometheus-federation", bare(near.url), "--web.enable-remote-write-receiver")
    start("prometheus-agent", bare(agent.url), "--enable-feature=agent", store=store.url)

    (row,) = eventually(lambda: launches(near), bool, 30)
    labels, number = row
    assert number == 19
    assert labels["node"] == "127.0.0.1"  # by relabelling
    assert labels["cluster"] == "lab"
    assert near.query('count({__name__=~"gpubpf_.+_created"})') == []

    (row,) = eventually(lambda: launches(store), bool, 30)  # written there by the one between
    labels, number = row
    assert (number, labels["cluster"], labels["job"]) == (19, "lab", "gpubpf")
    assert store.query("gpubpf_gpu_temperature_threshold_celsius") == []

    def federated() -> list[tuple[dict[str, str], float]]:
        return store.query("cluster:gpubpf_gpus:count")

    (row,) = eventually(federated, bool, 30)
    assert row[1] == 2
    infos = eventually(
        lambda: store.query('gpubpf_job_info{job_id="a",node="127.0.0.1"}'), bool, 30
    )
    assert [labels["scheduler"] for labels, _ in infos] == ["environ"]


def test_more_series_than_are_taken(start: Start, watch: Callable[..., Agent]) -> None:
    """The second line: a page past the limit is taken whole or not at all."""
    agent = watch("--no-nvml")

    class Small(Server):
        def config(self, target: str) -> dict[str, Any]:
            config = super().config(target)
            config["scrape_configs"][0]["sample_limit"] = 10
            return config

    directory = Path(start("prometheus", bare(agent.url))._directory).with_name("small")
    small = Small(directory, "prometheus", bare(agent.url))
    try:
        assert eventually(lambda: small.query('up{job="gpubpf"} == 0'), bool, 30)
        assert small.query("gpubpf_calls_total") == []
    finally:
        small.stop()
