"""gpubpf.diagnosis: each is so in its scenario and in no other, and not any more when that ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gpubpf import lanes
from gpubpf.diagnosis import DIAGNOSES, INPUTS, THRESHOLDS, Diagnoses, parse
from gpubpf.evidence import NEVER, Evidence, evidence
from gpubpf.model import (
    Device,
    DeviceInfo,
    DeviceProcess,
    Figures,
    Finding,
    Job,
    JobAccount,
    JobKey,
    Jobs,
    Owner,
    Part,
    Plane,
    ProcessView,
    Share,
    Snapshot,
    Usage,
)
from gpubpf.symbols import GROUPS, KINDS
from tests.unit.snapshots import vector

GPU = (None, "GPU-a")
GIB = 1 << 30
LAUNCHES, WAITED = lanes.FIRST["kernel_launches"], lanes.FIRST["wait_nanoseconds"]
ALLOCATIONS = lanes.FIRST["allocations"]
SHORT = {
    "window_seconds": 5.0,
    "idle_seconds": 20.0,
    "stalled_seconds": 10.0,
    "growth_seconds": 40.0,
}

Scene = Callable[[int], Evidence]
"""What is seen at each second."""


def seen(
    launches: int = 0,
    waited: float = 0.0,
    allocations: int = 0,
    *,
    held: int | None = GIB,
    live: int = GIB,
    busy: float | None = 0.6,
    used: float | None = 0.5,
    kind: str = "device",
    unsure: int = 0,
) -> Evidence:
    row = {
        LAUNCHES: launches,
        WAITED: int(waited * 1e9),
        ALLOCATIONS + KINDS.index(kind): allocations,
    }
    return Evidence(vector(row), vector({LAUNCHES: unsure}), held, live, busy, busy, used)


SCENES: dict[str, Scene] = {
    "": lambda t: seen(100 * t, 0.5 * t),  # training, as it should be
    "idle_holder": lambda t: seen(5, busy=0.0),
    "stalled": lambda t: seen(100 * min(t, 3), busy=1.0),
    "launch_bound": lambda t: seen(20_000 * t, 0.01 * t, busy=0.3),
    "memory_churn": lambda t: seen(100 * t, 0.5 * t, 500 * t),
    "memory_growth": lambda t: seen(100 * t, 0.5 * t, t, live=GIB + 4096 * t),
    "near_full": lambda t: seen(100 * t, 0.5 * t, used=0.99),
}


def play(scene: Scene, seconds: int, diagnoses: Diagnoses, start: int = 0) -> Finding:
    for t in range(start, start + seconds):
        finding = diagnoses.look(1000.0 + t, {GPU: scene(t)})[GPU]
    return finding


def on(finding: Finding) -> set[str]:
    return {name for name, holds in finding.verdicts.items() if holds}


def test_every_diagnosis_has_a_scene() -> None:
    assert DIAGNOSES.keys() == SCENES.keys() - {""}


@pytest.mark.parametrize("name", SCENES)
def test_each_in_its_scene_and_in_no_other(name: str) -> None:
    diagnoses = Diagnoses(SHORT, GROUPS)
    finding = play(SCENES[name], 60, diagnoses)
    assert on(finding) == {name} - {""}
    assert finding.verdicts.keys() == DIAGNOSES.keys()
    assert finding.inputs.keys() == INPUTS.keys()
    # and then it trains as it should, from where it stands
    after = [play(lambda t: seen(10**7 + 100 * t, 50 + 0.5 * t, 10**5), 60, diagnoses, 60)]
    assert on(after[-1]) == set()


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("idle_holder", 20),
        ("stalled", 13),
        ("launch_bound", 5),
        ("memory_churn", 5),
        ("near_full", 0),
    ],
)
def test_from_the_look_on_at_which_it_is_so(name: str, second: int) -> None:
    diagnoses = Diagnoses(SHORT, GROUPS)
    found = [on(play(SCENES[name], 1, diagnoses, t)) for t in range(second + 1)]
    assert found[-1] == {name}
    assert not any(found[:-1])


def test_a_launch_ends_idleness_at_once() -> None:
    diagnoses = Diagnoses(SHORT, GROUPS)
    assert on(play(SCENES["idle_holder"], 40, diagnoses)) == {"idle_holder"}
    assert on(play(lambda t: seen(6, busy=0.0), 1, diagnoses, 40)) == set()


def test_a_launch_for_who_knows_which_gpu_is_one_for_each() -> None:
    """Processes from before the agent: nobody is accused of idleness because of them."""
    assert on(play(lambda t: seen(busy=0.0, unsure=t), 60, Diagnoses(SHORT, GROUPS))) == set()
    assert on(play(lambda t: seen(busy=1.0, unsure=t), 60, Diagnoses(SHORT, GROUPS))) == set()


def test_nothing_is_idle_that_holds_nothing() -> None:
    assert on(play(lambda t: seen(held=0, live=0, busy=0.0), 60, Diagnoses(SHORT, GROUPS))) == set()


def test_who_was_never_seen_to_launch_has_not_stopped() -> None:
    """It may launch past the probes. Neither does it idle: it is busy."""
    finding = play(lambda t: seen(0, busy=1.0), 60, Diagnoses(SHORT, GROUPS))
    assert "stalled" not in finding.verdicts
    assert on(finding) == set()


def test_allocations_from_a_pool_are_no_churn() -> None:
    scene: Scene = lambda t: seen(100 * t, 0.5 * t, 500 * t, kind="pool")  # noqa: E731
    assert on(play(scene, 60, Diagnoses(SHORT, GROUPS))) == set()


def test_memory_that_falls_once_does_not_only_grow() -> None:
    def scene(t: int) -> Evidence:
        return seen(100 * t, 0.5 * t, t, live=GIB + 4096 * (t if t < 58 else 50))

    assert on(play(scene, 60, Diagnoses(SHORT, GROUPS))) == set()


@pytest.mark.parametrize(
    ("group", "missing"),
    [
        ("launch", {"idle_holder", "stalled", "launch_bound"}),
        ("wait", {"launch_bound"}),
        ("memory", {"memory_churn", "memory_growth"}),
    ],
)
def test_no_guess_without_its_inputs(group: str, missing: set[str]) -> None:
    groups = tuple(other for other in GROUPS if other != group)
    finding = play(SCENES[""], 60, Diagnoses(SHORT, groups))
    assert DIAGNOSES.keys() - finding.verdicts.keys() == missing


def test_without_nvml() -> None:
    scene: Scene = lambda t: seen(5, busy=None, used=None)  # noqa: E731
    finding = play(scene, 60, Diagnoses(SHORT, GROUPS))
    assert on(finding) == {"idle_holder"}
    missing = {"stalled", "launch_bound", "near_full"}
    assert DIAGNOSES.keys() - finding.verdicts.keys() == missing


def test_what_is_gone_is_forgotten() -> None:
    diagnoses = Diagnoses(SHORT, GROUPS)
    play(SCENES["idle_holder"], 60, diagnoses)
    assert diagnoses.look(2000.0, {}) == {}
    assert on(play(SCENES["idle_holder"], 1, diagnoses, 1001)) == set()


def test_thresholds() -> None:
    assert parse("idle_seconds=5, near_full_ratio=0.5") == (
        ("idle_seconds", 5.0),
        ("near_full_ratio", 0.5),
    )
    for name, row in THRESHOLDS.items():
        assert parse(f"{name}={row.default}") == ((name, row.default),)
    for wrong in (
        "idle_seconds",
        "idle=5",
        "idle_seconds=x",
        "idle_seconds=nan",
        "near_full_ratio=2",
    ):
        with pytest.raises(ValueError, match=r"=VALUE|from .* to"):
            parse(wrong)


# --- evidence -----------------------------------------------------------------------------------


def process(job_id: str | None, *, live: int, used: int | None, sm: float | None) -> ProcessView:
    share = None if sm is None else Share(sm, 0, 0, 0)
    row = DeviceProcess(1, used, share=share)
    part = Part(0, live, live)
    return ProcessView(
        Owner(1, 1), None, 0, {"GPU-a": part}, {"GPU-a": row}, job_id=job_id
    )  # fmt: skip


def of(*processes: ProcessView) -> Snapshot:
    figures: Figures = {
        "utilization_ratio": {(): 0.9},
        "memory_used_bytes": {(): 6.0 * GIB},
        "memory_size_bytes": {(): 8.0 * GIB},
    }
    ids = {view.job_id for view in processes if view.job_id}
    usage = Usage(7 << 64 * LAUNCHES, 0, 0, 0, 0, None)
    accounts = tuple(
        JobAccount(i, Job(JobKey("slurm", i)), 0, None, {"GPU-a": usage}, {}) for i in sorted(ids)
    )
    info = DeviceInfo(0, "GPU-a", "", "")
    return Snapshot(
        1.0, 2.0, (), {"unknown": 1, "GPU-a": 9 << 64 * LAUNCHES}, 0, {},
        Plane((Device(info, figures),)), processes, {"GPU-a": 0}, jobs=Jobs(accounts),
    )  # fmt: skip


def test_evidence_of_a_gpu_and_of_its_jobs() -> None:
    found = evidence(
        of(
            process("1", live=GIB, used=2 * GIB, sm=0.25),
            process("1", live=GIB, used=GIB, sm=0.5),
            process("2", live=3 * GIB, used=GIB, sm=None),
        )
    )
    gpu, one, two = found[None, "GPU-a"], found["1", "GPU-a"], found["2", "GPU-a"]
    assert found.keys() == {GPU, ("1", "GPU-a"), ("2", "GPU-a")}
    assert gpu == Evidence(9 << 64 * LAUNCHES, 1, 5 * GIB, 5 * GIB, 0.9, 0.9, 0.75, NEVER)
    assert one == Evidence(7 << 64 * LAUNCHES, 0, 3 * GIB, 2 * GIB, 0.75, 0.75, 3 / 8, NEVER)
    assert two == Evidence(7 << 64 * LAUNCHES, 0, 3 * GIB, 3 * GIB, None, None, 1 / 8, NEVER)


def test_a_job_that_has_a_gpu_to_itself_has_its_utilization() -> None:
    found = evidence(of(process("1", live=0, used=None, sm=None)))
    assert found["1", "GPU-a"] == Evidence(7 << 64 * LAUNCHES, 0, None, 0, 0.9, 0.9, None, NEVER)


def test_totals_of_before_the_agent_are_no_launches() -> None:
    """With --state, and where a job comes back: what it did before isn't done now."""
    old = seen(500, busy=1.0, unsure=3)._replace(launched=40.0)
    found = Diagnoses(SHORT, GROUPS).look(100.0, {GPU: old})[GPU]
    assert found.inputs["since_launch_seconds"] == 60.0
    assert found.inputs["quiet_seconds"] == 0.0  # that it is held was not seen before
    never = Diagnoses(SHORT, GROUPS).look(100.0, {GPU: old._replace(launched=NEVER)})[GPU]
    assert "since_launch_seconds" not in never.inputs
    assert "stalled" not in never.verdicts
    now = Diagnoses(SHORT, GROUPS).look(100.0, {GPU: old._replace(launched=100.0)})[GPU]
    assert now.inputs["since_launch_seconds"] == 0.0


def test_evidence_of_when_something_was_launched() -> None:
    """By the accounts: a GPU's is the latest of all; one for an unknown GPU may be anybody's."""
    snapshot = of(process("1", live=GIB, used=GIB, sm=0.5))
    assert snapshot.jobs is not None
    (account,) = [a for a in snapshot.jobs.accounts if a.job_id == "1"]
    usage = account.on["GPU-a"]
    mine = replace(account, on={"GPU-a": usage._replace(launched=5.0)})
    lost = replace(account, job_id="none", job=None, on={"unknown": usage._replace(launched=9.0)})
    found = evidence(replace(snapshot, jobs=Jobs((mine, lost))))
    assert (found["1", "GPU-a"].launched, found[GPU].launched) == (5.0, 9.0)
    assert evidence(replace(snapshot, jobs=None))[GPU].launched is None
