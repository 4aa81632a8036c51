"""What is only there with --jobs: who names the processes, and where what jobs took is kept."""

from __future__ import annotations

import time
from collections.abc import Iterable

from gpubpf.accounts import Accounts
from gpubpf.bpf.births import Births
from gpubpf.bpf.load import Loaded
from gpubpf.config import Options
from gpubpf.jobs.sources import resolvers
from gpubpf.join import Ledger
from gpubpf.model import Job, Owner, Reading, Snapshot
from gpubpf.namer import Namer
from gpubpf.state import State


class Keeper:
    """`open`, `listen`, then `look` once per step; `close` ends it."""

    def __init__(self, options: Options, ledger: Ledger, created: float) -> None:
        """The ledger gets its accounts; `created`: Unix seconds, before the first look."""
        self._namer = Namer(resolvers(options.jobs), options.proc_root)
        self._births: Births | None = None
        self._path = options.state
        self._state: State | None = None
        self._ledger = ledger
        ledger.accounts = Accounts(
            len(ledger.functions), options.max_jobs, options.job_retention, created
        )

    def open(self) -> str | None:
        """Goes on from the totals of an agent before this one; a note for the operator, if there
        is one. Raises UsageError."""
        if not self._path:
            return None
        self._state = State(self._path)
        saved = self._state.read()
        if saved is not None:
            self._ledger.restore(saved, time.monotonic(), time.time())
        return self._state.note

    def listen(self, loaded: Loaded) -> None:
        """From now on processes are looked at when they make their first call."""
        if loaded.births is not None:
            self._births = Births(loaded.births, self._namer.greet)

    def look(self, owners: Iterable[Owner]) -> dict[Owner, Job]:
        """The jobs of these processes, of those that are of one."""
        return self._namer.look(owners)

    @property
    def unseen(self) -> int:
        """Processes whose job couldn't be looked at, since the start."""
        return self._namer.unseen

    def kept(self, at: float) -> Reading[None] | None:
        """Whether the totals are in their file; None: nobody asked for one."""
        state = self._state
        return None if state is None else Reading("state", at, 0.0, error=state.problem)

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
        if self._state is not None:
            self._state.close()
            self._state = None
