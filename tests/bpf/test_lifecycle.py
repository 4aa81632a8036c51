"""Processes by their identity, (pid, start): threads, forks, execs, leaders that end first, pids
used again, thousands of short lives. No count is lost, none is another's, nothing is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpubpf.bpf.attach import attach, detach
from gpubpf.bpf.syscalls import Batch
from gpubpf.symbols import DIRECTIONS, KINDS, chosen
from tests.bpf.probing import Probing, own_node, probing
from tests.bpf.test_late import do
from tests.conftest import Agent, Metrics, eventually
from tests.fakegpu.as_pid import as_pid
from tests.fakegpu.node import Activity, Counts, Memory, Node
from tests.fakegpu.programs import Interpreter, run
from tests.fakegpu.small_programs import START, lines

Facts = dict[str, list[int]]

DEVICES = 3
AT_ONCE = ("processes", "ended", "shares", "threads", "pending", "failures")
TIDIED = ("allocations", "contexts", "handles", "graphs", "answers")
"""Maps from which what ended processes left is taken at a look, or now and then: see Maps._tidy."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Probing]]:
    with (
        own_node(tmp_path_factory.mktemp("lifecycle"), DEVICES) as node,
        probing(str(node.library)) as probes,
    ):
        yield node, probes
        assert eventually(lambda: entries(probes, *AT_ONCE, *TIDIED), lambda seen: not seen) == {}
        assert probes.latest is not None
        assert not any(probes.latest.lost.values())


@pytest.fixture
def node(rig: tuple[Node, Probing]) -> Node:
    return rig[0]


@pytest.fixture
def probes(rig: tuple[Node, Probing]) -> Probing:
    return rig[1]


def entries(probes: Probing, *names: str) -> dict[str, int]:
    """What these maps hold after a look."""
    probes.read()
    found = {}
    for name in names:
        m = probes.loaded.maps[name]
        found[name] = len(Batch(m.fd, m.key_size, m.value_size).read())
    return {name: number for name, number in found.items() if number}


def assert_nothing_left(probes: Probing) -> None:
    """The rest is looked at when all tests are done: it takes its time."""
    probes.read()
    assert entries(probes, *AT_ONCE) == {}


def fact(facts: dict[int | None, Facts], name: str) -> dict[int | None, int]:
    return {device: sum(row[name]) for device, row in facts.items() if sum(row[name])}


def launches(probes: Probing, pid: int) -> dict[int | None, int]:
    return fact(probes.devices_of(pid), "kernel_launches")


ONE_DEVICE = """
0 cuInit 0
0 cuDeviceGetUuid_v2 DEVICE
0 cuDevicePrimaryCtxRetain 1 DEVICE
0 cuCtxSetCurrent 1
0 cuLibraryLoadData 1
0 cuLibraryGetKernel 1 1
0 cuStreamCreate 3 1
"""


def on(device: int) -> str:
    return ONE_DEVICE.replace("DEVICE", str(device))


def told(process: Interpreter, text: str, results: int) -> list[str]:
    process.tell([line for line in lines(text) if line])
    return process.hear(results)


# --- forks ---------------------------------------------------------------------------------------


NOT_INITIALIZED = "3"


def test_a_fork_is_a_process_of_its_own(node: Node, probes: Probing) -> None:
    """The driver refuses what a fork of a process with contexts calls, the simulated one too. A
    launch counts when it is called: on the device that the fork's streams have in its parent."""
    with Interpreter(node) as parent:
        do(parent, on(1) + "3 x 0 cuLaunchKernel 1 3")
        *codes, ended = told(
            parent,
            "0 fork 4\n 0 cuLaunchKernel 1 3\n 0 cuLaunchKernel 1 0\n 0 cuMemAlloc_v2 1 1000\n"
            " 0 cuLaunchKernel 1 2",
            5,
        )
        child, status = map(int, ended.split())
        assert (codes, status) == ([NOT_INITIALIZED] * 4, 0)
        do(parent, "2 x 0 cuLaunchKernel 1 0")
        assert launches(probes, parent.pid) == {1: 5}
        assert launches(probes, child) == {1: 3}
        assert fact(probes.devices_of(child), "allocations") == {}
    assert_nothing_left(probes)


