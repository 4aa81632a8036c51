"""The shipped Alertmanager configuration, with the real Alertmanager: who is told, once, grouped;
what silences what; and the whole way from a process that hangs to the webhook."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy.monitoring import rules
from deploy.monitoring.__main__ import files
from tests.conftest import eventually
from tests.deploy.alerting import SHIPPED, Alertmanager, Webhook, settled
from tests.deploy.programs import VERSIONS, Version, both, says
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.scenes import played

TIMES = {"group_wait": "1s", "group_interval": "2s"}
STALLED = {"alertname": "GpubpfStalled", "severity": "critical", "gpu": "0", "uuid": "a"}


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    one = Webhook()
    yield one
    one.stop()


@pytest.fixture(params=VERSIONS)
def alertmanager(
    tmp_path: Path, webhook: Webhook, request: pytest.FixtureRequest
) -> Iterator[Alertmanager]:
    program = VERSIONS[request.param].alertmanager
    one = Alertmanager(tmp_path / "alertmanager", webhook, TIMES, program)
    yield one
    one.stop()


@both
def test_amtool_reads_it(version: Version) -> None:
    assert "SUCCESS" in says(version.amtool, "check-config", str(SHIPPED))


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("severity=warning instance=n", "operators"),
        ("severity=critical instance=n", "operators-urgent"),
        ("severity=warning job_id=7", "jobs"),
        ("severity=critical job_id=7", "jobs-urgent"),
        ("severity=critical job_id=none", "operators-urgent"),
        ("severity=warning job_id=other", "operators"),
        ("severity=none job_id=7", "nobody"),
    ],
)
def test_routes(labels: str, receiver: str) -> None:
    for version in VERSIONS.values():
        command = (version.amtool, "config", "routes", "test", f"--config.file={SHIPPED}")
        assert says(*command, *labels.split()).strip() == receiver


def test_a_job_on_two_nodes_is_one_notification(
    alertmanager: Alertmanager, webhook: Webhook
) -> None:
    """Sent again and again, as Prometheus does, it is told once; and once that it is over."""
    both = [{**STALLED, "instance": node, "job_id": "7"} for node in ("n1", "n2")]
    other = {**STALLED, "instance": "n3", "job_id": "8"}
    for _ in range(4):
        alertmanager.send(*both, other)
        settled(webhook, 1)
    told = [body for path, body in webhook.came if path == "/jobs-urgent"]
    assert sorted((b["groupLabels"]["job_id"], len(b["alerts"])) for b in told) == [
        ("7", 2),
        ("8", 1),
    ]
    webhook.came.clear()
    alertmanager.send(*both, ended=True)
    eventually(lambda: webhook.came, bool)
    assert webhook.told("/jobs-urgent") == [("resolved", frozenset({"GpubpfStalled"}))]
    assert len(webhook.came[0][1]["alerts"]) == 2


@pytest.mark.parametrize(
    ("source", "target", "silenced"),
    [
        ({"alertname": "GpubpfAgentDown", "instance": "n"}, {"instance": "n"}, True),
        ({"alertname": "GpubpfAgentDown", "instance": "n"}, {"instance": "m"}, False),
        (
            {"alertname": "GpubpfAgentDown", "instance": "n", "cluster": "a"},
            {"instance": "n", "cluster": "b"},
            False,
        ),
        ({"alertname": "NodeDown", "node": "n"}, {"node": "n"}, True),
        ({"alertname": "NodeDown"}, {}, False),  # neither says which node
        (
            {"alertname": "GpubpfGpuDown", "instance": "n", "gpu": "0"},
            {"instance": "n", "gpu": "0"},
            True,
        ),
        (
            {"alertname": "GpubpfGpuDown", "instance": "n", "gpu": "0"},
            {"instance": "n", "gpu": "1"},
            False,
        ),
        ({"alertname": "GpubpfQuietPhase", "job_id": "7"}, {"job_id": "7"}, True),
        ({"alertname": "GpubpfQuietPhase", "job_id": "7"}, {"job_id": "8"}, False),
        (
            {"alertname": "GpubpfQuietPhase", "job_id": "7"},
            {"job_id": "7", "severity": "critical"},
            False,
        ),
    ],
)
def test_what_silences_what(
    alertmanager: Alertmanager, source: dict[str, str], target: dict[str, str], silenced: bool
) -> None:
    fuller = {"alertname": "GpubpfTooHot", "severity": "warning", **target}
    alertmanager.send({"severity": "critical", **source}, fuller)
    states = eventually(alertmanager.states, lambda seen: len(seen) == 2)
    wanted = "suppressed" if silenced else "active"
    states = eventually(alertmanager.states, lambda seen: seen["GpubpfTooHot"] == wanted, 5)
    assert states == {source["alertname"]: "active", "GpubpfTooHot": wanted}


def test_a_job_that_hangs_slow_alerts_of_it_are_silent(alertmanager: Alertmanager) -> None:
    slow = {"alertname": "GpubpfSlowerThanBefore", "severity": "warning", "job_id": "7"}
    little = {"alertname": "GpubpfLowUtilization", "severity": "warning", "gpu": "0"}
    alertmanager.send(
        {**STALLED, "job_id": "7", "instance": "n"}, slow, {**little, "instance": "n"}
    )
    expected = {
        "GpubpfStalled": "active",
        "GpubpfSlowerThanBefore": "suppressed",
        "GpubpfLowUtilization": "suppressed",
    }
    assert eventually(alertmanager.states, lambda seen: seen == expected) == expected


# --- from the process to the webhook ------------------------------------------------------------


class Alerting(Prometheus):
    """A Prometheus with the shipped rules; only how long a cause must last is the test's."""

    def __init__(self, directory: Path, target: str, alertmanager: str, program: str) -> None:
        self._alertmanager, self.program = alertmanager, program
        self._rules = directory.with_name("rules")
        self._rules.mkdir()
        for name, text in files(rules.Choice()).items():
            if name.startswith("rules/"):
                lines = [
                    f"{line.partition('for:')[0]}for: 1s"
                    if line.strip().startswith("for:")
                    else line
                    for line in text.split("\n")
                ]
                (self._rules / Path(name).name).write_text("\n".join(lines))
        super().__init__(directory, target)

    def config(self, target: str) -> dict[str, Any]:
        config = super().config(target)
        config["global"] |= {"evaluation_interval": "1s", "external_labels": {"cluster": "lab"}}
        config["rule_files"] = [f"{self._rules}/*.yml"]
        targets = [{"targets": [self._alertmanager]}]
        config["alerting"] = {"alertmanagers": [{"static_configs": targets}]}
        return config


