"""gpubpf.pods.podnames: a name that isn't certain is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gpubpf.pods.kubelet import Kubelet, Listing, hostname_of
from gpubpf.pods.podlogs import AGAIN, SOONEST, PodLogs
from gpubpf.pods.podnames import RECENT, PodNames
from gpubpf.pods.podresources import PodName

A, B, C = PodName("ml", "a"), PodName("ml", "b"), PodName("web", "c")
INDEXED = PodName("ml", "train-0-x7x7x")
UID = "4f1d5cd6-21ab-4c09-9a4e-2a04c2f1d9aa"
OTHER = "00000000-21ab-4c09-9a4e-2a04c2f1d9aa"


def listing(by_device: Mapping[str, set[PodName]], *others: PodName) -> Listing:
    pods = {pod for some in by_device.values() for pod in some} | {*others}
    by_hostname: dict[str, frozenset[PodName]] = {}
    for pod in pods:
        name = hostname_of(pod)
        by_hostname[name] = by_hostname.get(name, frozenset()) | {pod}
    having = {uuid: frozenset(some) for uuid, some in by_device.items()}
    return Listing(0.0, by_hostname, having, {})


class Told(Kubelet):
    """A kubelet that says what it is told to, at once: its answers' times are the test's."""

    def __init__(self, by_device: Mapping[str, set[PodName]], *others: PodName) -> None:
        self.told = listing(by_device, *others)

    def listing(self, since: float = float("-inf")) -> Listing | None:
        return self.told if self.told.began >= since else None


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Logs(PodLogs):
    """Answers at once, as the real ones do a moment later."""

    def name(self, uid: str) -> PodName | None:
        found = super().name(uid)
        if self._job is not None:
            assert self._job.wait(10)
            found = super().name(uid)
        return found


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    """The directories of the logs, in a node's root."""
    made = tmp_path / "var/log/pods"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def logs(tmp_path: Path, clock: Clock) -> Iterator[PodLogs]:
    logs = Logs(str(tmp_path), clock)
    yield logs
    logs.close()


def test_the_logs_have_the_name(pods: Path, logs: PodLogs) -> None:
    (pods / f"ml_trainer-0_{UID}").mkdir()
    (pods / "kube-system_static-node-1_0123456789abcdef0123456789abcdef").mkdir()
    names = PodNames(logs, None)
    assert names.name(UID, lambda: (), "") == PodName("ml", "trainer-0")
    static = names.name("0123456789abcdef0123456789abcdef", lambda: (), "")
    assert static == PodName("kube-system", "static-node-1")


def test_a_pod_that_comes_later(pods: Path, logs: PodLogs, clock: Clock) -> None:
    names = PodNames(logs, None, clock)
    assert names.name(UID, lambda: (), "") is None
    (pods / f"ml_a_{UID}").mkdir()
    clock.now += SOONEST
    assert names.name(UID, lambda: (), "") is None  # it looks again only after a while
    clock.now = AGAIN
    assert names.name(UID, lambda: (), "") == A
    (pods / f"ml_a_{UID}").rmdir()  # kubelet removes them after the pod's end
    clock.now += 100
    assert names.name(UID, lambda: (), "") == A


@pytest.mark.parametrize(
    "odd", [f"ml_{UID}", f"ml_a_b_{UID}", f"ML_a_{UID}", f"_a_{UID}", f"ml_.._{UID}", UID]
)
def test_what_is_no_pods_directory(pods: Path, logs: PodLogs, odd: str) -> None:
    (pods / odd).mkdir()
    assert logs.name(UID) is None


def test_links_and_files_are_no_logs(pods: Path, logs: PodLogs) -> None:
    (pods / f"ml_a_{UID}").write_text("")
    (pods / f"ml_b_{OTHER}").symlink_to("/")
    assert logs.name(UID) is None
    assert logs.name(OTHER) is None


def test_a_new_one_is_looked_for_soon(pods: Path, logs: PodLogs, clock: Clock) -> None:
    assert logs.name(UID) is None
    (pods / f"ml_b_{OTHER}").mkdir()
    assert logs.name(OTHER) is None
    clock.now += SOONEST
    assert logs.name(OTHER) == B


def test_two_directories_of_one_uid(pods: Path, logs: PodLogs) -> None:
    (pods / f"ml_a_{UID}").mkdir()
    (pods / f"ml_b_{UID}").mkdir()
    assert logs.name(UID) is None


def test_no_logs_at_all(tmp_path: Path, clock: Clock) -> None:
    for root in ("/nonexistent", str(tmp_path)):
        assert Logs(root, clock).name(UID) is None
        assert not Logs(root, clock).there


@pytest.mark.parametrize("to", ["/data/pods", "../../data/pods", "../../../../../../data/pods"])
def test_logs_that_were_moved(tmp_path: Path, clock: Clock, to: str) -> None:
    """A symlink is followed inside of the node's root, which isn't the agent's."""
    (tmp_path / f"data/pods/ml_a_{UID}").mkdir(parents=True)
    (tmp_path / "var/log").mkdir(parents=True)
    (tmp_path / "var/log/pods").symlink_to(to)
    logs = Logs(str(tmp_path), clock)
    assert logs.there
    assert logs.name(UID) == A


