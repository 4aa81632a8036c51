"""gpubpf.pods.kubelet on real Unix sockets: there, absent, slow, restarting, saying garbage."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpubpf.model import Given
from gpubpf.pods import kubelet as module
from gpubpf.pods.kubelet import SOCKET, Kubelet, KubeletError, Listing, ask
from gpubpf.pods.podresources import ALLOCATABLE, LIST, Assigned, PodName
from tests.conftest import eventually
from tests.fakekube import messages
from tests.fakekube.kubelet import FakeKubelet
from tests.fakekube.strict import strict

GPU = "GPU-fef8089b-4820-abfc-e83e-94318197576e"
MIG = "MIG-11111111-2222-3333-4444-555555555555"
PODS: list[tuple[str, str, dict[str, dict[str, list[str]]]]] = [
    ("ml", "trainer", {"main": {"nvidia.com/gpu": [f"{GPU}::0", f"{GPU}::1"]}, "side": {}}),
    ("ml", "server", {"main": {"nvidia.com/gpu": [f"{GPU}::2"], "nvidia.com/mig-1g": [MIG]}}),
    ("kube-system", "proxy", {"main": {}}),
]
SLOTS = {"nvidia.com/gpu": [f"{GPU}::{i}" for i in range(4)], "nvidia.com/mig-1g": [MIG]}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeKubelet]:
    with FakeKubelet(tmp_path) as kubelet:
        kubelet.say(PODS, SLOTS)
        yield kubelet


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.05)
    monkeypatch.setattr(module, "SOONEST", 0.05)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def of() -> Iterator[Callable[[Path], Kubelet]]:
    made: list[Kubelet] = []

    def make(path: Path) -> Kubelet:
        made.append(Kubelet(str(path)))
        return made[-1]

    yield make
    for kubelet in made:
        kubelet.close()


def listing(kubelet: Kubelet) -> Listing | None:
    return eventually(kubelet.listing, lambda seen: seen is not None)


def problem(kubelet: Kubelet) -> str | None:
    def look() -> str | None:
        kubelet.listing()
        return kubelet.problem

    return eventually(look, lambda seen: seen)


def test_who_has_what(fake: FakeKubelet, of: Callable[[Path], Kubelet]) -> None:
    kubelet = of(fake.socket)
    seen = listing(kubelet)
    assert seen is not None
    trainer, server = PodName("ml", "trainer"), PodName("ml", "server")
    proxy = PodName("kube-system", "proxy")
    assert seen.by_hostname == {"trainer": {trainer}, "server": {server}, "proxy": {proxy}}
    assert seen.by_device == {GPU: {trainer, server}, MIG: {server}}
    assert seen.given == {GPU: Given(2, 4), MIG: Given(1, 1)}
    assert kubelet.problem is None


def test_a_kubelet_that_does_not_know_what_it_may_give(
    fake: FakeKubelet, of: Callable[[Path], Kubelet]
) -> None:
    fake.say(PODS, None)
    seen = listing(of(fake.socket))
    assert seen is not None
    assert seen.given == {GPU: Given(2, None), MIG: Given(1, None)}


def test_a_strict_server(tmp_path: Path) -> None:
    """It refuses grpc's own :authority on a Unix socket, the path of the socket in %2F."""
    answers = {LIST: messages.listed(PODS), ALLOCATABLE: messages.allocatable(SLOTS)}
    with strict(tmp_path / "a.sock", answers) as authorities:
        answer, slots = ask(str(tmp_path / "a.sock"))
    assert Assigned(PodName("ml", "server", "main"), MIG) in answer.assigned
    assert slots is not None
    assert len(slots) == 5
    assert set(authorities) == {b"localhost"}


