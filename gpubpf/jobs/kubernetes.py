"""Kubernetes' pods, by the cgroup that kubelet made: the pod's UID (see `gpubpf.pods` for names).

Layouts, with or without the class of service (guaranteed pods have none), below kubelet's own
`--cgroup-root` (kind: `/kubelet`, `/kubelet.slice/kubelet-kubepods…`) and below the cgroup of a
node that is itself a container:

    /kubepods/burstable/podUID/CONTAINER                            driver cgroupfs
    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/RUNTIME-CONTAINER.scope
    /system.slice/containerd.service/kubepods-burstable-podUID.slice:cri-containerd:CONTAINER

The last is of a containerd that wasn't told of kubelet's driver systemd. That driver writes the
UID's dashes as underscores. The UID of a static pod is 32 digits without dashes, a hash of its file
(kubelet's `config/common.go`).

The outermost pod is the pod: what a container with a cgroup manager of its own makes below (docker
in docker, kind in a pod, somebody who names a cgroup after another's pod) is still of it. A pod
below a user's cgroups isn't kubelet's: there a name is whatever the user likes. That leaves out a
rootless Kubernetes, too. A container that is no pod and may make cgroups can call itself one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from gpubpf.jobs.job import Sight, job, label
from gpubpf.jobs.paths import paths
from gpubpf.model import Job

IDS = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}"
_UID = r"([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
_ID = r"([0-9a-f]{64})"
_CLASS = r"(?:besteffort|burstable|guaranteed)"
_SLICE = re.compile(rf"(?:[^/:]+-)?kubepods(?:-{_CLASS})?-pod{_UID}\.slice(?::[a-z-]+:{_ID})?")
_PLAIN = re.compile(rf"pod{_UID}")
_ABOVE = re.compile(rf"(?:.+-)?kubepods|{_CLASS}|\.\.")  # a plain pod; kubelet's root may be hidden
_CONTAINER = re.compile(rf"(?!crio-conmon-)(?:[a-z-]+-)?{_ID}(?:\.scope)?")  # conmon isn't in it
_USERS = re.compile(r"user\.slice|user@.*\.service")


class Pod(NamedTuple):
    uid: str  # with dashes
    container: str  # 64 digits; "" where the process is in none, or it can't be told


def resolve(sight: Sight) -> Job | None:
    pod = pod_of(sight.cgroup)
    found = None if pod is None else job("kubernetes", pod.uid)
    if found is None:
        return None
    hostname = (sight.environment or {}).get(b"HOSTNAME", b"")
    return replace(found, hostname=label(hostname))


def pod_of(cgroup: str) -> Pod | None:
    """The pod that a process with this /proc/PID/cgroup is of."""
    for path in paths(cgroup):
        if pod := _outermost(path.split("/")):
            return pod
    return None


def _outermost(names: list[str]) -> Pod | None:
    for above, name, below in zip(names, names[1:], [*names[2:], ""], strict=False):
        if _USERS.fullmatch(name):
            return None
        match = _SLICE.fullmatch(name)
        if match is None and _ABOVE.fullmatch(above):
            match = _PLAIN.fullmatch(name)
        if match is not None:
            inside = _CONTAINER.fullmatch(below)
            container = (match.re is _SLICE and match[2]) or (inside[1] if inside else "")
            return Pod(match[1].replace("_", "-"), container)
    return None
