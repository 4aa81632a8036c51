"""Full maps, processes that end in odd ways, pids used again: nothing is lost or misplaced."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpubpf.bpf.program import Sizes
from tests.bpf.probing import Probing, own_node, probing
from tests.bpf.test_exact import assert_equal, assert_exact, finish, run
from tests.fakegpu.node import Node

LAUNCHES = 101


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def launches(node: Node) -> int:
    return node.counts().calls["cuLaunchKernel"]


def lost(probes: Probing) -> dict[str, int]:
    assert probes.latest is not None
    return {name: n for name, n in probes.latest.lost.items() if n}


def clients(node: Node, number: int, *options: str) -> list[subprocess.Popen[str]]:
    options = (*options, "--launches", str(LAUNCHES))
    return [run(node, *options) for _ in range(number)]


def test_more_processes_than_the_map_holds(tmp_path: Path) -> None:
    """Their calls are counted on the node, under no process, and it is said how many."""
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",), sizes=Sizes(processes=4)) as probes,
    ):
        started = clients(node, 12, "--exit-barrier")
        until(lambda: launches(node) == 12 * LAUNCHES)
        assert probes.total().calls["cuLaunchKernel"] == 12 * LAUNCHES
        assert probes.latest is not None
        assert len(probes.latest.live) <= 4
        inside = sum(probes.of(client.pid).calls.get("cuLaunchKernel", 0) for client in started)
        assert lost(probes) == {"processes": 12 * LAUNCHES - inside}
        for client in started:
            finish(client)
        assert probes.total().calls == {"cuLaunchKernel": 12 * LAUNCHES}


def test_more_ends_between_two_looks_than_the_map_holds(tmp_path: Path) -> None:
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",), sizes=Sizes(processes=4)) as probes,
    ):
        for _ in range(12):
            for client in clients(node, 1):
                finish(client)
        assert probes.total().calls == {"cuLaunchKernel": 12 * LAUNCHES}
        assert len(probes.ended) <= 4
        assert lost(probes) == {"ended": 12 - len(probes.ended)}


def test_a_process_seen_alive_that_finds_the_map_of_ended_ones_full(tmp_path: Path) -> None:
    """Its calls move to the overflow, and what was counted as its own counts once."""
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",), sizes=Sizes(processes=4)) as probes,
    ):
        first = clients(node, 4, "--exit-barrier")
        until(lambda: launches(node) == 4 * LAUNCHES)
        assert len(probes.read().live) == 4
        finish(first[0])
        for client in [clients(node, 1)[0] for _ in range(3)]:
            finish(client)
        for client in first[1:]:
            finish(client)
        assert probes.total().calls == {"cuLaunchKernel": 7 * LAUNCHES}
        assert lost(probes)["ended"] == 3
        assert probes.total().calls == {"cuLaunchKernel": 7 * LAUNCHES}


def test_more_live_allocations_than_the_map_holds(tmp_path: Path) -> None:
    """Allocations stay exact; what is freed unseen is of an unknown kind."""
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("memory",), sizes=Sizes(allocations=16)) as probes,
    ):
        finish(run(node, "--allocs", "64", "--keep", "64"))
        counted = probes.total()
        truth = node.counts().memory[0, "device"]
        assert counted.by_kind("allocations") == {"device": truth.allocations}
        assert counted.by_kind("allocated_bytes") == {"device": truth.allocated_bytes}
        assert lost(probes).keys() == {"allocations"}
        assert probes.latest is not None
        assert probes.latest.entries["allocations"] == 0  # those of the ended process are gone


def test_a_pid_used_again_between_two_looks(tmp_path: Path) -> None:
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",)) as probes,
    ):
        first = run(node, "--launches", "101")
        finish(first)
        again = None
        for attempt in range(200):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
            again = run(node, "--launches", str(1009 + attempt))
            finish(again)
            if again.pid == first.pid:
                break
        assert again is not None
        assert again.pid == first.pid, "the kernel never gave the pid again"
        probes.read()
        mine = [v for owner, v in probes.ended.items() if owner.pid == first.pid]
        assert len(mine) == 2
        assert_exact(node, probes)


@pytest.mark.parametrize("look", [False, True], ids=["unseen", "seen alive"])
def test_killed_in_the_middle_of_a_wait(tmp_path: Path, look: bool) -> None:
    """The wait was entered and never left: counted as a call, with no time and no error."""
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("wait",)) as probes,
    ):
        node.block("cuStreamSynchronize", 60_000)
        client = run(node, "--waits", "1")
        until(lambda: "cuStreamSynchronize" in probes.total().calls if look else waiting(client))
        client.kill()
        client.communicate()
        counted = probes.total()
        assert counted.calls["cuStreamSynchronize"] == 1
        assert not probes.errors()
        assert not lost(probes)
        assert probes.pending() == 0


def waiting(client: subprocess.Popen[str]) -> bool:
    """Whether it sleeps in the driver: its main thread's state, for some time."""
    time.sleep(0.5)
    return Path(f"/proc/{client.pid}/stat").read_text().rsplit(") ", 1)[1][0] == "S"


LEADER_ENDS_FIRST = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

static int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                     void *, void **, void **);

static void *worker(void *unused) {
    usleep(200000);
    for (int i = 0; i < 500; i++)
        launch(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0);
    return unused;
}

int main(int argc, char **argv) {
    launch = argc > 1 ? dlsym(dlopen(argv[1], RTLD_NOW), "cuLaunchKernel") : 0;
    for (int i = 0; i < 100; i++)
        launch(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0);
    pthread_t thread;
    pthread_create(&thread, 0, worker, 0);
    pthread_exit(0);
}
"""


def test_threads_that_outlive_their_leader(tmp_path: Path) -> None:
    (tmp_path / "client.c").write_text(LEADER_ENDS_FIRST)
    binary = tmp_path / "client"
    subprocess.run(["cc", "-o", binary, tmp_path / "client.c", "-pthread", "-ldl"], check=True)
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",)) as probes,
    ):
        client = subprocess.Popen([binary, node.library], env=node.environment())
        until(lambda: launches(node) >= 100)
        assert client.pid in {owner.pid for owner in probes.read().live}
        client.wait(20)
        assert probes.of(client.pid).calls == {"cuLaunchKernel": 600}
        assert [owner.pid for owner in probes.ended] == [client.pid]


def test_a_process_that_execs_is_the_same_process(tmp_path: Path) -> None:
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",)) as probes,
    ):
        once = f"{node.workload} --library {node.library} --launches 7 >/dev/null"
        client = subprocess.Popen(
            ["sh", "-c", f"{once}; exec {node.workload} --library {node.library} --launches 11"],
            env=node.environment(),
            stdout=subprocess.DEVNULL,
        )
        client.wait(20)
        assert probes.of(client.pid).calls == {"cuLaunchKernel": 11}
        assert_equal(probes.total(), node.counts(), probes)
