"""The shipped rules: each alert fires for its cause and for no other's, and is resolved after it;
promtool reads them; they ask only for what gpubpf exports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from deploy.monitoring import rules
from deploy.monitoring.__main__ import HERE, files, main
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.recording import RECORDING
from gpubpf.metrics import METRICS
from tests.deploy.programs import VERSIONS, Version, both, says

GPU = 'instance="node1",gpu="0",uuid="GPU-a"'
JOB = f'job_id="7",{GPU}'
GIB = 1 << 30
WELL, ILL, AFTER = 150, 60, 120  # minutes: before the cause, with it, and after it


class Gauge(NamedTuple):
    well: float
    ill: float


class Counter(NamedTuple):
    """What it grows by in a minute."""

    well: float
    ill: float


class Ramp(NamedTuple):
    """A gauge that stays, grows by so much in a minute, and falls back."""

    well: float
    growth: float


class Gone(NamedTuple):
    """A gauge that nobody tells meanwhile."""

    well: float


Series = Gauge | Counter | Ramp | Gone


def diagnosis(name: str) -> dict[str, Series]:
    return {f'gpubpf_job_diagnosis{{{JOB},diagnosis="{name}"}}': Gauge(0, 1)}


UP = 'up{job="gpubpf",instance="node1"}'
CASES: dict[str, Mapping[str, Series]] = {
    "AgentDown": {UP: Gauge(1, 0)},
    "NotScraped": {UP: Gone(1)},
    "PodsMissing": {
        'kube_daemonset_status_number_unavailable{namespace="gpubpf",daemonset="gpubpf"}': Gauge(
            0, 1
        )
    },
    "SourceDown": {'gpubpf_agent_source_up{instance="node1",source="kubelet"}': Gauge(1, 0)},
    "NothingCounted": {'gpubpf_agent_source_up{instance="node1",source="bpf"}': Gauge(1, 0)},
    "ProbesDetached": {
        'gpubpf_agent_library_copies{instance="node1",state="attached"}': Gauge(2, 2),
        'gpubpf_agent_library_copies{instance="node1",state="no_room"}': Gauge(0, 1),
    },
    "PointersElsewhere": {'gpubpf_agent_pointers_elsewhere{instance="node1"}': Gauge(0, 3)},
    "CountsLost": {'gpubpf_agent_lost_total{instance="node1",map="allocations"}': Counter(0, 5)},
    "JobsShareOther": {'gpubpf_agent_jobs{instance="node1",state="other"}': Gauge(0, 2)},
    "SnapshotsOld": {
        'gpubpf_agent_sample_age_seconds{instance="node1",class="heat"}': Gauge(9, 999)
    },
    "GpuDown": {f"gpubpf_gpu_up{{{GPU}}}": Gauge(1, 0)},
    "Xid": {
        f'gpubpf_gpu_xid_errors_total{{{GPU},xid="79"}}': Counter(0, 1),
        f'gpubpf_gpu_xid_last_timestamp_seconds{{{GPU},xid="79"}}': Gauge(-1e6, WELL * 60),
    },
    "EccUncorrected": {
        f'gpubpf_gpu_ecc_errors_total{{{GPU},error="uncorrected",counter="volatile"}}': Counter(
            0, 1
        ),
        f'gpubpf_gpu_ecc_errors_total{{{GPU},error="corrected",counter="volatile"}}': Counter(1, 1),
    },
    "RowRemapPending": {f"gpubpf_gpu_row_remap_pending{{{GPU}}}": Gauge(0, 1)},
    "RowRemapFailed": {f"gpubpf_gpu_row_remap_failure{{{GPU}}}": Gauge(0, 1)},
    "RecoveryNeeded": {f"gpubpf_gpu_recovery_action{{{GPU}}}": Gauge(0, 1)},
    "NvlinkErrors": {
        f'gpubpf_gpu_nvlink_link_errors_total{{{GPU},link="3",error="replay"}}': Counter(0, 1)
    },
    "TooHot": {f"gpubpf_gpu_temperature_celsius{{{GPU}}}": Gauge(85, 86)},
    "Throttled": {
        f'gpubpf_gpu_throttled_seconds_total{{{GPU},reason="hw_thermal_slowdown"}}': Counter(5, 30),
        f'gpubpf_gpu_throttled_seconds_total{{{GPU},reason="power"}}': Counter(60, 60),
    },
    "LinkSaturated": {
        f'gpubpf_gpu_pcie_utilization_ratio{{{GPU},direction="rx"}}': Gauge(0.9, 0.95)
    },
    "Fragmented": {f"gpubpf_gpu_memory_fragmentation_ratio{{{GPU}}}": Gauge(0.4, 0.5)},
    "MemoryRunsOut": {
        f"gpubpf_gpu_memory_used_bytes{{{GPU}}}": Ramp(40 * GIB, GIB / 2),
        f"gpubpf_gpu_memory_size_bytes{{{GPU}}}": Gauge(80 * GIB, 80 * GIB),
    },
    "AllocationsFail": {
        'gpubpf_call_errors_total{instance="node1",function="cuMemAlloc_v2",'
        'error="CUDA_ERROR_OUT_OF_MEMORY"}': Counter(0, 1)
    },
    "SharedMemoryFull": {
        'gpubpf_node_shm_used_bytes{instance="node1"}': Gauge(1, 95),
        'gpubpf_node_shm_size_bytes{instance="node1"}': Gauge(100, 100),
    },
    "LowUtilization": {
        f"gpubpf_gpu_utilization_ratio{{{GPU}}}": Gauge(0.9, 0.05),
        f"gpubpf_gpu_memory_used_bytes{{{GPU}}}": Gauge(40 * GIB, 40 * GIB),
        f"gpubpf_gpu_memory_size_bytes{{{GPU}}}": Gauge(80 * GIB, 80 * GIB),
    },
    "IdleHolder": diagnosis("idle_holder"),
    "Stalled": diagnosis("stalled"),
    "LaunchBound": diagnosis("launch_bound"),
    "MemoryChurn": diagnosis("memory_churn"),
    "MemoryGrowth": diagnosis("memory_growth"),
    "NearFull": diagnosis("near_full"),
    "SlowerThanBefore": {
        f"gpubpf_job_kernel_launches_total{{{JOB}}}": Counter(60_000, 6_000),
        f"gpubpf_job_graph_launches_total{{{JOB}}}": Counter(0, 0),
        f"gpubpf_job_held_seconds_total{{{JOB}}}": Counter(60, 60),
    },
    "QuietPhase": {'training_phase{job_id="7",phase="checkpoint"}': Gauge(0, 1)},
    "StepsSlower": {
        'training_batch_time_seconds_sum{job_id="7"}': Counter(50, 50),
        'training_batch_time_seconds_count{job_id="7"}': Counter(100, 25),
    },
}


def values(series: Series) -> str:
    """One a minute, through WELL, ILL and AFTER."""
    if isinstance(series, Gone):
        return f"{series.well:g}x{WELL - 1} stale _x{ILL - 2} {series.well:g}x{AFTER}"
    rows: list[float] = []
    phases = [0] * WELL + [1] * ILL + [0] * AFTER
    total = 0.0
    for minute, phase in enumerate(phases):
        if isinstance(series, Gauge):
            rows.append(series[phase])
        elif isinstance(series, Counter):
            rows.append(total)
            total += series[phase]
        else:
            rows.append(series.well + (series.growth * (minute - WELL) if phase else 0))
    return " ".join(f"{row:g}" if abs(row) < 1e5 else f"{row:.0f}" for row in rows)


def firing(minute: int, *names: str, within: int = 1) -> dict[str, Any]:
    """Exactly these, each once, at some time of the minutes before."""
    samples = [{"labels": f'{{alertname="Gpubpf{name}"}}', "value": 1} for name in names]
    seen = f'max_over_time(ALERTS{{alertstate="firing"}}[{within}m])'
    return {
        "expr": f"count by (alertname) ({seen})",
        "eval_time": f"{minute}m",
        "exp_samples": samples,
    }


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == {alert.name for alert in ALERTS}


def promtool(version: Version, *arguments: str | Path) -> None:
    says(version.promtool, *map(str, arguments))


def checked(directory: Path, cases: Mapping[str, Mapping[str, Series]]) -> dict[str, Any]:
    """What promtool is to test."""
    rule_files = [str(path) for path in sorted((directory / "rules").glob("*.yml"))]
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [
                {"series": s, "values": values(v)} for s, v in {UP: Gauge(1, 1), **case}.items()
            ],
            "promql_expr_test": [
                firing(WELL - 1, within=WELL),
                firing(WELL + ILL - 1, name, within=ILL),
                firing(WELL + ILL + AFTER - 1),
            ],
        }
        for name, case in cases.items()
    ]
    return {"rule_files": rule_files, "evaluation_interval": "1m", "tests": tests}


def test_each_fires_for_its_cause_and_no_other_and_is_resolved(tmp_path: Path) -> None:
    """In both versions: two at a time, each of which takes one core."""
    halves = [tmp_path / f"test{n}.yml" for n in range(2)]
    for n, half in enumerate(halves):
        cases = dict([*CASES.items()][n::2])
        half.write_text(yaml.dump(checked(HERE, cases)))
    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(promtool, version, "test", "rules", half)
            for version in VERSIONS.values()
            for half in halves
        ]
        for one in running:
            one.result()


@both
def test_a_case_that_is_wrong_fails(tmp_path: Path, version: Version) -> None:
    """promtool would say so if an alert did not fire."""
    calm = {"TooHot": {f"gpubpf_gpu_temperature_celsius{{{GPU}}}": Gauge(85, 85)}}
    (tmp_path / "test.yml").write_text(yaml.dump(checked(HERE, calm)))
    with pytest.raises(AssertionError, match="TooHot"):
        promtool(version, "test", "rules", tmp_path / "test.yml")


DAEMONSET = '{instance="ksm",namespace="gpubpf",daemonset="gpubpf"}'
_LAUNCHES = "gpubpf_job_kernel_launches_total"
EDGES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "a job that takes what it needs is no trend": (
        {
            f"gpubpf_gpu_memory_used_bytes{{{GPU}}}": f"0x60 {40 * GIB}x90",
            f"gpubpf_gpu_memory_size_bytes{{{GPU}}}": f"{80 * GIB}x150",
        },
        (),
    ),
    "the first failure makes its series": (
        {
            'gpubpf_call_errors_total{instance="node1",function="cuMemAlloc_v2",'
            'error="CUDA_ERROR_OUT_OF_MEMORY"}': "_x140 5x10"
        },
        ("AllocationsFail",),
    ),
    "an error of before a gap is an old one": (
        {
            f'gpubpf_gpu_xid_errors_total{{{GPU},xid="13"}}': "_x89 1x60",
            f'gpubpf_gpu_xid_last_timestamp_seconds{{{GPU},xid="13"}}': "_x89 360x60",
        },
        (),
    ),
    "who has no job isn't one that is slow": (
        {
            f'{_LAUNCHES}{{job_id="none",{GPU}}}': "0+6000x110 660000+60x40",
            f'{_LAUNCHES.replace("kernel", "graph")}{{job_id="none",{GPU}}}': "0x150",
            f'gpubpf_job_held_seconds_total{{job_id="none",{GPU}}}': "0+60x150",
        },
        (),
    ),
    "there are no nodes for it now": (
        {
            UP: "1x20 stale",
            f"kube_daemonset_status_desired_number_scheduled{DAEMONSET}": "1x20 0x130",
        },
        (),
    ),
    "there are, and none is scraped": (
        {
            UP: "1x20 stale",
            f"kube_daemonset_status_desired_number_scheduled{DAEMONSET}": "1x150",
        },
        ("NotScraped",),
    ),
    "an update that goes on": (
        {
            f"kube_daemonset_status_number_unavailable{DAEMONSET}": "0x99 2x50",
            f"kube_daemonset_status_updated_number_scheduled{DAEMONSET}": "20x99 0+0.5x50",
        },
        (),
    ),
    "an update that hangs": (
        {
            f"kube_daemonset_status_number_unavailable{DAEMONSET}": "0x99 2x50",
            f"kube_daemonset_status_updated_number_scheduled{DAEMONSET}": "20x99 0+2x4 10x50",
        },
        ("PodsMissing",),
    ),
    "pods are missing, though the one that counts them is another now": (
        {
            f"kube_daemonset_status_number_unavailable{DAEMONSET}": "0x99 2x10 stale",
            f"kube_daemonset_status_number_unavailable{DAEMONSET.replace('ksm', 'ksm2')}": (
                "_x111 2x40"
            ),
        },
        ("PodsMissing",),
    ),
    "a job is": (
        {
            f"{_LAUNCHES}{{{JOB}}}": "0+6000x110 660000+60x40",
            f"{_LAUNCHES.replace('kernel', 'graph')}{{{JOB}}}": "0x150",
            f"gpubpf_job_held_seconds_total{{{JOB}}}": "0+60x150",
        },
        ("SlowerThanBefore",),
    ),
}


@both
def test_edges(tmp_path: Path, version: Version) -> None:
    test = checked(HERE, {})
    test["tests"] = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [
                {"series": s, "values": text} for s, text in {UP: "1x150", **series}.items()
            ],
            "promql_expr_test": [firing(149, *alerts, within=149)],
        }
        for name, (series, alerts) in EDGES.items()
    ]
    (tmp_path / "test.yml").write_text(yaml.dump(test))
    promtool(version, "test", "rules", tmp_path / "test.yml")


@both
def test_two_clusters_with_a_node_and_a_job_of_the_same_name(
    tmp_path: Path, version: Version
) -> None:
    """As a store of both has them, by the external label: one is ill, the other's are well."""
    held, idle = "gpubpf_job_held_seconds_total", "gpubpf_job_diagnosis"
    series = {
        f'{held}{{{JOB},cluster="a"}}': "0+60x30",
        f'{held}{{{JOB},cluster="b"}}': "0+60x30",
        f'{idle}{{{JOB},diagnosis="idle_holder",cluster="a"}}': "1x30",
        f'{idle}{{{JOB},diagnosis="idle_holder",cluster="b"}}': "0x30",
        f'gpubpf_gpu_diagnosis{{{GPU},diagnosis="idle_holder",cluster="b"}}': "1x30",
        f'gpubpf_gpu_up{{{GPU},cluster="a"}}': "1x30",
        f'gpubpf_gpu_up{{{GPU},cluster="b"}}': "1x30",
    }

    def expected(query: str, **of: float) -> dict[str, Any]:
        samples = [{"labels": f'{{cluster="{name}"}}', "value": of[name]} for name in of]
        text = f"sum by (cluster) ({query})"
        return {"expr": text, "eval_time": "30m", "exp_samples": samples}

    test = checked(HERE, {})
    test["tests"] = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": text} for name, text in series.items()],
            "promql_expr_test": [
                expected("job:gpubpf_gpus:count", a=1, b=1),
                expected("cluster:gpubpf_idle_holders:count", a=0, b=1),
                expected('ALERTS{alertname="GpubpfIdleHolder",job_id="7"}', a=1),
                expected('ALERTS{alertname="GpubpfIdleHolder",job_id=""}', b=1),
            ],
        }
    ]
    (tmp_path / "test.yml").write_text(yaml.dump(test))
    promtool(version, "test", "rules", tmp_path / "test.yml")


