"""The names behind the UIDs of Kubernetes' pods: what is there only with `--jobs kubernetes`."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from gpubpf.config import Options
from gpubpf.model import Device, Given, Job, JobKey, Reading
from gpubpf.openat2 import in_root
from gpubpf.pods.kubelet import SOCKET, Kubelet
from gpubpf.pods.owners import Described, Owners
from gpubpf.pods.podlogs import PodLogs
from gpubpf.pods.podnames import MOST_PODS, PodNames
from gpubpf.pods.podresources import PodName

SCHEDULER = "kubernetes"
_OF_POD, _OF_OWNER = 1, 2  # ranks of names
_TAKEN_BACK = _OF_POD


def socket_of(options: Options) -> str:
    """kubelet's; "": it isn't to be asked."""
    given = options.kubelet_socket
    return options.host_root.rstrip("/") + SOCKET if given is None else given


class Pods:
    """`look` once per step, then `name`; `close` ends it. Never raises."""

    def __init__(self, options: Options) -> None:
        self._minors: Mapping[str, str] = {}
        self._wanted = bool(options.kubelet_socket)  # named: somebody misses it
        path = socket_of(options)
        self._kubelet = Kubelet(path, lambda: self._minors) if path else None
        self._logs = PodLogs(options.host_root)
        self._names = PodNames(self._logs, self._kubelet, node=_hostname(options.host_root))
        self._owners: Owners | None = None
        if options.kubernetes_api:
            from gpubpf.pods.apiserver import ApiServer  # with ssl: only who asks for it pays

            server = ApiServer(options.kubernetes_account, os.environ)
            self._owners = Owners(server, options.kubernetes_labels)
        self._unnamed = 0  # pods, in the last look
        self._ever: OrderedDict[str, None] = OrderedDict()  # UIDs that had a name

    def look(
        self,
        jobs: Iterable[Job],
        devices: Iterable[Device],
        on: Callable[[str], Collection[str]],
        ended: Iterable[Job] = (),
    ) -> dict[JobKey, Job]:
        """The same jobs with the names that are known by now; those of others than kubernetes are
        left out. `on`: the GPUs and MIG devices that the processes of a pod's UID are on. `ended`:
        those without processes; one that ended at once is named afterwards.
        """
        self._minors = _minors(devices)
        if self._kubelet is not None:
            self._kubelet.listing()  # what is given to whom is wanted in any case
        pods: dict[JobKey, Job] = {}
        hostnames: dict[JobKey, set[str]] = {}
        for job in jobs:
            if job.key.scheduler == SCHEDULER:
                pods[job.key] = job
                hostnames.setdefault(job.key, set()).add(job.hostname)
        named = {key: self._named(job, hostnames[key] - {""}, on) for key, job in pods.items()}
        self._unnamed = sum(not job.name for job in named.values())
        late = {job.key: self._late(job) for job in ended if job.key.scheduler == SCHEDULER}
        if self._owners is not None:
            self._owners.look()
        return late | named

    def _named(self, job: Job, hostnames: set[str], on: Callable[[str], Collection[str]]) -> Job:
        uid = job.key.id
        hostname = hostnames.pop() if len(hostnames) == 1 else ""
        pod = self._names.name(uid, lambda: on(uid), hostname)
        if pod is None:
            return replace(job, rank=_TAKEN_BACK) if uid in self._ever else job
        told = self._owners.of(uid, pod) if self._owners is not None else None
        if told is not None and not told.there and not self._names.is_exact(uid):
            self._names.refuse(uid, pod)
            return replace(job, rank=_TAKEN_BACK)
        self._remember(uid)
        return _told(job, pod, told)

    def _late(self, job: Job) -> Job:
        """Nothing says any more which GPUs it had: an exact name, or none."""
        if job.name and job.rank >= (_OF_POD if self._owners is None else _OF_OWNER):
            return job
        uid, told = job.key.id, None
        pod = self._names.exact(uid)
        if pod is not None and self._owners is not None:
            told = self._owners.of(uid, pod)
        if pod is None or (job.name and (told is None or not told.there)):  # what was known stays
            return job
        return _told(job, pod, told)

    def _remember(self, uid: str) -> None:
        self._ever[uid] = None
        self._ever.move_to_end(uid)
        if len(self._ever) > MOST_PODS:
            self._ever.popitem(last=False)

    def given(self) -> Mapping[str, Given]:
        """By the UUIDs of GPUs and MIG devices; empty where kubelet doesn't say."""
        listing = self._kubelet.listing() if self._kubelet is not None else None
        return {} if listing is None else listing.given

    def readings(self, at: float) -> tuple[Reading[None], ...]:
        """How its sources are doing. kubelet isn't one where there is none and nobody misses it."""
        rows: list[Reading[None]] = []
        if self._kubelet is not None and (
            self._wanted or self._unnamed or not self._kubelet.absent
        ):
            rows.append(Reading("kubelet", at, 0.0, error=self._kubelet.problem))
        if self._owners is not None:
            rows.append(Reading("kubernetes_api", at, 0.0, error=self._owners.problem))
        return tuple(rows)

    def close(self) -> None:
        self._logs.close()
        if self._kubelet is not None:
            self._kubelet.close()
        if self._owners is not None:
            self._owners.close()


def _told(job: Job, pod: PodName, told: Described | None) -> Job:
    if told is None or not told.owner:
        rank, name = _OF_POD, pod.name
    else:
        rank, name = _OF_OWNER, told.owner
    labels = told.labels if told else ()
    return replace(job, namespace=pod.namespace, name=name, labels=labels, rank=rank)


def _hostname(host_root: str) -> str:
    """The node's own; "" where its file isn't there."""
    try:
        # A pipe there would keep us waiting, a symlink to / is to the node's.
        file = in_root(host_root, "/etc/hostname", os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return ""
    try:
        if stat.S_ISREG(os.fstat(file).st_mode):
            return os.read(file, 256).decode().strip()
    except (OSError, ValueError):
        pass
    finally:
        os.close(file)
    return ""


def _minors(devices: Iterable[Device]) -> dict[str, str]:
    """UUIDs by the names that GKE's device plugin has for GPUs and GPU instances."""
    found: dict[str, str] = {}
    for device in devices:
        if device.info.minor is None:
            continue
        name = f"nvidia{device.info.minor}"
        found[name] = device.info.uuid
        for mig in device.mig:
            if mig.info.gpu_instance is not None:
                found[f"{name}/gi{mig.info.gpu_instance}"] = mig.info.uuid
    return found
