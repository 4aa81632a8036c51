"""Names of pods, end to end: real cgroups, a kubelet and an API server that speak the protocols."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import GPUBPF, Agent, Metrics, eventually, value
from tests.deploy.test_jobs import by_job, launching
from tests.fakegpu.node import Node
from tests.fakegpu.programs import Interpreter
from tests.fakegpu.small_programs import lines
from tests.fakekube.apiserver import FakeApiServer
from tests.fakekube.kubelet import FakeKubelet

UIDS = ("4f1d5cd6-21ab-4c09-9a4e-2a04c2f1d9aa", "b1d5cd6f-21ab-4c09-9a4e-2a04c2f1d9aa")
START = "0 cuInit 0\n0 cuDevicePrimaryCtxRetain 1 {gpu}\n0 cuCtxSetCurrent 1\n"


def launching_on(gpu: int, count: int) -> list[str]:
    program = "0 cuLibraryLoadData 1\n0 cuLibraryGetKernel 1 1\n"
    return lines(START.format(gpu=gpu) + program + f"{count} x 0 cuLaunchKernel 1 1")


def infos(metrics: Metrics) -> dict[str, dict[str, str]]:
    found = [dict(labels) for (name, labels) in metrics if name == "gpubpf_job_info"]
    return {labels.pop("job_id"): labels for labels in found}


def names(metrics: Metrics) -> set[tuple[str, str]]:
    return {(labels["namespace"], labels["name"]) for labels in infos(metrics).values()}


@pytest.fixture
def pods(node: Node, cgroup: Callable[[str, str], Path]) -> Iterator[list[Interpreter]]:
    """A process in each of two pods, the first on GPU 0, the second on GPU 1."""
    with contextlib.ExitStack() as stack:
        inside = [
            stack.enter_context(Interpreter(node, environment={"HOSTNAME": name}))
            for name in ("trainer-0", "server-0")
        ]
        for uid, one in zip(UIDS, inside, strict=True):
            path = f"kubepods.slice/kubepods-pod{uid.replace('-', '_')}.slice"
            at = cgroup("kubernetes", f"{path}/cri-containerd-{'c' * 64}.scope")
            (at / "cgroup.procs").write_text(str(one.pid))
        yield inside


def begin(pods: list[Interpreter]) -> None:
    for gpu, one in enumerate(pods):
        program = launching_on(gpu, 19)
        one.tell(program)
        one.hear(len(program))


def given(uuid: str) -> dict[str, list[str]]:
    return {"nvidia.com/gpu": [uuid]}


def test_names_by_what_kubelet_gave(
    watch: Callable[..., Agent], node: Node, pods: list[Interpreter], tmp_path: Path
) -> None:
    """kubelet isn't there, comes, says nonsense, and what it said before stays."""
    kubelet = FakeKubelet(tmp_path)
    agent = watch("--jobs", "kubernetes", "--kubelet-socket", str(kubelet.socket))
    begin(pods)
    metrics = eventually(agent.metrics, lambda m: len(infos(m)) == 2)
    assert names(metrics) == {("", "")}
    up = "gpubpf_agent_source_up"
    assert eventually(agent.metrics, lambda m: value(m, up, source="kubelet") == 0)

    allocatable = {"nvidia.com/gpu": [f"{node.uuid(0)}::{i}" for i in range(4)] + [node.uuid(1)]}
    kubelet.say(
        [
            ("ml", "trainer-1", {"main": given(f"{node.uuid(0)}::2")}),
            ("web", "server-0", {"main": given(node.uuid(1))}),
            ("web", "idle-0", {"main": given(f"{node.uuid(0)}::0")}),
            ("kube-system", "proxy", {"main": {}}),
        ],
        allocatable,
    )
    with kubelet:
        # Two share GPU 0, and the process there says that it is neither.
        metrics = eventually(agent.metrics, lambda m: ("web", "server-0") in names(m), 30)
        assert names(metrics) == {("", ""), ("web", "server-0")}
        assert infos(metrics)[UIDS[1]]["name"] == "server-0"
        for gpu, (containers, slots) in enumerate([(2, 4), (1, 1)]):
            labels = {"gpu": str(gpu), "uuid": node.uuid(gpu)}
            assert value(metrics, "gpubpf_gpu_kubernetes_containers", **labels) == containers
            assert value(metrics, "gpubpf_gpu_kubernetes_slots", **labels) == slots
        assert value(metrics, up, source="kubelet") == 1

        both = [("ml", "trainer-0", node.uuid(0)), ("web", "server-0", node.uuid(1))]
        kubelet.say([(ns, name, {"main": given(uuid)}) for ns, name, uuid in both], allocatable)
        metrics = eventually(agent.metrics, lambda m: ("ml", "trainer-0") in names(m), 30)
        assert names(metrics) == {("ml", "trainer-0"), ("web", "server-0")}
        assert by_job(metrics) == dict.fromkeys(UIDS, 19.0)

        kubelet.say(instead=b"\xff" * 64)
        metrics = eventually(agent.metrics, lambda m: value(m, up, source="kubelet") == 0, 30)
        assert value(metrics, up, source="kubelet") == 0
        assert names(metrics) == {("ml", "trainer-0"), ("web", "server-0")}
    assert agent.stop() == 0
    assert [line for line in agent.lines if "Traceback" in line] == []


@pytest.fixture
def logs() -> Iterator[Callable[[str], None]]:
    """Makes directories in /var/log/pods, and removes them."""
    root = Path("/var/log/pods")
    made: list[Path] = []

    def make(name: str) -> None:
        for path in (root, root / name):
            if not path.exists():
                path.mkdir()
                made.append(path)

    yield make
    for path in reversed(made):
        with contextlib.suppress(OSError):
            path.rmdir()


