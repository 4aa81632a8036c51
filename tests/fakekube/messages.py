"""kubelet's pod-resources messages by the protobuf package: the other implementation that
`gpubpf.pods.podresources` is compared with. Field numbers as in the API's v1 definition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "NUMANode": (("ID", 1, "int64", False),),
    "TopologyInfo": (("nodes", 1, "NUMANode", True),),
    "ContainerDevices": (
        ("resource_name", 1, "string", False),
        ("device_ids", 2, "string", True),
        ("topology", 3, "TopologyInfo", False),
    ),
    "ContainerMemory": (("memory_type", 1, "string", False), ("size", 2, "uint64", False)),
    "ContainerResources": (
        ("name", 1, "string", False),
        ("devices", 2, "ContainerDevices", True),
        ("cpu_ids", 3, "int64", True),
        ("memory", 4, "ContainerMemory", True),
    ),
    "PodResources": (
        ("name", 1, "string", False),
        ("namespace", 2, "string", False),
        ("containers", 3, "ContainerResources", True),
    ),
    "ListPodResourcesResponse": (("pod_resources", 1, "PodResources", True),),
    "AllocatableResourcesResponse": (
        ("devices", 1, "ContainerDevices", True),
        ("cpu_ids", 2, "int64", True),
        ("memory", 3, "ContainerMemory", True),
    ),
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="pods.proto", package="v1", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            row = message.field.add(name=field, number=number)
            row.label = _TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL
            if kind in _MESSAGES:
                row.type, row.type_name = _TYPES.TYPE_MESSAGE, f".v1.{kind}"
            else:
                row.type = getattr(_TYPES, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    get = message_factory.GetMessageClass
    return {name: get(pool.FindMessageTypeByName(f"v1.{name}")) for name in _MESSAGES}


CLASSES = _classes()


def _devices(ids: Mapping[str, Sequence[str]]) -> list[Any]:
    topology = CLASSES["TopologyInfo"](nodes=[CLASSES["NUMANode"](ID=1)])
    return [
        CLASSES["ContainerDevices"](resource_name=name, device_ids=some, topology=topology)
        for name, some in ids.items()
    ]


def listed(pods: Iterable[tuple[str, str, Mapping[str, Mapping[str, Sequence[str]]]]]) -> bytes:
    """Of (namespace, name, container -> resource -> device ids)."""
    rows = []
    for namespace, name, containers in pods:
        row = CLASSES["PodResources"](name=name, namespace=namespace)
        for container, devices in containers.items():
            memory = CLASSES["ContainerMemory"](memory_type="memory", size=1 << 40)
            row.containers.append(
                CLASSES["ContainerResources"](
                    name=container, devices=_devices(devices), cpu_ids=[1, 300], memory=[memory]
                )
            )
        rows.append(row)
    answer: bytes = CLASSES["ListPodResourcesResponse"](pod_resources=rows).SerializeToString()
    return answer


def allocatable(ids: Mapping[str, Sequence[str]]) -> bytes:
    """Of resource -> device ids."""
    answer: bytes = CLASSES["AllocatableResourcesResponse"](
        devices=_devices(ids), cpu_ids=range(64)
    ).SerializeToString()
    return answer
