"""The accounts of jobs: whatever comes and goes, no counter goes back, nothing counts twice, and
the increases of all jobs are the device's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf import lanes
from gpubpf.accounts import MOST_ERRORS, OTHER_ERROR, Accounts
from gpubpf.join import Ledger, Readings, join
from gpubpf.model import (
    UNKNOWN_GPU,
    Activity,
    Calls,
    Device,
    DeviceInfo,
    DeviceProcess,
    Job,
    JobAccount,
    JobKey,
    Labels,
    Owner,
    Part,
    Plane,
    Reading,
    Share,
    Snapshot,
)
from gpubpf.state import State

GPUS = ("GPU-a", "GPU-b")
RETENTION = 10.0
MOST = 2
Naming = Callable[[JobKey], str]
OWN_ID: Naming = attrgetter("id")


def a_job(name: str, scheduler: str = "test") -> Job:
    return Job(JobKey(scheduler, name))


def launches(count: int) -> int:
    return count << lanes.LANE_BITS * lanes.FIRST["kernel_launches"]


@dataclass
class Node:
    """Processes that launch, and what an agent's look at them gives."""

    ledger: Ledger
    at: float = 100.0
    jobs: dict[Owner, Job | None] = field(default_factory=dict)
    counts: dict[Owner, Counter[str]] = field(default_factory=dict)
    over: dict[Owner, Counter[str]] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    born: int = 0

    def come(self, job: Job | None) -> Owner:
        self.born += 1
        owner = Owner(self.born % 5 + 1, self.born)  # pids are used again
        self.jobs[owner] = job
        self.counts[owner] = Counter()
        return owner

    def go(self, owner: Owner) -> None:
        self.over[owner] = self.counts.pop(owner)

    def look(self, seconds: float = 1.0) -> Snapshot:
        self.at += seconds

        def activities(rows: Mapping[Owner, Counter[str]]) -> dict[Owner, Activity]:
            return {
                owner: Activity(
                    0,
                    {
                        GPUS.index(gpu) if gpu in GPUS else None: Part(launches(n), 0, 0)
                        for gpu, n in counts.items()
                    },
                )
                for owner, counts in rows.items()
            }

        calls = Calls(activities(self.counts), activities(self.over), 0, {}, {}, {}, {})
        places = {
            (owner, ordinal): UNKNOWN_GPU if ordinal is None else GPUS[ordinal]
            for rows in (calls.live, calls.ended)
            for owner, activity in rows.items()
            for ordinal in activity.parts
        }
        plane = Reading("nvml", self.at, 0.0, Plane(self.devices)) if self.devices else None
        readings = Readings(
            at=self.at,
            time=1e9 + self.at,
            calls=Reading("bpf", self.at, 0.0, calls),
            plane=plane,
            processes={},
            gpus=places,
            attached=(),
            discovery=None,
            jobs=Reading("jobs", self.at, 0.0, {o: job for o, job in self.jobs.items() if job}),
        )
        snapshot = join(readings, self.ledger)
        for owner in self.over:
            del self.jobs[owner]
        self.over = {}
        return snapshot


def restart(node: Node, last: Snapshot, most: int, path: str, job_id: Naming = OWN_ID) -> None:
    """Another agent goes on, which counts in maps of its own."""
    state = State(path)
    state.save(last)
    assert state.problem is None
    state.close()
    state = State(path)
    saved = state.read()
    assert state.note is None
    state.close()
    assert saved is not None
    node.ledger = a_node(most, job_id=job_id).ledger
    node.ledger.restore(saved, node.at, 1e9 + node.at)
    for owner in node.counts:
        node.counts[owner] = Counter()


def a_node(most: int = MOST, retention: float = RETENTION, job_id: Naming = OWN_ID) -> Node:
    return Node(Ledger((), accounts=Accounts(0, most, retention, 1e9, job_id)))


