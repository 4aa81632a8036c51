"""What a job is called: by --jobs and itself alone, and no two the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf.jobs.ids import job_ids
from gpubpf.jobs.job import LONGEST, NONE, OTHER, job
from gpubpf.jobs.sources import SOURCES, Spec, parse
from gpubpf.model import Job, JobKey
from tests.unit.jobs.cases import CASES, UID

CUT = "x" * 200


@pytest.mark.parametrize(
    ("jobs", "source", "id_", "job_id"),
    [
        ("environ:X", "environ", "123", "123"),
        # whatever --jobs is: a file may have jobs of another
        ("environ:X", "environ", "user:me", "environ:user:me"),
        ("environ:X", "environ", "environ2:me", "environ:environ2:me"),
        ("environ:X", "environ", "dev:me", "dev:me"),
        ("environ:X", "environ", "environ:1", "environ:environ:1"),
        ("environ:X", "environ", OTHER, "environ:other"),
        ("user", "user", NONE, "user:none"),
        # what the first can't say is the second's own
        ("slurm,kubernetes,systemd", "kubernetes", UID, UID),
        ("slurm,kubernetes,systemd", "systemd", "a.service", "a.service"),
        ("slurm,systemd,user", "systemd", "user@7.service/b.scope", "user@7.service/b.scope"),
        ("slurm,systemd,user", "systemd", "user:7.service", "systemd:user:7.service"),
        ("slurm,systemd,user", "user", "alice", "alice"),
        ("slurm,environ:X", "environ", "run-7", "run-7"),
        # what it might say isn't
        ("slurm,systemd,user", "user", "1000", "user:1000"),
        ("slurm,systemd,user", "user", "a.service", "user:a.service"),
        ("kubernetes,environ:X", "environ", UID, f"environ:{UID}"),
        ("slurm,environ:X", "environ", "123", "environ:123"),
        ("slurm,environ:X", "environ", "0123", "0123"),
        ("slurm,environ:X", "environ", "slurm:123", "environ:slurm:123"),
        ("environ:X,slurm", "slurm", "123", "slurm:123"),
        ("environ:X,environ:Y,user", "user", "alice", "user:alice"),
        ("environ:X,environ:Y", "environ2", "7", "environ2:7"),
        ("slurm,systemd,slurm", "systemd", "a.service", "a.service"),
        # of a source that is no more
        ("slurm", "user", "alice", "user:alice"),
    ],
)
def test_ids(jobs: str, source: str, id_: str, job_id: str) -> None:
    assert job_ids(parse(jobs))(JobKey(source, id_)) == job_id


def test_a_long_one_that_was_cut_is_no_other_sources() -> None:
    unit = job("systemd", f"{CUT}.service")
    assert unit is not None
    named = job_ids(parse("systemd,environ:X"))
    assert named(unit.key) == unit.key.id
    assert named(JobKey("environ", unit.key.id)) == f"environ:{unit.key.id}"
    assert len(unit.key.id) == LONGEST


IDS = st.one_of(
    st.sampled_from(["1", "other", "none", UID, UID.replace("-", ""), "a.service", CUT]),
    st.text(min_size=1, max_size=8),
)
FRONTS = st.sampled_from(["", *(f"{name}:" for name in SOURCES)])
JOBS = st.builds(
    lambda source, front, id_: job(source, front + id_), st.sampled_from(list(SOURCES)), FRONTS, IDS
)


def of_source(made: JobKey) -> bool:
    """Whether this source can have given it: some say what theirs are like."""
    return re.fullmatch(f"{SOURCES[made.scheduler].ids}|.*…[0-9a-f]{{16}}", made.id) is not None


@given(
    st.permutations(list(SOURCES)),
    st.integers(1, len(SOURCES)),
    st.lists(JOBS, min_size=2, max_size=20),
)
def test_no_two_have_the_same(order: list[str], many: int, jobs: list[Job | None]) -> None:
    asked = order[:many]
    named = job_ids(map(Spec, asked))
    keys = {j.key for j in jobs if j and j.key.scheduler in asked and of_source(j.key)}
    names = {named(key) for key in keys}
    assert len(names) == len(keys)
    assert not names & {OTHER, NONE}


@pytest.mark.parametrize("source", ["slurm", "kubernetes", "systemd"])
def test_each_source_gives_what_it_says(source: str) -> None:
    """As the cases of test_jobs_sources.py have them."""
    ids = {
        "slurm": [case.slurm[0] for case in CASES if case.slurm],
        "kubernetes": [case.pod[0] for case in CASES if case.pod],
        "systemd": [case.unit for case in CASES if case.unit],
    }[source]
    assert ids
    assert [id_ for id_ in ids if not re.fullmatch(SOURCES[source].ids, id_)] == []
