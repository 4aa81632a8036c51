"""Whose pod it is: the job above it, and its labels, by the API server.

A pod's controller is its Job, PyTorchJob, ReplicaSet or whatever made it; that one may have a
controller in turn (Deployment, RayJob above RayCluster, MPIJob above its launcher's Job). The name
of the topmost is the job's. Where the agent may not ask for one, the one below it is the topmost
that it knows; so it is where the chain is longer than DEEPEST.

Each pod is asked for once, when its first process is seen; only those that call the GPU's driver
are. Another thread asks, one question at a time, so that no look waits for it.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from gpubpf.deadline import Job, Worker
from gpubpf.jobs.job import label
from gpubpf.pods.apiserver import ApiError, ApiServer, RefusedError, UnreachableError, path_of
from gpubpf.pods.podresources import PodName, pod_name

DEEPEST = 5  # owners above a pod
BATCH = 16  # pods that are asked for in one go
MOST_PODS = 4096  # remembered
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0  # seconds between questions that fail
NOT_JOBS = ("Node", "CronJob", "CronWorkflow", "ScheduledSparkApplication")
"""Kinds that own jobs, but are none: what begins one at each time of a schedule, and the Node that
a static pod is of."""
MIRROR = "kubernetes.io/config.mirror"

_GROUP = r"(?=[^/]{1,253}/)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*/"
_VERSION = re.compile(rf"(?:{_GROUP})?v[0-9][a-z0-9]{{0,30}}")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")


class Described(NamedTuple):
    """What the API server says of a pod."""

    owner: str = ""  # the name of what it is of; "": of nothing
    labels: tuple[tuple[str, str], ...] = ()  # those that are allowed
    there: bool = True  # there is a pod of this name and UID
    whole: bool = True  # nothing of it failed


_Pod = tuple[str, PodName]
"""A UID, and the pod that it may be of."""


class _Reference(NamedTuple):
    """A controller, as an object's metadata names it."""

    api_version: str
    kind: str
    name: str
    uid: str


