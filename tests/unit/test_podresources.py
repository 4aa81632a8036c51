"""gpubpf.pods.podresources against the protobuf package; and what no kubelet would say."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf.pods.podresources import (
    MOST_FIELDS,
    Assigned,
    MessageError,
    PodName,
    decode,
    decode_allocatable,
    device_of,
    pod_name,
)
from tests.fakekube import messages

GPU = "GPU-fef8089b-4820-abfc-e83e-94318197576e"
MIG = "MIG-fef8089b-4820-abfc-e83e-94318197576e"

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
IDS = st.lists(st.text("abcGPU-0123456789:/", max_size=60), max_size=4)
RESOURCES = st.dictionaries(
    st.sampled_from(["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/gpu", "rdma/hca"]), IDS
)
PODS = st.lists(st.tuples(LABELS, LABELS, st.dictionaries(LABELS, RESOURCES, max_size=3)))


@given(pods=PODS)
def test_decodes_what_protobuf_encodes(
    pods: list[tuple[str, str, dict[str, dict[str, list[str]]]]],
) -> None:
    answer = decode(messages.listed(pods))
    assert answer.pods == {PodName(namespace, name) for namespace, name, _ in pods}
    assert answer.assigned == tuple(
        Assigned(PodName(namespace, name, container), device)
        for namespace, name, containers in pods
        for container, resources in containers.items()
        for resource, ids in resources.items()
        if resource.startswith("nvidia.com/")
        for device in ids
    )


@given(resources=RESOURCES)
def test_decodes_what_can_be_given(resources: dict[str, list[str]]) -> None:
    expected = [i for name, ids in resources.items() if name.startswith("nvidia.com/") for i in ids]
    assert decode_allocatable(messages.allocatable(resources)) == tuple(expected)


@given(pods=PODS, cut=st.integers(0, 2000), flips=st.lists(st.integers(0, 8 * 2000), max_size=4))
def test_damaged_answers_are_refused_or_read(
    pods: list[tuple[str, str, dict[str, dict[str, list[str]]]]], cut: int, flips: list[int]
) -> None:
    data = bytearray(messages.listed(pods)[: cut or None])
    for flip in flips:
        if data:
            data[flip // 8 % len(data)] ^= 1 << flip % 8
    for read in (decode, decode_allocatable):
        with contextlib.suppress(MessageError):
            read(bytes(data))


@given(data=st.binary(max_size=300))
def test_noise_is_refused_or_read(data: bytes) -> None:
    for read in (decode, decode_allocatable):
        with contextlib.suppress(MessageError):
            read(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x0a\x05ab", "cut short"),
        (b"\x0a", "cut short"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "number 0"),
        (b"\xff" * 11, "more than 64 bits"),
        (b"\x10\x01" * (MOST_FIELDS + 1), f"more than {MOST_FIELDS} fields"),
        (messages.listed([("ns", "Not A Name", {})]), "with the name"),
        (messages.listed([("ns", "a", {"": {"nvidia.com/gpu": [GPU]}})]), "with the name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_kubelet_says(data: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        decode(data)


def test_a_device_without_end_is_refused() -> None:
    many = messages.allocatable({"nvidia.com/gpu": ["x"] * 65_537})
    with pytest.raises(MessageError, match="more than 65536 devices"):
        decode_allocatable(many)


@pytest.mark.parametrize(
    ("id", "uuid"),
    [
        (GPU, GPU),
        (MIG, MIG),
        (f"{GPU}::3", GPU),
        (f"{MIG}::0", MIG),
        (f"MIG-{GPU}/3/0", f"MIG-{GPU}/3/0"),
        ("nvidia0", "GPU-0"),
        ("nvidia1", None),
        ("nvidia0/gi2", "MIG-2"),
        ("nvidia0/vgpu5", "GPU-0"),
        ("nvidia0/gi2/vgpu1", "MIG-2"),
        ("nvidia0/gi7", None),
        ("", None),
        (f"{GPU}::", None),
        (f"{GPU}\n", None),
        (f" {GPU}", None),
        ("GPU-0", None),
        ("gpu-0", None),
    ],
)
def test_ids_of_devices(id: str, uuid: str | None) -> None:  # noqa: A002
    assert device_of(id, {"nvidia0": "GPU-0", "nvidia0/gi2": "MIG-2"}) == uuid


@pytest.mark.parametrize(
    ("namespace", "name", "fits"),
    [
        ("default", "trainer-0", True),
        ("kube-system", "node.with.dots", True),
        ("default", "a" * 253, True),
        ("default", "a" * 254, False),
        ("a" * 64, "x", False),
        ("", "x", False),
        ("default", "", False),
        ("default", "..", False),
        ("default", "../../secrets", False),
        ("de/fault", "x", False),
        ("default", "x\n", False),
        ("Default", "x", False),
    ],
)
def test_names(namespace: str, name: str, fits: bool) -> None:
    assert (pod_name(namespace, name) is not None) == fits
