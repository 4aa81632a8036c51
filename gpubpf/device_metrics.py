"""The rows of METRICS that come from NVML, most of them made of FACTS, and from the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpubpf.device_view import (
    INFO_LABELS,
    device,
    device_info,
    device_process,
    device_reason,
    figures,
    garbage,
    kinds,
    listed,
    mig_figures,
    mig_info,
    mig_multiprocessors,
    missing,
    node,
    p2p,
    pressures,
    sample_ages,
    share,
    shared_memory,
    source_reasons,
    switches,
    work,
    xid_times,
    xids,
)
from gpubpf.metric import COUNTER, GAUGE, GPU, INFO, ON, Metric
from gpubpf.model import DeviceProcess
from gpubpf.nvml.facts import FACTS


class OfProcess(NamedTuple):
    """A figure that NVML has of each process on a GPU."""

    name: str
    help: str
    value: Callable[[DeviceProcess], float | None]
    unit: str = "ratio"


# fmt: off
DEVICE_METRICS = (
    Metric(
        "gpubpf_gpu", INFO,
        "The GPU: constant 1, to join on.",
        (*GPU, *INFO_LABELS), device_info,
    ),
    Metric(
        "gpubpf_gpu_up", GAUGE,
        "1 if the GPU answers, else 0 and its figures are absent.",
        GPU, device(lambda d: d.reason is None),
    ),
    Metric(
        "gpubpf_gpu_down_reason", GAUGE,
        "Constant 1 while the GPU doesn't answer, with the reason.",
        (*GPU, "reason"), device_reason,
    ),
    Metric(
        "gpubpf_gpu_missing_metrics", GAUGE,
        "Metrics of this GPU that are absent, by the reason.",
        (*GPU, "reason"), missing,
    ),
    *(
        Metric(fact.metric, fact.kind, fact.help, (*GPU, *fact.labels), figures(fact.name),
               fact.unit)
        for fact in FACTS
    ),
    Metric(
        "gpubpf_gpu_p2p_status", GAUGE,
        "NVLink between the GPU and a peer: 0 works, 1 not by the chipset, 2 not by the GPU, 3 not "
        "by the topology, 4 disabled, 5 not supported, 6 unknown.",
        (*GPU, "peer_uuid"), p2p,
    ),
    Metric(
        "gpubpf_gpu_xid_errors", COUNTER,
        "XID errors since the agent's start, by code.",
        (*GPU, "xid"), xids,
    ),
    Metric(
        "gpubpf_gpu_xid_last_timestamp_seconds", GAUGE,
        "When the last XID error of this code came, since the Unix epoch.",
        (*GPU, "xid"), xid_times, "seconds",
    ),
    Metric(
        "gpubpf_gpu_processes", GAUGE,
        "Processes that the driver lists, by list; one may be in several.",
        (*GPU, "kind"), listed,
    ),
    Metric(
        "gpubpf_gpu_process_utilization_supported", GAUGE,
        "1 if the driver tells utilization by process on this GPU, else 0.",
        GPU, device(lambda d: d.process_utilization),
    ),
    # --- MIG ----------------------------------------------------------------------------------
    Metric(
        "gpubpf_mig", INFO,
        "The MIG device: constant 1; `uuid` is its own, `parent_uuid` its GPU's.",
        (*GPU, "parent_uuid", "profile", "gpu_instance", "compute_instance"), mig_info,
    ),
    Metric(
        "gpubpf_mig_multiprocessors", GAUGE,
        "Multiprocessors of the MIG device.",
        GPU, mig_multiprocessors,
    ),
    *(
        Metric(f"gpubpf_mig_{fact.name}", fact.kind, f"Of a MIG device. {fact.help}",
               (*GPU, *fact.labels), mig_figures(fact.name), fact.unit)
        for fact in FACTS if fact.mig
    ),
)

OF_EACH_PROCESS = (
    OfProcess(
        "sm_utilization_ratio",
        "Share of the driver's last sample period in which kernels ran.",
        share(lambda s: s.sm),
    ),
    OfProcess(
        "memory_utilization_ratio",
        "Share of the driver's last sample period in which the device's memory was used.",
        share(lambda s: s.memory),
    ),
    OfProcess(
        "encoder_utilization_ratio", "Share of the video encoder.", share(lambda s: s.encoder),
    ),
    OfProcess(
        "decoder_utilization_ratio", "Share of the video decoder.", share(lambda s: s.decoder),
    ),
    OfProcess(
        "jpeg_utilization_ratio", "Share of the JPEG engine.", share(lambda s: s.jpeg),
    ),
    OfProcess(
        "ofa_utilization_ratio", "Share of the optical flow accelerator.", share(lambda s: s.ofa),
    ),
    OfProcess(
        "memory_used_bytes", "Device memory that is held, by the driver's count.",
        lambda p: p.memory_used, "bytes",
    ),
)

DEVICE_PROCESS_METRICS = (
    Metric(
        "gpubpf_process_on_gpu", GAUGE,
        "Constant 1 for each list of the driver's that the process is in; uuid: of the MIG device "
        "where it is on one.",
        (*ON, "kind"), kinds,
    ),
    *(
        Metric(
            f"gpubpf_process_{row.name}", GAUGE, f"Of the process. {row.help}",
            ON, device_process(row.value), row.unit,
        )
        for row in OF_EACH_PROCESS
    ),
)

NODE_METRICS = (
    Metric(
        "gpubpf_node_shm_size_bytes", GAUGE,
        "Size of the node's /dev/shm.",
        (), shared_memory(lambda m: m.size or None), "bytes",
    ),
    Metric(
        "gpubpf_node_shm_used_bytes", GAUGE,
        "Use of the node's /dev/shm.",
        (), shared_memory(lambda m: m.used), "bytes",
    ),
    Metric(
        "gpubpf_node_container_shm_fullest_ratio", GAUGE,
        "Used part of the fullest /dev/shm among containers with GPU processes.",
        (), node(lambda n: n.fullest), "ratio",
    ),
    Metric(
        "gpubpf_node_container_shm", GAUGE,
        "Containers with GPU processes whose /dev/shm was looked at.",
        (), node(lambda n: n.containers),
    ),
    Metric(
        "gpubpf_node_gpu_processes", GAUGE,
        "Processes that use a GPU.",
        (), work(lambda w: w.processes),
    ),
    Metric(
        "gpubpf_node_gpu_process_threads", GAUGE,
        "Threads of the processes that use a GPU.",
        (), work(lambda w: w.threads),
    ),
    Metric(
        "gpubpf_node_gpu_process_cpu_seconds", COUNTER,
        "CPU time that GPU processes used since the agent saw them; ended ones included.",
        (), work(lambda w: w.cpu_seconds), "seconds",
    ),
    Metric(
        "gpubpf_node_gpu_process_resident_bytes", GAUGE,
        "Resident host memory of the GPU processes; pages that are shared count in each.",
        (), work(lambda w: w.resident), "bytes",
    ),
    Metric(
        "gpubpf_node_gpu_process_resident_shared_bytes", GAUGE,
        "Of the resident host memory of the GPU processes, what is in shared memory.",
        (), work(lambda w: w.resident_shared), "bytes",
    ),
    Metric(
        "gpubpf_node_pressure_seconds", COUNTER,
        "Time in which some, or all, tasks of the node waited for a resource.",
        ("resource", "tasks"), pressures, "seconds",
    ),
)

DEVICE_AGENT_METRICS = (
    Metric(
        "gpubpf_agent_source_down_reason", GAUGE,
        "Constant 1 while the source can't be read, with the reason.",
        ("source", "reason"), source_reasons,
    ),
    Metric(
        "gpubpf_agent_sample_age_seconds", GAUGE,
        "Age of the newest samples of a class when this snapshot was made.",
        ("class",), sample_ages, "seconds",
    ),
    Metric(
        "gpubpf_agent_garbage_figures", COUNTER,
        "Figures and rows of the driver's that could not be true, and were dropped.",
        (), garbage,
    ),
    Metric(
        "gpubpf_agent_context_switches", COUNTER,
        "Context switches of the agent.",
        ("kind",), switches,
    ),
    Metric(
        "gpubpf_agent_major_faults", COUNTER,
        "Page faults of the agent that had to wait for storage.",
        (), node(lambda n: n.own.major_faults),
    ),
    Metric(
        "gpubpf_agent_read_bytes", COUNTER,
        "Bytes that the agent had read from storage.",
        (), node(lambda n: n.own.read_bytes), "bytes",
    ),
    Metric(
        "gpubpf_agent_written_bytes", COUNTER,
        "Bytes that the agent had written to storage.",
        (), node(lambda n: n.own.written_bytes), "bytes",
    ),
)
# fmt: on
