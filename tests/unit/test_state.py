"""gpubpf.state: what jobs took outlives the agent, and a file that is damaged harms nobody."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf.errors import UsageError
from gpubpf.jobs.job import LONGEST
from gpubpf.model import Job, JobAccount, JobKey, Jobs, Snapshot, Usage
from gpubpf.state import Saved, State
from tests.unit.snapshots import FACTS

JOB = Job(JobKey("slurm", "4711"), "cluster", "train", "ada", (("team", "x"),))
USED = Usage(7 << 64, 1.5, 0.1, 1.4, 3e6, 90.0)


def snapshot(*accounts: JobAccount, at: float = 100.0) -> Snapshot:
    rest = tuple(JobAccount(name, None, 5.0, None, {}, {}) for name in ("other", "none"))
    return Snapshot(
        at, 1e9 + at, (), {"unknown": 0, "GPU-a": 7 << 64}, 0, {("cuInit", 100): 2}, None, (),
        indices={"GPU-a": 0},
        jobs=Jobs((*accounts, *rest), unattributed_energy={"GPU-a": 2.5}),
    )  # fmt: skip


ACCOUNT = JobAccount("4711", JOB, 1e9 + 1.25, 1e9 + 99, {"GPU-a": USED}, {2: 3})


def saved_and_read(path: Path, seen: Snapshot) -> Saved:
    state = State(str(path))
    state.save(seen)
    assert state.problem is None
    saved = state.read()
    state.close()
    assert saved is not None
    return saved


def test_what_is_written_is_read(tmp_path: Path) -> None:
    saved = saved_and_read(tmp_path / "state", snapshot(ACCOUNT))
    as_unix_time = {"GPU-a": USED._replace(launched=1e9 + 90)}
    assert saved.accounts[0] == replace(ACCOUNT, on=as_unix_time)
    assert [account.job_id for account in saved.accounts] == ["4711", "other", "none"]
    assert saved.totals == {"unknown": 0, "GPU-a": 7 << 64}
    assert (saved.indices, saved.unattributed) == ({"GPU-a": 0}, {"GPU-a": 2.5})
    assert saved.errors == {("cuInit", 100): 2}
    assert sorted(os.listdir(tmp_path)) == ["state", "state.lock"]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


@given(facts=FACTS)
def test_facts_are_kept_by_name(facts: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    account = replace(ACCOUNT, on={"GPU-a": USED._replace(facts=facts)})
    saved = saved_and_read(tmp_path_factory.mktemp("state") / "state", snapshot(account))
    assert saved.accounts[0].on["GPU-a"].facts == facts


def test_a_fact_that_this_version_does_not_know_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "state"
    saved_and_read(path, snapshot(ACCOUNT))
    document = json.loads(path.read_text())
    document["totals"]["GPU-a"]["of_the_future"] = 5
    path.write_text(json.dumps(document))
    state = State(str(path))
    saved = state.read()
    state.close()
    assert saved is not None
    assert saved.totals["GPU-a"] == 7 << 64


def test_an_older_snapshot_is_not_written_over_a_newer_one(tmp_path: Path) -> None:
    """Two scrapes at once may come in any order."""
    state = State(str(tmp_path / "state"))
    state.save(snapshot(ACCOUNT, at=200.0))
    state.save(snapshot(at=100.0))
    saved = state.read()
    state.close()
    assert saved is not None
    assert saved.accounts[0].job_id == "4711"


def damage(document: object, *path: object, by: object) -> str:
    at = document
    for part in path[:-1]:
        at = at[part]  # type: ignore[index]
    at[path[-1]] = by  # type: ignore[index]
    return json.dumps(document)


ODD: tuple[object, ...] = (
    None,
    -1,
    1.5,
    "x\n",
    [],
    {},
    True,
    2**63,
    math.nan,
    math.inf,
    "x" * 500,
    [[]],
    [1, 2],
)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_whatever_is_damaged_is_set_aside(tmp_path: Path, odd: object) -> None:
    """Each value of the file in turn; or it is taken where it is as good as another."""
    path = tmp_path / "state"
    saved_and_read(path, snapshot(ACCOUNT))
    whole = path.read_text()

    def places(value: object, *above: object) -> list[tuple[object, ...]]:
        rows = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        )
        return [p for key, row in rows for p in ((*above, key), *places(row, *above, key))]

    refused = 0
    for place in places(json.loads(whole)):
        path.write_text(damage(json.loads(whole), *place, by=odd))
        state = State(str(path))
        saved = state.read()
        state.close()
        assert (saved is None) == (state.note is not None)
        if saved is None:
            refused += 1
            assert state.note is not None
            assert "\n" not in state.note
            assert f"set aside as {path}.damaged" in state.note
            assert not path.exists()
    assert refused > 10


@given(text=st.binary(max_size=200))
def test_garbage(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    path.write_bytes(text)
    state = State(str(path))
    assert state.read() is None
    state.close()
    assert state.note is not None
    assert path.with_name("state.damaged").read_bytes() == text


def test_a_newer_version_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "state"
    saved_and_read(path, snapshot(ACCOUNT))
    path.write_text(damage(json.loads(path.read_text()), "version", by=2))
    state = State(str(path))
    assert state.read() is None
    state.close()
    assert state.note is not None
    assert "it is of version 2, this gpubpf reads 1" in state.note


def test_one_agent_at_a_time(tmp_path: Path) -> None:
    first = State(str(tmp_path / "state"))
    with pytest.raises(UsageError, match="another gpubpf has it"):
        State(str(tmp_path / "state"))
    first.close()
    State(str(tmp_path / "state")).close()


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    """Somebody names the directory: it is not set aside."""
    with pytest.raises(UsageError, match="no regular file; name one"):
        State(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_two_schedulers_with_the_same_long_id(tmp_path: Path) -> None:
    """The second's job_id has its scheduler's name in front, and is longer than any id."""
    long = "x" * LONGEST
    jobs = [Job(JobKey(scheduler, long)) for scheduler in ("slurm", "environ")]
    accounts = [
        replace(ACCOUNT, job_id=name, job=job)
        for name, job in zip((long, f"environ:{long}"), jobs, strict=True)
    ]
    saved = saved_and_read(tmp_path / "state", snapshot(*accounts))
    assert [account.job for account in saved.accounts[:2]] == jobs


def test_an_account_that_is_there_twice(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    state.save(snapshot(ACCOUNT, replace(ACCOUNT, job_id="another")))
    assert state.read() is None
    state.close()


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no directory .*; make it first"):
        State(str(tmp_path / "nowhere" / "state"))


def test_a_disk_that_is_full_is_a_problem_and_then_none(tmp_path: Path) -> None:
    """What stands in the place of the new file can't be taken away: as good as a full disk."""
    state = State(str(tmp_path / "state"))
    (tmp_path / "state.new").mkdir()
    state.save(snapshot(ACCOUNT))
    assert state.problem is not None
    assert "can't be written" in state.problem
    (tmp_path / "state.new").rmdir()
    state.save(snapshot(ACCOUNT, at=101.0))
    assert state.problem is None
    state.close()