class Stack:
    """One version's Prometheus and Alertmanager, and who they tell."""

    def __init__(self, directory: Path, target: str, version: Version, stack: ExitStack) -> None:
        directory.mkdir()
        self.webhook = Webhook()
        stack.callback(self.webhook.stop)
        alertmanager = Alertmanager(
            directory / "alertmanager", self.webhook, TIMES, version.alertmanager
        )
        stack.callback(alertmanager.stop)
        self.prometheus = Alerting(
            directory / "prometheus", target, alertmanager.address, version.prometheus
        )
        stack.callback(self.prometheus.stop)

    def urgent(self) -> list[dict[str, Any]]:
        return [body for path, body in self.webhook.came if path == "/jobs-urgent"]


def test_from_the_process_to_the_webhook(tmp_path: Path) -> None:
    """Seven jobs on seven GPUs, one of which hangs: told once, with the job's name, and over. Both
    versions watch the same."""
    with played(tmp_path) as (agent, players), ExitStack() as running:
        target = agent.url.removeprefix("http://")
        stacks = [
            Stack(tmp_path / name, target, version, running) for name, version in VERSIONS.items()
        ]
        for stack in stacks:
            eventually(stack.urgent, bool, 60)
        time.sleep(8)  # it is evaluated each second, and told no more
        for stack in stacks:
            (told,) = stack.urgent()
            (alert,) = told["alerts"]
            assert told["status"] == "firing"
            assert told["groupLabels"] == {"cluster": "lab", "job_id": "stalled"}
            assert alert["labels"]["alertname"] == "GpubpfStalled"
            summary = alert["annotations"]["summary"]
            assert summary.startswith("it hangs: job stalled on GPU 2 of 127.0.0.1:")
            assert alert["annotations"]["action"]
            came = [told for path, _ in stack.webhook.came for told in stack.webhook.told(path)]
            others = {name for _, names in came for name in names}
            assert others >= {"GpubpfStalled", "GpubpfIdleHolder", "GpubpfMemoryGrowth"}

            query = stack.prometheus.query
            assert len(query('job:gpubpf_kernels:rate5m{job_id="trainer"} > 0')) == 1
            held = query('job:gpubpf_gpus:count{job_id="trainer"}')
            assert [number for _, number in held] == [1.0]

        players["stalled"].recover()
        for stack in stacks:
            eventually(stack.urgent, lambda seen: len(seen) == 2, 60)
            assert [body["status"] for body in stack.urgent()] == ["firing", "resolved"]
