"""The simulated CUDA driver on its own: its machine code, its semantics and its exact counts."""

import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakegpu.generate import Function
from tests.fakegpu.node import FUNCTIONS, Counts, Device, Node
from tests.fakegpu.nvml_control import BUILD

REAL = Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1")
CLIENTS = Path(__file__).parents[1] / "clients"
CLIENTS_PYTHON = os.environ.get("CLIENTS_PYTHON", sys.executable)

needs_stubs = pytest.mark.skipif(platform.machine() != "x86_64", reason="the stubs are x86-64 code")
needs_real = pytest.mark.skipif(not REAL.exists(), reason="NVIDIA's libcuda is not installed")

PRELUDE = """
import os, sys
from ctypes import *
cuda = CDLL("libcuda.so.1")
def call(name, *arguments, want=0):
    got = getattr(cuda, name)(*arguments)
    assert got == want, (name, got)
def out(name, *arguments, kind=c_void_p):
    value = kind()
    call(name, byref(value), *arguments)
    return value
def start(device=0):
    call("cuInit", 0)
    context = out("cuDevicePrimaryCtxRetain", device)
    call("cuCtxSetCurrent", context)
    return context
def kernel():
    module = out("cuModuleLoadData", b".version 8.0\\n.visible .entry work() { ret; }\\0")
    return out("cuModuleGetFunction", module, b"work")
def launch(function, stream=None, want=0):
    call("cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 0, stream, None, None, want=want)
def allocate(size, want=0):
    pointer = c_ulonglong()
    call("cuMemAlloc_v2", byref(pointer), c_size_t(size), want=want)
    return pointer
"""


@pytest.fixture(scope="session")
def build_directory() -> Path:
    return BUILD


@pytest.fixture
def node(build_directory: Path, tmp_path: Path) -> Iterator[Node]:
    with Node(build_directory, tmp_path / "state", devices=2) as made:
        yield made


def run(node: Node, code: str, plain: bool = False) -> Counts:
    """Runs a client made of the prelude and code, and gives what the oracle saw of it."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code)]
    subprocess.run(command, env=node.environment(plain), check=True, timeout=60)
    return node.counts()


def run_workload(node: Node, *options: str, plain: bool = False) -> tuple[Counts, list[int]]:
    """Runs the workload, compares what it says it did with the oracle, and gives its pids too."""
    done = subprocess.run(
        [str(node.workload), *options],
        env=node.environment(plain),
        check=True,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    told: Counter[str] = Counter()
    told_failed: Counter[str] = Counter()
    pids: list[int] = []
    for line in done.stdout.splitlines():
        report = json.loads(line)
        told.update(report["calls"])
        told_failed.update(report["failed"])
        pids.append(report["pid"])
        calls = node.process(report["pid"]).counts.calls
        calls.pop("cuGetProcAddress_v2", None)
        assert calls == Counter(report["calls"])
    counts = node.counts()
    counts.calls.pop("cuGetProcAddress_v2", None)
    assert counts.calls == told
    failed: Counter[str] = Counter()
    for (function, _), number in counts.errors.items():
        failed[function] += number
    assert failed == told_failed
    return counts, pids


# The machine code


def stub_bytes(library: Path) -> dict[str, bytes]:
    """The 32 bytes at each export, without what depends on where things lie."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    data = library.read_bytes()
    code: dict[str, bytes] = {}
    for line in listing.splitlines():
        address, kind, name = line.split()
        if kind in "Tt":
            code[name.partition("@")[0]] = data[int(address, 16) : int(address, 16) + 32]
    return code


def masked(code: bytes) -> bytes:
    """Without the displacements of the compare and of the jump."""
    blank = bytearray(code)
    blank[2:6] = bytes(4)
    jump = code.find(b"\xff\x25", 12, 20)
    assert jump > 0
    blank[jump + 2 : jump + 6] = bytes(4)
    return bytes(blank)


@needs_stubs
@needs_real
def test_stubs_are_the_real_ones(node: Node) -> None:
    real, simulated = stub_bytes(REAL), stub_bytes(node.library)
    assert set(simulated) == {function.name for function in FUNCTIONS}
    compared = [name for name in simulated if name in real]
    assert len(compared) > 350
    for name in compared:
        assert masked(simulated[name]) == masked(real[name]), name


