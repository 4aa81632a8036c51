"""A kernel and a driver that keep exact books: what the join is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from gpubpf import lanes
from gpubpf.join import Ledger, Readings, join
from gpubpf.model import Calls, Device, DeviceInfo, DeviceProcess, Owner, Reading, Snapshot

FUNCTIONS = ("cuLaunchKernel", "cuMemAlloc_v2")
LANES = lanes.count(len(FUNCTIONS))
GPUS = ("GPU-a", "GPU-b", "GPU-c")


def vector(row: dict[int, int]) -> int:
    return sum(count << 64 * lane for lane, count in row.items())


@dataclass
class Node:
    """A kernel and a driver that keep exact books, and the agent's ledger beside them."""

    processes: dict[Owner, Counter[int]] = field(default_factory=dict)  # a pid is in it once
    ended: dict[Owner, Counter[int]] = field(default_factory=dict)
    overflow: Counter[int] = field(default_factory=Counter)
    failures: Counter[tuple[Owner, str, int]] = field(default_factory=Counter)
    on: dict[int, frozenset[int]] = field(default_factory=dict)  # pid -> GPUs that NVML lists it on
    nvml_up: bool = True
    time: int = 1
    counted: Counter[int] = field(default_factory=Counter)
    failed: Counter[tuple[str, int]] = field(default_factory=Counter)
    finished: list[Owner] = field(default_factory=list)
    ledger: Ledger = field(default_factory=lambda: Ledger(FUNCTIONS))

    def owner(self, pid: int) -> Owner:
        for owner in self.processes:
            if owner.pid == pid:
                return owner
        self.time += 1
        self.processes[owner := Owner(pid, self.time)] = Counter()
        return owner

    def call(self, pid: int, lane: int, n: int) -> None:
        self.processes[self.owner(pid)][lane] += n
        self.counted[lane] += n

    def fail(self, pid: int, function: str, error: int) -> None:
        self.failures[self.owner(pid), function, error] += 1
        self.failed[function, error] += 1

    def end(self, pid: int) -> None:
        owner = self.owner(pid)
        self.ended[owner] = self.processes.pop(owner)
        self.finished.append(owner)

    def end_unseen(self, pid: int) -> None:
        """As `fold` in probes/exit.c does when the map of ended processes is full."""
        self.overflow += self.processes.pop(self.owner(pid))

    def without_room(self, lane: int, n: int) -> None:
        """A call of a process that did not fit into the map."""
        self.overflow[lane] += n
        self.counted[lane] += n

    def list_on(self, pid: int, gpus: frozenset[int]) -> None:
        self.on[pid] = gpus

    def nvml(self, up: bool) -> None:
        self.nvml_up = up

    def calls(self) -> Calls:
        calls = Calls(
            live={owner: vector(row) for owner, row in self.processes.items()},
            ended={owner: vector(row) for owner, row in self.ended.items()},
            overflow=vector(self.overflow),
            errors=dict(self.failures),
            lost={"processes": 0},
            entries={"processes": len(self.processes)},
            capacity={"processes": 2048},
        )
        for key in [key for key in self.failures if key[0] in self.ended]:
            del self.failures[key]
        self.ended = {}
        return calls

    def devices(self) -> tuple[Device, ...]:
        return tuple(
            Device(
                DeviceInfo(index, uuid, "Simulated", "1"),
                processes=tuple(DeviceProcess(p) for p, gpus in self.on.items() if index in gpus),
            )
            for index, uuid in enumerate(GPUS)
        )

    def look(self, *, bpf: bool = True) -> Snapshot:
        self.time += 1
        calls = Reading("bpf", 0, 0, self.calls() if bpf else None, None if bpf else "refused")
        devices = Reading(
            "nvml", 0, 0, self.devices() if self.nvml_up else None, None if self.nvml_up else "lost"
        )
        readings = Readings(self.time, self.time, calls, devices, {}, (), None)
        return join(readings, self.ledger)

    def row(self) -> list[int]:
        return [self.counted[lane] for lane in range(LANES)]


def unpack(packed: int) -> list[int]:
    return list(lanes.unpack(packed, len(FUNCTIONS)))


def whole(snapshot: Snapshot) -> list[int]:
    return [sum(column) for column in zip(*map(unpack, snapshot.totals.values()), strict=True)]


Step = Callable[[Node], None]

PIDS = st.integers(1, 4)
AMOUNTS = st.integers(0, 2**48)
LANE = st.integers(0, LANES - 1)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(lambda p, lane, n: lambda node: node.call(p, lane, n), PIDS, LANE, AMOUNTS),
    st.builds(
        lambda p, f, e: lambda node: node.fail(p, f, e),
        PIDS,
        st.sampled_from(FUNCTIONS),
        st.sampled_from((2, 700)),
    ),
    st.builds(lambda p: lambda node: node.end(p), PIDS),
    st.builds(lambda lane, n: lambda node: node.without_room(lane, n), LANE, AMOUNTS),
    st.builds(
        lambda p, gpus: lambda node: node.list_on(p, gpus),
        PIDS,
        st.frozensets(st.integers(0, len(GPUS) - 1), max_size=2),
    ),
    st.builds(lambda up: lambda node: node.nvml(up), st.booleans()),
)
