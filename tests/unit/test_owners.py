"""gpubpf.pods.owners and apiserver against a server that speaks TLS and asks for a token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubpf.pods import apiserver, owners
from gpubpf.pods.apiserver import ApiServer, path_of
from gpubpf.pods.owners import Described, Owners
from gpubpf.pods.podresources import PodName
from tests.conftest import eventually
from tests.fakekube.apiserver import FakeApiServer

POD = PodName("ml", "p")
PATH = "/api/v1/namespaces/ml/pods/p"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeApiServer]:
    with FakeApiServer(tmp_path) as server:
        yield server


@pytest.fixture
def asking(server: FakeApiServer) -> Iterator[Owners]:
    client = ApiServer(str(server.account), server.environment)
    asking = Owners(client, ("team", "app.kubernetes.io/name"))
    yield asking
    asking.close()


def described(asking: Owners, uid: str = "u", pod: PodName = POD) -> Described | None:
    def look() -> Described | None:
        found = asking.of(uid, pod)
        asking.look()
        return found

    return eventually(look, lambda found: found is not None or asking.problem)


Row = tuple[str, str, str, str]
REPLICAS: Row = ("apps/v1", "ReplicaSet", "web-6d4cf56db6", "r")


@pytest.mark.parametrize(
    ("above", "name"),
    [
        ([], ""),
        ([("batch/v1", "Job", "train", "j")], "train"),
        ([("kubeflow.org/v1", "PyTorchJob", "bert", "j")], "bert"),
        ([REPLICAS, ("apps/v1", "Deployment", "web", "d")], "web"),
        ([("ray.io/v1", "RayCluster", "x-abcde", "c"), ("ray.io/v1", "RayJob", "x", "j")], "x"),
        ([("batch/v1", "Job", "m-run", "l"), ("kubeflow.org/v2beta1", "MPIJob", "m", "j")], "m"),
        (
            [
                ("batch/v1", "Job", "t-node-0", "a"),
                ("jobset.x-k8s.io/v1alpha2", "JobSet", "t", "b"),
                ("trainer.kubeflow.org/v1alpha1", "TrainJob", "t", "c"),
            ],
            "t",
        ),
        ([("batch/v1", "Job", "night-2", "j"), ("batch/v1", "CronJob", "night", "c")], "night-2"),
        ([("v1", "Node", "node-1", "n")], ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_job_above(
    server: FakeApiServer, asking: Owners, above: list[tuple[str, str, str, str]], name: str
) -> None:
    server.pod("ml", "p", "u", *above)
    assert described(asking) == Described(name)


def test_only_labels_that_are_allowed(server: FakeApiServer, asking: Owners) -> None:
    labels = {"team": "vision", "app.kubernetes.io/name": "x\n" * 200, "secret": "s"}
    server.pod("ml", "p", "u", **labels)
    found = described(asking)
    assert found is not None
    assert [key for key, _ in found.labels] == ["team", "app.kubernetes.io/name"]
    assert found.labels[0] == ("team", "vision")
    assert len(found.labels[1][1]) == 128


def test_each_is_asked_for_once(server: FakeApiServer, asking: Owners) -> None:
    job = ("batch/v1", "Job", "train", "j")
    for number in range(40):  # more than one batch
        server.pod("ml", f"p{number}", f"u{number}", job)
    found = {
        number: described(asking, f"u{number}", PodName("ml", f"p{number}")) for number in range(40)
    }
    assert set(found.values()) == {Described("train")}
    for number in range(40):
        assert described(asking, f"u{number}", PodName("ml", f"p{number}")) == Described("train")
    assert len(server.asked) == 41  # the pods, and their Job


def test_another_pod_has_its_name(server: FakeApiServer, asking: Owners) -> None:
    """As a StatefulSet's next pod has."""
    server.pod("ml", "p", "another", ("batch/v1", "Job", "train", "j"), team="theirs")
    assert described(asking) == Described(there=False)