def test_a_gpu_that_only_a_job_held_keeps_its_index(tmp_path: Path) -> None:
    """Also where NVML is away when it is saved: else it would be a second `unknown`."""
    held = replace(ACCOUNT, on={"MIG-a": USED})
    before = snapshot(held)
    assert before.devices is None
    saved = saved_and_read(
        tmp_path / "state", replace(before, indices={"GPU-a": 0, "MIG-a": 0, "GPU-gone": 3})
    )
    assert saved.indices == {"GPU-a": 0, "MIG-a": 0}


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """Whatever may be in it: the longest key of a label, the longest names."""
    key = f"{'d' * 253}/{'n' * 63}"
    long = "x" * LONGEST
    job = Job(JobKey("kubernetes", long), long, long, long, ((key, long),), rank=-1)
    account = JobAccount(f"kubernetes:{long}", job, 5.0, None, {}, {})
    saved = saved_and_read(tmp_path / "state", snapshot(account))
    assert saved.accounts[0].job == replace(job, rank=0)


def test_a_file_that_would_be_too_large_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    saved_and_read(path, snapshot(ACCOUNT))
    before = path.read_bytes()
    monkeypatch.setattr("gpubpf.state._LARGEST", len(before))
    state = State(str(path))
    state.save(snapshot(ACCOUNT, replace(ACCOUNT, job_id="x"), at=101.0))
    assert "set a lower --max-jobs" in (state.problem or "")
    state.close()
    assert path.read_bytes() == before
