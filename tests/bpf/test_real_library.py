"""NVIDIA's own libcuda (driver 535, no device): calls enter the exported stubs and fail.

They are counted at both probe points, on entry and on return, by either way of attaching.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpubpf.bpf import elf
from tests.bpf.probing import REAL_LIBCUDA, Find, Probing, at_entry, probing

CLIENT = """
import ctypes, sys
cuda = ctypes.CDLL(sys.argv[1])
out = ctypes.c_uint64()
for _ in range(1009):
    cuda.cuLaunchKernel(*[ctypes.c_void_p(1)] * 11)
for _ in range(101):
    assert cuda.cuMemAlloc_v2(ctypes.byref(out), ctypes.c_size_t(4096)) != 0
for _ in range(53):
    assert cuda.cuMemFree_v2(ctypes.c_uint64(1)) != 0
for _ in range(31):
    assert cuda.cuStreamSynchronize(None) != 0
for _ in range(17):
    cuda.cuMemcpyHtoD_v2(ctypes.c_uint64(1), ctypes.c_void_p(1), ctypes.c_size_t(3))
"""

NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED

CALLED = {
    *("cuLaunchKernel", "cuMemAlloc_v2", "cuMemFree_v2", "cuStreamSynchronize"),
    "cuMemcpyHtoD_v2",
}


def called(find: Find) -> Find:
    """A perf probe takes the kernel a grace period to detach: only those of the client."""
    return lambda fd, names: find(fd, set(names) & CALLED)


ALL = ("launch", "memory", "copy", "wait")
WAYS = {
    "multi, in the stub": (True, elf.probe_points, ALL),
    "multi, at the entry": (True, at_entry, ALL),
    "perf, in the stub": (False, called(elf.probe_points), ALL),
    "perf, at the entry": (False, called(at_entry), ALL),
}


@pytest.fixture(params=WAYS)
def probes(request: pytest.FixtureRequest) -> Iterator[Probing]:
    multi, find, groups = WAYS[request.param]
    with probing(REAL_LIBCUDA, groups=groups, multi=multi, find=find) as probes:
        yield probes


def test_every_call_is_counted_and_failed_calls_do_nothing(probes: Probing) -> None:
    client = subprocess.run([sys.executable, "-c", CLIENT, REAL_LIBCUDA], check=False)
    assert client.returncode == 0
    counted = probes.total()

    assert counted.calls == {
        "cuLaunchKernel": 1009,
        "cuMemAlloc_v2": 101,
        "cuMemFree_v2": 53,
        "cuMemcpyHtoD_v2": 17,
        "cuStreamSynchronize": 31,
    }
    assert probes.errors() == {
        ("cuMemAlloc_v2", NOT_INITIALIZED): 101,
        ("cuMemFree_v2", NOT_INITIALIZED): 53,
        ("cuMemcpyHtoD_v2", NOT_INITIALIZED): 17,
        ("cuStreamSynchronize", NOT_INITIALIZED): 31,
    }
    assert counted.facts["kernel_launches"] == [1009]  # whether they succeed isn't looked at
    for fact in ("allocations", "allocated_bytes", "frees", "freed_bytes", "copied_bytes"):
        assert not any(counted.facts[fact]), fact
    assert counted.facts["wait_nanoseconds"][0] > 0
    assert probes.latest is not None
    assert not any(probes.latest.lost.values())
