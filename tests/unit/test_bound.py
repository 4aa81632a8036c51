"""gpubpf.bound: no page has more series of jobs than the formula; the README has its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from gpubpf import lanes
from gpubpf.bound import per_job
from gpubpf.diagnosis import DIAGNOSES, INPUTS
from gpubpf.job_metrics import JOB_METRICS
from gpubpf.model import (
    DeviceProcess,
    Finding,
    Job,
    JobAccount,
    JobKey,
    Jobs,
    Owner,
    Part,
    ProcessView,
    Share,
    Snapshot,
    Usage,
)
from gpubpf.parse import MOST_LABELS
from gpubpf.render import Renderer
from gpubpf.symbols import GROUPS, chosen
from gpubpf.view import View
from tests.unit.snapshots import snapshots, vector

UUIDS = ("GPU-0", "GPU-1", "GPU-2")


def of_jobs(seen: Snapshot, *, openmetrics: bool) -> int:
    text, _ = Renderer().page(View(seen), openmetrics=openmetrics)
    return sum(line.startswith("gpubpf_job_") for line in text.split("\n"))


def full(groups: tuple[str, ...], most: int) -> Snapshot:
    """Every job does everything on every GPU, and more errors than are told apart."""
    row = vector(dict.fromkeys(range(lanes.FIRST["calls"]), 5))
    on = {uuid: Usage(row, 1, 1, 1, 1, 0.5) for uuid in ("unknown", *UUIDS)}
    ids = [*map(str, range(most)), "other", "none"]
    errors = dict.fromkeys(range(1, 18), 1)
    accounts = [
        JobAccount(i, None if i in ("other", "none") else Job(JobKey("s", i)), 0, None, on, errors)
        for i in ids
    ]
    listed = DeviceProcess(1, 1, share=Share(0, 0, 0, 0, 0, 0))
    processes = [
        ProcessView(
            Owner(1, 1),
            None,
            row,
            {uuid: Part(row, 1, 1) for uuid in on},
            dict.fromkeys(UUIDS, listed),
            job_id=i,
        )
        for i in ids
    ]
    finding = Finding(dict.fromkeys(INPUTS, 1.0), dict.fromkeys(DIAGNOSES, True))
    functions = tuple(symbol.name for symbol in chosen(groups))
    return Snapshot(
        1.0, 2.0, functions, dict.fromkeys(on, row), 0, {}, None, tuple(processes),
        {uuid: index for index, uuid in enumerate(UUIDS)}, jobs=Jobs(tuple(accounts)),
        findings={(i, uuid): finding for i in ids for uuid in UUIDS},
    )  # fmt: skip


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("groups", [("launch", "memory"), GROUPS, ("copy",), ()], ids="+".join)
def test_a_full_page_is_within_the_bound_and_near_it(
    groups: tuple[str, ...], openmetrics: bool
) -> None:
    most = per_job(groups, created=openmetrics).series(len(UUIDS), 5)
    series = of_jobs(full(groups, 5), openmetrics=openmetrics)
    assert 0.7 * most < series <= most


@settings(max_examples=60, deadline=None)
@given(seen=snapshots())
def test_no_page_has_more(seen: Snapshot) -> None:
    """Two jobs, and names of diagnoses as they are."""
    seen = replace(seen, findings={})
    gpus = len(seen.indices)
    most = per_job(GROUPS).series(gpus, 2)
    assert of_jobs(seen, openmetrics=True) <= most


def test_labels_of_pods_are_in_it() -> None:
    seen = full(GROUPS, 5)
    assert seen.jobs is not None
    keys = [f"key{number}" for number in range(MOST_LABELS)]
    accounts = tuple(
        account
        if account.job is None
        else replace(account, job=replace(account.job, labels=tuple((k, "v") for k in keys)))
        for account in seen.jobs.accounts
    )
    labelled = replace(seen, jobs=replace(seen.jobs, accounts=accounts))
    more = of_jobs(labelled, openmetrics=False) - of_jobs(seen, openmetrics=False)
    assert more == 5 * MOST_LABELS
    without = per_job(GROUPS).series(len(UUIDS), 5)
    assert per_job(GROUPS, labels=MOST_LABELS).series(len(UUIDS), 5) - without >= more


def test_every_row_of_a_job_is_in_it() -> None:
    rows = [row for row in JOB_METRICS if row.name.startswith("gpubpf_job")]
    assert all(row.labels[:1] == ("job_id",) for row in rows)


def test_the_readme_has_the_figures() -> None:
    each = per_job(("launch", "memory"))
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"(max-jobs + 2) x ({each.once} + {each.on_gpu} x (GPUs + 1))" in text