def by_job(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    assert snapshot.jobs is not None
    return {
        account.job_id: {gpu: used.facts for gpu, used in account.on.items()}
        for account in snapshot.jobs.accounts
    }


def totals(snapshot: Snapshot) -> dict[str, int]:
    return {gpu: count for gpu, count in snapshot.totals.items() if count}


def increases(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """What the accounts grew by, by GPU; a new one from its 0."""
    assert before.jobs is not None
    assert after.jobs is not None
    old = {(a.job_id, a.created): a.on for a in before.jobs.accounts}
    grown: Counter[str] = Counter()
    for account in after.jobs.accounts:
        for gpu, used in account.on.items():
            was = old.get((account.job_id, account.created), {}).get(gpu)
            more = used.facts - (was.facts if was else 0)
            assert more >= 0, "a counter went back"
            grown[gpu] += more
    return {gpu: count for gpu, count in grown.items() if count}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(-1, 6)),
        st.tuples(st.just("go"), st.integers(0, 20)),
        st.tuples(st.just("launch"), st.integers(0, 20)),
        st.tuples(st.just("look"), st.sampled_from((1, 1, 1, 5, 11))),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=120,
)


@given(steps=STEPS, most=st.integers(0, 4))
def test_nothing_is_lost_or_counted_twice(steps: list[tuple[str, int]], most: int) -> None:
    node = a_node(most)
    before = node.look()
    for number, (what, which) in enumerate(steps):
        living = list(node.counts)
        if what == "come":
            node.come(a_job(str(which)) if which >= 0 else None)
        elif what == "go" and living:
            node.go(living[which % len(living)])
        elif what == "launch" and living:
            gpu = (*GPUS, UNKNOWN_GPU)[which % 3]
            node.counts[living[which % len(living)]][gpu] += 1 + number
        elif what == "restart":
            before = node.look()
            with TemporaryDirectory() as folder:
                restart(node, before, most, f"{folder}/state")
        elif what == "look":
            after = node.look(which)
            assert after.jobs is not None
            own = [account for account in after.jobs.accounts if account.job]
            assert len(own) <= most
            assert len({account.job_id for account in after.jobs.accounts}) == len(own) + 2
            more = {
                gpu: count - before.totals.get(gpu, 0)
                for gpu, count in after.totals.items()
                if count != before.totals.get(gpu, 0)
            }
            assert increases(before, after) == more
            running = {job.key for job in node.jobs.values() if job}
            with_account = {account.job.key for account in own if account.job}
            if running - with_account:  # somebody waits only where there is no room
                assert len(own) == most
            before = after


def test_an_account_is_whole() -> None:
    """A job's account has what it did since it came, and `created` is before that."""
    node = a_node()
    node.look()
    node.counts[node.come(a_job("1"))]["GPU-a"] = 3
    node.counts[node.come(None)]["GPU-a"] = 4
    snapshot = node.look()
    assert by_job(snapshot) == {
        "1": {"GPU-a": launches(3)},
        "other": {},
        "none": {"GPU-a": launches(4)},
    }
    assert snapshot.jobs is not None
    account = snapshot.jobs.accounts[0]
    assert account.created == snapshot.time - 1  # the look before
    assert (account.job, account.ended) == (a_job("1"), None)


def test_the_rest_is_other_until_there_is_room() -> None:
    node = a_node(most=1)
    first, second = node.come(a_job("1")), node.come(a_job("2"))
    node.counts[first]["GPU-a"] = node.counts[second]["GPU-a"] = 5
    snapshot = node.look()
    assert by_job(snapshot) == {
        "1": {"GPU-a": launches(5)},
        "other": {"GPU-a": launches(5)},
        "none": {},
    }
    assert snapshot.jobs is not None
    assert (snapshot.jobs.waiting, snapshot.jobs.merged) == (1, 1)
    node.go(first)
    node.counts[second]["GPU-a"] = 6
    assert by_job(node.look())["other"] == {"GPU-a": launches(6)}
    kept = node.look()  # the first without a process of it
    assert kept.jobs is not None
    assert kept.jobs.accounts[0].ended
    assert by_job(node.look(RETENTION))["1"] == {"GPU-a": launches(5)}
    node.counts[second]["GPU-a"] = 16
    moved = node.look(1.0)
    assert by_job(moved) == {
        "2": {"GPU-a": launches(10)},  # it starts at 0
        "other": {"GPU-a": launches(6)},  # and takes nothing with it
        "none": {},
    }
    assert moved.jobs is not None
    assert (moved.jobs.waiting, moved.jobs.merged, moved.jobs.closed) == (0, 1, 1)