def test_a_static_pod_is_its_mirror(server: FakeApiServer, asking: Owners) -> None:
    """As a real API server has it, whose UID of it is another; nobody else's pod can be one."""
    static, other = "c374cd1449de29de883a7dab36eb500c", "4f1d5cd6-21ab-4c09-9a4e-2a04c2f1d9aa"
    node = ("v1", "Node", "node-1", "n")
    server.pod("ml", "p", "13a3e993-a1ff-4a52-a9be-4329c25cdd5b", node, team="x")
    notes = {"kubernetes.io/config.mirror": static}
    mirror = server.objects[PATH]
    assert isinstance(mirror, dict)
    mirror["annotations"] = notes
    assert described(asking, static) == Described(labels=(("team", "x"),))
    assert described(asking, static.replace("c", "d")) == Described(there=False)
    notes["kubernetes.io/config.mirror"] = other
    assert described(asking, other) == Described(there=False)


def test_an_owner_that_was_made_again(server: FakeApiServer, asking: Owners) -> None:
    server.pod("ml", "p", "u", REPLICAS, ("apps/v1", "Deployment", "web", "d"))
    replicas = server.objects["/apis/apps/v1/namespaces/ml/replicasets/web-6d4cf56db6"]
    assert isinstance(replicas, dict)
    replicas["uid"] = "another"
    assert described(asking) == Described("web-6d4cf56db6")


def test_a_pod_that_is_gone(asking: Owners) -> None:
    assert described(asking) == Described(there=False)
    assert asking.problem is None


def test_what_it_may_not_ask(server: FakeApiServer, asking: Owners) -> None:
    """Above: the name ends there. The pod itself: the operator hears it."""
    server.pod("ml", "p", "u", REPLICAS, ("apps/v1", "Deployment", "web", "d"))
    server.objects["/apis/apps/v1/namespaces/ml/replicasets/web-6d4cf56db6"] = 403
    assert described(asking) == Described("web-6d4cf56db6")
    server.objects["/api/v1/namespaces/ml/pods/q"] = 403
    assert described(asking, "q", PodName("ml", "q")) is None
    assert asking.problem is not None
    assert asking.problem.endswith("answers 403 to GET /api/v1/namespaces/ml/pods/q")


def test_it_goes_on_after_a_failure(
    server: FakeApiServer, asking: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "FIRST_PAUSE", 0.05)
    asking._pause = 0.05
    server.objects[PATH] = 503
    assert described(asking) is None
    assert "answers 503" in (asking.problem or "")
    server.pod("ml", "p", "u", ("batch/v1", "Job", "train", "j"))
    asking.problem = None
    assert described(asking) == Described("train")
    assert asking.problem is None


def test_one_that_fails_keeps_no_other_waiting(server: FakeApiServer, asking: Owners) -> None:
    server.objects["/api/v1/namespaces/ml/pods/q"] = 503
    server.pod("ml", "p", "u", ("batch/v1", "Job", "train", "j"))
    assert asking.of("q", PodName("ml", "q")) is None  # it is the first of the batch
    assert asking.of("u", POD) is None

    def problem() -> str | None:
        asking.look()
        return asking.problem

    assert eventually(problem, bool)
    assert asking.of("u", POD) == Described("train")
    assert "answers 503" in (asking.problem or "")


def test_the_token_is_renewed(server: FakeApiServer, asking: Owners) -> None:
    server.pod("ml", "p", "u", ("batch/v1", "Job", "train", "j"))
    server.pod("ml", "q", "q", ("batch/v1", "Job", "other", "k"))
    assert described(asking) == Described("train")
    server.renew("second-token")
    assert described(asking, "q", PodName("ml", "q")) == Described("other")


@pytest.mark.parametrize("token", ["", "two\nlines", "a\rb", "ünicode", "with blank"])
def test_no_token_is_told(server: FakeApiServer, asking: Owners, token: str) -> None:
    (server.account / "token").write_text(token)
    assert described(asking) is None
    assert server.asked == []
    assert (asking.problem or "").endswith(f"{server.account}/token holds no token")
    for word in ("lines", "nicode", "blank"):
        assert word not in (asking.problem or "").partition(str(server.account))[2]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"not json", "Expecting value"),
        (b"[]", "without metadata"),
        (b'{"metadata": 7}', "without metadata"),
        (b"[" * 100_000, "can't be read"),
        (b"\xff\xfe\xfa", "can't be read"),
        (b'{"metadata": {"x": "' + b"x" * apiserver.MOST_BYTES + b'"}}', "more than 2 MiB"),
    ],
    ids=["text", "list", "number", "deep", "bytes", "large"],
)
def test_garbage(server: FakeApiServer, asking: Owners, body: bytes, says: str) -> None:
    server.objects[PATH] = body
    assert described(asking) is None
    assert says in (asking.problem or "")


