"""Names each process's job once: at its first call, as the kernel tells it, or at the next look."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable

from gpubpf.jobs.job import Resolver
from gpubpf.jobs.lookup import Lookup
from gpubpf.model import Job, Owner

SECONDS = 1.0  # that all new processes of one look may take; who is left waits for the next


class Namer:
    """`greet` may be called by any thread, `look` by one."""

    def __init__(self, resolvers: Iterable[Resolver], proc_root: str) -> None:
        self._lookup = Lookup(resolvers, proc_root)
        self._lock = threading.Lock()
        self._seen: set[Owner] = set()

    @property
    def unseen(self) -> int:
        """Processes that were gone before they could be looked at, or couldn't be read."""
        return self._lookup.unseen

    def greet(self, owner: Owner) -> None:
        """Looks at a process while it is there: it may end before the next look. Never raises."""
        with self._lock, contextlib.suppress(Exception):  # `look` asks again, and can say what
            self._lookup.find(owner.pid, owner.born)

    def look(self, owners: Iterable[Owner]) -> dict[Owner, Job]:
        """The jobs of these processes, of those that are of one. Who was among them the last time
        and is no more is forgotten."""
        now = set(owners)
        with self._lock:
            until = time.monotonic() + SECONDS
            found = {owner: self._find(owner, until) for owner in now}
            self._lookup.forget((owner.pid, owner.born) for owner in self._seen - now)
        self._seen = now
        return {owner: job for owner, job in found.items() if job is not None}

    def _find(self, owner: Owner, until: float) -> Job | None:
        return self._lookup.find(owner.pid, owner.born, until - time.monotonic())
