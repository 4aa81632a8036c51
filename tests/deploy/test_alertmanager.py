"""The shipped Alertmanager configuration, with the real Alertmanager: who is told, once, grouped;
what silences what; and the whole way from a process that hangs to the webhook."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from deploy.monitoring import rules
from deploy.monitoring.__main__ import files
from deploy.monitoring.alerts import ALERTS
from tests.conftest import eventually
from tests.deploy.alerting import SHIPPED, Alertmanager, Mailbox, Webhook, settled
from tests.deploy.programs import VERSIONS, Version, both, says
from tests.deploy.test_serve import Prometheus
from tests.fakegpu.scenes import played

WIKI = "https://wiki.example/gpubpf/RUNBOOK.md"
INTERVAL = 1.0
TIMES = {"group_wait": "300ms", "group_interval": f"{INTERVAL * 1000:.0f}ms"}
STALLED = {"alertname": "GpubpfStalled", "severity": "critical", "gpu": "0", "uuid": "a"}


class Told(NamedTuple):
    """An Alertmanager, and whom it tells."""

    alertmanager: Alertmanager
    webhook: Webhook
    mailbox: Mailbox


def telling(directory: Path, version: Version) -> Iterator[Told]:
    with ExitStack() as stack:
        webhook, mailbox = Webhook(), Mailbox()
        stack.callback(webhook.stop)
        stack.callback(mailbox.stop)
        alertmanager = Alertmanager(
            directory / "alertmanager", webhook, mailbox, TIMES, version.alertmanager
        )
        stack.callback(alertmanager.stop)
        yield Told(alertmanager, webhook, mailbox)


@pytest.fixture(params=VERSIONS)
def told(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Told]:
    yield from telling(tmp_path, VERSIONS[request.param])


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


# --- how often, and together with what -----------------------------------------------------------


def groups(webhook: Webhook, path: str) -> list[tuple[str, dict[str, str], int]]:
    """Firing or resolved, what the group has in common, and how many alerts."""
    return sorted(
        (
            (body["status"], body["groupLabels"], len(body["alerts"]))
            for at, body in webhook.came
            if at == path
        ),
        key=str,
    )


def test_a_job_on_two_nodes_is_one_notification(told: Told) -> None:
    """Sent again and again, as Prometheus does, it is told once; and once that it is over."""
    both = [{**STALLED, "instance": node, "job_id": "7"} for node in ("n1", "n2")]
    other = {**STALLED, "instance": "n3", "job_id": "8"}
    for _ in range(6):
        told.alertmanager.send(*both, other)
        settled(told.webhook, INTERVAL / 2.5)
    assert groups(told.webhook, "/jobs-urgent") == [
        ("firing", {"job_id": "7"}, 2),
        ("firing", {"job_id": "8"}, 1),
    ]
    told.webhook.came.clear()
    told.alertmanager.send(*both, ended=True)
    eventually(lambda: told.webhook.came, bool)
    assert groups(told.webhook, "/jobs-urgent") == [("resolved", {"job_id": "7"}, 2)]


def test_what_has_no_job_is_one_notification_per_instance_and_alert(told: Told) -> None:
    hot = {"alertname": "GpubpfGpuDown", "severity": "critical"}
    told.alertmanager.send(
        *({**hot, "instance": "n1", "gpu": gpu} for gpu in "012"),
        {**hot, "instance": "n2", "gpu": "0"},
        {**hot, "instance": "n1", "alertname": "GpubpfRecoveryNeeded", "gpu": "0"},
    )
    assert eventually(lambda: groups(told.webhook, "/operators"), lambda seen: len(seen) == 3) == [
        ("firing", {"alertname": "GpubpfGpuDown", "instance": "n1"}, 3),
        ("firing", {"alertname": "GpubpfGpuDown", "instance": "n2"}, 1),
        ("firing", {"alertname": "GpubpfRecoveryNeeded", "instance": "n1"}, 1),
    ]


def test_the_interval_is_that_of_the_issue() -> None:
    """What `TIMES` makes shorter for the tests."""
    route = yaml.safe_load(SHIPPED.read_text())["route"]
    assert (route["group_interval"], route["group_wait"]) == ("5m", "30s")


def test_what_comes_and_goes_is_told_once_in_the_interval(told: Told) -> None:
    """Each moment another GPU has it, and the one before no more."""
    for gpu in range(18):
        row = {**STALLED, "instance": "n1", "job_id": "7"}
        told.alertmanager.send({**row, "gpu": str(gpu)})
        told.alertmanager.send({**row, "gpu": str(gpu - 1)}, ended=True)
        settled(told.webhook, 0.15)
    gaps = [late - early for early, late in pairwise(told.webhook.times)]
    assert len(gaps) >= 2
    assert min(gaps) > INTERVAL - 0.1


# --- mail ---------------------------------------------------------------------------------------


def text_of(mail: EmailMessage) -> str:
    assert [part.get_content_type() for part in mail.walk()][-1:] == ["text/plain"]
    assert not mail.get_body(("html",))
    body = mail.get_body(("plain",))
    assert body
    return str(body.get_content()).replace("\r\n", "\n")


def test_mail(told: Told) -> None:
    """As a person gets it; with the annotations of a rule as it is shipped."""
    (rule,) = (alert for alert in ALERTS if alert.name == "Stalled")
    texts = {
        "summary": "it hangs: job résumé on GPU 0 of n1",
        "description": f"{rule.description} 97 %",
        "action": rule.do,
        "runbook_url": "https://wiki.example/RUNBOOK#gpubpfstalled",
    }
    one = {**STALLED, "instance": "n1:10440", "job_id": "7"}
    told.alertmanager.send(one, annotations=texts)
    (mail,) = eventually(lambda: told.mailbox.came, bool)
    assert mail["To"] == "gpu-operators@example.com"
    assert mail["Subject"] == "[FIRING critical] it hangs: job résumé on GPU 0 of n1"
    lines = text_of(mail).splitlines()
    assert lines[0] == "FIRING critical: it hangs: job résumé on GPU 0 of n1"
    assert texts["description"] in lines
    assert f"What to do: {rule.do}" in lines
    assert "Labels:  gpu=0, instance=n1:10440, job_id=7, uuid=a" in lines
    assert f"Runbook: {texts['runbook_url']}" in lines
    assert any(line.startswith("Since:   2") for line in lines)
    assert lines[-1].startswith("Silence it, or see all: http://")

    told.mailbox.came.clear()
    told.alertmanager.send(one, ended=True, annotations=texts)
    second = {**STALLED, "instance": "n2:10440", "job_id": "7"}
    told.alertmanager.send(second, annotations={"summary": "it hangs: the other"})
    (mail,) = eventually(lambda: told.mailbox.came, bool)
    assert mail["Subject"] == "[FIRING critical] job 7: 2 alerts"
    lines = text_of(mail).splitlines()
    firing = lines.index("FIRING critical: it hangs: the other")
    over = lines.index("RESOLVED critical: it hangs: job résumé on GPU 0 of n1")
    assert "Runbook: GpubpfStalled in RUNBOOK.md" in lines[firing:over]
    assert any(line.startswith("Until:   2") for line in lines[over:])
    assert f"What to do: {rule.do}" not in lines  # of what is over nothing


# --- what silences what -------------------------------------------------------------------------

HOT = {"alertname": "GpubpfTooHot", "severity": "warning"}
DOWN, GPU_DOWN, QUIET = (
    {"alertname": f"Gpubpf{name}", "severity": severity}
    for name, severity in (
        ("AgentDown", "critical"),
        ("GpuDown", "critical"),
        ("QuietPhase", "none"),
    )
)
NODE_DOWN = {"alertname": "NodeDown", "severity": "critical"}
PODS = {"alertname": "GpubpfPodsMissing", "severity": "warning"}
SLOWER = {"alertname": "GpubpfSlowerThanBefore", "severity": "warning"}
LITTLE = {"alertname": "GpubpfLowUtilization", "severity": "warning"}
IDLE = {"alertname": "GpubpfIdleHolder", "severity": "warning"}

# What there is, of which the last is silenced or not. `@` makes a name the case's own.
CASES: dict[str, tuple[bool, tuple[dict[str, str], ...]]] = {
    "agent": (True, ({**DOWN, "instance": "@"}, {**HOT, "instance": "@"})),
    "other-agent": (False, ({**DOWN, "instance": "@"}, {**HOT, "instance": "m@"})),
    "node": (True, ({**NODE_DOWN, "node": "@"}, {**HOT, "node": "@"})),
    "other-node": (False, ({**NODE_DOWN, "node": "@"}, {**HOT, "node": "m@"})),
    "no-node": (False, (NODE_DOWN, HOT)),  # neither says which
    "agent-of-node": (
        True,
        ({**NODE_DOWN, "node": "@"}, {**DOWN, "node": "@", "instance": "@"}),
    ),
    "through-the-agent": (
        True,
        (
            {**NODE_DOWN, "node": "@"},
            {**DOWN, "node": "@", "instance": "@"},
            {**HOT, "instance": "@"},  # summed up, without its node
        ),
    ),
    "gpu": (
        True,
        ({**GPU_DOWN, "instance": "@", "gpu": "0"}, {**HOT, "instance": "@", "gpu": "0"}),
    ),
    "other-gpu": (
        False,
        ({**GPU_DOWN, "instance": "@", "gpu": "0"}, {**HOT, "instance": "@", "gpu": "1"}),
    ),
    "gpu-why": (
        False,
        (
            {**GPU_DOWN, "instance": "@", "gpu": "0"},
            {"alertname": "GpubpfXid", "severity": "warning", "instance": "@", "gpu": "0"},
        ),
    ),
    "gpu-hangs": (
        False,
        (
            {**GPU_DOWN, "instance": "@", "gpu": "0"},
            {**STALLED, "instance": "@", "job_id": "@"},
        ),
    ),
    "phase-of-none": (
        False,
        ({**QUIET, "job_id": "none"}, {**HOT, "instance": "@", "job_id": "none"}),
    ),
    "phase": (True, ({**QUIET, "job_id": "@"}, {**HOT, "job_id": "@"})),
    "other-phase": (False, ({**QUIET, "job_id": "@"}, {**HOT, "job_id": "m@"})),
    "phase-critical": (
        False,
        ({**QUIET, "job_id": "@"}, {**HOT, "job_id": "@", "severity": "critical"}),
    ),
    "pods": (True, ({**DOWN, "instance": "@", "cluster": "@"}, {**PODS, "cluster": "@"})),
    "pods-of-nodes": (
        True,
        ({**NODE_DOWN, "node": "@", "cluster": "@"}, {**PODS, "cluster": "@"}),
    ),
    "other-pods": (
        False,
        ({**DOWN, "instance": "@", "cluster": "m@"}, {**PODS, "cluster": "@"}),
    ),
    "agent-in-another-cluster": (
        False,
        (
            {**DOWN, "instance": "@", "cluster": "a"},
            {**HOT, "instance": "@", "cluster": "b"},
        ),
    ),
    "phase-of-nobody": (False, (QUIET, {**HOT, "instance": "@"})),
    "hangs-slower": (True, ({**STALLED, "job_id": "@"}, {**SLOWER, "job_id": "@"})),
    "hangs-little-used": (
        True,
        ({**STALLED, "instance": "@"}, {**LITTLE, "instance": "@", "gpu": "0"}),
    ),
    "idle-little-used": (
        True,
        (
            {**IDLE, "instance": "@", "gpu": "0"},
            {**LITTLE, "instance": "@", "gpu": "0"},
        ),
    ),
}


def heard_of(told: Told) -> set[tuple[str, str]]:
    """Alert and case of what came by either way."""
    heard = {
        (alert["labels"]["alertname"], alert["labels"]["case"])
        for _, body in told.webhook.came
        for alert in body["alerts"]
    }
    for mail in told.mailbox.came:
        heard |= {*re.findall(r"(?s)^Alert: +(\w+)$.+?\bcase=([\w-]+)", text_of(mail), re.M)}
    return heard


@pytest.fixture(scope="module", params=VERSIONS)
def silenced(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, bool]]:
    """By case: whether its last alert is silenced, as the server says and as nobody was told. All
    cases at once, as none has a name of another's; the last alerts after the others, which the
    server may look at in any order."""

    def named(case: str, labels: dict[str, str]) -> dict[str, str]:
        own = {name: value.replace("@", case) for name, value in labels.items()}
        return {**own, "case": case}

    causes = [named(case, row) for case, (_, rows) in CASES.items() for row in rows[:-1]]
    last = [named(case, rows[-1]) for case, (_, rows) in CASES.items()]

    for told in telling(tmp_path_factory.mktemp("silenced"), VERSIONS[request.param]):
        told.alertmanager.send(*causes)
        eventually(told.alertmanager.states, lambda seen: len(seen) == len(causes))
        settled(told.webhook, INTERVAL)
        told.alertmanager.send(*last)
        loud = {
            (rows[-1]["alertname"], case) for case, (silent, rows) in CASES.items() if not silent
        }
        eventually(partial(heard_of, told), loud.issubset)
        settled(told.webhook, 2 * INTERVAL)  # what was to be silent had the same time
        states = told.alertmanager.states()
        assert len(states) == len(causes) + len(last)
        heard, found = heard_of(told), {}
        for case, (_, alerts) in CASES.items():
            key = alerts[-1]["alertname"], case
            found[case] = states[key] == "suppressed"
            assert found[case] != (key in heard), case
        yield found


@pytest.mark.parametrize("case", CASES)
def test_what_silences_what(silenced: dict[str, bool], case: str) -> None:
    assert silenced[case] == CASES[case][0]


# --- from the process to the webhook ------------------------------------------------------------


class Alerting(Prometheus):
    """A Prometheus with the shipped rules; only how long a cause must last is the test's."""

    def __init__(self, directory: Path, target: str, alertmanager: str, program: str) -> None:
        self._alertmanager, self.program = alertmanager, program
        self._rules = directory.with_name("rules")
        self._rules.mkdir()
        for name, text in files(rules.Choice(runbook=WIKI)).items():
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


