"""Exactness: what the kernel counted equals the simulated driver's own count, call by call.

The clients know nothing of gpubpf. The oracle counts behind the exported stubs, in shared memory.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from gpubpf.bpf import elf
from gpubpf.symbols import DIRECTIONS, KINDS
from tests.bpf.probing import Counted, Probing, own_node, probing
from tests.fakegpu.node import Counts, Node

PRIMES = "--primes"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Probing]]:
    """One set of probes for all the tests: each compares what came since its start."""
    place = tmp_path_factory.mktemp("exact")
    with (
        own_node(place, devices=2) as node,
        probing(str(node.library), str(node.plain_library)) as probes,
    ):
        yield node, probes


@pytest.fixture
def node(shared: tuple[Node, Probing]) -> Node:
    return shared[0]


@pytest.fixture
def probes(shared: tuple[Node, Probing]) -> Probing:
    return shared[1]


def run(
    node: Node, *options: str, plain: bool = False, before: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    library = str(node.plain_library if plain else node.library)
    return subprocess.Popen(
        [*before, node.workload, "--library", library, *options],
        env=node.environment(plain),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(client: subprocess.Popen[str]) -> None:
    client.communicate("xx", timeout=120)
    assert client.returncode == 0


def assert_equal(counted: Counted, oracle: Counts, probes: Probing) -> None:
    probed = {symbol.name for symbol in probes.symbols}
    assert counted.calls == {f: n for f, n in oracle.calls.items() if f in probed}
    for fact in ("allocations", "allocated_bytes", "frees", "freed_bytes"):
        truth = dict.fromkeys(KINDS, 0)
        for (_, kind), memory in oracle.memory.items():
            truth[kind] += getattr(memory, fact)
        assert counted.by_kind(fact) == {kind: n for kind, n in truth.items() if n}, fact
    copied = dict.fromkeys(DIRECTIONS, 0)
    set_bytes = wait_ns = 0
    for activity in oracle.activity.values():
        for direction, number in activity.copied_bytes.items():
            copied[direction] += number
        set_bytes += activity.set_bytes
        wait_ns += activity.wait_ns
    assert dict(zip(DIRECTIONS, counted.facts["copied_bytes"], strict=True)) == copied
    assert counted.facts["set_bytes"] == [set_bytes]
    # The driver's own clock starts after the probe's and stops before it.
    assert counted.facts["wait_nanoseconds"][0] >= wait_ns


def assert_exact(node: Node, probes: Probing) -> None:
    """Everything so far, and its errors; nothing was lost."""
    counted = probes.total()
    oracle = node.counts()
    assert_equal(counted, oracle, probes)
    returning = {s.name for s in probes.symbols if s.shape.returns}
    errors = {key: n for key, n in oracle.errors.items() if key[0] in returning}
    assert probes.errors() == errors
    assert probes.latest is not None
    assert not any(probes.latest.lost.values())
    assert probes.ledger.refused == 0


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("plain", [False, True], ids=["in the stub", "at the entry"])
def test_every_group_in_prime_numbers(
    node: Node, probes: Probing, threads: int, plain: bool
) -> None:
    finish(run(node, PRIMES, "--threads", str(threads), "--seed", "11", plain=plain))
    assert_exact(node, probes)


@pytest.mark.parametrize(
    "options",
    [("--by-address",), ("--by-address", "--per-thread"), ("--default-stream",)],
    ids=["cuGetProcAddress", "per-thread default stream", "legacy default stream"],
)
def test_however_the_client_gets_its_pointers(
    node: Node, probes: Probing, options: tuple[str, ...]
) -> None:
    finish(run(node, PRIMES, *options))
    assert_exact(node, probes)


def test_fifty_processes_at_once(node: Node, probes: Probing) -> None:
    clients = [
        run(node, "--start-barrier", "--launches", "211", "--allocs", "31", "--seed", str(seed + 1))
        for seed in range(50)
    ]
    for client in clients:
        finish(client)
    assert_exact(node, probes)
    for client in clients[::7]:
        mine = node.process(client.pid).counts
        assert_equal(probes.of(client.pid), mine, probes)


def test_forked_children_are_processes_of_their_own(node: Node, probes: Probing) -> None:
    before = {process.pid for process in node.processes()}
    finish(run(node, "--launches", "101", "--allocs", "17", "--fork", "3"))
    family = [process for process in node.processes() if process.pid not in before]
    assert len(family) == 4
    for process in family:
        assert_equal(probes.of(process.pid), process.counts, probes)
    assert_exact(node, probes)


def test_processes_that_live_for_moments(node: Node, probes: Probing) -> None:
    for start in range(0, 100, 10):
        clients = [run(node, "--launches", "13", "--allocs", "3") for _ in range(10)]
        if start % 20 == 0:
            probes.read()  # looks while they come and go, at any time
        for client in clients:
            finish(client)
    assert_exact(node, probes)


def test_a_process_that_is_killed_keeps_what_it_did(node: Node, probes: Probing) -> None:
    client = run(node, "--launches", "503", "--allocs", "7", "--keep", "5", "--exit-barrier")
    end = time.monotonic() + 30
    while node_calls(node, client.pid, "cuLaunchKernel") < 503 and time.monotonic() < end:
        time.sleep(0.01)
    living = probes.of(client.pid)
    assert living.calls["cuLaunchKernel"] == 503
    client.kill()
    client.communicate()
    assert_exact(node, probes)


def node_calls(node: Node, pid: int, function: str) -> int:
    return sum(p.counts.calls[function] for p in node.processes() if p.pid == pid)


def test_failed_allocations_allocate_nothing(node: Node, probes: Probing) -> None:
    node.fail("cuMemAlloc_v2", 2, times=19, every=3)
    node.fail("cuMemFree_v2", 700, times=11, every=2)
    try:
        client = run(node, "--failures", "23", "--allocs", "97")
        client.communicate("xx", timeout=60)  # a client may give up at the first surprise
    finally:
        node.clear_faults()
    assert_exact(node, probes)
    assert probes.errors()["cuMemAlloc_v2", 2] > 0


def test_started_before_the_probes(tmp_path: Path) -> None:
    with own_node(tmp_path) as node:
        client = run(node, "--start-barrier", PRIMES, "--threads", "2")
        time.sleep(0.2)  # it is at the barrier, with the library loaded
        with probing(str(node.library)) as probes:
            assert client.poll() is None
            finish(client)
            assert_exact(node, probes)


def test_perf_events_count_the_same(tmp_path: Path) -> None:
    """Kernels before 6.6 have no uprobe.multi links. Few functions: it takes the kernel a tenth of
    a second to let go of each."""
    done = ("--launches", "1009", "--waits", "101", "--threads", "4")
    with own_node(tmp_path / "before") as node:
        finish(run(node, *done))
        called = {*node.counts().calls}

    def find(fd: int, names: Collection[str]) -> Mapping[str, elf.ProbePoint]:
        return elf.probe_points(fd, called.intersection(names))

    groups = ("launch", "wait")
    with (
        own_node(tmp_path / "now") as node,
        probing(str(node.library), groups=groups, multi=False, find=find) as probes,
    ):
        finish(run(node, *done))
        probed = {symbol.name for symbol in probes.symbols}
        expected = {f: n for f, n in node.counts().calls.items() if f in probed}
        assert {"cuLaunchKernel", "cuStreamSynchronize"} <= expected.keys()
        assert probes.total().calls == expected
