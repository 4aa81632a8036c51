"""nvidia_gpu_exporter's metrics: those of `gpubpf.compat.smi_rows`, and those with other labels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from gpubpf.compat.row import Figure, Row, instances, whole_mebibytes
from gpubpf.compat.smi_rows import MIG_ROWS, ROWS
from gpubpf.metric import COUNTER, GAUGE, INFO, Metric
from gpubpf.model import Device, Labels, Source
from gpubpf.view import Samples, View

PREFIX = "nvidia_smi_"
ABSENT = "[N/A]"  # what the exporter's info labels hold where there is nothing


def _uuid(text: str) -> str:
    """As that exporter writes it: its dashboards show the first characters."""
    return text.lower().removeprefix("gpu-").removeprefix("mig-")


def _devices(view: View) -> tuple[Device, ...]:
    return view.snapshot.devices or ()


def _by_gpu(row: Row) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for device in _devices(view):
            value = row.source.read(view, device)
            if value is not None:
                yield (_uuid(device.info.uuid),), value

    return read


def _by_instance(row: Row) -> Callable[[View], Samples]:
    figure = row.source
    assert isinstance(figure, Figure)

    def read(view: View) -> Samples:
        for device in _devices(view):
            for number, _, mig in instances(device):
                value = figure.of(mig.figures)
                if value is not None:
                    yield (_uuid(device.info.uuid), str(number)), value

    return read


# --- identity -----------------------------------------------------------------------------------

INFO_LABELS = (
    "uuid",
    "name",
    "driver_model_current",  # of Windows
    "driver_model_pending",
    "vbios_version",
    "driver_version",
    "pci_bus_id",
    "serial",
    "compute_cap",
    "pci_sub_device_id",
    "index",
    "cuda_version",
)


def _gpu_info(view: View) -> Samples:
    for device in _devices(view):
        info = device.info
        known = {
            "uuid": _uuid(info.uuid),
            "name": info.name,
            "vbios_version": info.vbios_version,
            "driver_version": info.driver_version,
            "pci_bus_id": info.pci_bus_id,
            "serial": info.serial,
            "compute_cap": info.compute_capability,
            "pci_sub_device_id": info.pci_subsystem_id,
            "index": str(info.index),
        }
        labels = tuple(known.get(name) or ABSENT for name in INFO_LABELS[:-1])
        yield (*labels, info.cuda_version or ""), 1


def _mig_info(view: View) -> Samples:
    for device in _devices(view):
        for mig in device.mig:
            ids = (mig.info.gpu_instance, mig.info.compute_instance)
            known = ("" if number is None else str(number) for number in ids)
            yield (_uuid(device.info.uuid), _uuid(mig.info.uuid), *known, mig.info.profile), 1


# --- XID errors ---------------------------------------------------------------------------------


def _xids(view: View) -> Samples:
    plane = view.snapshot.plane
    for (gpu, code), xid in sorted(plane.xids.items()) if plane else ():
        yield (_uuid(gpu), str(code)), xid.count


def _xid_times(view: View) -> Samples:
    plane = view.snapshot.plane
    for (gpu, code), xid in sorted(plane.xids.items()) if plane else ():
        yield (_uuid(gpu), str(code)), xid.last


# --- processes ----------------------------------------------------------------------------------


def _apps(view: View) -> Samples:
    for device in _devices(view):
        if device.processes is not None:
            pids = {process.pid for process in device.processes if "compute" in process.kinds}
            yield (_uuid(device.info.uuid),), len(pids)


def _apps_read(view: View) -> Samples:
    devices = _devices(view)
    return (((), all(d.processes is not None for d in devices)),) if devices else ()


def _app_memory(view: View) -> dict[Labels, list[int | None]]:
    """By process and GPU: what it holds on it, on each MIG device."""
    boards = {mig.info.uuid: d.info.uuid for d in _devices(view) for mig in d.mig}
    found: dict[Labels, list[int | None]] = defaultdict(list)
    for process in view.processes:
        name = process.process.name if process.process else ""
        for gpu, on_gpu in process.gpus.items():
            if "compute" in on_gpu.kinds:
                labels = (_uuid(boards.get(gpu, gpu)), str(process.owner.pid), name)
                found[labels].append(on_gpu.memory_used)
    return found


def _app_info(view: View) -> Samples:
    return ((labels, 1) for labels in _app_memory(view))


def _app_memory_used(view: View) -> Samples:
    for labels, parts in _app_memory(view).items():
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            yield labels, whole_mebibytes(sum(known))


# --- the exporter itself ------------------------------------------------------------------------


def _source(value: Callable[[Source], float]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        return (((), value(s)) for s in view.snapshot.sources if s.name == "nvml")

    return read


def _last_success(view: View) -> Samples:
    sampled = view.snapshot.plane.sampled if view.snapshot.plane else {}
    newest = max(sampled.values(), default=math.nan)
    age = view.snapshot.at - newest
    return () if math.isnan(age) else (((), view.snapshot.time - age),)


_READERS: Sequence[tuple[Sequence[Row], Labels, Callable[[Row], Callable[[View], Samples]]]] = (
    (ROWS, ("uuid",), _by_gpu),
    (MIG_ROWS, ("uuid", "gpu_instance_id"), _by_instance),
)


def _metrics() -> Iterable[Metric]:
    for rows, labels, reader in _READERS:
        for row in rows:
            name = row.name.removesuffix("_total") if row.kind == COUNTER else row.name
            yield Metric(PREFIX + name, row.kind, row.help, labels, reader(row))


# fmt: off
_XID, _APP = ("uuid", "xid"), ("uuid", "pid", "process_name")
METRICS = (
    *_metrics(),
    Metric("nvidia_smi_gpu", INFO, "The GPU: constant 1, to join on.", INFO_LABELS, _gpu_info),
    Metric("nvidia_smi_mig", INFO, "The MIG device: constant 1, to join on.",
           ("uuid", "mig_uuid", "gpu_instance_id", "compute_instance_id", "profile"), _mig_info),
    Metric("nvidia_smi_xid_errors", COUNTER, "XID errors since the agent's start, by code.",
           _XID, _xids),
    Metric("nvidia_smi_xid_last_timestamp_seconds", GAUGE,
           "When the last XID error of this code came, since the Unix epoch.", _XID, _xid_times),
    Metric("nvidia_smi_compute_apps", GAUGE, "Processes with a compute context.",
           ("uuid",), _apps),
    Metric("nvidia_smi_compute_apps_last_collect_success", GAUGE,
           "1 where the processes of every GPU are known, else 0.", (), _apps_read),
    Metric("nvidia_smi_compute_app", INFO, "The process: constant 1, to join on.",
           _APP, _app_info),
    Metric("nvidia_smi_compute_app_used_memory_bytes", GAUGE,
           "Device memory that the process holds, in bytes, whole MiB.", _APP, _app_memory_used),
    Metric("nvidia_smi_last_collect_success", GAUGE, "1 if NVML could be read, else 0.",
           (), _source(lambda source: source.up)),
    Metric("nvidia_smi_last_collect_duration_seconds", GAUGE, "How long the last look took.",
           (), _source(lambda source: source.seconds)),
    Metric("nvidia_smi_last_collect_success_timestamp_seconds", GAUGE,
           "When the newest figures were read, since the Unix epoch.", (), _last_success),
)
# fmt: on

OTHERS = {
    "nvidia_smi_gpu_info": "gpubpf_gpu_info",
    "nvidia_smi_mig_info": "gpubpf_mig_info",
    "nvidia_smi_xid_errors_total": "gpubpf_gpu_xid_errors_total{xid}",
    "nvidia_smi_xid_last_timestamp_seconds": "gpubpf_gpu_xid_last_timestamp_seconds{xid}",
    "nvidia_smi_compute_apps": 'gpubpf_gpu_processes{kind="compute"}',
    "nvidia_smi_compute_apps_last_collect_success": "gpubpf_gpu_processes",
    "nvidia_smi_compute_app_info": 'gpubpf_process_on_gpu{kind="compute"}',
    "nvidia_smi_compute_app_used_memory_bytes": "gpubpf_process_memory_used_bytes",
    "nvidia_smi_last_collect_success": 'gpubpf_agent_source_up{source="nvml"}',
    "nvidia_smi_last_collect_duration_seconds": 'gpubpf_agent_source_read_seconds{source="nvml"}',
    "nvidia_smi_last_collect_success_timestamp_seconds": "gpubpf_agent_sample_age_seconds{class}",
}
"""Those with other labels, and what they are with us."""
