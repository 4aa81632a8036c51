"""What each job did, in a bounded number of accounts. Pure: no I/O, no clock.

At most `most` jobs have an account of their own at once. Those that come when all are taken share
the account `other` until one is free; who has no job is in `none`. Whatever is charged to a device
is charged to exactly one account, so that the increases of all accounts together are the device's.
An account only grows, and starts at 0: a job that moves out of `other`, or comes back after its
account was closed, takes nothing with it. Closed accounts end; nobody inherits them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from operator import attrgetter

from gpubpf import lanes
from gpubpf.jobs.job import NONE, OTHER
from gpubpf.model import Job, JobAccount, JobKey, Jobs, Usage

Place = tuple[JobKey | None, str]
"""A job, or None for no job, and a GPU's UUID or UNKNOWN_GPU."""

_LAUNCHES = sum(
    (2**lanes.LANE_BITS - 1) << lanes.LANE_BITS * lanes.FIRST[fact]
    for fact in ("kernel_launches", "graph_launches")
)
MOST_ERRORS = 16  # codes that are told apart in one account
OTHER_ERROR = 0xFFFF  # as in probes/count.h


@dataclass(slots=True)
class _Used:
    """Of one GPU."""

    facts: int = 0  # packed
    held: float = 0.0  # seconds
    active: float = 0.0
    idle: float = 0.0  # the rest; not their difference, which may go back by a rounding
    energy: float = 0.0  # joules
    launched: float | None = None  # CLOCK_MONOTONIC seconds of the last look that saw a launch


@dataclass(slots=True)
class _Account:
    job_id: str
    created: float  # Unix seconds: before anything that is in it
    job: Job | None = None
    gone: float | None = None  # since when the job has no process, CLOCK_MONOTONIC seconds
    on: defaultdict[str, _Used] = field(default_factory=lambda: defaultdict(_Used))
    errors: Counter[int] = field(default_factory=Counter)


