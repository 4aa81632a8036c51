"""A kernel and a driver that keep exact books: what the join is compared with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
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
ALLOCATIONS = [
    (fact, lanes.FIRST[fact] + kind)
    for fact in ("allocations", "allocated_bytes", "frees", "freed_bytes",
                 "implicit_frees", "implicitly_freed_bytes")
    for kind in range(len(KINDS))
]  # fmt: skip


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
        home = caller.there.pop(caller.home, None) if caller.home is not None else None
        self.overflow += caller.calls
        if home is not None:
            self.overflow += home.row
            self.since[None] += self.since.pop((owner, next(iter(self._homes(owner))), ), Counter())
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
        for key in [key for key in self.failures if key[0] in self.ended]:
            del self.failures[key]
        self.ended = {}
        for place, row in self.since.items():
            gpu = UNKNOWN_GPU if place is None else self.gpus.get(place, UNKNOWN_GPU)
            self.by_gpu[gpu].update({n: count for n, count in row.items() if n < CALLS})
        self.since.clear()
        return calls