def test_a_fork_of_a_process_with_several_devices(node: Node, probes: Probing) -> None:
    """Streams tell, by the parent's handles; what is current to the new thread isn't known."""
    with Interpreter(node) as parent:
        do(parent, START + "0 cuLaunchKernel 1 3\n 0 cuLaunchKernel 1 5")
        *_, ended = told(
            parent,
            "0 fork 3\n 0 cuLaunchKernel 1 5\n 0 cuLaunchKernel 1 3\n 0 cuLaunchKernel 1 5",
            4,
        )
        assert launches(probes, int(ended.split()[0])) == {0: 1, 1: 2}
        *_, ended = told(parent, "0 fork 2\n 0 cuLaunchKernel 1 0\n 0 cuLaunchKernel 1 2", 3)
        assert launches(probes, int(ended.split()[0])) == {None: 2}
        assert launches(probes, parent.pid) == {0: 1, 1: 1}
    assert_nothing_left(probes)


LENIENT = """
#include <stddef.h>

/* A driver that lets forks go on. */
static unsigned long long next = 0x100000;
int cuInit(unsigned flags) { return flags; }
int cuCtxCreate_v2(void **out, unsigned flags, int device) {
    *out = (void *)(next += 0x100);
    return flags + 0 * device;
}
int cuCtxSetCurrent(void *context) { return !context; }
int cuStreamCreate(void **out, unsigned flags) {
    *out = (void *)(next += 0x100);
    return 0 * flags;
}
int cuMemAlloc_v2(unsigned long long *out, size_t bytes) {
    *out = next += bytes + 0x100;
    return 0;
}
int cuMemAllocAsync(unsigned long long *out, size_t bytes, void *stream) {
    *out = next += bytes + 0x100;
    return !stream;
}
int cuMemFree_v2(unsigned long long address) { return !address; }
"""
FORKING = """
import ctypes, os, sys

cuda = ctypes.CDLL(sys.argv[1])

def made(function, *arguments):
    out = ctypes.c_void_p()
    assert getattr(cuda, function)(ctypes.byref(out), *map(ctypes.c_size_t, arguments)) == 0
    return ctypes.c_void_p(out.value)

def fork(child):
    pid = os.fork()
    if not pid:
        child()
        os._exit(0)
    os.waitpid(pid, 0)
    print(pid)

def one():
    made("cuMemAlloc_v2", 100)
    fork(two)
    assert cuda.cuMemFree_v2(ours) == 0

def two():  # a fork of a fork
    made("cuMemAlloc_v2", 20)

def three():
    for stream in streams:
        out = ctypes.c_void_p()
        assert cuda.cuMemAllocAsync(ctypes.byref(out), ctypes.c_size_t(7), stream) == 0
    made("cuCtxCreate_v2", 0, 2)
    made("cuMemAlloc_v2", 5)

def four():
    cuda.cuInit(0)
    made("cuCtxCreate_v2", 0, 2)
    made("cuMemAlloc_v2", 3)

cuda.cuInit(0)
fork(four)
made("cuCtxCreate_v2", 0, 1)
streams = [made("cuStreamCreate", 0)]
ours = made("cuMemAlloc_v2", 1000)
fork(one)
made("cuCtxCreate_v2", 0, 0)
streams.append(made("cuStreamCreate", 0))
fork(three)
made("cuMemAlloc_v2", 1)
"""


