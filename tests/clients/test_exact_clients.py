"""Real clients, unmodified, on the simulated driver: every count equals the driver's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bpf.probing import own_node, probing
from tests.bpf.test_exact import assert_exact

CLIENTS = Path(__file__).parent
PYTHON = os.environ.get("CLIENTS_PYTHON", sys.executable)


@pytest.mark.parametrize(
    ("client", "environment", "launched_by"),
    [
        ("cuda_bindings", {}, "cuLaunchKernel"),
        (
            "cuda_bindings",
            {"CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM": "1"},
            "cuLaunchKernel_ptsz",
        ),
        ("numba", {}, "cuLaunchKernelEx"),
        ("triton", {}, "cuLaunchKernelEx"),
        ("cuda_core", {}, "cuLaunchKernelEx"),
    ],
    ids=["cuda-bindings", "cuda-bindings per thread", "numba-cuda", "triton", "cuda-core"],
)
def test_client(tmp_path: Path, client: str, environment: dict[str, str], launched_by: str) -> None:
    with own_node(tmp_path) as node, probing(str(node.library)) as probes:
        done = subprocess.run(
            [PYTHON, str(CLIENTS / f"{client}_client.py"), "--launches", "103"],
            env=node.environment()
            | {"TRITON_LIBCUDA_PATH": str(node.library.parent)}
            | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert probes.total().calls.get(launched_by, 0) >= 103, (probes.total(), node.counts())
        assert_exact(node, probes)
