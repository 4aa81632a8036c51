"""Names of pods by their UIDs, from the directories of their logs and from kubelet.

/proc/PID/cgroup gives a process's pod as a UID. The directories of the pods' logs have the exact
answer (`gpubpf.pods.podlogs`). Where the agent can't see them there is kubelet's pod-resources API.
It says which pods have which devices: a UID's name follows where one pod alone has all the devices
that the processes of the UID are on. Where several share them the process's HOSTNAME may choose
among them; it is the pod's name by default, but its owner can set it, so it can do no more.

A name that isn't certain is none. So an answer of kubelet's counts only if it was asked for after
the UID was first seen (the pod before it may have had the same GPU); a process whose HOSTNAME isn't
the pod's isn't of it (monitoring pods look at all GPUs without having one; in the node's network
HOSTNAME is the node's); and of two UIDs that come to the same name neither gets it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gpubpf.pods.kubelet import Kubelet, Listing
from gpubpf.pods.podlogs import IS_UID, PodLogs
from gpubpf.pods.podresources import PodName

RECENT = 30.0  # seconds after which a UID that nobody asks for is taken for gone
MOST_PODS = 4096  # remembered by UID

_LONGEST_HOSTNAME = 63  # kubelet cuts the name of a pod to that, and dashes and dots off its end


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
        logs: PodLogs,
        kubelet: Kubelet | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kubelet`: None, it isn't to be asked."""
        self._logs = logs
        self._kubelet = kubelet
        self._monotonic = monotonic
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # the one asked for last is last
        self._likely: dict[PodName, set[str]] = {}  # the UIDs of `likely` names

    def name(self, uid: str, on: Callable[[], Collection[str]], hostname: str) -> PodName | None:
        """The pod of a UID.

        `on` gives the GPUs and MIG devices that the processes of the pod are on, `hostname` is
        HOSTNAME of one's environment, "" where it has none. May know later what it doesn't know
        yet.
        """
        if not IS_UID.fullmatch(uid):
            return None
        seen = self._note(uid)
        if seen.exact is None:
            seen.exact = self._logs.name(uid)
        if seen.exact is None and seen.likely is None and self._kubelet is not None:
            listing = self._kubelet.listing(seen.first)
            seen.likely = listing and _choose(listing, on(), hostname)
            if seen.likely is not None:
                self._likely.setdefault(seen.likely, set()).add(uid)
        return seen.exact or self._alone(seen)

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


def _choose(listing: Listing, uuids: Collection[str], hostname: str) -> PodName | None:
    """The pod that has all of these devices, if it can be only one."""
    pods = [listing.by_device.get(uuid, frozenset[PodName]()) for uuid in uuids]
    having = set(pods[0].intersection(*pods[1:])) if pods else set()
    if hostname:
        named = {pod for pod in having if _is_hostname(hostname, pod)}
        exactly = {pod for pod in listing.pods if hostname == _cut(pod.name)}
        having = exactly & having if exactly else named
    return having.pop() if len(having) == 1 else None


def _is_hostname(hostname: str, pod: PodName) -> bool:
    """The pod's name, or what an indexed Job puts before the random end of it."""
    return hostname == _cut(pod.name) or pod.name.startswith(f"{hostname}-")


def _cut(name: str) -> str:
    return name[:_LONGEST_HOSTNAME].rstrip("-.")
