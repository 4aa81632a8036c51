"""Kernels that ran on each GPU by CUPTI's records, against those that were counted."""

from __future__ import annotations

from tests.gpu.model import Figure, Finding, Result, judged
from tests.gpu.pages import Expect, judge
from tests.gpu.rig import Rig


def cupti(rig: Rig) -> Result:
    """Launches and the kernels of graphs are together what CUPTI saw run."""
    client = rig.client("cupti_client")
    client.ask("begin")
    before = rig.page()
    records = client.ask("work", launches=101, kernels=7, times=5)
    page = rig.page()
    findings: list[Finding] = []
    figures: dict[str, Figure] = {}
    for bare, count in records.items():
        uuid = {"uuid": page.uuid(bare)}
        expected = [
            Expect("kernel_launches+graph_kernels", count, uuid, note=f"kernels on {bare}"),
            Expect("graph_kernels", 35, uuid, note=f"kernels of graphs on {bare}"),
        ]
        findings += judge(client.pid, before, page, expected)
        findings.append(Finding(f"CUPTI's records of {bare}", 136, count, count == 136))
        figures[f"records of {bare}"] = count
    findings.append(Finding("GPUs with records", "some", len(records), bool(records)))
    return judged(findings, figures)