def test_forks_that_the_driver_lets_go_on(tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(LENIENT)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["cc", "-O0", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True
    )
    with probing(str(library)) as probes:
        client = subprocess.Popen(
            [sys.executable, "-c", FORKING, str(library)], stdout=subprocess.PIPE, text=True
        )
        said, _ = client.communicate(timeout=30)
        assert client.returncode == 0

        def bytes_of(pid: int) -> dict[int | None, int]:
            return fact(probes.devices_of(pid), "allocated_bytes")

        four, two, one, three = map(int, said.split())
        assert bytes_of(client.pid) == {0: 1, 1: 1000}
        assert bytes_of(one) == {1: 100}
        assert bytes_of(two) == {1: 20}
        assert bytes_of(three) == {0: 7, 1: 7, 2: 5}
        assert bytes_of(four) == {2: 3}
        # What its parent allocated is not its own to free.
        assert fact(probes.devices_of(one), "frees") == {1: 1}
        assert sum(row["frees"][KINDS.index("unknown")] for row in probes.devices_of(one).values())
        assert_nothing_left(probes)


FORKED_BEFORE = """
import ctypes, os, sys

cuda = ctypes.CDLL(sys.argv[1])
pointer = ctypes.c_void_p()
commands, how = int(sys.argv[2]), sys.argv[3]

def use(device):
    assert cuda.cuInit(0) == 0
    assert cuda.cuCtxCreate_v2(ctypes.byref(pointer), 0, device) == 0

def allocate(times):
    for _ in range(times):
        assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(1000)) == 0

def say(word):
    os.write(1, b"%s\\n" % str(word).encode())  # whole: two processes write here

if how == "child":  # it has become a program of its own
    use(1)
    say("ready")
    sys.stdin.readline()
    allocate(5)
    say("done")
    sys.stdin.readline()
    os._exit(0)

child = os.fork()
if not child:
    if how == "exec":
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-1], "child"])
    how = "child"
    use(1)
    say("ready")
    sys.stdin.readline()
    allocate(5)
    say("done")
    os._exit(0)
say(child)
while True:
    line = os.read(commands, 1)
    if line == b"u":
        use(0)
        allocate(2)
        say("used")
    elif line == b"e":
        os.waitpid(child, 0)
        os._exit(0)
    else:  # nobody is left to tell it anything
        os.kill(child, 9)
        os._exit(1)
"""


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_a_child_from_before_its_parents_first_call(tmp_path: Path, how: str) -> None:
    """It inherited nothing: what the parent has now is the parent's alone."""
    commands, tell = os.pipe()
    with (
        own_node(tmp_path, DEVICES) as node,
        probing() as probes,
        ExitStack() as stack,
        node.library.open("rb") as library,
    ):
        stack.callback(os.close, commands)
        parent = subprocess.Popen(
            [sys.executable, "-c", FORKED_BEFORE, str(node.library), str(commands), how],
            env=node.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(commands,),
        )
        stack.callback(parent.communicate)
        stack.callback(os.close, tell)
        assert parent.stdin is not None
        assert parent.stdout is not None
        child, ready = sorted(parent.stdout.readline().strip() for _ in range(2))
        assert ready == "ready"
        links = attach(probes.loaded, probes.symbols, library.fileno(), "the library").links
        stack.callback(detach, links)
        os.write(tell, b"u")
        assert parent.stdout.readline() == "used\n"
        parent.stdin.write("go\n\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "done\n"
        os.write(tell, b"e")
        parent.wait(20)
        assert fact(probes.devices_of(int(child)), "allocations") == {None: 5}
        assert fact(probes.devices_of(parent.pid), "allocations") == {0: 2}


# --- exec ----------------------------------------------------------------------------------------


def test_exec_ends_one_and_begins_another(node: Node, probes: Probing) -> None:
    with Interpreter(node) as process:
        do(process, on(0) + "3 x 0 cuLaunchKernel 1 3\n 0 cuMemAlloc_v2 1 1000")
        assert process.do("0 exec") == "0"
        calls = probes.read()
        assert process.pid not in {owner.pid for owner in calls.live}
        (first,) = [o for o in probes.ended if o.pid == process.pid]
        do(process, on(1) + "5 x 0 cuLaunchKernel 1 3\n 0 cuMemAlloc_v2 1 500\n 0 cuMemFree_v2 1")
        calls = probes.read()
        (second,) = [o for o in calls.live if o.pid == process.pid]
        assert second.born > first.born
        assert set(probes.ended[first].parts) == {0}
        assert set(calls.live[second].parts) == {1}
        assert launches(probes, process.pid) == {0: 3, 1: 5}
        assert probes.live_of(process.pid) == {1: (0, 500)}
    assert_nothing_left(probes)


# --- threads, and a leader that ends first -------------------------------------------------------

LEADER = """
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *library;
#define CALL(name, ...) (((int (*)())dlsym(library, #name))(__VA_ARGS__))

static void use(int device, int times) {
    void *context = 0;
    unsigned long long pointer = 0;
    CALL(cuDevicePrimaryCtxRetain, &context, device);
    CALL(cuCtxSetCurrent, context);
    for (int i = 0; i < times; i++)
        CALL(cuMemAlloc_v2, &pointer, (size_t)1000);
}

static void *worker(void *unused) {
    char byte;
    if (read(0, &byte, 1) != 1)
        return unused;
    use(1, 7);
    puts("done");
    fflush(stdout);
    return read(0, &byte, 1) == 1 ? unused : 0;
}

int main(int argc, char **argv) {
    library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : 0;
    CALL(cuInit, 0);
    use(0, 3);
    pthread_t thread;
    pthread_create(&thread, 0, worker, 0);
    puts("leader");
    fflush(stdout);
    pthread_exit(0);
}
"""


def compiled(place: Path, name: str, text: str) -> Path:
    (place / f"{name}.c").write_text(text)
    made = place / name
    subprocess.run(
        ["cc", "-O1", "-w", "-o", made, place / f"{name}.c", "-pthread", "-ldl"], check=True
    )
    return made


def test_a_leader_that_ends_before_its_threads(node: Node, probes: Probing, tmp_path: Path) -> None:
    client = subprocess.Popen(
        [compiled(tmp_path, "leader", LEADER), str(node.library)],
        env=node.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdin is not None
    assert client.stdout.readline() == "leader\n"
    eventually(lambda: Path(f"/proc/{client.pid}/stat").read_text(), lambda text: ") Z " in text)
    assert client.pid in {owner.pid for owner in probes.read().live}
    client.stdin.write("x")
    client.stdin.flush()
    assert client.stdout.readline() == "done\n"
    assert client.pid in {owner.pid for owner in probes.read().live}
    assert fact(probes.devices_of(client.pid), "allocations") == {0: 3, 1: 7}
    assert {d: live for d, (live, _) in probes.live_of(client.pid).items()} == {0: 3000, 1: 7000}
    client.communicate("x")
    assert fact(probes.devices_of(client.pid), "allocations") == {0: 3, 1: 7}
    assert client.pid not in {owner.pid for owner in probes.read().live}
    assert_nothing_left(probes)


def test_threads_come_and_go(node: Node, probes: Probing) -> None:
    """A thread's id may be another's later; what was current to the one isn't to the other."""
    with Interpreter(node) as process:
        do(process, START)
        for _ in range(50):
            do(process, "1 cuCtxSetCurrent 2\n 1 cuLaunchKernel 1 0\n 1 exit")
            do(process, "2 cuCtxSetCurrent 1\n 2 cuLaunchKernel 1 0\n 2 exit")
        assert launches(probes, process.pid) == {0: 50, 1: 50}
        one = {"threads": 1}  # the last may be joined before the kernel tells of its end
        assert eventually(lambda: entries(probes, "threads"), lambda seen: seen == one) == one
    assert_nothing_left(probes)


# --- a pid used again ----------------------------------------------------------------------------


def test_a_pid_used_again_on_another_device(node: Node, probes: Probing) -> None:
    """Within one interval: two processes, each with its device, its answers and its memory."""
    probes.read()
    first = run(node, lines(on(0) + "3 x 0 cuLaunchKernel 1 3\n0 cuMemAlloc_v2 1 1000"))
    second = on(1) + "5 x 0 cuLaunchKernel 1 3\n0 cuMemAlloc_v2 1 7"
    run(node, lines(second), before=as_pid(first.pid))
    calls = probes.read()
    mine = sorted(owner for owner in calls.ended if owner.pid == first.pid)
    assert [set(calls.ended[owner].parts) for owner in mine] == [{0}, {1}]
    assert [set(calls.asked[owner]) for owner in mine] == [{0}, {1}]
    assert launches(probes, first.pid) == {0: 3, 1: 5}
    assert_nothing_left(probes)


# --- what is left when processes end, however they do --------------------------------------------

ENDS = {
    "in a capture": "0 cuStreamBeginCapture_v2 3 2\n 0 cuLaunchKernel 1 3",
    "with graphs": """
        0 cuStreamBeginCapture_v2 3 2
        0 cuEventRecord 1 3
        0 cuStreamWaitEvent 4 1 0
        0 cuLaunchKernel 1 4
        0 cuEventRecord 2 4
        0 cuStreamWaitEvent 3 2 0
        0 cuStreamEndCapture 3 1
        0 cuGraphInstantiateWithFlags 1 1 0
        0 cuGraphCreate 2
        0 cuGraphAddKernelNode 1 2 - 1
        0 cuGraphAddChildGraphNode 2 2 - 1
        """,
    "with memory of every kind": """
        0 cuMemAlloc_v2 1 1000
        0 cuMemAllocManaged 2 1000
        0 cuMemAllocAsync 3 1000 5
        0 cuMemPoolCreate 1 1
        0 cuMemAllocFromPoolAsync 4 1000 1 5
        0 cuMemHostAlloc 1 1000 0
        0 cuArrayCreate_v2 1 100 10 32 4
        0 cuMemCreate 1 2097152 1
        0 cuMemAddressReserve 5 2097152
        0 cuMemMap 5 2097152 1
        """,
    "with contexts on a stack, in threads": """
        1 cuCtxCreate_v2 7 0 2
        1 cuCtxPushCurrent_v2 2
        2 cuCtxSetCurrent 7
        2 cuStreamCreate 8 1
        """,
    "after errors": "0 cuMemFree_v2 =1 want 1\n 0 cuDeviceGetUuid_v2 0",
}


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "is killed"])
@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_nothing_is_left_of_a_process(node: Node, probes: Probing, text: str, killed: bool) -> None:
    program = [line.partition(" want ")[0] for line in lines(START + text) if line]
    result = run(node, [*program, *["0 kill"] * killed])
    counted = probes.devices_of(result.pid)
    counts = node.process(result.pid).counts
    for device in range(DEVICES):
        row = counted.get(device, {})
        truth = [counts.memory.get((device, kind), Memory()).allocations for kind in KINDS]
        assert row.get("allocations", [0] * len(KINDS)) == truth[: len(KINDS)]
    assert_nothing_left(probes)


# --- thousands of short lives --------------------------------------------------------------------

SHORT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Forks so many processes, two at once at most, so many a second (0: as many as it can) and for no
 * longer than so many seconds; says how many. It makes no call itself. Every seventh doesn't ask
 * for a UUID, every eleventh uses two devices, every fifth kills itself. */

static void *library;
#define FUNCTIONS(X) \\
    X(cuInit) X(cuDeviceGetUuid_v2) X(cuDevicePrimaryCtxRetain) X(cuCtxSetCurrent) \\
    X(cuStreamCreate) X(cuLibraryLoadData) X(cuLibraryGetKernel) X(cuLaunchKernel) \\
    X(cuStreamBeginCapture_v2) X(cuStreamEndCapture) X(cuGraphInstantiateWithFlags) \\
    X(cuGraphLaunch) X(cuMemAlloc_v2) X(cuMemFree_v2) X(cuMemAllocAsync) X(cuMemHostAlloc) \\
    X(cuMemcpyHtoD_v2) X(cuStreamSynchronize)
#define X(name) static int (*name)();
FUNCTIONS(X)
#undef X

static const char image[] = ".version 8.0\\n.target sm_80\\n.address_size 64\\n"
                            ".visible .entry work() { ret; }\\n";

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void check(int result) {
    if (result)
        abort();
}

static void live(int i) {
    char uuid[16], bytes[512];
    void *context, *stream, *module, *kernel, *graph, *instance, *host;
    unsigned long long memory, pooled;
    int device = i % 3, other = (i + 1) % 3;
    check(cuInit(0));
    if (i % 7)
        check(cuDeviceGetUuid_v2(uuid, device));
    check(cuDevicePrimaryCtxRetain(&context, device));
    check(cuCtxSetCurrent(context));
    check(cuStreamCreate(&stream, 1));
    check(cuLibraryLoadData(&module, image, 0, 0, 0, 0, 0, 0));
    check(cuLibraryGetKernel(&kernel, module, "work"));
    for (int k = 0; k < 1 + i % 5; k++)
        check(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, 0, 0));
    if (i % 4 == 0) {
        check(cuStreamBeginCapture_v2(stream, 2));
        for (int k = 0; k < 2; k++)
            check(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, 0, 0));
        check(cuStreamEndCapture(stream, &graph));
        check(cuGraphInstantiateWithFlags(&instance, graph, 0ULL));
        for (int k = 0; k < 3; k++)
            check(cuGraphLaunch(instance, stream));
    }
    check(cuMemAlloc_v2(&memory, (size_t)1000 + i));
    check(cuMemAllocAsync(&pooled, (size_t)2000 + i, stream));
    check(cuMemcpyHtoD_v2(memory, bytes, (size_t)(1 + i % 500)));
    if (i % 2)
        check(cuMemFree_v2(memory));
    if (i % 6 == 0)
        check(cuMemHostAlloc(&host, (size_t)4096, 0));
    if (i % 11 == 0) {
        if (i % 7)
            check(cuDeviceGetUuid_v2(uuid, other));
        check(cuDevicePrimaryCtxRetain(&context, other));
        check(cuCtxSetCurrent(context));
        check(cuMemAlloc_v2(&memory, (size_t)3000));
        check(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, (void *)0, 0, 0));
    }
    check(cuStreamSynchronize(stream));
    if (i % 5 == 0)
        kill(getpid(), SIGKILL);
    _exit(0);
}