@needs_stubs
def test_stubs_are_aligned_and_plain_exports_are_none(node: Node) -> None:
    shape = bytes.fromhex(
        "813d 00000000 00ba1c32 740c ff25 00000000 660f1f440000 b804000000 c3 6690"
    )
    stubs, plain = stub_bytes(node.library), stub_bytes(node.plain_library)
    assert masked(stubs["cuLaunchKernel"]) == shape
    assert set(stubs) == set(plain)
    assert not any(code.startswith(b"\x81\x3d") for code in plain.values())
    addresses = subprocess.run(
        ["nm", "-D", "--defined-only", str(node.library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(int(line.split()[0], 16) % 32 == 0 for line in addresses.splitlines())


@needs_real
def test_every_export_is_a_real_or_a_newer_function() -> None:
    real = set(stub_bytes(REAL))
    assert [f.name for f in FUNCTIONS if f.name not in real and f.since <= 12020] == []


# Look-up by name


def resolve(library: Path, names: dict[str, int], queries: list[tuple[str, int, int]]) -> list[str]:
    """What cuGetProcAddress_v2 of a library answers, as names of its exports."""
    handle = ctypes.CDLL(str(library))
    by_address = {}
    for name in names:
        address = ctypes.cast(getattr(handle, name), ctypes.c_void_p).value
        assert address is not None
        by_address[address] = name
    answers = []
    for base, version, flags in queries:
        pointer, status = ctypes.c_void_p(), ctypes.c_int()
        result = handle.cuGetProcAddress_v2(
            base.encode(),
            ctypes.byref(pointer),
            version,
            ctypes.c_uint64(flags),
            ctypes.byref(status),
        )
        answers.append(f"{result}/{status.value}/{by_address.get(pointer.value or 0, '')}")
    return answers


def queries() -> list[tuple[str, int, int]]:
    bases = sorted({function.base for function in FUNCTIONS if function.since <= 12020})
    versions = sorted({function.since for function in FUNCTIONS if function.since <= 12020})
    return [
        (b, v, flags) for b in (*bases, "cuNone") for v in (1000, *versions) for flags in (1, 2)
    ]


@needs_real
def test_look_up_answers_as_the_real_one(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKEGPU_STATE", str(node.path))
    names = dict.fromkeys(stub_bytes(node.library), 0)
    shared = {name: 0 for name in names if name in stub_bytes(REAL)}
    asked = queries()
    simulated, real = resolve(node.library, names, asked), resolve(REAL, shared, asked)
    different = [
        (query, one, other)
        for query, one, other in zip(asked, simulated, real, strict=True)
        if one != other
    ]
    assert different == []


def test_look_up_follows_the_driver_version(build_directory: Path, tmp_path: Path) -> None:
    def newest(function: Function) -> bool:
        return function.name == "cuCtxCreate_v4"

    assert next(filter(newest, FUNCTIONS)).since == 12050
    code = """
        pointer, status = c_void_p(), c_int()
        call("cuGetProcAddress_v2", b"cuCtxCreate", byref(pointer), 13000, c_ulonglong(0),
             byref(status))
        wanted = cuda.cuCtxCreate_v{}
        assert pointer.value == cast(wanted, c_void_p).value
        call("cuGetProcAddress_v2", b"cuNone", byref(pointer), 13000, c_ulonglong(0), byref(status))
        assert (pointer.value, status.value) == (None, 1)
        call("cuGetProcAddress", b"cuNone", byref(pointer), 13000, c_ulonglong(0), want=500)
        call("cuGetExportTable", byref(pointer), None, want=500)
    """
    for driver, variant in ((12020, 3), (12080, 4)):
        state = tmp_path / str(driver)
        with Node(build_directory, state, driver_version=driver) as node:
            run(node, code.format(variant))


# Counts


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--threads", "8"),
        ("--by-address",),
        ("--by-address", "--per-thread", "--default-stream"),
    ],
)
def test_counts_are_exact(node: Node, options: tuple[str, ...], plain: bool) -> None:
    counts, _ = run_workload(node, "--primes", *options, plain=plain)
    threads = 8 if "8" in options else 1
    activity = counts.activity[0]
    assert activity.launches == threads * (1009 + 211 + 101)
    assert (activity.captured, activity.graph_kernels) == (threads * 13 * 7, threads * 13 * 21)
    assert activity.graph_launches == threads * 13 * 3
    assert activity.host_functions == threads * 53
    assert activity.sets == 2 * threads * 149
    assert counts.calls["cuGraphLaunch" + "_ptsz" * ("--per-thread" in options)] == threads * 39
    for kind in ("device", "managed", "pool", "virtual", "host", "array"):
        memory = counts.memory[0, kind]
        assert memory.allocations == memory.frees
        assert memory.live_bytes == 0
    assert counts.memory[0, "managed"].allocations == threads * 67
    assert counts.memory[0, "virtual"].allocated_bytes == threads * 43 << 21
    copied = activity.copied_bytes
    assert copied["host_to_device"] == copied["device_to_host"] == copied["device_to_device"]
    assert 2 * copied["unknown"] == copied["host_to_device"]
    assert node.memory_used(0) == 0


def test_counts_of_many_processes_are_exact(node: Node) -> None:
    _, pids = run_workload(node, "--primes", "--threads", "2", "--fork", "49")
    assert len(set(pids)) == len(list(node.processes())) == 50
    assert not any(process.alive for process in node.processes())
    assert node.processes_without_slot == 0


def test_a_process_keeps_its_slot_when_it_replaces_its_program(node: Node) -> None:
    counts = run(
        node,
        """
        start()
        allocate(5003)
        if len(sys.argv) == 1:
            os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
        """,
    )
    (process,) = node.processes()
    assert counts.calls["cuInit"] == 2
    assert process.counts.memory[0, "device"].released_bytes == 5003
    assert node.memory_used(0) == 0


def test_killed_processes_give_their_memory_back(build_directory: Path, tmp_path: Path) -> None:
    with Node(build_directory, tmp_path / "state", [Device(memory_bytes=1 << 20)]) as node:
        command = [str(node.workload), "--keep", "1", "--bytes", str(1 << 20), "--exit-barrier"]
        held = subprocess.Popen(
            command, env=node.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert held.stdout is not None
        held.stdout.readline()
        assert node.live_bytes(0, "device") == node.memory_used(0) == 1 << 20
        run(node, "start(); allocate(1, want=2)")
        held.send_signal(signal.SIGKILL)
        held.communicate()
        assert node.live_bytes(0, "device") == 0
        run(node, "start(); allocate(1 << 20)")


def test_a_child_of_an_initialised_process_cannot_use_the_driver(node: Node) -> None:
    run(
        node,
        """
        start()
        child = os.fork()
        if child == 0:
            call("cuInit", 0, want=3)
            call("cuCtxSynchronize", want=3)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
    )
    parent, child = node.processes()
    assert child.counts.calls == {"cuInit": 1, "cuCtxSynchronize": 1}
    assert child.counts.errors == {("cuInit", 3): 1, ("cuCtxSynchronize", 3): 1}
    assert parent.pid != child.pid


# Semantics


def test_calls_fail_as_documented(node: Node) -> None:
    counts = run(
        node,
        """
        pointer = c_ulonglong()
        call("cuMemAlloc_v2", byref(pointer), c_size_t(1), want=3)
        call("cuInit", 0)
        call("cuMemAlloc_v2", byref(pointer), c_size_t(1), want=201)
        call("cuDeviceGet", byref(c_int()), 2, want=101)
        start()
        launch(None, want=400)
        launch(c_void_p(0x1234), want=400)
        launch(kernel(), stream=c_void_p(0x1234), want=400)
        allocate(1 << 50, want=2)
        call("cuMemFree_v2", c_ulonglong(77), want=1)
        buffer = create_string_buffer(11)
        call("cuMemcpyDtoH_v2", buffer, allocate(10), c_size_t(11), want=1)
        context = out("cuCtxCreate_v2", 0, 1)
        call("cuCtxPushCurrent_v2", context)
        call("cuCtxDestroy_v2", context)
        call("cuCtxSynchronize", want=709)
        """,
    )
    assert counts.errors[("cuLaunchKernel", 400)] == 3
    assert counts.errors[("cuMemAlloc_v2", 2)] == 1
    assert counts.activity[0].launches == 0


def test_memory_and_copies(node: Node) -> None:
    counts = run(
        node,
        """
        start()
        data = bytes(range(251)) * 4
        one, other = allocate(1004), allocate(1004)
        received = create_string_buffer(1004)
        call("cuMemcpyHtoD_v2", one, data, c_size_t(1004))
        call("cuMemcpyDtoD_v2", other, one, c_size_t(1004))
        call("cuMemsetD16_v2", other, c_ushort(0x4241), c_size_t(3))
        call("cuMemcpy", cast(received, c_void_p), other, c_size_t(1004))
        assert received.raw == b"AB" * 3 + data[6:]
        low = c_uint()
        call("cuMemAlloc", byref(low), 64)
        call("cuMemsetD8", low, c_ubyte(9), 64)
        call("cuMemcpyDtoH", received, low, 64)
        assert received.raw[:64] == bytes([9] * 64)
        pitch = c_size_t()
        call("cuMemAllocPitch_v2", byref(one), byref(pitch), c_size_t(700), c_size_t(5), 4)
        assert pitch.value >= 700
        context = out("cuCtxCreate_v2", 0, 1)
        allocate(1009)
        call("cuCtxDestroy_v2", context)
        """,
    )
    assert counts.activity[0].copied_bytes == {
        "host_to_device": 1004,
        "device_to_device": 1004,
        "unknown": 1004,
        "device_to_host": 64,
    }
    assert counts.activity[0].set_bytes == 6 + 64
    assert counts.memory[0, "device"].allocated_bytes == 2 * 1004 + 64 + 3500
    assert counts.memory[1, "device"].released_bytes == 1009


def test_virtual_memory_counts_references(node: Node) -> None:
    counts = run(
        node,
        """
        start()
        size = c_size_t(2 << 20)
        properties = (c_int * 8)(1, 0, 1, 0)
        access = (c_int * 3)(1, 0, 3)
        handle, one, other = c_ulonglong(), c_ulonglong(), c_ulonglong()
        call("cuMemCreate", byref(handle), size, properties, c_ulonglong(0))
        for place in (one, other):
            call("cuMemAddressReserve", byref(place), size, c_size_t(0), c_ulonglong(0),
                 c_ulonglong(0))
            call("cuMemMap", place, size, c_size_t(0), handle, c_ulonglong(0))
        call("cuMemRelease", handle)
        call("cuMemsetD8_v2", one, c_ubyte(5), c_size_t(1), want=1)
        for place in (one, other):
            call("cuMemSetAccess", place, size, access, c_size_t(1))
        call("cuMemsetD8_v2", one, c_ubyte(5), c_size_t(1009))
        received = create_string_buffer(1009)
        call("cuMemcpyDtoH_v2", received, other, c_size_t(1009))
        assert received.raw == bytes([5] * 1009)
        call("cuMemUnmap", one, size)
        again = c_ulonglong()
        call("cuMemRetainAllocationHandle", byref(again), other)
        assert again.value == handle.value
        call("cuMemUnmap", other, size)
        call("cuMemAddressFree", other, size)
        free = [c_size_t(), c_size_t()]
        call("cuMemGetInfo_v2", byref(free[0]), byref(free[1]))
        assert free[1].value - free[0].value == size.value
        call("cuMemRelease", again)
        """,
    )
    memory = counts.memory[0, "virtual"]
    assert (memory.allocations, memory.frees, memory.live_bytes) == (1, 1, 0)


def test_captured_launches_only_become_nodes(node: Node) -> None:
    counts = run(
        node,
        """
        start()
        function = kernel()
        origin, fork = out("cuStreamCreate", 1), out("cuStreamCreate", 1)
        begun, joined = out("cuEventCreate", 0), out("cuEventCreate", 0)
        call("cuStreamBeginCapture_v2", origin, 0)
        launch(function, origin)
        call("cuEventRecord", begun, origin)
        call("cuStreamWaitEvent", fork, begun, 0)
        for _ in range(3):
            launch(function, fork)
        launch(function)  # another stream runs on
        call("cuMemAlloc_v2", byref(c_ulonglong()), c_size_t(1), want=900)
        call("cuStreamEndCapture", origin, byref(c_void_p()), want=901)

        call("cuStreamBeginCapture_v2", origin, 2)
        call("cuEventRecord", begun, origin)
        call("cuStreamWaitEvent", fork, begun, 0)
        launch(function, fork)
        call("cuStreamEndCapture", origin, byref(c_void_p()), want=904)

        call("cuStreamBeginCapture_v2", origin, 2)
        launch(function, origin)
        call("cuEventRecord", begun, origin)
        call("cuStreamWaitEvent", fork, begun, 0)
        launch(function, fork)
        call("cuEventRecord", joined, fork)
        call("cuStreamWaitEvent", origin, joined, 0)
        launch(function, origin)
        graph = c_void_p()
        call("cuStreamEndCapture", origin, byref(graph))

        clone = out("cuGraphClone", graph)
        node = c_void_p()
        call("cuGraphAddChildGraphNode", byref(node), clone, None, c_size_t(0), graph)
        executable = out("cuGraphInstantiateWithFlags", clone, c_ulonglong(0))
        for _ in range(5):
            call("cuGraphLaunch", executable, origin)
        call("cuStreamSynchronize", origin)
        """,
    )
    activity = counts.activity[0]
    assert activity.launches == 1
    assert activity.captured == 4 + 1 + 3
    assert (activity.graph_launches, activity.graph_kernels) == (5, 5 * 6)


def test_graphs_copy_and_set(node: Node) -> None:
    counts = run(
        node,
        """
        start()
        stream = out("cuStreamCreate", 1)
        one, other = allocate(1009), allocate(1009)
        call("cuStreamBeginCapture_v2", stream, 2)
        call("cuMemsetD8Async", one, c_ubyte(7), c_size_t(1009), stream)
        call("cuMemcpyDtoDAsync_v2", other, one, c_size_t(1009), stream)
        graph = c_void_p()
        call("cuStreamEndCapture", stream, byref(graph))
        executable = out("cuGraphInstantiateWithFlags", graph, c_ulonglong(0))
        call("cuGraphLaunch", executable, stream)
        received = create_string_buffer(1009)
        call("cuMemcpyDtoH_v2", received, other, c_size_t(1009))
        assert received.raw == bytes([7] * 1009)
        """,
    )
    activity = counts.activity[0]
    assert activity.captured_copied_bytes == activity.graph_copied_bytes == 1009
    assert activity.captured_set_bytes == activity.graph_set_bytes == 1009
    assert activity.copied_bytes == {"device_to_host": 1009}


def test_waits_take_the_time_of_the_kernels(build_directory: Path, tmp_path: Path) -> None:
    devices = [Device(kernel_ns=50_000_000)]
    with Node(build_directory, tmp_path / "state", devices) as node:
        counts = run(
            node,
            """
            start()
            function = kernel()
            for _ in range(7):
                launch(function)
            call("cuStreamQuery", None, want=600)
            call("cuStreamSynchronize", None)
            call("cuStreamQuery", None)
            """,
        )
        assert counts.activity[0].busy_ns == node.busy_ns(0) == 350_000_000
        assert counts.activity[0].waits == 1
        assert 50_000_000 < counts.activity[0].wait_ns < 2_000_000_000


# Faults


def test_faults(node: Node) -> None:
    node.fail("cuMemAlloc_v2", error=2, times=2, every=3)
    node.fail("cuCtxSynchronize", error=719, times=1)
    node.block("cuCtxGetFlags", milliseconds=30)
    code = """
        import time
        start()
        results = [cuda.cuMemAlloc_v2(byref(c_ulonglong()), c_size_t(10)) for _ in range(12)]
        assert results == [0, 0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0], results
        call("cuCtxSynchronize", want=719)
        call("cuCtxSynchronize")
        begun = time.monotonic()
        call("cuCtxGetFlags", byref(c_uint()))
        assert time.monotonic() - begun > 0.03
    """
    counts = run(node, code)
    assert counts.errors == {("cuMemAlloc_v2", 2): 2, ("cuCtxSynchronize", 719): 1}
    assert counts.memory[0, "device"].allocations == 10
    node.lose(1)
    run(node, 'start(1); call("cuCtxSynchronize", want=999); start(0); call("cuCtxSynchronize")')
    node.clear_faults()
    run(node, 'start(1); call("cuCtxSynchronize")')


# Real clients


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("client", "module", "launch", "captured"),
    [
        ("cuda_bindings", "cuda.bindings", "cuLaunchKernel", 7),
        ("cuda_bindings:per-thread", "cuda.bindings", "cuLaunchKernel_ptsz", 7),
        ("numba", "numba.cuda", "cuLaunchKernelEx", 0),
        ("triton", "triton", "cuLaunchKernelEx", 0),
        ("cuda_core", "cuda.core", "cuLaunchKernelEx", 7),
    ],
)
def test_clients(
    node: Node, client: str, module: str, launch: str, captured: int, plain: bool
) -> None:
    known = subprocess.run([CLIENTS_PYTHON, "-c", f"import {module}"], capture_output=True)
    if known.returncode != 0:
        pytest.skip(f"{module} is not installed for CLIENTS_PYTHON")
    name, _, variant = client.partition(":")
    environment = node.environment(plain)
    environment["TRITON_LIBCUDA_PATH"] = str(node.library.parent)
    if variant:
        environment["CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM"] = "1"
    script = CLIENTS / f"{name}_client.py"
    command = [CLIENTS_PYTHON, str(script), "--launches", "103"]
    subprocess.run(command, env=environment, check=True, timeout=300)
    counts = node.counts()
    assert counts.calls[launch] == 103 + captured
    assert counts.activity[0].launches == 103
    assert counts.activity[0].captured == captured
    assert counts.activity[0].graph_kernels == 5 * captured
    assert node.memory_used(0) == 0
