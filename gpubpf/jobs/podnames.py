"""Names of pods by their UIDs, from the directories of their logs and from kubelet.

/proc/PID/cgroup gives a process's pod as a UID. /var/log/pods on the node has a directory
"namespace_name_uid" for every pod, made by kubelet before the pod's first container starts: the
exact answer. Where the agent can't see it there is kubelet's pod-resources API. It says which pods
have which devices: a UID's name follows where one pod alone has all the devices that a process of
the UID is on. Where several share them the process's HOSTNAME may choose among them; it is the
pod's name by default, but its owner can set it, so it can do no more.

A name that isn't certain is none. So an answer of kubelet's counts only if it was asked for after
the UID was first seen (the pod before it may have had the same GPU); a process whose HOSTNAME is
another pod of this node isn't of the one that has the device (monitoring pods look at all GPUs
without having one); and of two UIDs that come to the same name neither gets it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gpubpf.jobs.kubelet import Kubelet, Listing
from gpubpf.jobs.podresources import PodName, pod_name

LOGS = "/var/log/pods"
SOONEST = 2.0  # seconds between two listings of LOGS
RECENT = 30.0  # seconds after which a UID that nobody asks for is taken for gone
MOST_PODS = 4096  # remembered by UID, and log directories looked at

_UID = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,62}[0-9A-Za-z])?")  # a static pod's is a hash
_LONGEST_HOSTNAME = 63  # kubelet cuts the name of a pod to that, and dashes and dots off its end


class PodLogs:
    """The directories of pods' logs. One thread uses it. Never raises."""

    def __init__(self, path: str = LOGS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._looked = float("-inf")
        self._by_uid: dict[str, PodName | None] = {}

    def name(self, uid: str) -> PodName | None:
        now = self._monotonic()
        if uid not in self._by_uid and now >= self._looked + SOONEST:
            self._looked = now
            self._by_uid = self._read()
        return self._by_uid.get(uid)

    def _read(self) -> dict[str, PodName | None]:
        found: dict[str, PodName | None] = {}
        with contextlib.suppress(OSError), os.scandir(self._path) as entries:
            for entry in entries:
                namespace, _, rest = entry.name.partition("_")
                name, _, uid = rest.partition("_")
                pod = pod_name(namespace, name)
                if pod is None or not _UID.fullmatch(uid) or not _is_directory(entry):
                    continue
                found[uid] = pod if found.get(uid, pod) == pod else None  # two names are none
                if len(found) >= MOST_PODS:
                    break
        return found


@dataclass(slots=True)
class _Seen:
    """A UID that was asked for."""

    first: float
    last: float
    exact: PodName | None = None  # by the logs
    likely: PodName | None = None  # by kubelet


class PodNames:
    """Names by UIDs, as far as they are certain. One thread uses it. Never raises."""

    def __init__(
        self,
        logs: PodLogs | None,
        kubelet: Kubelet | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """None: that source is off."""
        self._logs = logs
        self._kubelet = kubelet
        self._monotonic = monotonic
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # the one asked for last is last
        self._likely: dict[PodName, set[str]] = {}  # the UIDs of `likely` names

    def name(self, uid: str, uuids: Collection[str], hostname: str) -> PodName | None:
        """The pod of a UID, and its container where that is certain too.

        `uuids` are the GPUs and MIG devices that a process of the pod is on, `hostname` is HOSTNAME
        of its environment. May know later what it doesn't know yet.
        """
        uid = uid.replace("_", "-")  # as systemd's cgroups spell it
        if not _UID.fullmatch(uid):
            return None
        seen = self._note(uid)
        if seen.exact is None and self._logs is not None:
            seen.exact = self._logs.name(uid)
        listing = None if self._kubelet is None else self._kubelet.listing(seen.first)
        if seen.exact is None and seen.likely is None and listing is not None:
            seen.likely = _choose(listing, uuids, hostname)
            if seen.likely is not None:
                self._likely.setdefault(seen.likely, set()).add(uid)
        pod = seen.exact or self._alone(seen)
        if pod is None or listing is None:
            return pod
        containers = {at for at in _having(listing, uuids) if at[:2] == pod[:2]}
        return containers.pop() if len(containers) == 1 else pod

    def _note(self, uid: str) -> _Seen:
        now = self._monotonic()
        seen = self._seen.setdefault(uid, _Seen(now, now))
        seen.last = now
        self._seen.move_to_end(uid)
        if len(self._seen) > MOST_PODS:
            gone, was = self._seen.popitem(last=False)
            if was.likely is not None:
                self._likely[was.likely].discard(gone)
                if not self._likely[was.likely]:
                    del self._likely[was.likely]
        return seen

    def _alone(self, seen: _Seen) -> PodName | None:
        """Its likely name, if no other UID that is about comes to the same."""
        if seen.likely is None:
            return None
        others = [self._seen[uid] for uid in self._likely[seen.likely]]
        rivals = [o for o in others if o is not seen and o.last > seen.last - RECENT]
        return None if rivals else seen.likely


def _having(listing: Listing, uuids: Collection[str]) -> set[PodName]:
    """The containers that have all of these devices."""
    having = [set(listing.by_device.get(uuid, ())) for uuid in uuids]
    return set.intersection(*having) if having else set()


def _choose(listing: Listing, uuids: Collection[str], hostname: str) -> PodName | None:
    """The pod that has all of these devices, if it can be only one."""
    pods = [{PodName(*at[:2]) for at in listing.by_device.get(uuid, ())} for uuid in uuids]
    having = set.intersection(*pods) if pods else set()
    so_called = {pod for pod in listing.pods if hostname and _hostname(pod) == hostname}
    if so_called:
        having &= so_called
    return having.pop() if len(having) == 1 else None


def _hostname(pod: PodName) -> str:
    return pod.name[:_LONGEST_HOSTNAME].rstrip("-.")


def _is_directory(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):
        return entry.is_dir(follow_symlinks=False)
    return False