class Owners:
    """By pods' UIDs. One thread uses it; another asks the API server. Never raises."""

    def __init__(
        self,
        server: ApiServer,
        labels: Collection[str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`labels`: the keys of those that may be told of a pod."""
        self.problem = server.missing()
        """Why the newest question has no answer, or none can be asked: a line for the operator."""
        self._server = server
        self._labels = tuple(labels)
        self._monotonic = monotonic
        self._worker = Worker("api-server")
        self._job: Job[None] | None = None
        self._asked: dict[_Pod, None] = {}  # to be asked for, longest first
        self._known: OrderedDict[_Pod, Described] = OrderedDict()
        self._batch: tuple[_Pod, ...] = ()  # of the running job
        self._answers: dict[_Pod, Described] = {}  # and what it has found so far
        self._later: OrderedDict[_Pod, tuple[float, float]] = OrderedDict()
        """Those of which something failed: not before then, and after which pause."""
        self._tops: dict[tuple[str, ...], str] = {}  # an owner -> the name of the topmost above it
        self._again = float("-inf")
        self._pause = FIRST_PAUSE

    def of(self, uid: str, pod: PodName) -> Described | None:
        """None: not known yet."""
        key = (uid, pod)
        known = self._known.get(key)
        after, _ = self._later.get(key, (float("-inf"), 0))
        if (known is None or not known.whole) and self._monotonic() >= after:
            self._asked[key] = None
            while len(self._asked) > MOST_PODS:
                del self._asked[next(iter(self._asked))]
        return known

    def look(self) -> None:
        """Once per step: takes what has come, and asks for what is missing. Waits for nothing."""
        now = self._monotonic()
        if self._job is not None and self._job.done:
            self._take(self._job, now)
            self._job = None
        elif self._job is not None:
            self._server.watch(time.monotonic())
        if self._job is None and self._asked and now >= self._again:
            self._batch = batch = tuple(self._asked)[:BATCH]
            answers: dict[_Pod, Described] = {}
            self._answers = answers
            self._job = self._worker.begin(lambda: self._ask(batch, answers))
            for key in batch:
                del self._asked[key]

    def close(self) -> None:
        self._worker.retire()

    def _take(self, job: Job[None], now: float) -> None:
        """Who failed waits for longer each time, and keeps no other waiting; only where the server
        can't be reached at all do all of them wait."""
        for key in self._batch:
            described = self._answers.get(key)
            if described is not None:
                self._known[key] = described
                self._known.move_to_end(key)
            if described is not None and described.whole:
                self._later.pop(key, None)
            else:
                _, pause = self._later.get(key, (0.0, FIRST_PAUSE / 2))
                self._later[key] = (
                    now + min(2 * pause, LONGEST_PAUSE),
                    min(2 * pause, LONGEST_PAUSE),
                )
            self._asked.pop(key, None)
        for cache in (self._known, self._later):
            while len(cache) > MOST_PODS:
                cache.popitem(last=False)
        try:
            job.result()
            self._pause, self.problem = FIRST_PAUSE, None
        except Exception as error:  # the boundary: names of pods never end the agent
            self.problem = label(str(error) if isinstance(error, ApiError) else repr(error), 400)
            if isinstance(error, UnreachableError):
                self._again = now + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE)

    # --- by the other thread --------------------------------------------------------------

    def _ask(self, batch: Iterable[_Pod], answers: dict[_Pod, Described]) -> None:
        """Raises the last failure, when all have been asked for."""
        failed: ApiError | None = None
        try:
            for uid, pod in batch:
                try:
                    answers[uid, pod], error = self._describe(uid, pod)
                    failed = error or failed
                except UnreachableError:
                    raise
                except ApiError as error:
                    failed = error
        finally:
            self._server.close()
        if failed is not None:
            raise failed

    def _describe(self, uid: str, pod: PodName) -> tuple[Described, ApiError | None]:
        metadata = self._server.metadata(path_of("v1", "Pod", pod.namespace, pod.name))
        if metadata is None or not _is_of(metadata, uid):  # gone, or another has its name
            return Described(there=False), None
        labels = metadata.get("labels")
        given = labels if isinstance(labels, dict) else {}
        told = tuple((key, label(given[key])) for key in self._labels if _is_text(given.get(key)))
        name, failed = self._topmost(metadata, pod.namespace)
        return Described(name, told, whole=failed is None), failed

    def _topmost(self, metadata: Mapping[str, Any], namespace: str) -> tuple[str, ApiError | None]:
        """The name of the job above ("": there is none), and what failed on the way to it.

        Only owners that the server has confirmed are remembered: what a reference says was written
        by the pod's owner, and may name somebody else's job.
        """
        name, passed = "", list[tuple[str, ...]]()
        failed: ApiError | None = None
        above: Mapping[str, Any] | None = metadata
        for _ in range(DEEPEST):
            reference = None if above is None else _controller(above)
            if reference is None or reference.kind in NOT_JOBS:
                break
            key = (namespace, *reference)
            if key in self._tops:
                name = self._tops[key]
                break
            name = reference.name
            try:
                above = self._metadata(reference, namespace)
            except UnreachableError:
                raise
            except ApiError as error:
                above, failed = None, error
            if above is not None:
                passed.append(key)
        if failed is None:
            if len(self._tops) >= MOST_PODS:
                self._tops.clear()
            self._tops.update(dict.fromkeys(passed, name))
        return name, failed

    def _metadata(self, reference: _Reference, namespace: str) -> Mapping[str, Any] | None:
        path = path_of(reference.api_version, reference.kind, namespace, reference.name)
        try:
            metadata = self._server.metadata(path)
        except RefusedError:
            return None
        return metadata if metadata and metadata.get("uid") == reference.uid else None


def _controller(metadata: Mapping[str, Any]) -> _Reference | None:
    """None where it has none, or says something odd: whatever it says becomes part of a path."""
    references = metadata.get("ownerReferences")
    for row in references if isinstance(references, list) else ():
        if not isinstance(row, dict) or row.get("controller") is not True:
            continue
        texts = [row.get(key) for key in ("apiVersion", "kind", "name", "uid")]
        if not all(map(_is_text, texts)):
            return None
        reference = _Reference(*map(str, texts))
        if (
            _VERSION.fullmatch(reference.api_version)
            and _KIND.fullmatch(reference.kind)
            and pod_name("default", reference.name)
        ):
            return reference
        return None
    return None


def _is_of(metadata: Mapping[str, Any], uid: str) -> bool:
    """A static pod is its mirror at the server, which has another UID: kubelet says there which
    pod's (pkg/kubelet/pod/mirror_client.go, CreateMirrorPod()). Anybody may write that of a pod,
    but no UID of the server's is without dashes.
    """
    if metadata.get("uid") == uid:
        return True
    notes = metadata.get("annotations")
    return "-" not in uid and isinstance(notes, dict) and notes.get(MIRROR) == uid


def _is_text(value: object) -> bool:
    return isinstance(value, str)
