"""The simulated GPU node: builds its libraries, makes its state file, injects faults, and tells
exactly what its processes did (the oracle of counting tests).

    node = Node(tmp_path / "build", tmp_path / "state", devices=2)
    subprocess.run([str(node.workload), "--launches", "101"], env=node.environment())
    assert node.counts().calls["cuLaunchKernel"] == 101
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from .generate import functions
from .nvml_control import CONSTANTS, TYPES, kept_to_us

HERE = Path(__file__).parent
FUNCTIONS = functions()
INDEX = {function.name: place for place, function in enumerate(FUNCTIONS)}
SIZES = CONSTANTS["FG_SIZES"]
GRANULE = CONSTANTS["FG_GRANULE"]
KINDS = ("device", "managed", "pool", "virtual", "host", "array")
DIRECTIONS = (
    "host_to_device",
    "device_to_host",
    "device_to_device",
    "peer",
    "unknown",
)
FOREVER = 2**64 - 1
_LIVE = CONSTANTS["FG_SLOT_LIVE"]
_PROCESSES = CONSTANTS["FG_MAX_PROCESSES"]


@dataclass(frozen=True, slots=True)
class Device:
    """The properties of one simulated device."""

    name: str = "Simulated GPU H100 (gpubpf)"
    uuid: UUID | None = None  # None: made from the device's number
    mig_uuid: UUID | None = None  # set: the device is a MIG instance
    memory_bytes: int = 80 << 30
    context_bytes: int = 0  # what each context holds besides allocations
    kernel_ns: int = 0  # the simulated time of a kernel
    compute: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    clock_khz: int = 1_980_000
    memory_clock_khz: int = 2_619_000
    memory_bus_bits: int = 5120
    l2_bytes: int = 50 << 20
    pci: tuple[int, int, int] | None = None  # domain, bus, device; None: from the device's number


@dataclass(slots=True)
class Memory:
    """What was done with one kind of memory of one device."""

    allocations: int = 0
    allocated_bytes: int = 0
    frees: int = 0
    freed_bytes: int = 0
    releases: int = 0
    released_bytes: int = 0

    @property
    def live_bytes(self) -> int:
        """Allocated, and neither freed nor gone with its context."""
        return self.allocated_bytes - self.freed_bytes - self.released_bytes


@dataclass(slots=True)
class Activity:
    """What was done on one device; state.h tells what each figure is. The peak of several
    processes together is the sum of theirs."""

    launches: int = 0
    captured: int = 0
    graph_launches: int = 0
    graph_kernels: int = 0
    host_functions: int = 0
    failed_launches: int = 0
    failed_graph_launches: int = 0
    failed_host_functions: int = 0
    copies: Counter[str] = field(default_factory=Counter)
    copied_bytes: Counter[str] = field(default_factory=Counter)
    sets: int = 0
    set_bytes: int = 0
    captured_copied_bytes: int = 0
    captured_set_bytes: int = 0
    graph_copied_bytes: int = 0
    graph_set_bytes: int = 0
    waits: int = 0
    wait_ns: int = 0
    contexts: int = 0
    contexts_created: int = 0
    held_bytes: int = 0
    live_bytes: int = 0
    peak_bytes: int = 0
    allocation_sizes: list[int] = field(default_factory=lambda: [0] * SIZES)
    granule_bytes: int = 0
    busy_ns: int = 0


@dataclass(slots=True)
class Counts:
    """What one process did, or several together."""

    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, int]] = field(default_factory=Counter)
    memory: dict[tuple[int, str], Memory] = field(default_factory=dict)  # by device and kind
    activity: dict[int, Activity] = field(default_factory=dict)  # by device

    def add(self, other: Counts) -> None:
        """Adds what others did."""
        self.calls.update(other.calls)
        self.errors.update(other.errors)
        for key, memory in other.memory.items():
            _add_fields(self.memory.setdefault(key, Memory()), memory)
        for device, activity in other.activity.items():
            _add_fields(self.activity.setdefault(device, Activity()), activity)


@dataclass(frozen=True, slots=True)
class Process:
    """One process that called the driver."""

    pid: int
    start_time: int
    alive: bool
    counts: Counts


def _add_fields(into: Memory | Activity, other: Memory | Activity) -> None:
    for name in other.__slots__:
        value = getattr(other, name)
        if isinstance(value, Counter):
            getattr(into, name).update(value)
        elif isinstance(value, list):
            mine = getattr(into, name)
            mine[:] = [one + other for one, other in zip(mine, value, strict=True)]
        else:
            setattr(into, name, getattr(into, name) + value)


def build(directory: Path) -> None:
    """Builds everything that is not up to date into directory."""
    with kept_to_us(directory):
        command = ["make", "-s", "-j2", "-C", str(HERE), f"BUILD={directory.resolve()}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the simulated driver doesn't build:\n{done.stderr}")


def copy_build(directory: Path, to: Path) -> None:
    """Libraries of one's own: a probe covers whoever maps the file. Other nodes' states stay behind
    (their holes would be written out: 337 MB each)."""
    build(directory)
    with kept_to_us(directory):
        others = shutil.ignore_patterns("*.state", ".lock")
        shutil.copytree(directory, to, symlinks=True, ignore=others)


class Node:
    """A simulated node: one state file, and what runs on it."""

    def __init__(
        self,
        build_directory: Path,
        state: Path,
        devices: int | Sequence[Device] = 1,
        driver_version: int = 12020,
        driver_branch: str = "535.309.01",
    ) -> None:
        build(build_directory)
        self.library = build_directory.resolve() / "libcuda.so.1"
        self.plain_library = build_directory.resolve() / "plain" / "libcuda.so.1"
        self.nvml_library = build_directory.resolve() / "libnvidia-ml.so.1"
        self.workload = build_directory.resolve() / "workload"
        self.program = build_directory.resolve() / "program"
        self.path = state.resolve()
        size = ctypes.sizeof(TYPES["fg_state"])
        with state.open("w+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._state: Any = TYPES["fg_state"].from_buffer(self._map)
        self._state.driver_version = driver_version
        self._state.driver_branch = driver_branch.encode()
        self._state.version = CONSTANTS["FG_VERSION"]
        self._state.layout_bytes = size
        rows = [Device()] * devices if isinstance(devices, int) else devices
        for number, device in enumerate(rows):
            self.set_device(number, device)
        self._state.device_count = len(rows)
        self._state.magic = CONSTANTS["FG_MAGIC"]

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the state file; clients may go on using it."""
        del self._state
        self._map.close()

    def environment(self, plain: bool = False) -> dict[str, str]:
        """The environment of a client: this one's, with the library's directory and the state."""
        library = self.plain_library if plain else self.library
        path = os.environ.get("LD_LIBRARY_PATH")
        return {
            **os.environ,
            "FAKEGPU_STATE": str(self.path),
            "LD_LIBRARY_PATH": f"{library.parent}:{path}" if path else str(library.parent),
        }

    # Configuration

    def set_device(self, number: int, device: Device) -> None:
        """Gives a device its properties."""
        row = self._state.devices[number]
        identity = device.uuid or uuid5(NAMESPACE_OID, f"gpubpf simulated GPU {number}")
        row.name = device.name.encode()
        row.uuid[:] = identity.bytes
        row.is_mig = device.mig_uuid is not None
        row.mig_uuid[:] = (device.mig_uuid or UUID(int=0)).bytes
        row.pci_domain, row.pci_bus, row.pci_device = device.pci or (0, 0x10 + number, 0)
        row.compute_major, row.compute_minor = device.compute
        row.multiprocessors = device.multiprocessors
        row.clock_khz = device.clock_khz
        row.memory_clock_khz = device.memory_clock_khz
        row.memory_bus_bits = device.memory_bus_bits
        row.l2_bytes = device.l2_bytes
        row.memory_bytes = device.memory_bytes
        row.context_bytes = device.context_bytes
        row.kernel_ns = device.kernel_ns

    def uuid(self, number: int) -> str:
        """A device's UUID, as GPU-… or MIG-…."""
        row = self._state.devices[number]
        if row.is_mig:
            return f"MIG-{UUID(bytes=bytes(row.mig_uuid))}"
        return f"GPU-{UUID(bytes=bytes(row.uuid))}"

    def set_kernel_time(self, number: int, nanoseconds: int) -> None:
        """How long each kernel of a device takes that is launched from now on."""
        self._state.devices[number].kernel_ns = nanoseconds

    def set_wait_time(self, nanoseconds: int) -> None:
        """The least time that a synchronizing call takes."""
        self._state.wait_ns = nanoseconds

    # Faults

    def fail(
        self, function: str, error: int, times: int = FOREVER, every: int = 1, pid: int = 0
    ) -> None:
        """Lets calls of a function fail, `times` times: each, or only every so many."""
        fault = self._state.faults[INDEX[function]]
        fault.every = every
        fault.pid = pid
        fault.seen = 0
        fault.remaining = times
        fault.error = error
        self._state.faults_active = 1

    def block(self, function: str, milliseconds: float, pid: int = 0) -> None:
        """Lets each call of a function first sleep."""
        fault = self._state.faults[INDEX[function]]
        fault.pid = pid
        fault.block_ns = int(milliseconds * 1e6)
        self._state.faults_active = 1

    def lose(self, number: int, lost: bool = True) -> None:
        """Takes a device off the bus: calls in its contexts fail with CUDA_ERROR_UNKNOWN."""
        self._state.devices[number].lost = lost
        self._state.faults_active = 1

    def clear_faults(self) -> None:
        """Ends all faults, and puts lost devices back."""
        self._state.faults_active = 0
        for fault in self._state.faults:
            ctypes.memset(ctypes.byref(fault), 0, ctypes.sizeof(fault))
        for device in self._state.devices:
            device.lost = 0

    # The oracle

    def processes(self) -> Iterator[Process]:
        """Every process that ever called the driver, in the order of their first calls."""
        for slot in range(min(self._state.slots_used, _PROCESSES)):
            entry = self._state.ids[slot]
            if entry.status:
                alive = entry.status == _LIVE and _start_time(entry.pid) == entry.start_time
                yield Process(entry.pid, entry.start_time, alive, self._counts(slot))

    def process(self, pid: int) -> Process:
        """The process of a pid; of several with one pid, the last."""
        return [process for process in self.processes() if process.pid == pid][-1]

    def counts(self) -> Counts:
        """What all processes did together, those without a slot of their own included."""
        total = Counts()
        for process in self.processes():
            total.add(process.counts)
        total.add(self._counts(_PROCESSES))
        return total

    def live_bytes(self, number: int, kind: str) -> int:
        """What living processes hold of a kind of memory of a device."""
        return sum(
            process.counts.memory[number, kind].live_bytes
            for process in self.processes()
            if process.alive and (number, kind) in process.counts.memory
        )

    def granules(self, number: int) -> int:
        """The bytes of the granules of a device that living processes' memory takes; not managed
        memory."""
        return sum(
            process.counts.activity[number].granule_bytes
            for process in self.processes()
            if process.alive and number in process.counts.activity
        )

    def memory_used(self, number: int) -> int:
        """The device memory in use, as the device itself counts it."""
        return int(self._state.devices[number].memory_used)

    def busy_ns(self, number: int) -> int:
        """The simulated GPU time charged to a device."""
        return int(self._state.devices[number].busy_ns)

    @property
    def processes_without_slot(self) -> int:
        """How many processes came when all slots were taken."""
        return int(self._state.processes_without_slot)

    def _counts(self, slot: int) -> Counts:
        process = self._state.processes[slot]
        if process.errors_lost:
            raise OverflowError("more kinds of errors than a process has room for")
        counts = Counts()
        for place, number in enumerate(process.calls[: len(FUNCTIONS)]):
            if number:
                counts.calls[FUNCTIONS[place].name] = number
        for row in process.errors:
            if row.key:
                function = FUNCTIONS[(row.key >> 32) - 1].name
                counts.errors[function, row.key & 0xFFFFFFFF] = row.count
        for place, row in enumerate(process.memory):
            if row.allocations:
                key = place // len(KINDS), KINDS[place % len(KINDS)]
                values = (getattr(row, name) for name in Memory.__slots__)
                counts.memory[key] = Memory(*values)
        for number, row in enumerate(process.activity):
            if any(memoryview(row).cast("B")):
                counts.activity[number] = _activity(row)
        return counts


def _activity(row: Any) -> Activity:
    values: dict[str, Any] = {}
    for name in Activity.__slots__:
        value = getattr(row, name)
        if name == "allocation_sizes":
            value = list(value)
        elif not isinstance(value, int):
            value = Counter({d: n for d, n in zip(DIRECTIONS, value, strict=True) if n})
        values[name] = value
    return Activity(**values)


def _start_time(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
