"""Full maps, processes that end in odd ways, pids used again: nothing is lost or misplaced."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest

from gpubpf.bpf import elf
from gpubpf.bpf.load import load
from gpubpf.bpf.program import Sizes
from gpubpf.symbols import GROUPS
from tests.bpf.probing import Probing, own_node, probing
from tests.bpf.test_exact import assert_equal, assert_exact, finish, run
from tests.fakegpu.as_pid import as_pid
from tests.fakegpu.node import Counts, Node

LAUNCHES = 101


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def launches(node: Node) -> int:
    return node.counts().calls["cuLaunchKernel"]


def truth(node: Node, probes: Probing) -> dict[str, int]:
    """What the driver counted of the functions that are probed."""
    probed = {symbol.name for symbol in probes.symbols}
    return {name: n for name, n in node.counts().calls.items() if name in probed}


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
        assert probes.total().calls == truth(node, probes)
        assert probes.latest is not None
        assert len(probes.latest.live) <= 4
        inside = sum(sum(probes.of(client.pid).calls.values()) for client in started)
        assert lost(probes) == {"processes": sum(truth(node, probes).values()) - inside}
        for client in started:
            finish(client)
        counted = probes.total()
        assert counted.calls == truth(node, probes)
        assert counted.calls["cuLaunchKernel"] == 12 * LAUNCHES
        assert counted.facts["kernel_launches"] == [12 * LAUNCHES]


def test_more_ends_between_two_looks_than_the_map_holds(tmp_path: Path) -> None:
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",), sizes=Sizes(processes=4)) as probes,
    ):
        for _ in range(12):
            for client in clients(node, 1):
                finish(client)
        counted = probes.total()
        assert counted.calls == truth(node, probes)
        assert counted.facts["kernel_launches"] == [12 * LAUNCHES]
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
        for _ in range(3):  # one after the other: there is room for one more living process
            finish(*clients(node, 1))
        for client in first[1:]:
            finish(client)
        for _ in range(2):  # a later look sees the same
            counted = probes.total()
            assert counted.calls == truth(node, probes)
            assert counted.facts["kernel_launches"] == [7 * LAUNCHES]
            assert lost(probes) == {"ended": 3}


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
        finish(run(node, "--launches", "1009", before=as_pid(first.pid)))
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
    char end;
    read(0, &end, 1); /* until it was seen */
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
        client = subprocess.Popen(
            [binary, node.library], env=node.environment(), stdin=subprocess.PIPE
        )
        until(lambda: launches(node) >= 100)
        assert client.pid in {owner.pid for owner in probes.read().live}
        client.communicate(b"x", timeout=20)
        assert probes.of(client.pid).calls == {"cuLaunchKernel": 600}
        assert [owner.pid for owner in probes.ended] == [client.pid]


def test_kernels_that_do_not_tell_ends(tmp_path: Path) -> None:
    """Without BTF what vanished processes did is taken when they are looked for and not found."""
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=("launch",), exits=False) as probes,
    ):
        one, other = clients(node, 2, "--exit-barrier")
        until(lambda: launches(node) == 2 * LAUNCHES)
        assert {one.pid, other.pid} <= {owner.pid for owner in probes.read().live}
        for client in (one, other):
            finish(client)
        assert not probes.read().live
        assert {owner.pid for owner in probes.ended} == {one.pid, other.pid}
        counted = probes.total()
        assert counted.calls == truth(node, probes)
        assert counted.facts["kernel_launches"] == [2 * LAUNCHES]


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
        mine = node.process(client.pid).counts.calls
        counted = probes.of(client.pid)
        assert counted.calls == {f: n for f, n in mine.items() if f in truth(node, probes)}
        assert counted.facts["kernel_launches"] == [11]
        assert_equal(probes.total(), node.counts(), probes)


EXEC_IN_A_CALL = """
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

/* Stands in for a driver: its cuStreamSynchronize never returns, the thread execs inside it. */
int cuStreamSynchronize(void *stream) {
    execl("/bin/true", "true", (char *)0);
    return stream != 0;
}

static void *worker(void *unused) {
    int (*wait)(void *) = (int (*)(void *))dlsym(RTLD_DEFAULT, "cuStreamSynchronize");
    wait(0);
    return unused;
}

int start(void) {
    pthread_t thread;
    return pthread_create(&thread, 0, worker, 0) || pthread_join(thread, 0);
}
"""


def test_a_thread_that_execs_inside_a_call(tmp_path: Path) -> None:
    """It takes the process's id: the call that it was in is forgotten, not remembered for ever."""
    (tmp_path / "driver.c").write_text(EXEC_IN_A_CALL)
    library = tmp_path / "libcuda.so.1"
    shared = ["cc", "-shared", "-fPIC", "-rdynamic", "-pthread", "-o"]
    subprocess.run([*shared, library, tmp_path / "driver.c", "-ldl"], check=True)
    run_it = "import ctypes, sys; ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL).start()"
    with probing(str(library), groups=("wait",)) as probes:
        for _ in range(20):
            subprocess.run([sys.executable, "-c", run_it, library], check=True)
        assert probes.total().calls == {"cuStreamSynchronize": 20}
        assert probes.pending() == 0


@pytest.mark.parametrize("groups", [GROUPS, ("launch", "memory")], ids=["all", "default"])
def test_kernels_without_cookies(
    tmp_path: Path, groups: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 5.8 to 5.14: a program for every function, and so more than one message of them."""
    monkeypatch.setattr("gpubpf.bpf.load._perf_cookies", lambda: False)
    if groups == GROUPS:  # this many perf events would take the kernel a minute to detach
        loaded = load(groups, multi=False)
        assert len(loaded.programs) > 250
        assert not loaded.cookies
        loaded.close()
        return
    with (
        own_node(tmp_path) as node,
        probing(str(node.library), groups=groups, multi=False, find=some) as probes,
    ):
        assert not probes.loaded.cookies
        finish(run(node, *SOME_OPTIONS))
        counted, oracle = probes.of(node_pid(node)), restricted(node)
        assert set(counted.calls) == SOME
        assert_equal(counted, oracle, probes)
        assert counted.facts["kernel_launches"] == [oracle.activity[0].launches]
        assert probes.devices_of(node_pid(node)).keys() == {0}


SOME_OPTIONS = ("--launches", "101", "--allocs", "53")
SOME = {
    *("cuInit", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate"),
    *("cuLaunchKernel", "cuMemAlloc_v2", "cuMemFree_v2"),
}


def some(fd: int, names: Collection[str]) -> Mapping[str, elf.ProbePoint]:
    """Few enough functions that the kernel detaches from them in a moment."""
    return elf.probe_points(fd, set(names) & SOME)


def node_pid(node: Node) -> int:
    (process,) = node.processes()
    return process.pid


def restricted(node: Node) -> Counts:
    """What the driver counted of the groups that are probed."""
    counts = node.counts()
    for name in counts.calls.keys() - SOME:
        del counts.calls[name]
    for activity in counts.activity.values():
        activity.copied_bytes.clear()
        activity.set_bytes = activity.wait_ns = 0
    return counts