int main(int argc, char **argv) {
    library = dlopen(argv[1], RTLD_NOW);
#define X(name) name = dlsym(library, #name);
    FUNCTIONS(X)
#undef X
    int wanted = atoi(argv[2]), made = 0, ended = 0, odd = 0, status;
    double begin = now(), end = begin + atoi(argv[3]), rate = atoi(argv[4]);
    while (made < wanted && now() < end) {
        while (rate && made > rate * (now() - begin))
            usleep(1000);
        if (made - ended == 2 && wait(&status) > 0)
            odd += !(WIFEXITED(status) && !WEXITSTATUS(status)) &&
                   !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL), ended++;
        if (!fork())
            live(made);
        made++;
    }
    while (wait(&status) > 0)
        odd += WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL;
    printf("%d %d\\n", made, odd);
    return 0;
}
"""
WANTED, SECONDS, RATE = 10_000, 45, 270  # in a minute, with what else the test does in it


@dataclass
class Truth:
    """What processes did on one GPU, by metric and variant; those that asked for its UUID alone,
    and all."""

    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    every: Counter[tuple[str, str]] = field(default_factory=Counter)


def figures(counts: Counts, device: int) -> Counter[tuple[str, str]]:
    a = counts.activity.get(device, Activity())
    found: Counter[tuple[str, str]] = Counter()
    found["kernel_launches", ""] = a.launches
    found["captured_launches", ""] = a.captured
    found["graph_launches", ""] = a.graph_launches
    found["graph_kernels", ""] = a.graph_kernels
    found["waits", ""] = a.waits
    for direction in DIRECTIONS:
        found["copied_bytes", direction] = a.copied_bytes[direction]
    for kind in KINDS[:-1]:
        memory = counts.memory.get((device, kind), Memory())
        found["allocations", kind] = memory.allocations
        found["allocated_bytes", kind] = memory.allocated_bytes
        found["frees", kind] = memory.frees
        found["freed_bytes", kind] = memory.freed_bytes
        # They are all gone: whatever was not freed went with its process.
        found["implicit_frees", kind] = memory.allocations - memory.frees
        found["implicitly_freed_bytes", kind] = memory.allocated_bytes - memory.freed_bytes
        found["live_bytes", kind] = found["live_allocations", kind] = 0
    return found


def exported(metrics: Metrics) -> dict[str, Counter[tuple[str, str]]]:
    """The figures of /metrics by GPU."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    for (name, labels), number in metrics.items():
        row = dict(labels)
        fact = name.removeprefix("gpubpf_gpu_").removesuffix("_total")
        if name.startswith("gpubpf_gpu_") and "uuid" in row and "le" not in row:
            variant = row.get("kind", row.get("direction", ""))
            found.setdefault(row["uuid"], Counter())[fact, variant] = int(number)
    return found


