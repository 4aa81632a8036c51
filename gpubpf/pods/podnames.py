"""Names of pods by their UIDs, from the directories of their logs and from kubelet.

/proc/PID/cgroup gives a process's pod as a UID. The directories of the pods' logs have the exact
answer (`gpubpf.pods.podlogs`). Where the agent can't see them there is kubelet's pod-resources API.
It says which pods have which devices: a UID's name is that of the one pod that has all the devices
that the processes of the UID are on, and whose hostname is theirs. Their HOSTNAME is the pod's by
default, but its owner can set it: all it can do is choose among those that have the devices.

A name that isn't certain is none, and one that isn't certain any more is taken back. So an answer
of kubelet's counts only if it was asked for after the UID was first seen (the pod before it may
have had the same GPU); in the node's network HOSTNAME is the node's, which says nothing; and of two
UIDs that come to the same name neither gets it.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from gpubpf.pods.kubelet import Kubelet, Listing
from gpubpf.pods.podlogs import IS_UID, PodLogs
from gpubpf.pods.podresources import PodName

RECENT = 30.0  # seconds after which a UID that nobody asks for is taken for gone
MOST_PODS = 4096  # remembered by UID

_RANDOM = re.compile(r"-[a-z0-9]{5}")  # what an indexed Job's pod has behind its hostname


@dataclass(slots=True)
class _Seen:
    """A UID that was asked for."""

    first: float
    last: float
    exact: PodName | None = None  # by the logs
    likely: PodName | None = None  # by kubelet
    refused: set[PodName] = field(default_factory=set)  # that somebody knows it isn't


class PodNames:
    """Names by UIDs, as far as they are certain. One thread uses it. Never raises."""

    def __init__(
        self,
        logs: PodLogs,
        kubelet: Kubelet | None,
        monotonic: Callable[[], float] = time.monotonic,
        node: str = "",
    ) -> None:
        """`kubelet`: None, it isn't to be asked. `node`: the node's own hostname."""
        self._node = node
        self._logs = logs
        self._kubelet = kubelet
        self._monotonic = monotonic
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # the one asked for last is last
        self._likely: dict[PodName, set[str]] = {}  # the UIDs of `likely` names

    def name(self, uid: str, on: Callable[[], Collection[str]], hostname: str) -> PodName | None:
        """The pod of a UID.

        `on` gives the GPUs and MIG devices that the processes of the pod are on, `hostname` is
        HOSTNAME of their environments, "" where they have none or not the same. May know later
        what it doesn't know yet.
        """
        if not IS_UID.fullmatch(uid):
            return None
        seen = self._note(uid)
        if seen.exact is None:
            seen.exact = self._logs.name(uid)
        if seen.exact is None and self._kubelet is not None:
            listing, places = self._kubelet.listing(seen.first), on()
            if listing is not None and places:  # else what was known stays
                known = hostname not in ("", self._node)
                pod = _choose(listing, places, hostname) if known else None
                self._change(uid, seen, None if pod in seen.refused else pod)
        return seen.exact or self._alone(seen)

    def exact(self, uid: str) -> PodName | None:
        """By the logs alone: of a pod that has no process any more."""
        if not IS_UID.fullmatch(uid):
            return None
        seen = self._seen.get(uid)
        return (seen.exact if seen is not None else None) or self._logs.name(uid)

    def is_exact(self, uid: str) -> bool:
        """Whether its name can't be another's."""
        return uid in self._seen and self._seen[uid].exact is not None

    def refuse(self, uid: str, pod: PodName) -> None:
        """It is known that the UID isn't of this pod."""
        seen = self._seen.get(uid)
        if seen is not None and len(seen.refused) < MOST_PODS:
            seen.refused.add(pod)
            self._change(uid, seen, None)

    def _change(self, uid: str, seen: _Seen, pod: PodName | None) -> None:
        if pod == seen.likely:
            return
        if seen.likely is not None:
            self._likely[seen.likely].discard(uid)
            if not self._likely[seen.likely]:
                del self._likely[seen.likely]
        seen.likely = pod
        if pod is not None:
            self._likely.setdefault(pod, set()).add(uid)

    def _note(self, uid: str) -> _Seen:
        now = self._monotonic()
        seen = self._seen.setdefault(uid, _Seen(now, now))
        seen.last = now
        self._seen.move_to_end(uid)
        if len(self._seen) > MOST_PODS:
            gone, was = self._seen.popitem(last=False)
            self._change(gone, was, None)
        return seen

    def _alone(self, seen: _Seen) -> PodName | None:
        """Its likely name, if no other UID that is about comes to the same."""
        if seen.likely is None:
            return None
        others = [self._seen[uid] for uid in self._likely[seen.likely]]
        rivals = [o for o in others if o is not seen and o.last > seen.last - RECENT]
        return None if rivals else seen.likely


def _choose(listing: Listing, uuids: Collection[str], hostname: str) -> PodName | None:
    """The pod that has all of these devices and this hostname, if it can be only one."""
    pods = [listing.by_device.get(uuid, frozenset[PodName]()) for uuid in uuids]
    having = pods[0].intersection(*pods[1:])
    so_called = listing.by_hostname.get(hostname)
    if so_called is None:
        so_called = frozenset(pod for pod in having if _is_indexed(pod, hostname))
    fit = having & so_called
    return next(iter(fit)) if len(fit) == 1 else None


def _is_indexed(pod: PodName, hostname: str) -> bool:
    """An indexed Job's pods have its name and their number as hostname."""
    name, end = pod.name[: len(hostname)], pod.name[len(hostname) :]
    return name == hostname and _RANDOM.fullmatch(end) is not None