def test_the_logs_win(pods: Path, logs: PodLogs, clock: Clock) -> None:
    (pods / f"ml_a_{UID}").mkdir()
    names = PodNames(logs, Told({"0": {B}}), clock)
    assert names.name(UID, lambda: ("0",), "b") == A


@pytest.mark.parametrize(
    ("by_device", "uuids", "hostname", "expected"),
    [
        ({"0": {A}, "1": {B}}, ("0",), "a", A),  # it alone has the GPU
        ({"0": {A}, "1": {A}}, ("0", "1"), "a", A),  # it alone has both
        ({"0": {A, B}, "1": {A}}, ("0", "1"), "a", A),
        ({"0": {A, B}}, ("0",), "b", B),  # shared, and it says which
        ({"0": {A, B}}, ("0",), "elsewhere", None),
        ({"0": {A}}, ("0",), "", None),  # it doesn't say who it is
        ({"0": {INDEXED}}, ("0",), "train-0", INDEXED),  # an indexed Job's
        ({"0": {INDEXED}, "1": {A}}, ("0",), "trai", None),
        ({"0": {INDEXED}}, ("0",), "train", None),
        ({"0": {A}}, ("0",), "node-1", None),  # in the node's network: it may be anybody
        ({"0": {PodName("ml", "node-1")}}, ("0",), "node-1", None),
        ({"0": {A}}, ("0",), "c", None),  # another pod's: it only looks at the GPU
        ({"0": {A}, "1": {B}}, ("0", "1"), "a", None),  # nobody has both
        ({"0": {A}}, ("7",), "a", None),  # nobody has it
        ({"0": {A}}, (), "a", None),  # it isn't known where it is
    ],
)
def test_by_what_kubelet_gave(
    logs: PodLogs,
    clock: Clock,
    by_device: Mapping[str, set[PodName]],
    uuids: tuple[str, ...],
    hostname: str,
    expected: PodName | None,
) -> None:
    names = PodNames(logs, Told(by_device, C), clock, node="node-1")
    assert names.name(UID, lambda: uuids, hostname) == expected


def test_an_answer_from_before_it_came(logs: PodLogs, clock: Clock) -> None:
    """The GPU may have been another pod's then."""
    kubelet = Told({"0": {A}})
    names = PodNames(logs, kubelet, clock)
    clock.now = 5
    assert names.name(UID, lambda: ("0",), "a") is None
    kubelet.told = kubelet.told._replace(began=6)
    assert names.name(UID, lambda: ("0",), "a") == A


def test_two_that_come_to_one_name(logs: PodLogs, clock: Clock) -> None:
    """A container that only says it is a pod: neither is named while both are about."""
    names = PodNames(logs, Told({"0": {A}}), clock)
    assert names.name(UID, lambda: ("0",), "a") == A
    assert names.name(OTHER, lambda: ("0",), "a") is None
    assert names.name(UID, lambda: ("0",), "a") is None
    clock.now = RECENT + 1
    assert names.name(UID, lambda: ("0",), "a") == A


def test_a_name_is_taken_back(logs: PodLogs, clock: Clock) -> None:
    """On a GPU that isn't the pod's, or when the pod is gone, or another is meant."""
    kubelet = Told({"0": {A}, "1": {B}})
    names = PodNames(logs, kubelet, clock)
    assert names.name(UID, lambda: ("0",), "a") == A
    assert names.name(UID, lambda: ("0", "1"), "a") is None
    assert names.name(UID, lambda: ("0",), "a") == A
    assert names.name(UID, lambda: (), "a") == A  # its processes have ended
    kubelet.told = listing({"1": {B}})
    assert names.name(UID, lambda: ("0",), "a") is None
    kubelet.told = listing({"0": {A}})
    names.refuse(UID, A)
    assert names.name(UID, lambda: ("0",), "a") is None


def test_a_long_name(logs: PodLogs, clock: Clock) -> None:
    """kubelet cuts the hostname to 63 characters, and what a hostname can't end with."""
    long = PodName("ml", "a" * 62 + "-0")
    names = PodNames(logs, Told({"0": {long, B}}), clock)
    assert names.name(UID, lambda: ("0",), "a" * 62) == long


@pytest.mark.parametrize("uid", ["", "../../x", "a/b", "a" * 65, "a\n"])
def test_what_is_no_uid(logs: PodLogs, uid: str) -> None:
    assert PodNames(logs, Told({"0": {A}})).name(uid, lambda: ("0",), "a") is None


def test_what_is_remembered_is_bounded(logs: PodLogs, clock: Clock) -> None:
    names = PodNames(logs, Told({"0": {A}}), clock)
    for number in range(5000):
        names.name(f"{number:08x}", lambda: ("0",), "a")
    assert len(names._seen) == 4096
    assert sum(map(len, names._likely.values())) <= 4096