@dataclass
class Lives:
    """An agent as it runs by default, and short processes made under it."""

    node: Node
    agent: Agent
    launcher: Path

    def make(self, wanted: int, rate: int) -> int:
        done = subprocess.run(
            [self.launcher, str(self.node.library), str(wanted), str(SECONDS), str(rate)],
            env=self.node.environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS + 60,
        )
        made, odd = map(int, done.stdout.split())
        assert odd == 0, "some did not end as they should"
        assert self.node.processes_without_slot == 0
        return made

    def processes(self) -> list[Counts]:
        """What each did; not the agent's own self-check, which asks for pointers alone."""
        every = (process.counts for process in self.node.processes())
        return [counts for counts in every if counts.calls["cuInit"]]

    def assert_calls(self, processes: list[Counts]) -> None:
        probed = {symbol.name for symbol in chosen(("launch", "memory", "copy", "wait"))}
        calls: Counter[str] = Counter()
        for counts in processes:
            calls.update(counts.calls)
        expected = {name: number for name, number in calls.items() if name in probed}

        def now() -> dict[str, float]:
            return {name: number for name, number in self.agent.calls().items() if number}

        assert eventually(now, lambda seen: seen == expected) == expected

    def lost(self) -> dict[str, float]:
        return {
            dict(labels)["map"]: number
            for (name, labels), number in self.agent.metrics().items()
            if name == "gpubpf_agent_lost_total" and number
        }


