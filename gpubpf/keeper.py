"""What is only there with --jobs: who names the processes, and where what jobs took is kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpubpf.accounts import Accounts
from gpubpf.bpf.births import Births
from gpubpf.bpf.load import Loaded
from gpubpf.config import Options
from gpubpf.jobs.ids import job_ids
from gpubpf.jobs.sources import resolvers
from gpubpf.join import Ledger
from gpubpf.model import (
    UNKNOWN_GPU,
    Device,
    Given,
    Job,
    JobAccount,
    Owner,
    Place,
    Reading,
    Snapshot,
)
from gpubpf.namer import Namer
from gpubpf.state import State

if TYPE_CHECKING:
    from gpubpf.pods.pods import Pods

_NOTHING: Mapping[Place, str] = MappingProxyType({})


class Keeper:
    """`open`, `listen`, then `look` once per step; `close` ends it."""

    def __init__(self, options: Options, ledger: Ledger, created: float) -> None:
        """The ledger gets its accounts; `created`: Unix seconds, before the first look."""
        self._namer = Namer(resolvers(options.jobs), options.proc_root)
        self._pods: Pods | None = None
        if any(spec.source == "kubernetes" for spec in options.jobs):
            from gpubpf.pods.pods import Pods  # only who has pods pays for it

            self._pods = Pods(options)
        self._labels = options.kubernetes_labels if options.kubernetes_api else ()
        self._unnamed: str | None = None  # why pods can't be named at all
        self._births: Births | None = None
        self._path = options.state
        self._state: State | None = None
        self._ledger = ledger
        self._accounts = ledger.accounts = Accounts(
            len(ledger.functions),
            options.max_jobs,
            options.job_retention,
            created,
            job_ids(options.jobs),
        )

    def open(self) -> str | None:
        """Goes on from the totals of an agent before this one; a note for the operator, if there
        is one. Raises UsageError."""
        if not self._path:
            return None
        self._state = State(self._path)
        saved = self._state.read()
        if saved is None:
            return self._state.note
        accounts = tuple(map(self._allowed, saved.accounts))
        there = sum(account.job is not None for account in accounts)
        jobs = self._ledger.restore(
            saved._replace(accounts=accounts), time.monotonic(), time.time()
        )
        note = f"going on with the totals of {jobs} job{'' if jobs == 1 else 's'} in {self._path}"
        return note + (
            f" ({there - jobs} more began anew: --jobs or --max-jobs was another)"
            if there > jobs
            else ""
        )

    def _allowed(self, account: JobAccount) -> JobAccount:
        """What may be told of it now: labels may be of another --kubernetes-labels."""
        if account.job is None:
            return account
        labels = tuple(row for row in account.job.labels if row[0] in self._labels)
        return replace(account, job=replace(account.job, labels=labels))

    def listen(self, loaded: Loaded) -> None:
        """From now on processes are looked at when they make their first call."""
        if loaded.births is not None:
            self._births = Births(loaded.births, self._namer.greet)

    def look(
        self,
        owners: Iterable[Owner],
        devices: Sequence[Device] = (),
        gpus: Mapping[Place, str] = _NOTHING,
    ) -> dict[Owner, Job]:
        """The jobs of these processes, of those that are of one. `gpus`: where they are."""
        jobs = self._namer.look(owners)
        if self._pods is None:
            return jobs
        present = {job.key for job in jobs.values()}
        ended = [job for job in self._accounts.ended if job.key not in present]
        try:
            named = self._pods.look(jobs.values(), devices, _Places(jobs, devices, gpus).of, ended)
        except Exception as error:  # the boundary: whose job it is doesn't hang on its name
            self._unnamed = repr(error)
            return jobs
        self._unnamed = None
        self._accounts.name(job for key, job in named.items() if key not in present)
        return {owner: named.get(job.key, job) for owner, job in jobs.items()}

    def given(self) -> Mapping[str, Given]:
        """What kubelet says of GPUs and MIG devices, by UUID."""
        return {} if self._pods is None else self._pods.given()

    @property
    def unseen(self) -> int:
        """Processes whose job couldn't be looked at, since the start."""
        return self._namer.unseen

    def kept(self, at: float) -> tuple[Reading[None], ...]:
        """How the file of the totals is doing, and who knows the names of pods."""
        rows: list[Reading[None]] = []
        if self._state is not None:
            rows.append(Reading("state", at, 0.0, error=self._state.problem))
        if self._pods is not None:
            rows += self._pods.readings(at)
        if self._unnamed is not None:
            rows.append(Reading("pods", at, 0.0, error=self._unnamed))
        return tuple(rows)

    def keep(self, snapshot: Snapshot) -> None:
        """Called before anything of it is served: it must not be forgotten. By any thread."""
        state = self._state  # `close` takes it away
        if state is not None:
            state.save(snapshot)

    def close(self, last: Snapshot | None) -> None:
        """Before the programs are let go of. `last`: what is kept. Safe to call twice."""
        if self._births is not None:
            self._births.close()
            self._births = None
        if last is not None:
            self.keep(last)
        if self._pods is not None:
            self._pods.close()
            self._pods = None
        if self._state is not None:
            self._state.close()
            self._state = None


class _Places:
    """The GPUs and MIG devices that the processes of each pod are on, as far as it is known; only
    if somebody asks."""

    def __init__(
        self, jobs: Mapping[Owner, Job], devices: Iterable[Device], gpus: Mapping[Place, str]
    ) -> None:
        self._jobs, self._devices, self._gpus = jobs, devices, gpus

    def of(self, id: str) -> set[str]:  # noqa: A002  a job's
        return self._by_id.get(id, set())

    @cached_property
    def _by_id(self) -> dict[str, set[str]]:
        on: dict[str, set[str]] = {}
        pods = {o: j for o, j in self._jobs.items() if j.key.scheduler == "kubernetes"}
        ids = {owner: job.key.id for owner, job in pods.items()}
        for (owner, _), gpu in self._gpus.items():
            if owner in ids and gpu != UNKNOWN_GPU:
                on.setdefault(ids[owner], set()).add(gpu)
        by_pid = {owner.pid: job for owner, job in ids.items()}
        for device in self._devices:
            for row in device.processes or ():
                if row.pid in by_pid:
                    on.setdefault(by_pid[row.pid], set()).add(row.mig or device.info.uuid)
        return on