def test_the_strict_server_is_strict(tmp_path: Path) -> None:
    import grpc

    path = tmp_path / "a.sock"
    with (
        strict(path, {LIST: b""}) as authorities,
        grpc.insecure_channel(f"unix:{path}") as channel,
        pytest.raises(grpc.RpcError),
    ):
        channel.unary_unary(LIST)(b"", timeout=5)
    assert b"%2F" in authorities[0]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("absent", "not there; kubelet's own is /var/lib/kubelet/pod-resources/kubelet.sock on"),
        ("in a root", "not there; mount the node's /var/lib/kubelet/pod-resources"),
        ("below a file", "not there"),
        ("a file", "that is no socket"),
        ("nobody", "nobody answers"),
    ],
)
def test_no_kubelet(tmp_path: Path, of: Callable[[Path], Kubelet], what: str, says: str) -> None:
    path = tmp_path / "kubelet.sock"
    if what == "a file":
        path.write_text("")
    elif what == "in a root":
        path = tmp_path / SOCKET.lstrip("/")
    elif what == "below a file":
        path.write_text("")
        path = path / "x"
    elif what == "nobody":
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
    kubelet = of(path)
    assert says in (problem(kubelet) or "")
    assert kubelet.absent == (says.startswith("not there"))
    assert str(path) in (kubelet.problem or "")
    assert kubelet.listing() is None


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x0a\x7fshort", b"\x0b" * 100])
def test_garbage(fake: FakeKubelet, of: Callable[[Path], Kubelet], garbage: bytes) -> None:
    fake.say(instead=garbage)
    kubelet = of(fake.socket)
    assert "its answer can't be read" in (problem(kubelet) or "")
    assert kubelet.listing() is None


def test_a_server_that_speaks_no_grpc(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        began = time.monotonic()
        with pytest.raises(KubeletError, match=r"no answer|nobody answers"):
            ask(str(path))  # it accepts, and says nothing
        assert time.monotonic() - began < 5 * module.DEADLINE


def test_more_than_it_may_say(fake: FakeKubelet) -> None:
    fake.say(instead=b"\x0a\x00" * (module.MOST_BYTES // 2 + 1))
    with pytest.raises(KubeletError, match="RESOURCE_EXHAUSTED"):
        ask(str(fake.socket))


@pytest.mark.usefixtures("hasty")
def test_a_slow_one_keeps_nobody_waiting(fake: FakeKubelet, of: Callable[[Path], Kubelet]) -> None:
    """What is known stays known, and nobody waits."""
    kubelet = of(fake.socket)
    assert listing(kubelet) is not None
    fake.say(PODS, SLOTS, seconds=30)
    longest = 0.0
    end = time.monotonic() + 10
    while kubelet.problem is None and time.monotonic() < end:
        began = time.monotonic()
        assert kubelet.listing() is not None
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.02)
    assert kubelet.problem is not None
    assert "no answer for 2 s" in kubelet.problem
    assert longest < module.DEADLINE / 2


@pytest.mark.usefixtures("hasty")
def test_it_restarts(fake: FakeKubelet, of: Callable[[Path], Kubelet]) -> None:
    """With a new socket, as kubelet's is, and other pods."""
    kubelet = of(fake.socket)
    assert listing(kubelet) is not None
    fake.stop()
    said = eventually(lambda: problem(kubelet), lambda seen: "not there" in (seen or ""))
    assert "not there" in (said or "")
    fake.say(PODS[:1], SLOTS)
    fake.start()
    seen = eventually(kubelet.listing, lambda seen: seen is not None and len(seen.by_hostname) == 1)
    assert seen is not None
    assert seen.by_hostname == {"trainer": {PodName("ml", "trainer")}}
    assert kubelet.problem is None


def test_what_is_old_says_nothing(tmp_path: Path, fake: FakeKubelet) -> None:
    clock = [1000.0]
    kubelet = Kubelet(str(fake.socket), monotonic=lambda: clock[0])
    assert listing(kubelet) is not None
    fake.stop()
    clock[0] += module.STALE - 1
    assert kubelet.listing() is not None
    assert kubelet.listing(since=1001.0) is None
    clock[0] += 2
    assert kubelet.listing() is None
    kubelet.close()
