"""Fixtures of the tests of library copies: nothing else on this machine maps what they map."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.probing import own_node
from tests.bpf.watching import Start, Watch, callers, copied, watching
from tests.fakegpu.node import Node


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Node]:
    with own_node(tmp_path / "own") as own:
        yield own


@pytest.fixture
def library(own: Node, tmp_path: Path) -> Path:
    return copied(own.library, tmp_path / "lib" / "libcuda.so.1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "proc"


@pytest.fixture
def start(root: Path, own: Node) -> Iterator[Start]:
    with callers(root, own) as start:
        yield start


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def watch(root: Path, start: Start) -> Iterator[Watch]:
    with watching(root) as watch:
        yield watch
