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

Labels = tuple[str, ...]
"""The values of a series' labels, or their names."""

UNKNOWN_GPU = "unknown"
"""The `gpu` and `uuid` label of whatever can't be attributed to a device."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What one source said at one time: a value, or the reason why there is none, or little."""

    source: str
    at: float  # seconds, CLOCK_MONOTONIC, when the read began
    seconds: float  # how long the read took
    value: T | None = None
    error: str | None = None  # one line for a person; None: all is well
    reason: str | None = None  # the same in one word, of a bounded set


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


Ordinal = int | None
"""A CUDA device ordinal of a process; None: the kernel side doesn't know on which device it was."""

Place = tuple[Owner, Ordinal]
"""A process and one of its devices."""


class Part(NamedTuple):
    """What a process did on one of its devices."""

    counters: int  # packed vector of facts (see `gpubpf.lanes`)
    live: int  # requested bytes of device memory that it holds: a gauge
    peak: int  # the most that it held


class Activity(NamedTuple):
    """What a process did: its calls, as a packed vector, and the rest by device."""

    calls: int
    parts: Mapping[Ordinal, Part]

    @property
    def counters(self) -> int:
        """Everything together, as one packed vector."""
        return self.calls + sum(part.counters for part in self.parts.values())


@dataclass(frozen=True, slots=True)
class Asked:
    """What the driver answered a process about one ordinal, as it stood in its memory."""

    uuid: bytes | None = None  # 16 bytes
    pci_bus_id: str | None = None  # "0000:3b:00.0"


class Footprint(NamedTuple):
    """What live allocations take of a device's memory, by their addresses and sizes."""

    live: int  # bytes requested
    granules: int  # bytes of the 2 MiB granules that they touch


