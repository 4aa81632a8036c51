"""What the metrics of the device plane and of the node are read from, as in `gpubpf.view`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from gpubpf.model import (
    Device,
    DeviceProcess,
    Labels,
    MigDevice,
    NodeFacts,
    Share,
    SharedMemory,
    Work,
    Xid,
)
from gpubpf.view import Samples, View


def figures(fact: str) -> Callable[[View], Samples]:
    """The figures of a fact of every device."""

    def read(view: View) -> Samples:
        for device in view.snapshot.devices or ():
            series = device.figures.get(fact)
            if series:
                gpu = view.gpu(device.info.uuid)
                for labels, value in series.items():
                    yield (*gpu, *labels), value

    return read


def mig_figures(fact: str) -> Callable[[View], Samples]:
    """The figures of a fact of every MIG device."""

    def read(view: View) -> Samples:
        for _, mig in _migs(view):
            gpu = view.gpu(mig.info.uuid)
            for labels, value in mig.figures.get(fact, {}).items():
                yield (*gpu, *labels), value

    return read


def _migs(view: View) -> Iterable[tuple[Device, MigDevice]]:
    return ((device, mig) for device in view.snapshot.devices or () for mig in device.mig)


def mig_info(view: View) -> Samples:
    for device, mig in _migs(view):
        instances = (mig.info.gpu_instance, mig.info.compute_instance)
        known = ("" if instance is None else str(instance) for instance in instances)
        labels = (device.info.uuid, mig.info.profile, *known)
        yield (*view.gpu(mig.info.uuid), *labels), 1


def mig_multiprocessors(view: View) -> Samples:
    for _, mig in _migs(view):
        if mig.info.multiprocessors is not None:
            yield view.gpu(mig.info.uuid), mig.info.multiprocessors


INFO_LABELS = (
    "name",
    "driver_version",
    "cuda_version",
    "nvml_version",
    "pci_bus_id",
    "minor",
    "architecture",
    "brand",
    "compute_capability",
    "serial",
    "part_number",
    "vbios_version",
    "inforom_version",
    "inforom_oem_version",
    "inforom_ecc_version",
    "inforom_power_version",
    "pci_device_id",
    "pci_subsystem_id",
    "pci_class",
    "chassis_serial",
    "slot",
    "tray",
    "host_id",
    "module_id",
    "fabric_guid",
)
"""Fields of model.DeviceInfo."""


def device_info(view: View) -> Samples:
    for device in view.snapshot.devices or ():
        values = (getattr(device.info, name) for name in INFO_LABELS)
        labels = ("" if value is None else str(value) for value in values)
        yield (*view.gpu(device.info.uuid), *labels), 1


def device(value: Callable[[Device], float | None]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for device in view.snapshot.devices or ():
            known = value(device)
            if known is not None:
                yield view.gpu(device.info.uuid), known

    return read


def device_reason(view: View) -> Samples:
    for device in view.snapshot.devices or ():
        if device.reason is not None:
            yield (*view.gpu(device.info.uuid), device.reason), 1


def p2p(view: View) -> Samples:
    for device in view.snapshot.devices or ():
        for peer, status in device.info.p2p:
            yield (*view.gpu(device.info.uuid), peer), status


def missing(view: View) -> Samples:
    for device in view.snapshot.devices or ():
        for reason, count in sorted(device.missing.items()):
            yield (*view.gpu(device.info.uuid), reason), count


def listed(view: View) -> Samples:
    """Processes by the list of NVML's that they are in."""
    for device in view.snapshot.devices or ():
        if device.processes is not None:
            counts = Counter(kind for process in device.processes for kind in process.kinds)
            for kind in ("compute", "graphics", "mps"):
                yield (*view.gpu(device.info.uuid), kind), counts[kind]


def xids(view: View) -> Samples:
    return ((labels, xid.count) for labels, xid in _xids(view))


def xid_times(view: View) -> Samples:
    return ((labels, xid.last) for labels, xid in _xids(view))


def _xids(view: View) -> Iterable[tuple[Labels, Xid]]:
    """By GPU and code; those of GPUs of which no index is known together."""
    merged: dict[Labels, Xid] = {}
    plane = view.snapshot.plane
    for (uuid, code), xid in sorted(plane.xids.items()) if plane else ():
        labels = (*view.gpu(uuid), str(code))
        before = merged.get(labels, Xid(0, 0.0))
        merged[labels] = Xid(before.count + xid.count, max(before.last, xid.last))
    return merged.items()


def sample_ages(view: View) -> Samples:
    plane = view.snapshot.plane
    for name, at in plane.sampled.items() if plane else ():
        yield (name,), max(0.0, view.snapshot.at - at)


def garbage(view: View) -> Samples:
    plane = view.snapshot.plane
    return (((), plane.garbage),) if plane else ()


# --- processes --------------------------------------------------------------------------------


def device_process(value: Callable[[DeviceProcess], float | None]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for process in view.processes:
            for uuid, on_gpu in process.gpus.items():
                known = value(on_gpu)
                if known is not None:
                    yield (str(process.owner.pid), *view.gpu(uuid)), known

    return read


def share(value: Callable[[Share], float | None]) -> Callable[[DeviceProcess], float | None]:
    return lambda process: value(process.share) if process.share else None


def kinds(view: View) -> Samples:
    for process in view.processes:
        for uuid, on_gpu in process.gpus.items():
            for kind in on_gpu.kinds:
                yield (str(process.owner.pid), *view.gpu(uuid), kind), 1


# --- the node and the agent -------------------------------------------------------------------


def source_reasons(view: View) -> Samples:
    for source in view.snapshot.sources:
        if not source.up:
            yield (source.name, source.reason or "failed"), 1


def node(value: Callable[[NodeFacts], float | None]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        known = value(view.snapshot.node) if view.snapshot.node else None
        return () if known is None else (((), known),)

    return read


def work(value: Callable[[Work], float]) -> Callable[[View], Samples]:
    return node(lambda facts: None if facts.work is None else value(facts.work))


def shared_memory(value: Callable[[SharedMemory], float | None]) -> Callable[[View], Samples]:
    return node(lambda facts: None if facts.shared_memory is None else value(facts.shared_memory))


def pressures(view: View) -> Samples:
    for resource, pressure in view.snapshot.node.pressure.items() if view.snapshot.node else ():
        yield (resource, "some"), pressure.some
        if pressure.full is not None:
            yield (resource, "full"), pressure.full


def switches(view: View) -> Samples:
    if view.snapshot.node:
        yield ("voluntary",), view.snapshot.node.own.voluntary_switches
        yield ("involuntary",), view.snapshot.node.own.involuntary_switches
