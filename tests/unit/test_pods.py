"""gpubpf.pods.pods and keeper: a pod's name goes to the pod, and to nobody else."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpubpf.config import load
from gpubpf.jobs import sources
from gpubpf.join import Ledger
from gpubpf.keeper import Keeper, _Places
from gpubpf.model import Device, DeviceInfo, DeviceProcess, Job, JobKey, Owner, Place
from gpubpf.pods.kubelet import SOCKET
from gpubpf.pods.owners import Described
from gpubpf.pods.podresources import PodName
from gpubpf.pods.pods import Pods, _hostname
from tests.conftest import eventually

UID = "4f1d5cd6-21ab-4c09-9a4e-2a04c2f1d9aa"
POD = Job(JobKey("kubernetes", UID), hostname="a")
STRANGER = Job(JobKey("environ", UID), hostname="a")


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    (tmp_path / "var/log/pods" / f"ml_a_{UID}").mkdir(parents=True)
    options = load({"host_root": str(tmp_path), "jobs": "kubernetes", "kubelet_socket": ""}, {})
    pods = Pods(options)
    yield pods
    pods.close()


def named(pods: Pods, *jobs: Job) -> dict[JobKey, Job]:
    def look() -> dict[JobKey, Job]:
        return pods.look(jobs, (), lambda _: set())

    return eventually(look, lambda seen: all(job.name for job in seen.values()), 5)


def test_only_pods_are_named(pods: Pods) -> None:
    """An id of another source that is a pod's UID is still another job."""
    found = named(pods, POD, STRANGER)
    assert found.keys() == {POD.key}
    assert (found[POD.key].namespace, found[POD.key].name) == ("ml", "a")


