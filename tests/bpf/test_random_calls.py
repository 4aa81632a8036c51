"""Exactness over random sequences of calls, good and bad ones mixed, in several threads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bpf.probing import Probing, own_node, probing
from tests.bpf.test_exact import assert_equal, assert_exact
from tests.fakegpu.node import Node

CLIENT = Path(__file__).with_name("random_client.py")

Call = list[Any]

names = st.integers(0, 5).map(str)
sizes = st.one_of(st.integers(0, 1 << 20), st.sampled_from([1 << 40, 1 << 50, (1 << 64) - 1]))
small = st.integers(0, 64)
formats = st.sampled_from([1, 2, 3, 8, 9, 10, 16, 32])
depths = st.integers(0, 9)


def stores(name: str) -> str:
    return f"&{name}"


def uses(name: str) -> str:
    return f"${name}"


out = names.map(stores)
some = names.map(uses)
pointer = st.one_of(some, some, some, st.sampled_from([0, 1, 0xDEAD0000]))


def calls(function: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(function), *arguments).map(list)


array_2d = st.tuples(small, small, formats, st.sampled_from([1, 2, 4])).map(list)
array_3d = st.tuples(
    small, depths, depths, formats, st.sampled_from([1, 2, 4]), st.sampled_from([0, 0, 1])
).map(list)

one_call = st.one_of(
    calls("cuMemAlloc_v2", out, sizes),
    calls("cuMemAlloc_v2", out, small),
    calls("cuMemAllocManaged", out, sizes, st.just(1)),
    calls("cuMemAllocPitch_v2", out, st.just("&pitch"), small, small, st.just(4)),
    calls("cuMemAllocAsync", out, sizes, st.just(0)),
    calls("cuMemHostAlloc", out, st.integers(0, 1 << 16), st.just(0)),
    calls("cuMemAllocHost_v2", out, st.integers(0, 1 << 16)),
    calls("cuArrayCreate_v2", st.just("&array"), array_2d),
    calls("cuArray3DCreate_v2", st.just("&array"), array_3d),
    calls("cuMipmappedArrayCreate", st.just("&mip"), array_3d, st.integers(0, 8)),
    calls("cuArrayDestroy", st.just("$array")),
    calls("cuMipmappedArrayDestroy", st.just("$mip")),
    calls("cuMemFree_v2", pointer),
    calls("cuMemFree_v2", pointer),
    calls("cuMemFreeAsync", pointer, st.just(0)),
    calls("cuMemFreeHost", pointer),
    calls("cuMemsetD8_v2", some, st.just(7), small),
    calls("cuMemsetD32Async", some, st.just(7), small, st.just(0)),
    calls("cuMemcpyDtoD_v2", some, some, small),
    calls("cuMemcpyDtoDAsync_v2", some, some, small, st.just(0)),
    calls("cuStreamSynchronize", st.just(0)),
    calls("cuCtxSynchronize"),
    calls("cuGraphLaunch", st.just(0), st.just(0)),
    calls("cuLaunchHostFunc", st.just(0), st.just(0), st.just(0)),
    calls("cuLaunchKernel", *[st.just(0)] * 11),
)
programs = st.lists(st.lists(one_call, max_size=40), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Probing]]:
    with (
        own_node(tmp_path_factory.mktemp("random")) as node,
        probing(str(node.library)) as probes,
    ):
        yield node, probes
        assert_exact(node, probes)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=programs)
def test_whatever_a_program_calls(rig: tuple[Node, Probing], program: list[list[Call]]) -> None:
    node, probes = rig
    client = subprocess.Popen(
        [sys.executable, "-S", str(CLIENT), str(node.library), json.dumps(program)],
        env=node.environment(),
    )
    assert client.wait(60) == 0
    assert_equal(probes.of(client.pid), node.process(client.pid).counts, probes)