@pytest.mark.parametrize(("away", "left"), [(RETENTION, 5), (RETENTION + 1, 0)])
def test_a_job_that_comes_back(away: float, left: int) -> None:
    """While its account is kept it goes on; after that it starts at 0, with another `created`."""
    node = a_node()
    node.look()
    owner = node.come(a_job("1"))
    node.counts[owner]["GPU-a"] = 5
    node.go(owner)
    opened = node.look().jobs
    node.look()
    node.look(away)
    node.counts[node.come(a_job("1"))]["GPU-a"] = 2
    snapshot = node.look(0)
    assert by_job(snapshot)["1"] == {"GPU-a": launches(left + 2)}
    assert snapshot.jobs is not None
    assert opened is not None
    same = snapshot.jobs.accounts[0].created == opened.accounts[0].created
    assert same == bool(left)


def test_a_job_of_one_look_has_its_account() -> None:
    node = a_node()
    owner = node.come(a_job("short"))
    node.counts[owner]["GPU-b"] = 7
    node.go(owner)
    assert by_job(node.look())["short"] == {"GPU-b": launches(7)}


def test_one_that_is_called_something_else_after_a_restart_begins_anew() -> None:
    node = a_node()
    owner = node.come(a_job("1"))
    node.counts[owner]["GPU-a"] = 7
    with TemporaryDirectory() as folder:
        restart(node, node.look(), MOST, f"{folder}/state", job_id=lambda key: f"test:{key.id}")
    node.counts[owner]["GPU-a"] = 2
    after = node.look()
    assert by_job(after)["test:1"] == {"GPU-a": launches(2)}
    assert totals(after) == {"GPU-a": launches(9)}
    assert after.jobs is not None
    assert after.jobs.closed == 1


def test_what_grows_past_a_lane_stops_there() -> None:
    node = a_node()
    for _ in range(3):
        node.counts[node.come(a_job("1"))]["GPU-a"] = 2**62
    snapshot = node.look()
    assert by_job(snapshot)["1"] == totals(snapshot) == {"GPU-a": 2**63 - 1}


def test_errors_are_told_apart_up_to_a_number() -> None:
    accounts = Accounts(0, MOST, RETENTION, 0.0)
    job = a_job("1")
    accounts.look(1.0, 1.0, [job])
    for error in range(1, 3 * MOST_ERRORS):
        accounts.charge_error(job.key, error, 2)
    told = accounts.told({}, {}, 0).accounts[0].errors
    assert len(told) == MOST_ERRORS + 1
    assert told[1] == 2
    assert told[OTHER_ERROR] == 2 * (2 * MOST_ERRORS - 1)


def test_the_best_known_names_stay() -> None:
    """Of a job's processes one may know the names, and not be there all the time."""
    node = a_node()
    named = Job(JobKey("test", "1"), "space", "training", "ada")
    for job in (a_job("1"), named, Job(JobKey("test", "1"), "", "", "ada")):
        node.counts[node.come(job)]["GPU-a"] = 1
        told = node.look().jobs
    assert told is not None
    assert [account.job for account in told.accounts] == [named, None, None]


def test_a_job_holds_a_gpu_once() -> None:
    """However many processes it has there, and whatever they know of its names."""
    node = a_node()
    for name in ("", "a", "b"):
        node.counts[node.come(Job(JobKey("test", "1"), name=name))]["GPU-a"] = 1
    node.look()
    assert seconds(node.look(2), "1") == (2, 0)


# --- time and energy ----------------------------------------------------------------------------