def test_nobody_is_charged_to_a_pod(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    named(pods, POD)
    keeper = Keeper(load({"jobs": "user"}, {}), Ledger(()), 0.0)
    one, two = Owner(1, 1), Owner(2, 2)
    keeper._pods = pods
    monkeypatch.setattr(keeper._namer, "look", lambda _: {one: POD, two: STRANGER})
    found = keeper.look([one, two])
    assert found[one].name == "a"
    assert found[two] == STRANGER


def test_a_name_that_fails_takes_no_job_away(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper(load({"jobs": "user"}, {}), Ledger(()), 0.0)
    keeper._pods = pods
    monkeypatch.setattr(keeper._namer, "look", lambda _: {Owner(1, 1): POD})
    monkeypatch.setattr(pods, "look", lambda *_: 1 / 0)
    assert keeper.look([Owner(1, 1)]) == {Owner(1, 1): POD}
    readings = {reading.source: reading.error for reading in keeper.kept(0.0)}
    assert "ZeroDivisionError" in (readings["pods"] or "")


def test_places_are_of_pods_alone() -> None:
    one, two, three = Owner(1, 1), Owner(2, 2), Owner(3, 0)
    listed = DeviceProcess(3, 1)
    device = Device(DeviceInfo(1, "GPU-1", "x", "1"), processes=(listed,))
    jobs = {one: POD, two: STRANGER, three: POD}
    gpus: dict[Place, str] = {(one, 0): "GPU-0", (two, 0): "GPU-2", (one, 1): "unknown"}
    assert _Places(jobs, [device], gpus).of(UID) == {"GPU-0", "GPU-1"}


class Told:
    """What an API server would have said."""

    problem = None

    def __init__(self, described: Described | None) -> None:
        self.described = described

    def of(self, uid: str, pod: PodName) -> Described | None:
        return self.described

    def look(self) -> None: ...

    def close(self) -> None: ...


def test_owners(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the logs the name is the pod's all the same: a mirror pod has another UID there."""
    for described, name, rank in (
        (None, "a", 1),
        (Described("bert", (("team", "x"),)), "bert", 2),
        (Described(), "a", 1),
        (Described(there=False), "a", 1),
    ):
        monkeypatch.setattr(pods, "_owners", Told(described))
        found = named(pods, POD)[POD.key]
        assert (found.name, found.rank) == (name, rank)
        assert found.labels == (described.labels if described else ())


def test_one_that_ended_is_named_afterwards(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have ended before its name was known; what can't be exact stays unknown."""
    other = Job(JobKey("kubernetes", UID.replace("4", "5")))

    def late(job: Job) -> Job:
        """As it is when it has a name."""
        look = lambda: pods.look((), (), lambda _: {"GPU-0"}, [job, STRANGER, other])  # noqa: E731
        found = eventually(look, lambda found: found[job.key].name, 5)
        assert found.keys() == {job.key, other.key}
        assert found[other.key] == other
        return found[job.key]

    named_late = late(POD)
    assert (named_late.namespace, named_late.name, named_late.rank) == ("ml", "a", 1)
    monkeypatch.setattr(pods, "_owners", Told(Described("bert", (("team", "x"),))))
    owned = late(named_late)
    assert (owned.name, owned.labels, owned.rank) == ("bert", (("team", "x"),), 2)
    monkeypatch.setattr(pods, "_owners", Told(Described(there=False)))  # it was deleted since
    assert late(owned) == owned
    assert late(POD) == named_late
    labelled = replace(named_late, labels=(("team", "x"),))
    for told in (None, Described(there=False)):
        monkeypatch.setattr(pods, "_owners", Told(told))
        assert late(labelled) == labelled


def test_another_pods_uid_takes_a_likely_name_back(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods._names, "name", lambda uid, on, hostname: PodName("ml", "a"))
    refused: list[PodName] = []
    monkeypatch.setattr(pods._names, "refuse", lambda uid, pod: refused.append(pod))
    monkeypatch.setattr(pods, "_owners", Told(Described(there=False)))
    found = pods.look([POD], (), lambda _: set())[POD.key]
    assert (found.name, found.rank, refused) == ("", 1, [PodName("ml", "a")])


def test_processes_that_disagree_say_nothing(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pods._names, "name", lambda uid, on, hostname: asked.append(hostname))
    key = POD.key
    for hostnames in (("a", "a"), ("a", ""), ("a", "b"), ("",)):
        pods.look([Job(key, hostname=name) for name in hostnames], (), lambda _: set())
    assert asked == ["a", "a", "", ""]
    assert sources.parse("kubernetes")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("says", ["not there", "asking it needs grpcio"])
def test_who_names_kubelets_socket_is_told_that_it_cant_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool, says: str
) -> None:
    """Nobody else misses it: not on a node without kubelet, nor in the slim image."""
    socket = str(tmp_path / "kubelet.sock")
    if says != "not there":
        own = Path(f"{tmp_path}{SOCKET}")
        own.parent.mkdir(parents=True)
        for path in (socket, str(own)):
            os.mknod(path, stat.S_IFSOCK | 0o600)
        monkeypatch.setitem(sys.modules, "grpc", None)
    options = {"host_root": str(tmp_path), "jobs": "kubernetes"}
    pods = Pods(load(options | ({"kubelet_socket": socket} if named else {}), {}))

    def told() -> dict[str, str | None]:
        pods.look((), (), lambda _: set())
        return {reading.source: reading.error for reading in pods.readings(0.0)}

    said = eventually(told, lambda seen: seen.get("kubelet"), 5 if named else 0.5)
    if named:
        assert f"{socket}: {says}" in (said["kubelet"] or "")
    else:
        assert said == {}
    pods.close()


@pytest.mark.parametrize("kind", ["file", "moved", "outside", "pipe", "nothing"])
def test_the_nodes_hostname(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    place = root / "etc/hostname"
    if kind == "file":
        place.write_text("node-1\n")
    elif kind == "moved":
        (root / "data").write_text("node-1\n")
        place.symlink_to("/data")
    elif kind == "outside":
        (tmp_path / "secret").write_text("other\n")
        place.symlink_to("../../secret")
    elif kind == "pipe":
        os.mkfifo(place)
    assert _hostname(str(root)) == ("node-1" if kind in ("file", "moved") else "")
