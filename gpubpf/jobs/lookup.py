"""Whose job a process is: the first source that knows, asked once per process.

The sources are asked in their order of the process itself, and if none knows, of its parent, and so
on: what a job starts is the job's, also where it threw away its environment or wrote over it
(setproctitle). `user` always knows, so with it nothing is ever inherited.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

from gpubpf.deadline import Worker
from gpubpf.jobs.job import Resolver
from gpubpf.jobs.sight import ProcSight
from gpubpf.model import Job
from gpubpf.processes import CAPACITY, TICK_NS

T = TypeVar("T")
Key = tuple[int, int]  # pid and born_ns, as in an Owner

ANCESTORS = 16  # that are asked at most
SECONDS = 0.3  # that a process and its ancestors may take, all together
TRIES = 3  # of a process whose memory couldn't be read in time; then what is known stays
STUCK = 1.0  # seconds after which another thread takes over from one that hangs
MOST_STUCK = 8  # such threads


class Lookup:
    """The jobs of the processes under one /proc (see `gpubpf.processes.Processes`).

    `resolvers` are in order; `seconds` is how long a process may keep whoever looks at it.
    """

    def __init__(
        self,
        resolvers: Iterable[Resolver],
        proc_root: str = "/proc",
        seconds: float = SECONDS,
        capacity: int = CAPACITY,
    ) -> None:
        self.unseen = 0  # processes that were gone, or couldn't be read, since the start
        self._resolvers = tuple(resolvers)
        self._root = proc_root
        self._seconds = seconds
        self._capacity = capacity
        self._worker = Worker("jobs")
        self._stuck: list[Worker] = []
        self._known: dict[Key, Job | None] = {}
        self._late: dict[Key, int] = {}  # how often it was tried

    def find(self, pid: int, born_ns: int, seconds: float = math.inf) -> Job | None:
        """The job of the process that had `pid` at `born_ns` (CLOCK_BOOTTIME, nanoseconds), its
        first CUDA call. 0, as of an Owner that only NVML lists: of the one that had it when it was
        first asked for.

        None where no source knows, it is gone, or another process has its pid now. The answer is
        remembered until `forget`, but for one that there was no time for: it may take `seconds` at
        most, and while another's memory can't be read, its can't be either. Never raises.
        """
        key = (pid, born_ns)
        if key in self._known:  # asked for last, forgotten last
            job = self._known[key] = self._known.pop(key)
            return job
        seconds = min(seconds, self._seconds)
        if seconds <= 0:
            return None
        self._relieve()
        job, unseen = None, True
        tries = self._late.pop(key, 0)
        with self._sight(pid, seconds) as sight:
            if _had_pid(sight, born_ns):
                job = self._inherited(sight, ANCESTORS, sure=tries < TRIES - 1)
                unseen = job is None and (sight.late or not sight.cgroup)
        tries += sight.hung
        if sight.late and tries < TRIES:  # its names may come, if not its job
            _remember(self._late, key, tries, self._capacity)
        else:
            _remember(self._known, key, job, self._capacity)
            self.unseen += unseen
        return job

    def _relieve(self) -> None:
        """One that hangs keeps the others waiting for a moment only."""
        if self._worker.stuck(STUCK):
            self._stuck = [worker for worker in self._stuck if worker.busy]
            if len(self._stuck) < MOST_STUCK:
                self._worker.retire()
                self._stuck.append(self._worker)
                self._worker = Worker("jobs")

    def forget(self, owners: Iterable[Key]) -> None:
        """Drops what is remembered of these (pid, born_ns)."""
        for key in owners:
            self._known.pop(key, None)
            self._late.pop(key, None)

    def _inherited(self, sight: ProcSight, more: int, *, sure: bool) -> Job | None:
        """Of the process, or else of an ancestor, `more` of them at most. `sure`: none, if one that
        comes before it may only have come too late."""
        for resolve in self._resolvers:
            job = resolve(sight)
            if job is not None or (sure and sight.late):
                return job
        if more == 0 or sight.stat is None or sight.stat.parent <= 1:
            return None
        with self._sight(sight.stat.parent, sight.left) as parent:
            # one that began later has only its pid: the parent ended meanwhile
            if parent.stat is None or parent.stat.start > sight.stat.start:
                return None
            job = self._inherited(parent, more - 1, sure=sure)
            sight.late, sight.hung = sight.late or parent.late, sight.hung or parent.hung
        return job

    def _sight(self, pid: int, seconds: float) -> ProcSight:
        return ProcSight(self._root, pid, self._worker, seconds)


def _had_pid(sight: ProcSight, born_ns: int) -> bool:
    if sight.pid <= 0 or sight.stat is None:
        return False
    # /proc rounds the start down to a tick. One more tick for clocks read apart.
    return not born_ns or sight.stat.start * TICK_NS <= born_ns + TICK_NS


def _remember(cache: dict[Key, T], key: Key, value: T, limit: int) -> None:
    while len(cache) >= limit:
        del cache[next(iter(cache))]
    cache[key] = value
