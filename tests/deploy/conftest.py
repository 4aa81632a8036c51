"""Fixtures of the tests of jobs: an agent on the simulated node, and real cgroups."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import Agent
from tests.fakegpu.node import Node


@pytest.fixture
def watch(serve: Callable[..., Agent], node: Node) -> Callable[..., Agent]:
    def start(*options: str, environment: Mapping[str, str] | None = None) -> Agent:
        libraries = ("--library", str(node.library), "--nvml-library", str(node.nvml_library))
        return serve(
            *libraries,
            "--control-socket",
            "",
            *options,
            environment={**node.environment(), **(environment or {})},
        )

    return start


def hierarchy(source: str) -> Path:
    """Version 2; systemd's own where the machine has both."""
    own = ["systemd"] if source == "systemd" else []
    for place in (*own, "unified", "."):
        if (at := Path("/sys/fs/cgroup") / place / "cgroup.procs").exists():
            return at.parent
    raise RuntimeError("no cgroup hierarchy is mounted")


@pytest.fixture
def cgroup() -> Iterator[Callable[[str, str], Path]]:
    """Makes cgroups, and removes them."""
    made: list[Path] = []

    def make(source: str, path: str) -> Path:
        at = hierarchy(source)
        for part in path.split("/"):
            at /= part
            if not at.exists():
                at.mkdir()
                made.append(at)
        return at

    yield make
    for path in reversed(made):
        for _ in range(50):
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.1)
