"""What can be seen of one process in /proc, each part read when it is first asked for.

All of it goes through one descriptor of /proc/PID: if the process ends and another gets its pid,
nothing more is read. Nothing is followed, and nothing raises: what can't be read is "" or None.

The command line and the environment lie in the process's memory, which it can have on a file system
that never answers. They are read in a thread, for `seconds` at most from when this began to look.
While one such read hangs, that thread begins no other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import TypeVar

from gpubpf.deadline import Worker
from gpubpf.jobs.paths import LARGEST
from gpubpf.jobs.proc import Stat, read, read_stat, user_name
from gpubpf.visible import environment_of

T = TypeVar("T")

COMMAND = 4096  # bytes of a command line that are looked at


class ProcSight:
    """A `Sight` (see `gpubpf.jobs.job`) of a process in one /proc; close it, or use `with`."""

    def __init__(
        self, root: str, pid: int, worker: Worker | None = None, seconds: float = 0.2
    ) -> None:
        """Without a worker, what can hang hangs the caller."""
        self.pid = pid
        self.late = False  # something wasn't read only because it takes too long
        self.hung = False  # of this process; else it is another's that takes so long
        self._worker = worker
        self._until = time.monotonic() + seconds
        self._directory = -1
        try:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._directory = os.open(f"{root}/{pid}", flags)
        except (OSError, ValueError):
            pass

    def __enter__(self) -> ProcSight:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
        self._directory = -1  # what is first asked for now can't be read

    @property
    def left(self) -> float:
        """Of its seconds."""
        return self._until - time.monotonic()

    @cached_property
    def stat(self) -> Stat | None:
        """None where the process is gone."""
        return read_stat(self._directory)

    @property
    def gone(self) -> bool:
        return read_stat(self._directory) is None

    @cached_property
    def name(self) -> str:
        return "" if self.stat is None else self.stat.name

    @cached_property
    def cgroup(self) -> str:
        text = read(self._directory, "cgroup", LARGEST + 1) or b""
        if len(text) > LARGEST:  # a line that was cut names another job
            text = text[: text.rfind(b"\n", 0, LARGEST) + 1]
        return text.decode("utf-8", "replace")

    @cached_property
    def user(self) -> str:
        """By the effective uid: /proc/PID itself is always that user's (fs/proc/base.c,
        task_dump_owner()), until the process is gone: then it is root's."""
        try:
            uid = os.fstat(self._directory).st_uid
        except OSError:
            return ""
        return "" if self.gone else user_name(uid)

    @cached_property
    def command(self) -> str:
        text = self._in_time(lambda directory: read(directory, "cmdline", COMMAND)) or b""
        return text.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")

    @cached_property
    def environment(self) -> dict[bytes, bytes] | None:
        return self._in_time(environment_of)

    def _in_time(self, ask: Callable[[int], T]) -> T | None:
        if self._directory < 0 or self._worker is None:
            return ask(self._directory)
        if not self._worker.busy and self.left > 0:
            try:
                own = os.dup(self._directory)  # ours may be closed, and reused, while it hangs
            except OSError:
                return None
            job = self._worker.begin(partial(_and_close, ask, own))
            if job.wait(self.left):
                return job.result()
            self.hung = True
        self.late = True
        return None


def _and_close(ask: Callable[[int], T], directory: int) -> T:
    try:
        return ask(directory)
    finally:
        os.close(directory)
