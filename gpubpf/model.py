"""The values that flow through gpubpf: frozen, without I/O, importing nothing of ours.

Sources produce `Reading`s; `join` turns them and its ledger into a `Snapshot`; the exporter,
`top` and the sessions only look at Snapshots. Units are base units throughout: bytes, seconds,
watts, joules, degrees Celsius, ratios from 0 to 1. `None` means "not known" (unsupported, no
sample, no permission) and becomes an absent series; it is never the same as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

UNKNOWN_GPU = "unknown"
"""The `gpu` and `uuid` label of whatever can't be attributed to a device."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What one source said at one time: a value, or the reason why there is none."""

    source: str
    at: float  # seconds, CLOCK_MONOTONIC, when the read began
    seconds: float  # how long the read took
    value: T | None = None
    error: str | None = None  # one line for a person; None when `value` is set


# --- from BPF ----------------------------------------------------------------------------------


class Owner(NamedTuple):
    """The kernel-side identity of a calling process.

    `pid` is the process (tgid) in the initial pid namespace. `born` is the boot-time clock in
    nanoseconds at its first probed call: (pid, born) is unique even when the pid is used again.
    born == 0: it made no probed call, NVML lists it. Owner(0, 0) stands for every process that
    did not fit into the kernel's map. (A tuple: it is a key in every table, and hashed in C.)
    """

    pid: int
    born: int


@dataclass(frozen=True, slots=True)
class Calls:
    """One read of the BPF maps.

    Counters are packed vectors (see `gpubpf.lanes`): one integer per process, of 64-bit lanes.
    """

    live: Mapping[Owner, int]
    ended: Mapping[Owner, int]  # exited since the last read; each is reported exactly once
    overflow: int  # calls whose process did not fit into the map
    errors: Mapping[tuple[Owner, str, int], int]  # (process, function, CUresult) -> count
    lost: Mapping[str, int]  # map name -> what could not be stored there, since start
    entries: Mapping[str, int]  # map name -> entries in use
    capacity: Mapping[str, int]  # map name -> max_entries


@dataclass(frozen=True, slots=True)
class Attached:
    """One probed function of one library copy."""

    library: str  # path as found, for a person
    function: str
    at: str  # "stub+10", "entry", or "absent" | "alias" where nothing is attached

    @property
    def probed(self) -> bool:
        return self.at not in ("absent", "alias")


# --- from NVML ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What does not change while the driver is loaded."""

    index: int  # NVML index
    uuid: str  # "GPU-…"
    name: str
    driver_version: str
    pci_bus_id: str | None = None
    cuda_version: str | None = None  # the newest CUDA that the driver supports, "12.2"


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """One process on one device. Utilizations are ratios over NVML's newest sample."""

    pid: int
    memory_used: int | None = None  # bytes; None where NVML has no per-process figure
    sm: float | None = None
    memory: float | None = None  # memory-controller utilization
    encoder: float | None = None
    decoder: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    info: DeviceInfo
    utilization: float | None = None  # ratio of time in which a kernel ran
    memory_utilization: float | None = None  # ratio of time in which memory was read or written
    memory_used: int | None = None
    memory_free: int | None = None
    memory_total: int | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    energy: float | None = None  # joules since the driver was loaded
    processes: tuple[DeviceProcess, ...] | None = None  # None: NVML could not list them


# --- from /proc --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A process as the operating system knows it; (pid, start_time) is its identity."""

    pid: int
    start_time: float  # seconds since the Unix epoch
    name: str = ""  # comm, 15 characters at most
    user: str = ""
    command: str = ""  # the command line, shortened and printable


# --- what everything downstream looks at --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One living process with everything known of it."""

    owner: Owner
    process: Process | None  # None: it was gone before it could be looked up
    counters: int  # packed vector since its first call
    gpus: Mapping[str, DeviceProcess] = field(default_factory=dict)  # by GPU UUID
    errors: Mapping[tuple[str, int], int] = field(default_factory=dict)  # (function, CUresult)


@dataclass(frozen=True, slots=True)
class Source:
    """How a source is doing, for the agent's self-metrics."""

    name: str
    up: bool
    error: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent about itself."""

    start_time: float  # Unix seconds
    cpu_seconds: float  # user and system time used so far
    memory: int  # resident bytes
    loader_peak: int  # peak resident bytes of the child that compiled the probes
    pointers_elsewhere: int | None = None  # functions that the driver hands out past the probes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the node at one time. Immutable; counters never go back between Snapshots."""

    at: float  # CLOCK_MONOTONIC seconds
    time: float  # Unix seconds
    functions: tuple[str, ...]  # the probed functions, in lane order
    totals: Mapping[str, int]  # GPU UUID or UNKNOWN_GPU -> packed vector, ended processes included
    errors: Mapping[tuple[str, int], int]  # (function, CUresult) -> count on this node
    devices: tuple[Device, ...] | None  # None: NVML is not there or failed
    processes: tuple[ProcessView, ...]
    indices: Mapping[str, int] = field(default_factory=dict)  # GPU UUID -> last known NVML index
    ended: tuple[ProcessView, ...] = ()  # exited since the Snapshot before; each in one Snapshot
    attached: Sequence[Attached] = ()
    sources: tuple[Source, ...] = ()
    lost: Mapping[str, int] = field(default_factory=dict)
    entries: Mapping[str, int] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    agent: Agent | None = None
