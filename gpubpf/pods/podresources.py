"""What kubelet's pod-resources API says, and what its device ids mean.

The messages (kubernetes/kubernetes, staging/src/k8s.io/kubelet/pkg/apis/podresources/v1/api.proto)
are read here, and not by the protobuf package: of five messages six strings are wanted, which is
less than describing the messages to protobuf by hand would be, and the work that an answer may cost
is bounded by the number of its fields, which protobuf doesn't do.

Nobody but root can put words into kubelet's mouth, but the names are other people's. A message of
which anything is odd is refused as a whole: a pod left out could make a GPU look like another's
alone. What isn't read: devices of Dynamic Resource Allocation (`dynamic_resources`); the API names
them as the driver that hands them out likes, such as "gpu-0".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"
MOST_FIELDS = 1 << 18  # of one answer; 500 pods of five containers have some 50,000
MOST_DEVICES = 1 << 16  # assigned, in one answer
VENDOR = b"nvidia.com/"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; the other two are groups

# DNS-1123 labels and subdomains, as Kubernetes checks them (apimachinery/pkg/util/validation).
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_IS_LABEL = re.compile(_LABEL)
_IS_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*"
)

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DEVICE = re.compile(
    rf"(?P<uuid>GPU-{_UUID}|MIG-{_UUID}|MIG-GPU-{_UUID}/\d{{1,3}}/\d{{1,3}})(?:::\d{{1,6}})?"
    r"|(?P<node>nvidia\d{1,4}(?:/gi\d{1,3})?)(?:/vgpu\d{1,6})?"
)


class PodName(NamedTuple):
    """A pod, or one of its containers."""

    namespace: str
    name: str
    container: str = ""  # "": not known


class Assigned(NamedTuple):
    """A device that a container was given."""

    to: PodName
    device: str  # its id, of one of the forms that `device_of` knows or of another


class Answer(NamedTuple):
    """An answer to `List`."""

    pods: frozenset[PodName]  # on this node, those without devices too; container is ""
    assigned: tuple[Assigned, ...]  # of VENDOR's resources; what others make is no GPU of ours


class MessageError(ValueError):
    """No message that kubelet would send. Its text is for a person."""


def pod_name(namespace: str, name: str, container: str = "") -> PodName | None:
    """Names that Kubernetes would allow; None for others."""
    if not _IS_LABEL.fullmatch(namespace) or not _IS_NAME.fullmatch(name):
        return None
    if container and not _IS_LABEL.fullmatch(container):
        return None
    return PodName(namespace, name, container)


def device_of(id: str, minors: Mapping[str, str]) -> str | None:  # noqa: A002  a device's
    """The UUID of the GPU or MIG device that an id of a device plugin means; None: not known.

    NVIDIA's device plugin says the UUID, with "::" and a number where several share it in time or
    by MPS. GKE's says "nvidia0" or, for a GPU instance, "nvidia0/gi1", with "/vgpu" and a number
    where they share it. `minors` has the UUIDs by such names, "nvidia0" and "nvidia0/gi1".
    """
    match = _DEVICE.fullmatch(id)
    if match is None:
        return None
    return match["uuid"] or minors.get(match["node"])


def decode(data: bytes) -> Answer:
    """A ListPodResourcesResponse. Raises MessageError."""
    reader = _Reader()
    pods: set[PodName] = set()
    assigned: list[Assigned] = []
    for number, pod in reader.fields(memoryview(data)):
        if number == 1:
            name, devices = _pod(reader, pod)
            pods.add(name)
            assigned += devices
            if len(assigned) > MOST_DEVICES:
                raise MessageError(f"more than {MOST_DEVICES} devices")
    return Answer(frozenset(pods), tuple(assigned))


def decode_allocatable(data: bytes) -> tuple[str, ...]:
    """Of an AllocatableResourcesResponse, the ids of VENDOR's devices. Raises MessageError."""
    reader = _Reader()
    ids: list[str] = []
    for number, value in reader.fields(memoryview(data)):
        if number == 1:
            ids += _devices(reader, value)
            if len(ids) > MOST_DEVICES:
                raise MessageError(f"more than {MOST_DEVICES} devices")
    return tuple(ids)


def _pod(reader: _Reader, data: memoryview) -> tuple[PodName, list[Assigned]]:
    """A PodResources."""
    name = namespace = b""
    containers: list[tuple[bytes, list[str]]] = []
    for number, value in reader.fields(data):
        if number == 1:
            name = bytes(value[:256])
        elif number == 2:
            namespace = bytes(value[:256])
        elif number == 3:
            containers.append(_container(reader, value))
    pod = _named(namespace, name)
    return pod, [
        Assigned(_named(namespace, name, container), device)
        for container, devices in containers
        for device in devices
    ]


def _container(reader: _Reader, data: memoryview) -> tuple[bytes, list[str]]:
    """A ContainerResources: its name, and the ids of its devices."""
    name, ids = b"", []
    for number, value in reader.fields(data):
        if number == 1:
            name = bytes(value[:256])
        elif number == 2:
            ids += _devices(reader, value)
    return name or b"?", ids  # a container without a name is refused, as a "?" is


def _devices(reader: _Reader, data: memoryview) -> list[str]:
    """A ContainerDevices."""
    resource, ids = b"", []
    for number, value in reader.fields(data):
        if number == 1:
            resource = bytes(value[:256])
        elif number == 2:
            ids.append(bytes(value[:256]).decode("ascii", "replace"))
    return ids if resource.startswith(VENDOR) else []


def _named(namespace: bytes, name: bytes, container: bytes = b"") -> PodName:
    texts = (part.decode("ascii", "replace") for part in (namespace, name, container))
    pod = pod_name(*texts)
    if pod is None:
        raise MessageError(f"a pod with the name {(namespace[:80], name[:80], container[:80])}")
    return pod


class _Reader:
    """Protobuf's wire format (protobuf.dev/programming-guides/encoding), so many fields of it."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def fields(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The fields of a message that are bytes: strings and messages. Others are skipped."""
        at, end = 0, len(data)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise MessageError(f"more than {MOST_FIELDS} fields")
            tag, at = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise MessageError(f"a field with the number {number}")
            size = 0
            if kind == _VARINT:
                _, at = _varint(data, at)
            elif kind == _BYTES:
                size, at = _varint(data, at)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise MessageError(f"a field of wire type {kind}")
            if size > end - at:
                raise MessageError("cut short")
            if kind == _BYTES:
                yield number, data[at : at + size]
            at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number there, and where it ends."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise MessageError("cut short, or a number of more than 64 bits")
