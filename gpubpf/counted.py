"""The facts that the probes count, once for all whose they are: GPUs, jobs and processes.

A row of COUNTED is a fact under one name in each scope: `gpubpf_gpu_X`, `gpubpf_job_X` and, where
it is worth a series of each process, `gpubpf_process_X`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpubpf.metric import COUNTER, GAUGE, GPU, JOB_ON, ON, Metric
from gpubpf.model import Labels
from gpubpf.symbols import DIRECTIONS, KINDS
from gpubpf.view import (
    Held,
    Rows,
    Samples,
    View,
    gpus,
    held,
    held_by_job,
    held_by_process,
    jobs,
    lane,
    processes,
    variants,
)


class Scope(NamedTuple):
    """Whose the facts are."""

    prefix: str  # of the metrics' names
    help: str  # in front of a fact's own
    labels: Labels
    rows: Rows
    held: Held


OF_GPUS = Scope("gpubpf_gpu_", "", GPU, gpus, held)
OF_JOBS = Scope("gpubpf_job_", "Of the job. ", JOB_ON, jobs, held_by_job)
OF_PROCESSES = Scope("gpubpf_process_", "Of the process. ", ON, processes, held_by_process)

Read = Callable[[Scope], Callable[[View], Samples]]


class Counted(NamedTuple):
    name: str
    help: str
    read: Read
    group: str
    unit: str = ""
    label: str = ""  # besides the scope's
    kind: str = COUNTER
    per_process: bool = True  # whether each process has it, too


def _lane(fact: str, scale: float = 1) -> Read:
    return lambda scope: lane(scope.rows, fact, scale)


def _variants(fact: str, names: Labels) -> Read:
    return lambda scope: variants(scope.rows, fact, names)


def _held(made: str, *gone: str) -> Read:
    return lambda scope: scope.held(made, *gone)


_SEEN = KINDS[:-1]  # the last is of frees whose allocation wasn't

# A table, kept as one.
# fmt: off
COUNTED: tuple[Counted, ...] = (
    Counted(
        "kernel_launches",
        "Kernels launched directly, by any launch function; those issued in a capture are not in.",
        _lane("kernel_launches"), "launch",
    ),
    Counted(
        "captured_launches",
        "Kernel launches issued while their stream was being captured: they became graph nodes.",
        _lane("captured_launches"), "launch state",
    ),
    Counted(
        "graph_launches",
        "CUDA graphs launched.",
        _lane("graph_launches"), "launch",
    ),
    Counted(
        "graph_kernels",
        "Kernels run by graph launches; direct launches plus these are the kernels run.",
        _lane("graph_kernels"), "launch state",
    ),
    Counted(
        "graph_launches_of_unknown_size",
        "Of the graph launches, those of graphs whose kernels are not known and not counted.",
        _lane("unknown_graph_launches"), "launch",
    ),
    Counted(
        "host_functions",
        "Host functions enqueued to a stream.",
        _lane("host_functions"), "launch", per_process=False,
    ),
    Counted(
        "allocations",
        "Successful allocations, by kind of memory.",
        _variants("allocations", _SEEN), "memory", "", "kind", per_process=False,
    ),
    Counted(
        "allocated_bytes",
        "Bytes requested by successful allocations, by kind of memory.",
        _variants("allocated_bytes", _SEEN), "memory", "bytes", "kind",
    ),
    Counted(
        "frees",
        "Allocations freed by a call, by kind of memory; unknown: the allocation was not seen.",
        _variants("frees", KINDS), "memory", "", "kind", per_process=False,
    ),
    Counted(
        "freed_bytes",
        "Bytes of the allocations freed by a call, by kind of memory.",
        _variants("freed_bytes", _SEEN), "memory", "bytes", "kind",
    ),
    Counted(
        "implicit_frees",
        "Allocations that went with their context or their process, freed by no call.",
        _variants("implicit_frees", _SEEN), "memory", "", "kind", per_process=False,
    ),
    Counted(
        "implicitly_freed_bytes",
        "Bytes of the allocations that went with their context or their process.",
        _variants("implicitly_freed_bytes", _SEEN), "memory", "bytes", "kind", per_process=False,
    ),
    Counted(
        "live_allocations",
        "Allocations that living processes made and that are not freed, by kind of memory.",
        _held("allocations", "frees", "implicit_frees"), "memory", "", "kind", GAUGE,
    ),
    Counted(
        "live_bytes",
        "Bytes requested by living processes and not yet freed, by kind of memory.",
        _held("allocated_bytes", "freed_bytes", "implicitly_freed_bytes"),
        "memory", "bytes", "kind", GAUGE,
    ),
    Counted(
        "copied_bytes",
        "Bytes that copies asked for, by direction; unknown: unified addresses.",
        _variants("copied_bytes", DIRECTIONS), "copy", "bytes", "direction",
    ),
    Counted(
        "set_bytes",
        "Bytes that memory sets asked for.",
        _lane("set_bytes"), "copy", "bytes", per_process=False,
    ),
    Counted(
        "captured_copied_bytes",
        "Bytes of copies issued while their stream was being captured: they became graph nodes.",
        _lane("captured_copied_bytes"), "copy state", "bytes", per_process=False,
    ),
    Counted(
        "captured_set_bytes",
        "Bytes of memory sets issued while their stream was being captured.",
        _lane("captured_set_bytes"), "copy state", "bytes", per_process=False,
    ),
    Counted(
        "waits",
        "Synchronizing calls.",
        _lane("waits"), "wait", per_process=False,
    ),
    Counted(
        "wait_seconds",
        "Host time spent blocked in synchronizing calls.",
        _lane("wait_nanoseconds", 1e-9), "wait", "seconds",
    ),
)
# fmt: on


def counted(scope: Scope) -> tuple[Metric, ...]:
    """The facts of a scope, as rows of METRICS."""
    return tuple(
        Metric(
            scope.prefix + row.name,
            row.kind,
            scope.help + row.help,
            (*scope.labels, row.label) if row.label else scope.labels,
            row.read(scope),
            row.unit,
            row.group,
        )
        for row in COUNTED
        if row.per_process or scope is not OF_PROCESSES
    )