@pytest.fixture
def lives(serve: Callable[..., Agent], alone: tuple[str, ...], tmp_path: Path) -> Iterator[Lives]:
    launcher = compiled(tmp_path, "short", SHORT)
    with own_node(tmp_path, DEVICES) as node:
        agent = serve(
            *("--library", str(node.library), "--nvml-library", str(node.nvml_library)),
            *("--probe", "all", "--interval", "1", *alone),
            environment={"FAKEGPU_STATE": str(node.path)},
        )
        yield Lives(node, agent, launcher)


def test_ten_thousand_short_processes_in_a_minute(lives: Lives) -> None:
    """Or as many as a machine makes, two at a time: all exact, by GPU where they asked which."""
    node = lives.node
    made = lives.make(WANTED, RATE)
    processes = lives.processes()
    assert len(processes) == made > WANTED // 10
    lives.assert_calls(processes)
    assert lives.lost() == {}

    truth = {node.uuid(device): Truth() for device in range(DEVICES)}
    for counts in processes:
        for device in counts.activity:
            found = figures(counts, device)
            truth[node.uuid(device)].every.update(found)
            if counts.calls["cuDeviceGetUuid_v2"]:
                truth[node.uuid(device)].asked.update(found)
    by_gpu = exported(lives.agent.metrics())
    for uuid, row in truth.items():
        for key, least in row.asked.items():
            assert least <= by_gpu[uuid][key] <= row.every[key], (uuid, key)
    for key in next(iter(truth.values())).every:
        total = sum(row.every[key] for row in truth.values())
        assert sum(row[key] for row in by_gpu.values()) == total, key

    metrics = eventually(lives.agent.metrics, lambda page: not left(page), 30)
    assert left(metrics) == {}