class Accounts:
    """`look` once per step, then `charge`, `charge_error` and the rest; `told` says what there is.

    Where a method takes a job's key, None is that of a process without one.
    """

    def __init__(
        self,
        functions: int,
        most: int,
        retention: float,
        created: float,
        job_id: Callable[[JobKey], str] = attrgetter("id"),
    ) -> None:
        """`retention`: seconds for which a job without processes keeps its account; `created`: Unix
        seconds, before the first look; `job_id`: what a job is called, no two the same."""
        self._adder = lanes.Adder(functions)
        self._most = most
        self._retention = retention
        self._before = created
        self._job_id = job_id
        self._own: dict[JobKey, _Account] = {}
        self._waiting: dict[JobKey, Job] = {}  # in `other`, longest first
        self._other = _Account(OTHER, created)
        self._none = _Account(NONE, created)
        self._at: float | None = None
        self._launching: set[Place] = set()  # since the last `charge_time`
        self._behind = 0.0  # Unix seconds less CLOCK_MONOTONIC
        self.merged = 0  # jobs that had to share `other` when they came
        self.closed = 0  # accounts that ended

    def look(self, at: float, time: float, present: Iterable[Job]) -> None:
        """`present`: the jobs that have processes, or had some since the last look, each as often
        as it was seen: not every process knows its names. `at` in CLOCK_MONOTONIC seconds, `time`
        in Unix seconds."""
        self._behind = time - at
        jobs = {job.key: job for job in sorted(present, key=_known_of)}
        for key, account in self._own.items():
            if key in jobs:
                account.job = _better(account.job, jobs[key])
            account.gone = None if key in jobs else at if account.gone is None else account.gone
        for key, account in [*self._own.items()]:
            if account.gone is not None and at - account.gone > self._retention:
                del self._own[key]
                self.closed += 1
        for key in self._waiting.keys() - jobs.keys():
            del self._waiting[key]
        came = {k: job for k, job in jobs.items() if k not in self._own and k not in self._waiting}
        for key, job in [*self._waiting.items(), *came.items()]:
            if len(self._own) < self._most:
                self._waiting.pop(key, None)
                self._own[key] = _Account(self._job_id(key), self._before, job)
            elif key in came:
                self._waiting[key] = job
                self.merged += 1
        self._before = time

    def restore(self, accounts: Iterable[JobAccount], at: float, time: float) -> int:
        """Before the first look: what an agent before this one told, with its times as Unix
        seconds. A job that hadn't ended has its retention from now on, if it is gone; one that is
        called something else now begins anew. Who runs comes before who has ended. Returns how
        many jobs have theirs again."""
        for saved in sorted(accounts, key=lambda saved: saved.ended is not None):
            account = _restored(saved, at, at - time)
            if saved.job_id == OTHER:
                self._other = account
            elif saved.job is None:
                self._none = account
            elif len(self._own) < self._most and saved.job_id == self._job_id(saved.job.key):
                self._own[saved.job.key] = account
            else:
                self.closed += 1
        return len(self._own)

    @property
    def ended(self) -> list[Job]:
        """Those without processes whose accounts are kept."""
        return [a.job for a in self._own.values() if a.gone is not None and a.job is not None]

    def name(self, jobs: Iterable[Job]) -> None:
        """What came to be known of them since they ended."""
        for job in jobs:
            account = self._own.get(job.key)
            if account is not None:
                account.job = _better(account.job, job)

    def _of(self, key: JobKey | None) -> _Account:
        return self._none if key is None else self._own.get(key, self._other)

    def job_id(self, key: JobKey | None) -> str:
        """Under which name it is charged."""
        return self._of(key).job_id

    # --- what is charged ------------------------------------------------------------------

    def charge(self, key: JobKey | None, gpu: str, new: int, old: int) -> None:
        """Packed facts: what came since `old`."""
        used = self._of(key).on[gpu]
        total = self._adder.add(used.facts, new, old)
        used.facts = self._adder.saturate(used.facts, new, old) if total is None else total
        if (new ^ old) & _LAUNCHES:
            self._launching.add((key, gpu))

    def charge_error(self, key: JobKey | None, error: int, count: int) -> None:
        errors = self._of(key).errors
        if error not in errors and len(errors) >= MOST_ERRORS:
            error = OTHER_ERROR
        errors[error] += count

    def charge_time(self, at: float, held: Set[Place], working: Set[Place]) -> None:
        """The time since it was last told, to who holds a GPU at `at` or launched since; `working`:
        of these, who uses SMs. The time is active where it launched, or works."""
        seconds = 0.0 if self._at is None else at - self._at
        self._at = at
        for place in held | self._launching:
            key, gpu = place
            used = self._of(key).on[gpu]
            launched = place in self._launching
            used.held += seconds
            if launched or place in working:
                used.active += seconds
            else:
                used.idle += seconds
            if launched:
                used.launched = at
        self._launching = set()

    def charge_energy(self, key: JobKey | None, gpu: str, joules: float) -> None:
        self._of(key).on[gpu].energy += joules

    # --- what there is --------------------------------------------------------------------

    def told(
        self, unattributed: Mapping[str, float], joules: Mapping[str, float], unseen: int
    ) -> Jobs:
        accounts = (*self._own.values(), self._other, self._none)
        return Jobs(
            tuple(_told(account, self._behind) for account in accounts),
            len(self._waiting),
            self.merged,
            self.closed,
            unseen,
            dict(unattributed),
            dict(joules),
        )


def _known_of(job: Job) -> tuple[int, int, tuple[str, ...]]:
    """The better it is known, and the more of it; else any, but always the same."""
    names = (job.namespace, job.name, job.user)
    return job.rank, sum(map(bool, names)) + len(job.labels), names


def _better(before: Job | None, now: Job) -> Job:
    """What is known of it now, unless that is less. What has a rank is looked up again each time:
    a name that was taken back is as well known."""
    if before is None or now.rank > max(before.rank, 0) or before.rank == now.rank > 0:
        return now
    return before if _known_of(before)[:2] > _known_of(now)[:2] else now


def _told(account: _Account, behind: float) -> JobAccount:
    return JobAccount(
        account.job_id,
        account.job,
        account.created,
        None if account.gone is None else account.gone + behind,
        {
            gpu: Usage(used.facts, used.held, used.active, used.idle, used.energy, used.launched)
            for gpu, used in account.on.items()
        },
        dict(account.errors),
    )


def _restored(saved: JobAccount, at: float, ahead: float) -> _Account:
    """`ahead`: CLOCK_MONOTONIC less Unix seconds. No time is in the future: clocks are set."""
    account = _Account(saved.job_id, saved.created, saved.job)
    account.gone = at if saved.ended is None else min(at, saved.ended + ahead)
    for gpu, used in saved.on.items():
        launched = None if used.launched is None else min(at, used.launched + ahead)
        account.on[gpu] = _Used(
            used.facts, used.held, used.active, used.idle, used.energy, launched
        )
    account.errors.update(saved.errors)
    return account