@dataclass(frozen=True, slots=True)
class Calls:
    """One read of the BPF maps.

    Counters are packed vectors (see `gpubpf.lanes`): one integer of 64-bit lanes.
    """

    live: Mapping[Owner, Activity]
    ended: Mapping[Owner, Activity]  # exited since the last read; each is reported exactly once
    overflow: int  # what processes did that did not fit into the map
    errors: Mapping[tuple[Owner, str, int], int]  # (process, function, CUresult) -> count
    lost: Mapping[str, int]  # map name -> what could not be stored there, since start
    entries: Mapping[str, int]  # map name -> entries in use
    capacity: Mapping[str, int]  # map name -> max_entries
    asked: Mapping[Owner, Mapping[int, Asked]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attached:
    """One probed function of one library copy."""

    library: str  # path as found, for a person
    function: str
    at: str  # "stub+10", "entry", or "absent" | "alias" | "unneeded" where nothing is attached

    @property
    def probed(self) -> bool:
        return self.at not in ("absent", "alias", "unneeded")


# --- from NVML ---------------------------------------------------------------------------------

Figures = Mapping[str, Mapping[Labels, float]]
"""Figures of a device: by a fact's name (see `gpubpf.nvml.facts`), then by its label values."""

COMPUTE, MEMORY, LINKS, HEAT, PROCESSES = "compute", "memory", "links", "heat", "processes"
CLASSES = (COMPUTE, PROCESSES, MEMORY, LINKS, HEAT)
"""What is sampled together, each at an interval of its own."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What does not change while the driver is loaded and the board isn't divided anew."""

    index: int  # NVML index
    uuid: str  # "GPU-…"
    name: str
    driver_version: str
    pci_bus_id: str | None = None
    minor: int | None = None  # N of /dev/nvidiaN
    mig: bool = False  # divided into MIG devices, or not known not to be
    children: tuple[str, ...] = ()  # UUIDs of its MIG devices
    cuda_version: str | None = None  # the newest CUDA that the driver supports, "12.2"
    nvml_version: str = ""
    serial: str = ""
    part_number: str = ""
    vbios_version: str = ""
    inforom_version: str = ""
    inforom_oem_version: str = ""
    inforom_ecc_version: str = ""
    inforom_power_version: str = ""
    pci_device_id: str = ""  # "0x233010DE": the device's, then the vendor's
    pci_subsystem_id: str = ""
    pci_class: str = ""  # "0302": base class and sub-class, as lspci writes it
    architecture: str = ""  # "Hopper"
    brand: str = ""
    compute_capability: str = ""  # "9.0"
    chassis_serial: str = ""  # of the rack's chassis; these six where the platform tells them
    slot: str = ""
    tray: str = ""
    host_id: str = ""  # of the node, in its tray
    module_id: str = ""  # of the GPU, in its node
    fabric_guid: str = ""  # "0x…"
    p2p: tuple[tuple[str, int], ...] = ()  # (UUID of another GPU, nvmlGpuP2PStatus_t of NVLink)


class Share(NamedTuple):
    """Utilization of a device by one process: ratios over NVML's newest sample."""

    sm: float
    memory: float  # memory-controller utilization
    encoder: float
    decoder: float
    jpeg: float | None = None  # from driver 550 on
    ofa: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """One process on one device."""

    pid: int
    memory_used: int | None = None  # bytes; None where NVML has no per-process figure
    kinds: tuple[str, ...] = ()  # the lists that it is in: "compute", "graphics", "mps"
    mig: str | None = None  # UUID of the MIG device that it is on
    share: Share | None = None  # None: not supported


@dataclass(frozen=True, slots=True)
class MigInfo:
    """A MIG device, until the board is divided anew."""

    uuid: str  # "MIG-…"
    profile: str  # "1g.10gb"
    gpu_instance: int | None = None
    compute_instance: int | None = None
    multiprocessors: int | None = None


@dataclass(frozen=True, slots=True)
class MigDevice:
    """A MIG device and what is measured of it."""

    info: MigInfo
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU and the newest sample of each class."""

    info: DeviceInfo
    figures: Figures = field(default_factory=dict)
    processes: tuple[DeviceProcess, ...] | None = None  # None: NVML could not list them
    mig: tuple[MigDevice, ...] = ()
    reason: str | None = None  # why it can't be asked; None: it can
    missing: Mapping[str, int] = field(default_factory=dict)  # facts without a figure, by reason
    process_utilization: bool | None = None  # whether NVML tells it here; None: not known yet

    def get(self, fact: str, *labels: str) -> float | None:
        """The figure of a fact, or None."""
        return self.figures.get(fact, {}).get(labels)


@dataclass(frozen=True, slots=True)
class Xid:
    """XID errors of one code on one GPU since the agent's start."""

    count: int
    last: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Plane:
    """The device plane: what NVML said last of every device."""

    devices: tuple[Device, ...] = ()
    sampled: Mapping[str, float] = field(default_factory=dict)  # class -> CLOCK_MONOTONIC seconds
    xids: Mapping[tuple[str, int], Xid] = field(default_factory=dict)  # by (GPU UUID, code)
    garbage: int = 0  # rows and figures that could not be true, dropped since the start


# --- from /proc --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A process as the operating system knows it; (pid, start_time) is its identity."""

    pid: int
    start_time: float  # seconds since the Unix epoch
    name: str = ""  # comm, 15 characters at most
    user: str = ""
    command: str = ""  # the command line, shortened and printable


class JobKey(NamedTuple):
    """A job's identity."""

    scheduler: str  # the source that named it: "slurm", "kubernetes", …
    id: str  # printable, and not longer than `gpubpf.jobs.job.LONGEST`


@dataclass(frozen=True, slots=True)
class Job:
    """Whose work a process is. What isn't known is ""."""

    key: JobKey
    namespace: str = ""  # Kubernetes namespace, Slurm cluster
    name: str = ""
    user: str = ""
    labels: tuple[tuple[str, str], ...] = ()  # Kubernetes labels, those that were asked for
    hostname: str = ""  # HOSTNAME of a process of it; only to find its name
    rank: int = 0  # of its names: those of a higher one take the place of others


class Given(NamedTuple):
    """What kubelet says of one GPU or MIG device."""

    containers: int  # that have it now
    slots: int | None  # to how many it may be given; None: kubelet doesn't say


class Usage(NamedTuple):
    """What a job took of one GPU since its account was opened."""

    facts: int  # packed
    held: float  # seconds with memory or a context
    active: float  # of these, seconds with launches or SM work
    idle: float  # of these, the rest
    energy: float  # joules, by its share of SM utilization
    launched: float | None  # when its last launch was seen, CLOCK_MONOTONIC seconds


@dataclass(frozen=True, slots=True)
class JobAccount:
    """What one job did, or all that share a `job_id`."""

    job_id: str
    job: Job | None  # None: of several, or of none
    created: float  # Unix seconds: when it was 0
    ended: float | None  # since when no process of it is left, Unix seconds
    on: Mapping[str, Usage]  # by GPU UUID or UNKNOWN_GPU
    errors: Mapping[int, int]  # CUresult -> count


@dataclass(frozen=True, slots=True)
class Jobs:
    """The accounts of the jobs, and how well they were kept."""

    accounts: tuple[JobAccount, ...] = ()
    waiting: int = 0  # jobs now that share `other`
    merged: int = 0  # jobs that ever had to
    closed: int = 0  # accounts that ended
    unseen: int = 0  # processes that couldn't be looked at
    unattributed_energy: Mapping[str, float] = field(default_factory=dict)  # joules, by GPU
    joules: Mapping[str, float] = field(default_factory=dict)  # up to which that and theirs goes


Scope = tuple[str | None, str]
"""A job_id, or None for all together, and a GPU's UUID."""


class Finding(NamedTuple):
    """What is found of one scope (see `gpubpf.diagnosis`)."""

    inputs: Mapping[str, float]
    verdicts: Mapping[str, bool]  # of the diagnoses of which all inputs are known


# --- the node ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """A tmpfs."""

    device: int
    size: int  # bytes that it may hold; 0: no limit
    used: int


@dataclass(frozen=True, slots=True)
class Work:
    """What the GPU processes take of the host."""

    processes: int  # alive; a zombie isn't
    threads: int
    cpu_seconds: float  # counter: user and system time since each was first seen
    resident: int  # bytes; a page that processes share counts in each
    resident_shared: int  # the part of it in shared memory


@dataclass(frozen=True, slots=True)
class Pressure:
    """Counters: seconds in which tasks waited for a resource."""

    some: float  # at least one task
    full: float | None = None  # all that weren't idle; None: an older kernel, of the CPU


@dataclass(frozen=True, slots=True)
class Own:
    """The agent's counters, all of its threads together."""

    voluntary_switches: int
    involuntary_switches: int
    major_faults: int
    read_bytes: int | None  # from storage
    written_bytes: int | None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the node as a whole says."""

    shared_memory: SharedMemory | None  # the node's own /dev/shm
    containers: int  # /dev/shm of containers with GPU processes that were looked at; each once
    fullest: float | None  # used ratio of the fullest of them that has a limit
    work: Work | None
    pressure: Mapping[str, Pressure]  # the node's, by "cpu", "memory", "io"; absent: not known
    own: Own


# --- what everything downstream looks at --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One living process with everything known of it."""

    owner: Owner
    process: Process | None  # None: it was gone before it could be looked up
    counters: int  # packed vector since its first call
    on: Mapping[str, Part] = field(default_factory=dict)  # by GPU UUID or UNKNOWN_GPU
    gpus: Mapping[str, DeviceProcess] = field(default_factory=dict)  # by GPU or MIG UUID
    errors: Mapping[tuple[str, int], int] = field(default_factory=dict)  # (function, CUresult)
    job_id: str | None = None  # where it is charged; None: jobs are off


@dataclass(frozen=True, slots=True)
class Source:
    """How a source is doing, for the agent's self-metrics."""

    name: str
    up: bool
    error: str | None
    seconds: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent about itself."""

    start_time: float  # Unix seconds
    cpu_seconds: float  # user and system time used so far
    memory: int  # resident bytes
    loader_peak: int  # peak resident bytes of the child that compiled the probes
    pointers_elsewhere: int | None = None  # functions that the driver hands out past the probes
    copies: Mapping[str, int] = field(default_factory=dict)  # libcuda files now, by state
    copy_events: Mapping[str, int] = field(default_factory=dict)  # since the start


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the node at one time. Immutable; counters never go back between Snapshots."""

    at: float  # CLOCK_MONOTONIC seconds
    time: float  # Unix seconds
    functions: tuple[str, ...]  # the probed functions, in lane order
    totals: Mapping[str, int]  # GPU UUID or UNKNOWN_GPU -> packed facts, ended processes included
    calls: int  # packed calls of all processes, ended ones included
    errors: Mapping[tuple[str, int], int]  # (function, CUresult) -> count on this node
    plane: Plane | None  # None: NVML is not there or failed
    processes: tuple[ProcessView, ...]
    indices: Mapping[str, int] = field(default_factory=dict)  # GPU UUID -> last known NVML index
    ended: tuple[ProcessView, ...] = ()  # exited since the Snapshot before; each in one Snapshot
    attached: Sequence[Attached] = ()
    sources: tuple[Source, ...] = ()
    footprints: Mapping[str, Footprint] = field(default_factory=dict)  # by GPU UUID
    attributions: Mapping[str, int] = field(default_factory=dict)  # by what told the GPU
    lost: Mapping[str, int] = field(default_factory=dict)
    entries: Mapping[str, int] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    agent: Agent | None = None
    node: NodeFacts | None = None  # None: not asked for, or it failed
    jobs: Jobs | None = None  # None: they are off
    findings: Mapping[Scope, Finding] = field(default_factory=dict)
    given: Mapping[str, Given] = field(default_factory=dict)  # by UUID, as kubelet says

    @property
    def devices(self) -> tuple[Device, ...] | None:
        return None if self.plane is None else self.plane.devices