def urgent(told: Told) -> list[dict[str, Any]]:
    return [body for path, body in told.webhook.came if path == "/jobs-urgent"]


def told_of(told: Told, prometheus: Prometheus) -> None:
    (body,) = urgent(told)
    (alert,) = body["alerts"]
    assert body["status"] == "firing"
    assert body["groupLabels"] == {"cluster": "lab", "job_id": "stalled"}
    assert alert["labels"]["alertname"] == "GpubpfStalled"
    summary = alert["annotations"]["summary"]
    assert summary.startswith("it hangs: job stalled on GPU 2 of 127.0.0.1:")
    assert alert["annotations"]["action"]
    values = r"since_launch_seconds [\d.ms ]+, utilization_ratio [\d.]+%\."
    assert re.search(f"{values}$", alert["annotations"]["description"])
    others = {a["labels"]["alertname"] for _, body in told.webhook.came for a in body["alerts"]}
    assert others >= {"GpubpfStalled", "GpubpfIdleHolder", "GpubpfMemoryGrowth"}
    (mail,) = (m for m in told.mailbox.came if "job stalled" in m["Subject"])
    assert mail["Subject"] == f"[FIRING critical] {summary}"
    assert f"Runbook: {WIKI}#gpubpfstalled" in text_of(mail)
    assert f"What to do: {alert['annotations']['action']}" in text_of(mail)

    assert len(prometheus.query('job:gpubpf_kernels:rate5m{job_id="trainer"} > 0')) == 1
    held = prometheus.query('job:gpubpf_gpus:count{job_id="trainer"}')
    assert [number for _, number in held] == [1.0]


def test_from_the_process_to_the_webhook_and_the_mail(tmp_path: Path) -> None:
    """Seven jobs on seven GPUs, one of which hangs: told once, with the job's name, and over. Both
    versions watch the same."""
    with played(tmp_path) as (agent, players), ExitStack() as running:
        target = agent.url.removeprefix("http://")
        stacks: list[tuple[Told, Alerting]] = []
        for name, version in VERSIONS.items():
            (directory := tmp_path / name).mkdir()
            told = running.enter_context(contextmanager(telling)(directory, version))
            prometheus = Alerting(
                directory / "prometheus", target, told.alertmanager.address, version.prometheus
            )
            running.callback(prometheus.stop)
            stacks.append((told, prometheus))
        for told, _ in stacks:
            eventually(partial(urgent, told), bool, 60)
        time.sleep(4 * INTERVAL)  # it is evaluated each second, and told no more
        for told, prometheus in stacks:
            told_of(told, prometheus)
        players["stalled"].recover()
        for told, _ in stacks:
            eventually(partial(urgent, told), lambda seen: len(seen) == 2, 60)
            assert [body["status"] for body in urgent(told)] == ["firing", "resolved"]
