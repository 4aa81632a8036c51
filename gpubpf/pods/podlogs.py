"""The directories of pods' logs: a pod's UID with its namespace and name, exactly.

kubelet makes /var/log/pods/NAMESPACE_NAME_UID before the pod's first container starts (pkg/kubelet/
kuberuntime/helpers.go, BuildPodLogsDirectory()). Only root can write there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator

from gpubpf.deadline import Job, Worker
from gpubpf.openat2 import in_root
from gpubpf.pods.podresources import PodName, pod_name

LOGS = "/var/log/pods"
SOONEST = 2.0  # seconds between two listings
AGAIN = 30.0  # the same, where nobody new is asked for
MOST_PODS = 4096  # directories looked at

IS_UID = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,62}[0-9A-Za-z])?")  # a static pod's is a hash


class PodLogs:
    """One thread uses it; another lists the directory. Never raises, and waits for nothing."""

    def __init__(
        self, host_root: str = "/", monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = host_root
        self._monotonic = monotonic
        self._worker = Worker("pod-logs")
        self._job: Job[dict[str, PodName | None]] | None = None
        self._looked = float("-inf")
        self._by_uid: dict[str, PodName | None] = {}
        self._missed: set[str] = set()  # asked for, and in no listing

    def name(self, uid: str) -> PodName | None:
        """May know at the next look what it doesn't know yet."""
        now = self._monotonic()
        if self._job is not None and self._job.done:
            self._by_uid, self._job = self._job.result(), None
        if uid in self._by_uid:
            return self._by_uid[uid]
        if self._job is None and now >= self._looked + (AGAIN if uid in self._missed else SOONEST):
            self._looked = now
            self._job = self._worker.begin(self._read)
            if len(self._missed) >= MOST_PODS:
                self._missed.clear()
            self._missed.add(uid)
        return None

    @property
    def there(self) -> bool:
        """Whether there is such a directory. Looks now."""
        try:
            os.close(self._open())
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._worker.retire()

    def _read(self) -> dict[str, PodName | None]:
        found: dict[str, PodName | None] = {}
        looked = 0
        with contextlib.suppress(OSError), self._entries() as entries:
            for entry in entries:
                namespace, _, rest = entry.name.partition("_")
                name, _, uid = rest.partition("_")
                pod = pod_name(namespace, name)
                looked += 1
                if looked > MOST_PODS:
                    break
                if pod is None or not IS_UID.fullmatch(uid) or not _is_directory(entry):
                    continue
                found[uid] = pod if found.get(uid, pod) == pod else None  # two names are none
        return found

    def _open(self) -> int:
        """Somebody may have moved it: what a symlink says is a place in the node's root."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            return in_root(self._root, LOGS, flags)
        except OSError as error:
            if error.errno not in (
                errno.ENOSYS,
                errno.EPERM,
            ):  # a filter that doesn't know the call
                raise
        return os.open(f"{self._root.rstrip('/')}{LOGS}", flags | os.O_CLOEXEC)

    @contextlib.contextmanager
    def _entries(self) -> Iterator[Iterator[os.DirEntry[str]]]:
        directory = self._open()
        try:
            with os.scandir(directory) as entries:
                yield entries
        finally:
            os.close(directory)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):
        return entry.is_dir(follow_symlinks=False)
    return False