@pytest.mark.parametrize(
    "metadata",
    [
        {"ownerReferences": "x"},
        {"ownerReferences": [7, None]},
        {"ownerReferences": [{"controller": True}]},
        {"ownerReferences": [{"controller": "true", "kind": "Job", "name": "a", "uid": "b"}]},
        {
            "ownerReferences": [
                {"controller": True, "apiVersion": "v1", "kind": "../x", "name": "a", "uid": "b"}
            ]
        },
        {
            "ownerReferences": [
                {"controller": True, "apiVersion": "v1", "kind": "A", "name": "a/b", "uid": "b"}
            ]
        },
        {
            "ownerReferences": [
                {"controller": True, "apiVersion": "../v1", "kind": "A", "name": "a", "uid": "b"}
            ]
        },
        {"labels": "x"},
        {"labels": {"team": 7, "app.kubernetes.io/name": None}},
    ],
)
def test_odd_metadata(server: FakeApiServer, asking: Owners, metadata: dict[str, object]) -> None:
    server.objects[PATH] = {"uid": "u", **metadata}
    assert described(asking) == Described()
    assert server.asked == [PATH]


def test_a_ring_of_owners(server: FakeApiServer, asking: Owners) -> None:
    a, b = ("x/v1", "A", "a", "a"), ("x/v1", "B", "b", "b")
    server.pod("ml", "p", "u", a, b, a, b)
    found = described(asking)
    assert found is not None
    assert found.owner in "ab"
    assert len(server.asked) <= owners.DEEPEST + 1


def test_a_stranger_is_not_believed(server: FakeApiServer, tmp_path: Path) -> None:
    """Whose certificate another authority made gets no token."""
    (tmp_path / "other").mkdir()
    other = FakeApiServer(tmp_path / "other")
    with other:
        (server.account / "ca.crt").replace(tmp_path / "own.crt")
        (other.account / "ca.crt").replace(server.account / "ca.crt")
        asking = Owners(ApiServer(str(server.account), server.environment), ())
        assert described(asking) is None
        assert "CERTIFICATE_VERIFY_FAILED" in (asking.problem or "")
        asking.close()
    assert server.asked == []


@pytest.mark.parametrize(
    ("without", "says"),
    [
        ("address", "KUBERNETES_SERVICE_HOST isn't set"),
        ("token", "token: no such file; the pod needs a service account"),
        ("ca.crt", "ca.crt: no such file"),
        ("server", "Connection refused"),
    ],
)
def test_no_server(tmp_path: Path, without: str, says: str) -> None:
    server = FakeApiServer(tmp_path)
    environment = {} if without == "address" else server.environment
    if without == "server":
        server._server.server_close()
        asking = Owners(ApiServer(str(server.account), environment), ())
        assert asking.problem is None
        assert described(asking) is None
    else:
        with server:
            if without in ("token", "ca.crt"):
                (server.account / without).unlink()
            asking = Owners(ApiServer(str(server.account), environment), ())
            assert says in (asking.problem or "")  # before anything is asked
            assert described(asking) is None
    assert says in (asking.problem or "")
    asking.close()


def test_a_slow_server_keeps_nobody_waiting(server: FakeApiServer, asking: Owners) -> None:
    server.pod("ml", "p", "u", ("batch/v1", "Job", "train", "j"))
    server.seconds = 0.5
    began = time.monotonic()
    assert asking.of("u", POD) is None
    asking.look()
    assert time.monotonic() - began < 0.25
    assert described(asking) == Described("train")


