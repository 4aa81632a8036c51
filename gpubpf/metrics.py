"""METRICS: one row per metric, with how to read it from a Snapshot. The README's table is made of
it.

Conventions are Prometheus's: base units, `_total` on counters, one fact under one name per scope.
What is not known is absent. A row that needs a probe group is absent, not 0, without the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from gpubpf import __version__
from gpubpf.compat import DCGM, NVIDIA_SMI, dcgm, nvidia_smi
from gpubpf.counted import OF_GPUS, OF_PROCESSES, counted
from gpubpf.device_metrics import (
    DEVICE_AGENT_METRICS,
    DEVICE_METRICS,
    DEVICE_PROCESS_METRICS,
    NODE_METRICS,
)
from gpubpf.diagnosis_view import inputs, verdicts
from gpubpf.job_metrics import JOB_METRICS
from gpubpf.metric import COUNTER, GAUGE, HISTOGRAM, INFO, Metric, Value
from gpubpf.metric import GPU as _GPU
from gpubpf.metric import ON as _ON
from gpubpf.metric import PID as _PID
from gpubpf.model import Labels
from gpubpf.view import (
    View,
    agent,
    attached,
    by_key,
    fragmentation,
    gpus,
    node_calls,
    node_errors,
    peaks,
    process_calls,
    process_info,
    process_start,
    sizes,
    unattributed,
    without_series,
)

# A table, kept as one: a row is its name and type, its help, its labels and its reading.
# fmt: off
METRICS: tuple[Metric, ...] = (
    # --- node ---------------------------------------------------------------------------------
    Metric(
        "gpubpf_calls", COUNTER,
        "Calls into each probed function of the CUDA driver on this node, since the agent started.",
        ("function",), node_calls,
    ),
    Metric(
        "gpubpf_call_errors", COUNTER,
        "Calls that returned an error, where the return is probed (all but launches).",
        ("function", "error"), node_errors,
    ),
    # --- calls, by device ---------------------------------------------------------------------
    *counted(OF_GPUS),
    Metric(
        "gpubpf_gpu_allocation_size_bytes", HISTOGRAM,
        "Sizes requested by successful allocations, of all kinds but host memory.",
        _GPU, sizes(gpus), "bytes", "memory",
    ),
    Metric(
        "gpubpf_gpu_memory_fragmentation_ratio", GAUGE,
        "1 - live bytes / bytes of the 2 MiB granules that live allocations touch.",
        _GPU, fragmentation, "ratio", "memory",
    ),
    Metric(
        "gpubpf_gpu_memory_unattributed_bytes", GAUGE,
        "Device memory in use by the driver's count, less the granules of live allocations.",
        _GPU, unattributed, "bytes", "memory",
    ),
    *DEVICE_METRICS,
    # --- what follows from both ------------------------------------------------------------------
    Metric(
        "gpubpf_gpu_diagnosis", GAUGE,
        "1 where it is so of the GPU (see Diagnoses), else 0; absent where not known.",
        (*_GPU, "diagnosis"), verdicts(jobs=False),
    ),
    Metric(
        "gpubpf_gpu_diagnosis_input", GAUGE,
        "What the GPU's diagnoses follow from, in seconds, bytes, ratios and per second.",
        (*_GPU, "input"), inputs(jobs=False),
    ),
    # --- jobs: only with --jobs ------------------------------------------------------------------
    *JOB_METRICS,
    # --- processes: only with --process-metrics -----------------------------------------------
    Metric(
        "gpubpf_process", INFO,
        "The process: constant 1, to join on.",
        (*_PID, "name", "user"), process_info,
    ),
    Metric(
        "gpubpf_process_start_time_seconds", GAUGE,
        "When the process started, since the Unix epoch.",
        _PID, process_start, "seconds",
    ),
    Metric(
        "gpubpf_process_calls", COUNTER,
        "Calls of the process into each probed function that it has called.",
        (*_PID, "function"), process_calls,
    ),
    *counted(OF_PROCESSES),
    Metric(
        "gpubpf_process_peak_live_bytes", GAUGE,
        "The most that the process held at once, of all kinds but host memory; "
        "at most so much where its device was not known from the start.",
        _ON, peaks, "bytes", "memory",
    ),
    *DEVICE_PROCESS_METRICS,
    *NODE_METRICS,
    # --- the agent ----------------------------------------------------------------------------
    Metric(
        "gpubpf_agent", INFO,
        "The agent: constant 1.",
        ("version",), lambda view: [((__version__,), 1)],
    ),
    Metric(
        "gpubpf_agent_start_time_seconds", GAUGE,
        "When the agent started, since the Unix epoch.",
        (), agent(lambda a: a.start_time), "seconds",
    ),
    Metric(
        "gpubpf_agent_cpu_seconds", COUNTER,
        "CPU time used by the agent.",
        (), agent(lambda a: a.cpu_seconds), "seconds",
    ),
    Metric(
        "gpubpf_agent_memory_bytes", GAUGE,
        "Resident memory of the agent.",
        (), agent(lambda a: a.memory), "bytes",
    ),
    Metric(
        "gpubpf_agent_loader_peak_bytes", GAUGE,
        "Peak resident memory of the child that compiled the probes at start.",
        (), agent(lambda a: a.loader_peak), "bytes",
    ),
    Metric(
        "gpubpf_agent_source_up", GAUGE,
        "1 if the source could be read for this snapshot, else 0.",
        ("source",), by_key(lambda s: ((source.name, source.up) for source in s.sources)),
    ),
    Metric(
        "gpubpf_agent_source_read_seconds", GAUGE,
        "How long the source's last read took.",
        ("source",), by_key(lambda s: ((source.name, source.seconds) for source in s.sources)),
        "seconds",
    ),
    *DEVICE_AGENT_METRICS,
    Metric(
        "gpubpf_agent_probe_attached", GAUGE,
        "Library copies in which the function is probed, and where in the function.",
        ("function", "at"), attached,
    ),
    Metric(
        "gpubpf_agent_library_copies", GAUGE,
        "Files of libcuda in use: attached; no_room for more; served by a user's program; "
        "or looks that are stuck.",
        ("state",), by_key(lambda s: s.agent.copies.items() if s.agent else ()),
    ),
    Metric(
        "gpubpf_agent_library_events", COUNTER,
        "Files named libcuda that could not be probed (refused), and those that nobody used any "
        "more (detached).",
        ("event",), by_key(lambda s: s.agent.copy_events.items() if s.agent else ()),
    ),
    Metric(
        "gpubpf_agent_pointers_elsewhere", GAUGE,
        "Driver functions whose pointer from cuGetProcAddress isn't the probed export; 0 is well.",
        (), agent(lambda a: a.pointers_elsewhere),
    ),
    Metric(
        "gpubpf_agent_attributions", COUNTER,
        "How often it was told which GPU a process's device is, by what told; "
        "unknown: nothing could.",
        ("source",), by_key(lambda s: s.attributions.items()),
    ),
    Metric(
        "gpubpf_agent_map_entries", GAUGE,
        "Entries in use of a BPF map.",
        ("map",), by_key(lambda s: s.entries.items()),
    ),
    Metric(
        "gpubpf_agent_map_capacity", GAUGE,
        "Entries that a BPF map can hold.",
        ("map",),
        by_key(lambda s: ((m, s.capacity[m]) for m in s.entries if m in s.capacity)),
    ),
    Metric(
        "gpubpf_agent_lost", COUNTER,
        "What could not be kept, by the map that was full or the reason. Calls are still counted.",
        ("map",), by_key(lambda s: s.lost.items()),
    ),
    Metric(
        "gpubpf_agent_processes_without_series", GAUGE,
        "Processes beyond the cap on series of their own.",
        (), without_series,
    ),
)

SNAPSHOT_AGE = Metric(
    "gpubpf_agent_snapshot_age_seconds", GAUGE,
    "Age of what this page shows.",
    (), lambda view: (), "seconds",
)
SERIES = Metric(
    "gpubpf_agent_series", GAUGE,
    "Series on this page.",
    (), lambda view: (),
)
# fmt: on

LATE = (SERIES, SNAPSHOT_AGE)
"""Known only when the page is served (`gpubpf.render.tail`)."""


COMPAT = {DCGM: dcgm.METRICS, NVIDIA_SMI: nvidia_smi.METRICS}
"""What --compat adds: the same facts under other exporters' names."""


def present(view: View) -> Iterator[tuple[Metric, list[tuple[Labels, Value]]]]:
    """Every metric that has something to say of this Snapshot, with its samples."""
    for metric in chain(METRICS, *(COMPAT[flavour] for flavour in view.compat)):
        if view.groups.issuperset(metric.group.split()):
            samples: list[tuple[Labels, Value]] = list(metric.read(view))
            if samples:
                yield metric, samples
