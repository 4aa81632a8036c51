"""kubelet's pod-resources API: which pods have which devices. The only importer of grpc.

The API knows no UIDs of pods: see `gpubpf.pods.podnames` for what follows of its answers all the
same. Another thread asks, so that no look waits for kubelet.
"""

from __future__ import annotations

import importlib
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from gpubpf.deadline import Job, Worker
from gpubpf.jobs.job import label
from gpubpf.model import Given
from gpubpf.pods.podresources import (
    ALLOCATABLE,
    LIST,
    Answer,
    MessageError,
    PodName,
    decode,
    decode_allocatable,
    device_of,
)

SOCKET = "/var/lib/kubelet/pod-resources/kubelet.sock"
DEADLINE = 2.0  # seconds for kubelet's answer
INTERVAL = 10.0  # seconds between two questions to kubelet
SOONEST = 2.0  # the same, where a pod is new
LONGEST_PAUSE = 60.0  # seconds between questions that fail
STALE = 60.0  # seconds after which an answer says nothing any more
MOST_BYTES = 16 << 20  # of an answer


_OPTIONS = (
    # Else the path of the socket, percent-encoded, which strict servers refuse (grpc#38142).
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: 16 MiB stay 16 MiB
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # nothing of an earlier failure is remembered
)
_MEANS = {
    "UNAVAILABLE": "nobody answers (is kubelet running?)",
    "DEADLINE_EXCEEDED": f"no answer for {DEADLINE:g} s",
    "UNIMPLEMENTED": "it has no v1 API (Kubernetes 1.20 is the first that has)",
}


class KubeletError(Exception):
    """kubelet can't be asked, or its answer can't be used: a line for a person."""


class AbsentError(KubeletError):
    """There is no such socket, or nothing to ask it with."""


class Listing(NamedTuple):
    began: float  # when it was asked for, CLOCK_MONOTONIC seconds
    by_hostname: Mapping[str, frozenset[PodName]]  # of this node, those without devices too
    by_device: Mapping[str, frozenset[PodName]]  # UUID -> the pods that have it
    given: Mapping[str, Given]  # by UUID


class Kubelet:
    """Which pods have which devices. One thread uses it; another asks kubelet. Never raises.

    `minors` gives the UUIDs by the names that GKE's device plugin uses (see `device_of`).
    """

    def __init__(
        self,
        path: str = SOCKET,
        minors: Callable[[], Mapping[str, str]] = dict,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        """Why the newest question has no answer: a line for the operator. None: it has one."""
        self.path = path
        self._minors = minors
        self._monotonic = monotonic
        self._worker = Worker("kubelet")
        self.absent = True  # as far as it is known it can't be asked at all
        self._job: Job[Listing] | None = None
        self._began = float("-inf")
        self._failures = 0
        self._listing: Listing | None = None

    def listing(self, since: float = float("-inf")) -> Listing | None:
        """The newest answer, if it was asked for after `since`. Waits for nothing."""
        now = self._monotonic()
        self._take()
        if self._failures:
            pause = min(SOONEST * 2 ** min(self._failures, 8), LONGEST_PAUSE)
        else:
            pause = SOONEST if since > self._began else INTERVAL
        if self._job is None and now >= self._began + pause:
            self._began = now
            path, minors = self.path, dict(self._minors())
            self._job = self._worker.begin(lambda: _listing(now, *ask(path), minors))
        listing = self._listing
        if listing is None or listing.began < since or now - listing.began > STALE:
            return None
        return listing

    def close(self) -> None:
        self._worker.retire()

    def _take(self) -> None:
        """What the other thread has brought, if it has."""
        if self._job is None:
            return
        if not self._job.done:
            if time.monotonic() - self._job.began > 4 * DEADLINE:  # grpc's own deadlines failed
                self.problem = self._line(_MEANS["DEADLINE_EXCEEDED"])
            return
        job, self._job = self._job, None
        try:
            self._listing = job.result()
            self._failures, self.problem, self.absent = 0, None, False
        except Exception as error:  # the boundary: names of pods never end the agent
            self._failures += 1
            self.absent = isinstance(error, AbsentError)
            self.problem = self._line(
                str(error) if isinstance(error, KubeletError) else repr(error)
            )

    def _line(self, what: str) -> str:
        return label(f"kubelet's pod-resources socket {self.path}: {what}", 400)


def _listing(
    began: float, answer: Answer, allocatable: tuple[str, ...] | None, minors: Mapping[str, str]
) -> Listing:
    having: dict[str, set[PodName]] = {}
    for container, device in answer.assigned:
        uuid = device_of(device, minors)
        if uuid is not None:
            having.setdefault(uuid, set()).add(container)
    slots = None if allocatable is None else Counter(device_of(d, minors) for d in allocatable)
    uuids = {*having, *(slots or ())} - {None}
    given = {
        uuid: Given(len(having.get(uuid, ())), None if slots is None else slots[uuid])
        for uuid in uuids
        if uuid is not None
    }
    by_device = {
        uuid: frozenset(PodName(*container[:2]) for container in containers)
        for uuid, containers in having.items()
    }
    by_hostname: dict[str, set[PodName]] = {}
    for pod in answer.pods:
        by_hostname.setdefault(hostname_of(pod), set()).add(pod)
    frozen = {name: frozenset(pods) for name, pods in by_hostname.items()}
    return Listing(began, frozen, by_device, given)


def hostname_of(pod: PodName) -> str:
    """kubelet's default: the pod's name, cut to 63 characters, and dashes and dots off its end."""
    return pod.name[:63].rstrip("-.")


def ask(path: str) -> tuple[Answer, tuple[str, ...] | None]:
    """Asks kubelet what pods have, and what it may give them (None: it is older than that
    question, Kubernetes 1.23). Raises KubeletError.

    Over a connection of its own: kubelet may have made its socket anew, and grpc keeps nothing
    alive between two questions.
    """
    _check(path)
    try:
        # Here and now: it costs 18 MiB, and its threads must not be there when the agent forks.
        grpc: Any = importlib.import_module("grpc")
    except ImportError as error:
        raise AbsentError(
            "asking it needs grpcio: pip install 'gpubpf[kubernetes]', or the full image"
        ) from error
    target = "unix:" + quote(os.path.abspath(path))
    allocatable: bytes | None = None
    try:
        with grpc.insecure_channel(target, options=_OPTIONS) as channel:
            pods: bytes = channel.unary_unary(LIST)(b"", timeout=DEADLINE)
            try:
                allocatable = channel.unary_unary(ALLOCATABLE)(b"", timeout=DEADLINE)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
    except grpc.RpcError as error:
        code, details = error.code().name, label(error.details() or "", 200)
        raise KubeletError(_MEANS.get(code, f"{code}: {details}")) from error
    try:
        return decode(pods), None if allocatable is None else decode_allocatable(allocatable)
    except MessageError as error:
        raise KubeletError(f"its answer can't be read: {error}") from error


def _check(path: str) -> None:
    """Says in plain words what grpc would say otherwise."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise KubeletError("that is no socket")
        if not os.access(path, os.W_OK, effective_ids=True):
            raise PermissionError
    except (FileNotFoundError, NotADirectoryError):
        if path.endswith(SOCKET):
            what = f"mount the node's {os.path.dirname(SOCKET)}, if kubelet runs on this node"
        else:
            what = f"kubelet's own is {SOCKET} on the node"
        raise AbsentError(f"not there; {what}") from None
    except PermissionError:
        raise KubeletError("permission denied; run gpubpf as root") from None
    except (OSError, ValueError) as error:
        raise KubeletError(str(error)) from error