@pytest.mark.parametrize(
    ("version", "kind", "path"),
    [
        ("v1", "Pod", "/api/v1/namespaces/n/pods/x"),
        ("batch/v1", "Job", "/apis/batch/v1/namespaces/n/jobs/x"),
        ("a.b/v1", "Policy", "/apis/a.b/v1/namespaces/n/policies/x"),
        ("a.b/v1", "Class", "/apis/a.b/v1/namespaces/n/classes/x"),
    ],
)
def test_paths(version: str, kind: str, path: str) -> None:
    assert path_of(version, kind, "n", "x") == path


def test_nobody_names_anothers_job(server: FakeApiServer, asking: Owners) -> None:
    """A pod may say that any owner is its: that is believed of nobody else, nor the other way."""
    job = ("batch/v1", "Job", "train", "j")
    server.pod("evil", "p", "e", ("batch/v1", "Job", "hahaha", "j"))
    del server.objects["/apis/batch/v1/namespaces/evil/jobs/hahaha"]
    server.pod("ml", "p", "u", job)
    assert described(asking, "e", PodName("evil", "p")) == Described("hahaha")
    assert described(asking) == Described("train")
    server.pod("evil", "q", "f", ("batch/v1", "Job", "mine", "j"))
    server.objects["/apis/batch/v1/namespaces/evil/jobs/mine"] = 404
    assert described(asking, "f", PodName("evil", "q")) == Described("mine")


def test_an_owner_that_fails_costs_nothing_else(
    server: FakeApiServer, asking: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels and the name below are there, and it is asked again."""
    monkeypatch.setattr(owners, "FIRST_PAUSE", 0.05)
    top = ("apps/v1", "Deployment", "web", "d")
    server.pod("ml", "p", "u", REPLICAS, top, team="vision")
    path = "/apis/apps/v1/namespaces/ml/replicasets/web-6d4cf56db6"
    whole, server.objects[path] = server.objects[path], 503
    described(asking)
    found = asking.of("u", POD)
    assert found == Described("web-6d4cf56db6", (("team", "vision"),), whole=False)
    assert "answers 503" in (asking.problem or "")
    server.objects[path] = whole

    def look() -> Described | None:
        seen = asking.of("u", POD)
        asking.look()
        return seen

    found = eventually(look, lambda seen: seen is not None and seen.whole)
    assert found == Described("web", (("team", "vision"),))


def test_many_that_fail_keep_no_other_waiting(server: FakeApiServer, asking: Owners) -> None:
    """More than a batch of them, which are asked for first."""
    bad = [(f"b{n}", PodName("ml", f"b{n}")) for n in range(3 * owners.BATCH)]
    for _, pod in bad:
        server.objects[f"/api/v1/namespaces/ml/pods/{pod.name}"] = 503
    server.pod("ml", "p", "u", ("batch/v1", "Job", "train", "j"))

    def look() -> Described | None:
        for uid, pod in bad:
            assert asking.of(uid, pod) is None
        found = asking.of("u", POD)
        asking.look()
        return found

    assert eventually(look, bool) == Described("train")


def test_what_is_remembered_is_bounded(
    server: FakeApiServer, asking: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "MOST_PODS", 5)
    for number in range(30):
        server.pod(
            "ml", f"p{number}", f"u{number}", ("batch/v1", "Job", f"t{number}", f"j{number}")
        )
        assert described(asking, f"u{number}", PodName("ml", f"p{number}")) is not None
    sizes = [len(asking._known), len(asking._asked), len(asking._later), len(asking._tops)]
    assert max(sizes) <= 5


def test_an_answer_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of it comes in time: the question is ended all the same."""
    monkeypatch.setattr(apiserver, "LONGEST", 0.5)
    with FakeApiServer(tmp_path) as server:
        server.drip = 0.1
        asking = Owners(ApiServer(str(server.account), server.environment), ())
        assert described(asking) is None
        assert asking.problem is not None
        asking.close()


def test_an_empty_ca_trusts_nobody(server: FakeApiServer, asking: Owners) -> None:
    (server.account / "ca.crt").write_text("")
    assert described(asking) is None
    assert server.asked == []