def test_they_are_what_the_tables_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


@both
def test_promtool_reads_them(version: Version) -> None:
    promtool(version, "check", "rules", *(HERE / "rules").glob("*.yml"))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_each_says_what_and_what_to_do(alert: Any) -> None:
    assert alert.severity in ("critical", "warning", "info", "none")
    for text in (alert.summary, alert.description, alert.means, alert.do):
        assert text.strip() == text != ""
    assert f"## {alert.full_name}\n" in (HERE / "RUNBOOK.md").read_text()


def test_they_ask_only_for_what_there_is() -> None:
    parts = ("_bucket", "_count", "_sum")
    exported = {metric.sample_name for metric in METRICS}
    exported |= {metric.name + part for metric in METRICS for part in parts}
    queries = {row.name: row.expr for row in RECORDING} | {row.name: row.query for row in ALERTS}
    for name, query in queries.items():
        assert {*re.findall(r"(?<![:\w])gpubpf_\w+", query)} <= exported, name


def test_an_alert_that_is_not_wanted_and_another_step_time(tmp_path: Path) -> None:
    arguments = ["--write", "--directory", str(tmp_path), "--without", "NearFull"]
    steps = ["--step-time", "my_step_seconds", "--step-label", "pod_uid"]
    assert main([*arguments, *steps, "--runbook", "https://x.example/RUNBOOK.md"]) == 0
    text = (tmp_path / "rules" / "gpubpf-alerts.yml").read_text()
    assert "GpubpfNearFull" not in text
    assert "https://x.example/RUNBOOK.md#gpubpfstalled" in text
    slow: dict[str, Series] = {
        'my_step_seconds_sum{pod_uid="7"}': Counter(50, 50),
        'my_step_seconds_count{pod_uid="7"}': Counter(100, 25),
    }
    (tmp_path / "test.yml").write_text(yaml.dump(checked(tmp_path, {"StepsSlower": slow})))
    promtool(VERSIONS["3"], "test", "rules", tmp_path / "test.yml")
    assert files(rules.Choice()).keys() == {
        "rules/gpubpf-recording.yml", "rules/gpubpf-alerts.yml", "RUNBOOK.md",
    }  # fmt: skip