def a_gpu(uuid: str, joules: float | None, rows: Iterable[tuple[int, float | None]] = ()) -> Device:
    """`rows`: pid and SM utilization."""
    processes = tuple(
        DeviceProcess(pid, 1000, ("compute",), None, None if sm is None else Share(sm, 0, 0, 0))
        for pid, sm in rows
    )
    figures: dict[str, dict[Labels, float]] = {}
    if joules is not None:
        figures["energy_joules"] = {(): joules}
    return Device(DeviceInfo(0, uuid, "Simulated", "1"), figures, processes)


def seconds(snapshot: Snapshot, job_id: str, gpu: str = "GPU-a") -> tuple[float, float]:
    """Held, and active."""
    assert snapshot.jobs is not None
    account = next(a for a in snapshot.jobs.accounts if a.job_id == job_id)
    used = account.on.get(gpu)
    return (used.held, used.active) if used else (0.0, 0.0)


def test_held_active_and_idle() -> None:
    node = a_node()
    owner = node.come(a_job("1"))
    node.counts[owner]["GPU-a"] = 1
    node.look()
    node.counts[owner]["GPU-a"] += 1
    assert seconds(node.look(2), "1") == (2, 2)  # it launched
    assert seconds(node.look(3), "1") == (5, 2)  # it didn't
    node.devices = (a_gpu("GPU-a", None, [(owner.pid, 0.5)]),)
    assert seconds(node.look(4), "1") == (9, 6)  # its kernels still run
    node.devices = (a_gpu("GPU-a", None, [(owner.pid, 0.0)]),)
    assert seconds(node.look(1), "1") == (10, 6)
    node.devices = (a_gpu("GPU-a", None),)  # NVML lists it no more: it gave up its context
    assert seconds(node.look(1), "1") == (10, 6)
    node.counts[owner]["GPU-a"] += 1
    node.go(owner)
    last = node.look(1)
    assert seconds(last, "1") == (11, 7)
    assert last.jobs is not None
    assert last.jobs.accounts[0].on["GPU-a"].launched == last.at
    assert seconds(node.look(1), "1") == (11, 7)


def joules(snapshot: Snapshot) -> dict[str, float]:
    assert snapshot.jobs is not None
    told = {a.job_id: a.on["GPU-a"].energy for a in snapshot.jobs.accounts if "GPU-a" in a.on}
    told["nobody"] = snapshot.jobs.unattributed_energy.get("GPU-a", 0.0)
    return {who: energy for who, energy in told.items() if energy}


def test_energy_by_share_of_sm_utilization() -> None:
    node = a_node()
    one, two = node.come(a_job("1")), node.come(None)
    node.look()

    def look(energy: float, *shares: float | None) -> dict[str, float]:
        rows = zip((one.pid, two.pid), shares, strict=True)
        node.devices = (a_gpu("GPU-a", energy, rows),)
        return joules(node.look())

    assert look(1000, 0.5, 0.25) == {}  # what was before isn't known
    assert look(1000, 0.5, 0.25) == {}  # no new sample
    assert look(1100, 0.5, 0.25) == {"1": 50, "none": 25, "nobody": 25}
    assert look(1300, 1.0, 1.0) == {"1": 150, "none": 125, "nobody": 25}  # more than 1 together
    assert look(1400, None, None) == {"1": 150, "none": 125, "nobody": 125}
    assert look(1500, 0.0, 0.0) == {"1": 150, "none": 125, "nobody": 225}


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from((0.0, 0.0, 5.0, 250.5)),
            st.one_of(st.none(), st.floats(0, 1)),
            st.one_of(st.none(), st.floats(0, 1)),
            st.sampled_from((1.0, 0.1, 30.0)),
        ),
        max_size=40,
    )
)
def test_energy_adds_up(steps: list[tuple[float, float | None, float | None, float]]) -> None:
    node = a_node(most=1)
    one, two = node.come(a_job("1")), node.come(a_job("2"))
    total = 1e6
    before: dict[str, float] = {}
    for more, first, second, pause in steps:
        total += more
        node.devices = (a_gpu("GPU-a", total, [(one.pid, first), (two.pid, second)]),)
        told = joules(node.look(pause))
        assert all(told.get(who, 0.0) >= energy for who, energy in before.items())
        before = told
    grown = sum(more for more, *_ in steps[1:])
    assert sum(before.values()) == pytest.approx(grown)


