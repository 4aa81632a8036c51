"""The simulated node in the place of a GPU: only for the tests of the checks themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from tests.fakegpu.node import Device, Node, copy_build
from tests.gpu.rig import ROOT, Rig

BUILD = ROOT / ".build" / "fakegpu"


@contextmanager
def simulated(python: str) -> Iterator[Rig]:
    """Two devices, on libraries of their own: other clients of the shared ones aren't probed."""
    with TemporaryDirectory() as name:
        place = Path(name)
        copy_build(BUILD, place / "build")
        # UUIDs of their own, too: who works on another simulated node is on no GPU of this one
        devices = [Device(uuid=uuid4(), context_bytes=300 << 20, kernel_ns=20_000) for _ in "ab"]
        with Node(place / "build", place / "state", devices=devices) as node:
            libraries = ("--library", str(node.library), "--nvml-library", str(node.nvml_library))
            yield Rig(python, node.environment(), libraries, True, interval=0.2, effort=0.1)