def test_names_owners_and_labels(
    watch: Callable[..., Agent],
    node: Node,
    pods: list[Interpreter],
    logs: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """Both on one node: exact names by the logs, without kubelet; then the API server's."""
    for uid, name in zip(UIDS, ("bert-worker-0", "web-6d4cf56db6-x7x7x"), strict=True):
        logs(f"ml_{name}_{uid}")
    with FakeApiServer(tmp_path) as server:
        bert = ("kubeflow.org/v1", "PyTorchJob", "bert", "b")
        server.pod("ml", "bert-worker-0", UIDS[0], bert, team='vi"sion', secret="no")
        server.objects["/api/v1/namespaces/ml/pods/web-6d4cf56db6-x7x7x"] = 503
        agent = watch(
            "--jobs", "kubernetes", "--kubelet-socket", "", "--kubernetes-api",
            "--kubernetes-account", str(server.account), "--kubernetes-labels", "team,other",
            environment=server.environment,
        )  # fmt: skip
        begin(pods)
        metrics = eventually(agent.metrics, lambda m: ("ml", "bert") in names(m), 20)
        assert names(metrics) == {("ml", "bert"), ("ml", "web-6d4cf56db6-x7x7x")}
        label = {"job_id": UIDS[0], "key": "team", "value": 'vi"sion'}
        assert value(metrics, "gpubpf_job_label_info", **label) == 1
        assert sum(name == "gpubpf_job_label_info" for name, _ in metrics) == 1
        source = {"source": "kubernetes_api"}
        metrics = eventually(
            agent.metrics, lambda m: value(m, "gpubpf_agent_source_up", **source) == 0
        )
        assert value(metrics, "gpubpf_agent_source_up", **source) == 0

        replicas = ("apps/v1", "ReplicaSet", "web-6d4cf56db6", "r")
        server.pod("ml", "web-6d4cf56db6-x7x7x", UIDS[1], replicas)
        metrics = eventually(agent.metrics, lambda m: ("ml", "web-6d4cf56db6") in names(m), 20)
        assert names(metrics) == {("ml", "bert"), ("ml", "web-6d4cf56db6")}
        assert by_job(metrics) == dict.fromkeys(UIDS, 19.0)


def test_a_process_that_ends_at_once(
    watch: Callable[..., Agent],
    node: Node,
    cgroup: Callable[[str, str], Path],
    logs: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """Its pod and its job get their names all the same."""
    logs(f"ml_bert-worker-0_{UIDS[0]}")
    at = cgroup("kubernetes", f"kubepods/besteffort/pod{UIDS[0]}/{'c' * 64}")
    with FakeApiServer(tmp_path) as server:
        job = ("batch/v1", "Job", "bert", "b")
        server.pod("ml", "bert-worker-0", UIDS[0], job, team="vision")
        agent = watch(
            "--jobs", "kubernetes", "--kubelet-socket", "", "--kubernetes-api",
            "--kubernetes-account", str(server.account), "--kubernetes-labels", "team",
            environment=server.environment,
        )  # fmt: skip
        with Interpreter(node) as inside:
            (at / "cgroup.procs").write_text(str(inside.pid))
            program = launching_on(0, 19)
            inside.tell(program)
            inside.hear(len(program))
            time.sleep(0.1)  # seen at its first call, also where other tests run; named later
        metrics = eventually(agent.metrics, lambda m: ("ml", "bert") in names(m), 20)
        assert names(metrics) == {("ml", "bert")}
        label = {"job_id": UIDS[0], "key": "team", "value": "vision"}
        assert value(metrics, "gpubpf_job_label_info", **label) == 1
        assert by_job(metrics) == {UIDS[0]: 19.0}


def test_a_node_without_kubernetes_misses_nothing(watch: Callable[..., Agent], node: Node) -> None:
    """No pod, no kubelet: it isn't a source that is down."""
    agent = watch("--jobs", "kubernetes,user")
    with Interpreter(node) as inside:
        program = launching(3)
        inside.tell(program)
        inside.hear(len(program))
        metrics = eventually(agent.metrics, lambda m: infos(m))
    sources = {
        dict(labels)["source"] for name, labels in metrics if name == "gpubpf_agent_source_up"
    }
    assert "kubelet" not in sources
    assert "kubernetes_api" not in sources


def test_doctor_says_who_names_pods(tmp_path: Path) -> None:
    def said(*options: str) -> dict[str, str]:
        command = (str(GPUBPF), "doctor", "--format", "json", "--no-nvml", "--probe", "none")
        told = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
        checks = json.loads(told.stdout)["checks"]
        found = [check for check in checks if check["name"] == "pods"]
        return {key: str(check[key]) for check in found for key in ("status", "what", "do")}

    assert said() == {}
    missing = said("--jobs", "kubernetes", "--kubelet-socket", str(tmp_path / "none.sock"))
    assert missing["status"] == "warn"
    assert "not there; kubelet's own is" in missing["do"]
    with FakeKubelet(tmp_path) as kubelet:
        kubelet.say(
            [("ml", "a", {"main": given("x")}), ("ml", "b", {"main": {}})], given("x") | given("y")
        )
        told = said("--jobs", "kubernetes", "--kubelet-socket", str(kubelet.socket))
    assert told["status"] == "ok"
    assert "kubelet has 2 pods, 1 of them with GPUs, and 1 slots to give" in told["what"]