def test_a_name_that_was_taken_back() -> None:
    """What is as well known takes the place of what was known; what is less known doesn't."""
    key = JobKey("kubernetes", "u")
    accounts = Accounts(0, 5, 60, 0.0)

    def name(job: Job, at: float) -> str:
        accounts.look(at, at, [job])
        (account,) = [a for a in accounts.told({}, {}, 0).accounts if a.job]
        assert account.job is not None
        return account.job.name

    assert name(Job(key), 1) == ""
    assert name(Job(key, "ml", "wrong", rank=1), 2) == "wrong"
    assert name(Job(key), 3) == "wrong"  # not known at the moment
    assert name(Job(key, rank=1), 4) == ""  # taken back
    assert name(Job(key, "ml", "bert", labels=(("a", "b"),), rank=2), 5) == "bert"
    assert name(Job(key, "ml", "bert-worker-0", rank=1), 6) == "bert"


def test_a_restart_keeps_those_that_run_first() -> None:
    """Where --max-jobs is lower than before."""

    def saved(name: str, ended: float | None) -> JobAccount:
        return JobAccount(name, a_job(name), 5.0, ended, {}, {})

    accounts = Accounts(0, 2, 60, 0.0)
    there = (saved("a", 90.0), saved("b", 91.0), saved("runs", None))
    assert accounts.restore(there, 100.0, 100.0) == 2
    assert {a.job_id for a in accounts.told({}, {}, 0).accounts if a.job} == {"runs", "a"}


def test_who_says_anothers_number_doesnt_name_his_job() -> None:
    """Slurm: names of a process in the job's cgroup take the place of any that only claim it."""
    key = JobKey("slurm", "1")
    proved, claimed = Job(key, name="fit", user="ada"), Job(key, "zz", "zz", "bob", rank=-1)
    for order in ([claimed, proved], [proved, claimed]):
        accounts = Accounts(0, 2, 60, 0.0)
        for at, job in enumerate(order):
            accounts.look(at, at, [job])
        accounts.look(2, 2, [claimed])
        (account,) = [a for a in accounts.told({}, {}, 0).accounts if a.job]
        assert account.job == proved


def test_energy_of_the_time_between_two_agents_is_nobodys() -> None:
    node = a_node()
    node.devices = (a_gpu("GPU-a", 2000, []),)
    before = node.look()
    with TemporaryDirectory() as folder:
        restart(node, before, MOST, f"{folder}/state")
    node.devices = (a_gpu("GPU-a", 5000, []),)
    node.look()
    node.devices = (a_gpu("GPU-a", 5100, []),)
    after = node.look()
    assert after.jobs is not None
    assert after.jobs.unattributed_energy == {"GPU-a": 3100.0}
    with TemporaryDirectory() as folder:
        restart(node, after, MOST, f"{folder}/state")
    node.devices = (a_gpu("GPU-a", 70, []),)  # the driver was loaded again
    after = node.look()
    assert after.jobs is not None
    assert after.jobs.unattributed_energy == {"GPU-a": 3100.0}


def test_what_is_known_of_a_job_after_its_end() -> None:
    accounts = Accounts(0, MOST, RETENTION, 0.0)
    here, gone = a_job("here"), a_job("gone")
    accounts.look(1.0, 1.0, [here, gone])
    accounts.look(2.0, 2.0, [here])
    assert accounts.ended == [gone]
    known = Job(gone.key, namespace="ml", name="a", rank=1)
    accounts.name([known, a_job("another")])
    assert accounts.ended == [known]
    accounts.name([gone])
    assert accounts.ended == [known]
    accounts.look(3.0 + RETENTION, 3.0 + RETENTION, [here])
    assert accounts.ended == []