def test_a_burst_of_short_processes(lives: Lives) -> None:
    """More a second than maps have room for: what was called and what was done stays exact in sum;
    what can't be told apart any more is said."""
    made = lives.make(4000, 0)
    processes = lives.processes()
    assert len(processes) == made
    lives.assert_calls(processes)
    every: Counter[tuple[str, str]] = Counter()
    for counts in processes:
        for device in counts.activity:
            every.update(figures(counts, device))

    def counted() -> Counter[tuple[str, str]]:
        return sum(exported(lives.agent.metrics()).values(), Counter())

    folded = lives.lost().get("ended", 0)  # what such processes did not free nobody knows
    exact = {
        key: number
        for key, number in every.items()
        if number and not (folded and key[0].startswith("implicit"))
    }

    def same() -> dict[tuple[str, str], int]:
        seen = counted()
        return {key: seen[key] for key in exact}

    assert eventually(same, lambda seen: seen == exact) == exact
    seen = counted()
    assert all(seen[key] <= every[key] for key in every if key[0].startswith("implicit"))


def left(metrics: Metrics) -> dict[str, float]:
    """Entries that maps still hold."""
    return {
        dict(labels)["map"]: number
        for (name, labels), number in metrics.items()
        if name == "gpubpf_agent_map_entries" and number
    }
