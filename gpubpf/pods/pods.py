"""The names behind the UIDs of Kubernetes' pods: what is there only with `--jobs kubernetes`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from gpubpf.config import Options
from gpubpf.model import Device, Given, Job, Reading
from gpubpf.pods.kubelet import SOCKET, Kubelet
from gpubpf.pods.owners import Owners
from gpubpf.pods.podlogs import LOGS, PodLogs
from gpubpf.pods.podnames import PodNames

SCHEDULER = "kubernetes"


def socket_of(options: Options) -> str:
    """kubelet's; "": it isn't to be asked."""
    given = options.kubelet_socket
    return options.host_root.rstrip("/") + SOCKET if given is None else given


def logs_of(options: Options) -> str:
    """The directory of the pods' logs."""
    return options.host_root.rstrip("/") + LOGS


class Pods:
    """`look` once per step, then `name`; `close` ends it. Never raises."""

    def __init__(self, options: Options) -> None:
        self._minors: Mapping[str, str] = {}
        path = socket_of(options)
        self._kubelet = Kubelet(path, lambda: self._minors) if path else None
        self._logs = PodLogs(logs_of(options))
        self._names = PodNames(self._logs, self._kubelet)
        self._owners: Owners | None = None
        if options.kubernetes_api:
            from gpubpf.pods.apiserver import ApiServer  # with ssl: only who asks for it pays

            server = ApiServer(options.kubernetes_account, os.environ)
            self._owners = Owners(server, options.kubernetes_labels)
        self._unnamed = 0  # pods, in the last look

    def look(
        self,
        jobs: Iterable[Job],
        devices: Iterable[Device],
        on: Callable[[str], Collection[str]],
    ) -> dict[str, Job]:
        """The same jobs by their UIDs, with the names that are known by now; those of others than
        kubernetes are left out. `on`: the GPUs and MIG devices that the processes of a UID are on.
        """
        self._minors = _minors(devices)
        if self._kubelet is not None and os.path.exists(self._kubelet.path):
            self._kubelet.listing()  # what is given to whom is wanted in any case
        named: dict[str, Job] = {}
        for job in jobs:
            uid = job.key.id
            if job.key.scheduler == SCHEDULER and uid not in named:
                named[uid] = self._named(job, on)
        if self._owners is not None:
            self._owners.look()
        self._unnamed = sum(not job.name for job in named.values())
        return named

    def _named(self, job: Job, on: Callable[[str], Collection[str]]) -> Job:
        uid = job.key.id
        pod = self._names.name(uid, lambda: on(uid), job.hostname)
        if pod is None:
            return job
        told = self._owners.of(uid, pod) if self._owners is not None else None
        name = (told and told.owner) or pod.name
        labels = told.labels if told else ()
        return replace(job, namespace=pod.namespace, name=name, labels=labels)

    def given(self) -> Mapping[str, Given]:
        """By the UUIDs of GPUs and MIG devices; empty where kubelet doesn't say."""
        listing = self._kubelet.listing() if self._kubelet is not None else None
        return {} if listing is None else listing.given

    def readings(self, at: float) -> tuple[Reading[None], ...]:
        """How its sources are doing. kubelet isn't one where there is none and nobody misses it."""
        rows: list[Reading[None]] = []
        if self._kubelet is not None and (self._unnamed or os.path.exists(self._kubelet.path)):
            rows.append(Reading("kubelet", at, 0.0, error=self._kubelet.problem))
        if self._owners is not None:
            rows.append(Reading("kubernetes_api", at, 0.0, error=self._owners.problem))
        return tuple(rows)

    def close(self) -> None:
        if self._kubelet is not None:
            self._kubelet.close()
        if self._owners is not None:
            self._owners.close()


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
