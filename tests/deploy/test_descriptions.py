"""What the alerts say: with their values, also those of other series, as promtool fills them in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.__main__ import HERE
from deploy.monitoring.alerts import ALERTS, Alert
from tests.deploy.programs import Version, both
from tests.deploy.test_rules import GIB, GPU, JOB, checked, promtool

_INPUT = "diagnosis_input"
ODD = rf'cluster="lab",job_id="a\"b",{GPU}'
TOLD: dict[str, tuple[dict[str, str], str, str]] = {
    "IdleHolder": (
        {
            f'gpubpf_job_diagnosis{{{ODD},diagnosis="idle_holder"}}': "1x30",
            f'gpubpf_job_{_INPUT}{{{ODD},input="held_bytes"}}': f"{8 * GIB}x30",
            f'gpubpf_job_{_INPUT}{{{ODD},input="quiet_seconds"}}': "0+60x30",
            f'gpubpf_job_{_INPUT}{{{ODD},input="utilization_ratio"}}': "0.01x30",
            f'gpubpf_job_{_INPUT}{{{JOB},input="held_bytes"}}': "1x30",
            f'gpubpf_gpu_{_INPUT}{{{GPU},input="held_bytes"}}': "2x30",
        },
        'memory is held and nothing runs: job a"b on GPU 0 of node1',
        "Memory is held, and nothing was launched for a while. held_bytes 8GiB, quiet_seconds "
        "30m 0s, utilization_ratio 1%.",
    ),
    "Stalled": (  # asked where the inputs aren't kept
        {f'gpubpf_job_diagnosis{{{JOB},diagnosis="stalled"}}': "1x30"},
        "it hangs: job 7 on GPU 0 of node1",
        "Launches stopped, and a kernel runs on: most often a collective that waits for a rank. "
        "since_launch_seconds unknown, utilization_ratio unknown.",
    ),
    "LaunchBound": (  # of a GPU, where jobs are off
        {
            f'gpubpf_gpu_diagnosis{{{GPU},diagnosis="launch_bound"}}': "1x30",
            f'gpubpf_gpu_{_INPUT}{{{GPU},input="launches_per_second"}}': "20000x30",
            f'gpubpf_gpu_{_INPUT}{{{GPU},input="sm_utilization_ratio"}}': "0.125x30",
            f'gpubpf_gpu_{_INPUT}{{{GPU},input="wait_ratio"}}': "0x30",
            f'gpubpf_gpu_{_INPUT}{{{GPU.replace("-a", "-b")},input="wait_ratio"}}': "1x30",
        },
        "the GPU waits for the CPU: GPU 0 of node1",
        "Many small launches, little work on the SMs, and no thread waits for the GPU. "
        "launches_per_second 20k, sm_utilization_ratio 12.5%, wait_ratio 0%.",
    ),
    "SourceDown": (
        {
            'gpubpf_agent_source_up{instance="node1",source="kubelet"}': "0x30",
            'gpubpf_agent_source_down_reason{instance="node1",source="kubelet",reason="x"}': "1x30",
        },
        "gpubpf on node1 can't read kubelet",
        "The source kubelet has failed for 10 minutes; what it tells is absent or old: x.",
    ),
    "GpuDown": (
        {
            f"gpubpf_gpu_up{{{GPU}}}": "0x30",
            f'gpubpf_gpu_down_reason{{{GPU},reason="gpu_is_lost"}}': "1x30",
        },
        "GPU 0 of node1 doesn't answer",
        "Every call of NVML about the GPU fails: gpu_is_lost.",
    ),
}


@both
@pytest.mark.parametrize("name", TOLD)
def test_values_are_told(tmp_path: Path, version: Version, name: str) -> None:
    """Also where they aren't the alert's own: those of the same job on the same GPU."""
    (tmp_path / "test.yml").write_text(yaml.dump(told(name)))
    promtool(version, "test", "rules", tmp_path / "test.yml")


def told(name: str) -> dict[str, Any]:
    """What promtool, or vmalert-tool, is to test of one of TOLD."""
    series, summary, description = TOLD[name]
    (alert,) = (alert for alert in ALERTS if alert.name == name)
    found = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', next(iter(series)))
    labels = {label: text.replace('\\"', '"') for label, text in found}
    expected = {
        "exp_labels": labels | {"severity": alert.severity},
        "exp_annotations": {"summary": summary, "description": description, "action": alert.do},
    }
    test = checked(HERE, {})
    test["tests"] = [
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": text} for s, text in series.items()],
            "alert_rule_test": [
                {
                    "eval_time": "30m",
                    "alertname": alert.full_name,
                    "exp_alerts": [expected],
                }
            ],
        }
    ]
    return test


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_the_description_has_the_value(alert: Alert) -> None:
    """Or what else is measured of it; but where the alert is a state, which its summary says."""
    states = {"AgentDown", "NotScraped", "RowRemapPending", "RowRemapFailed"}
    assert (
        ".Value" in alert.description
        or "$value" in alert.description
        or ".Labels.reason" in alert.description
    ) != (alert.name in states | {"QuietPhase"})
