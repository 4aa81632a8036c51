"""A kernel and a driver that keep exact books: what the join is compared with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from gpubpf import lanes
from gpubpf.join import Ledger, Readings, join
from gpubpf.model import (
    UNKNOWN_GPU,
    Activity,
    Calls,
    Device,
    DeviceInfo,
    Ordinal,
    Owner,
    Part,
    Place,
    Plane,
    Reading,
    Snapshot,
)
from gpubpf.symbols import KINDS

FUNCTIONS = ("cuLaunchKernel", "cuMemAlloc_v2")
LANES = lanes.count(len(FUNCTIONS))
CALLS = lanes.FIRST["calls"]
GPUS = ("GPU-a", "GPU-b", "GPU-c")
HOST = KINDS.index("host")
OF_CONTEXT = tuple(KINDS.index(kind) for kind in ("device", "managed", "host", "array"))
MEMORY = ("allocations", "allocated_bytes", "frees", "freed_bytes",
          "implicit_frees", "implicitly_freed_bytes")  # fmt: skip
OTHERS = [n for n in range(CALLS) if not any(
    0 <= n - lanes.FIRST[fact] < len(KINDS) for fact in MEMORY)]  # fmt: skip
"""Lanes that follow from no balance."""


def vector(row: dict[int, int]) -> int:
    return sum(count << 64 * lane for lane, count in row.items())


def lane(fact: str, variant: int = 0) -> int:
    return lanes.FIRST[fact] + variant


@dataclass
class There:
    """What a process did on one of its devices, and what it holds there."""

    row: Counter[int] = field(default_factory=Counter)
    held: list[tuple[int, int]] = field(default_factory=list)  # (kind, bytes)
    peak: int = 0

    @property
    def live(self) -> int:
        return sum(size for kind, size in self.held if kind != HOST)

    def part(self) -> Part:
        return Part(vector(self.row), self.live, self.peak)


@dataclass
class Caller:
    calls: Counter[int] = field(default_factory=Counter)  # by lane
    there: dict[Ordinal, There] = field(default_factory=dict)

    @property
    def home(self) -> Ordinal:
        """The device of its first context: what it did there is in its own entry of the map."""
        return next((ordinal for ordinal in self.there if ordinal is not None), None)

    def activity(self) -> Activity:
        return Activity(vector(self.calls), {o: there.part() for o, there in self.there.items()})


@dataclass
class Node:
    """A kernel and a driver that keep exact books, and the agent's ledger beside them."""

    processes: dict[Owner, Caller] = field(default_factory=dict)  # a pid is in it once
    ended: dict[Owner, Caller] = field(default_factory=dict)
    overflow: Counter[int] = field(default_factory=Counter)
    failures: Counter[tuple[Owner, str, int]] = field(default_factory=Counter)
    gpus: dict[Place, str] = field(default_factory=dict)
    nvml_up: bool = True
    time: int = 1
    counted: Counter[int] = field(default_factory=Counter)
    since: dict[Place | None, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    by_gpu: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    failed: Counter[tuple[str, int]] = field(default_factory=Counter)
    finished: list[Owner] = field(default_factory=list)
    ledger: Ledger = field(default_factory=lambda: Ledger(FUNCTIONS))

    def owner(self, pid: int) -> Owner:
        for owner in self.processes:
            if owner.pid == pid:
                return owner
        self.time += 1
        self.processes[owner := Owner(pid, self.time)] = Caller()
        return owner

    def _count(self, owner: Owner, ordinal: Ordinal, lane: int, n: int) -> There:
        there = self.processes[owner].there.setdefault(ordinal, There())
        there.row[lane] += n
        self.counted[lane] += n
        self.since[owner, ordinal][lane] += n
        return there

    def do(self, pid: int, ordinal: Ordinal, lane: int, n: int) -> None:
        """Something on one of its devices."""
        self._count(self.owner(pid), ordinal, lane, n)

    def call(self, pid: int, function: int, n: int) -> None:
        self.processes[self.owner(pid)].calls[CALLS + function] += n
        self.counted[CALLS + function] += n

    def allocate(self, pid: int, ordinal: Ordinal, kind: int, size: int) -> None:
        owner = self.owner(pid)
        self._count(owner, ordinal, lane("allocations", kind), 1)
        there = self._count(owner, ordinal, lane("allocated_bytes", kind), size)
        there.held.append((kind, size))
        there.peak = max(there.peak, there.live)

    def free(self, pid: int, ordinal: Ordinal, *, implicitly: bool = False) -> None:
        """The newest, by a call; or all that goes with the context."""
        owner = self.owner(pid)
        held = self.processes[owner].there.setdefault(ordinal, There()).held
        if implicitly:
            gone = [one for one in held if one[0] in OF_CONTEXT]
            held[:] = [one for one in held if one[0] not in OF_CONTEXT]
            facts = ("implicit_frees", "implicitly_freed_bytes")
        else:
            gone = [held.pop()] if held else []
            facts = ("frees", "freed_bytes")
        for kind, size in gone:
            for fact, n in zip(facts, (1, size), strict=True):
                self._count(owner, ordinal, lane(fact, kind), n)

    def fail(self, pid: int, function: str, error: int) -> None:
        self.failures[self.owner(pid), function, error] += 1
        self.failed[function, error] += 1

    def _take_along(self, owner: Owner, caller: Caller) -> None:
        """What it still holds is freed by its end: what the join has to find out."""
        for ordinal, there in caller.there.items():
            for kind, size in there.held:
                for fact, n in (("implicit_frees", 1), ("implicitly_freed_bytes", size)):
                    self.counted[lane(fact, kind)] += n
                    self.since[owner, ordinal][lane(fact, kind)] += n

    def end(self, pid: int) -> None:
        owner = self.owner(pid)
        self.ended[owner] = self.processes.pop(owner)
        self._take_along(owner, self.ended[owner])
        self.finished.append(owner)

    def end_unseen(self, pid: int) -> None:
        """As `fold` in probes/exit.c does when the map of ended processes is full: its calls and
        what it did at home are in the overflow, the rest is still in `shares`."""
        owner = self.owner(pid)
        caller = self.processes.pop(owner)
        self.overflow += caller.calls
        if caller.home is not None:
            place = (owner, caller.home)
            self.overflow += caller.there.pop(caller.home).row
            self.since[None] += self.since.pop(place, Counter())
        if caller.there:
            self.ended[owner] = Caller(there=caller.there)
            self._take_along(owner, self.ended[owner])
            self.finished.append(owner)

    def without_room(self, lane: int, n: int) -> None:
        """A call of a process that did not fit into the map."""
        self.overflow[lane] += n
        self.counted[lane] += n
        self.since[None][lane] += n

    def put_on(self, pid: int, ordinal: Ordinal, gpu: str) -> None:
        """From now on it is known, or isn't, which GPU that is."""
        self.gpus[self.owner(pid), ordinal] = gpu

    def nvml(self, up: bool) -> None:
        self.nvml_up = up

    def calls(self) -> Calls:
        calls = Calls(
            live={owner: caller.activity() for owner, caller in self.processes.items()},
            ended={owner: caller.activity() for owner, caller in self.ended.items()},
            overflow=vector(self.overflow),
            errors=dict(self.failures),
            lost={"processes": 0},
            entries={"processes": len(self.processes)},
            capacity={"processes": 2048},
        )
        for key in [key for key in self.failures if key[0] not in self.processes]:
            del self.failures[key]
        self.ended = {}
        for place, row in self.since.items():
            gpu = UNKNOWN_GPU if place is None else self.gpus.get(place, UNKNOWN_GPU)
            self.by_gpu[gpu].update({n: count for n, count in row.items() if n < CALLS})
        self.since.clear()
        return calls

    def devices(self) -> tuple[Device, ...]:
        return tuple(
            Device(DeviceInfo(index, uuid, "Simulated", "1")) for index, uuid in enumerate(GPUS)
        )

    def look(self, *, bpf: bool = True) -> Snapshot:
        self.time += 1
        calls = Reading("bpf", 0, 0, self.calls() if bpf else None, None if bpf else "refused")
        plane = Reading(
            "nvml", 0, 0, Plane(self.devices()) if self.nvml_up else None,
            None if self.nvml_up else "lost",
        )  # fmt: skip
        gpus = dict(self.gpus) if bpf else {}
        return join(Readings(self.time, self.time, calls, plane, {}, gpus, (), None), self.ledger)

    def row(self) -> list[int]:
        return [self.counted[lane] for lane in range(LANES)]

    def balance(self, kind: int) -> tuple[int, int]:
        """Number and bytes of what is held by living processes, and in the overflow by anybody."""
        held = [
            size
            for caller in self.processes.values()
            for there in caller.there.values()
            for kind_, size in there.held
            if kind_ == kind
        ]
        number, bytes_ = (
            self.overflow[lane(made, kind)]
            - self.overflow[lane(freed, kind)]
            - self.overflow[lane(gone, kind)]
            for made, freed, gone in (MEMORY[0::2], MEMORY[1::2])
        )
        return number + len(held), bytes_ + sum(held)


def unpack(packed: int) -> list[int]:
    return list(lanes.unpack(packed, len(FUNCTIONS)))


def whole(snapshot: Snapshot) -> list[int]:
    """Everything on the node: the facts of all GPUs, and the calls."""
    rows = [*snapshot.totals.values(), snapshot.calls]
    return [sum(column) for column in zip(*map(unpack, rows), strict=True)]


Step = Callable[[Node], None]

PIDS = st.integers(1, 4)
ORDINALS: st.SearchStrategy[Ordinal] = st.sampled_from((0, 1, None))
AMOUNTS = st.integers(0, 2**48)
KIND = st.integers(0, len(KINDS) - 2)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(lambda p, f, n: lambda node: node.call(p, f, n), PIDS, st.integers(0, 1), AMOUNTS),
    st.builds(
        lambda p, o, lane, n: lambda node: node.do(p, o, lane, n),
        PIDS,
        ORDINALS,
        st.sampled_from(OTHERS),
        AMOUNTS,
    ),
    st.builds(
        lambda p, o, k, n: lambda node: node.allocate(p, o, k, n), PIDS, ORDINALS, KIND, AMOUNTS
    ),
    st.builds(
        lambda p, o, implicitly: lambda node: node.free(p, o, implicitly=implicitly),
        PIDS,
        ORDINALS,
        st.booleans(),
    ),
    st.builds(
        lambda p, f, e: lambda node: node.fail(p, f, e),
        PIDS,
        st.sampled_from(FUNCTIONS),
        st.sampled_from((2, 700)),
    ),
    st.builds(lambda p: lambda node: node.end(p), PIDS),
    st.builds(lambda p: lambda node: node.end_unseen(p), PIDS),
    st.builds(
        lambda lane, n: lambda node: node.without_room(lane, n),
        st.sampled_from((*OTHERS, CALLS, CALLS + 1)),
        AMOUNTS,
    ),
    st.builds(
        lambda p, o, gpu: lambda node: node.put_on(p, o, gpu),
        PIDS,
        ORDINALS,
        st.sampled_from((*GPUS, UNKNOWN_GPU)),
    ),
    st.builds(lambda up: lambda node: node.nvml(up), st.booleans()),
)
