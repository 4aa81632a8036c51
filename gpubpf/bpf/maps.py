"""Reads the BPF maps into `Calls`. Reading ended processes takes them out of the kernel."""

from __future__ import annotations

import ctypes
import errno
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence

from gpubpf import lanes
from gpubpf.bpf import syscalls
from gpubpf.bpf.footprint import footprints
from gpubpf.bpf.load import Loaded
from gpubpf.bpf.program import FOLDED, LOST
from gpubpf.model import Activity, Asked, Calls, Footprint, Ordinal, Owner, Part, Place
from gpubpf.symbols import ANSWERS, DEVICES, Symbol

_MOST_TRIES = 8
_MOST_WAIT = 1_000_000_000  # ns

_OWNER = struct.Struct("QQ")  # struct owner: born, pid
_FAILURE = struct.Struct("QIHH")  # struct failure: born, pid, function, error
_PLACE = struct.Struct("QII")  # struct place: born, pid, device
_NAME = struct.Struct("QQII")  # struct name: value, born, pid, space
_GAUGES = struct.Struct("qQ")  # struct share: live, peak, then its lanes
_PROCESS = struct.Struct("QQ4xBBBxIIQ")  # struct process: up to its share
_NAMED = ("allocations", "contexts", "handles", "graphs", "answers")
"""Maps by struct name: what a process leaves there is dropped when it is gone."""

_Shares = dict[Owner, dict[Ordinal, Part]]


class Maps:
    """`read()` is called by one thread."""

    def __init__(self, loaded: Loaded, symbols: Sequence[Symbol]) -> None:
        self._maps = loaded.maps
        self._functions = tuple(symbol.name for symbol in symbols)
        self._batches = {
            name: syscalls.Batch(m.fd, m.key_size, m.value_size)
            for name, m in loaded.maps.items()
            if name in ("processes", "ended", "shares", "failures", "threads", *_NAMED)
        }
        self._tells_exits = loaded.tells_exits
        self._cpus = _possible_cpus()
        self._counts: dict[str, int] = {}  # entries of _NAMED, when they were last walked
        self._left_behind = True  # there may be entries of processes that are gone
        self._lost_before: Mapping[str, int] = {}
        self._tidy_rest = 0.0  # seconds: so much earlier where maps are full
        self._tidy_at = 0.0  # seconds, CLOCK_MONOTONIC: not before
        self._ended: dict[Owner, Activity] = {}  # taken out of the kernel and not yet handed on
        self._folded = 0  # of lost["ended"], those known of
        self._known: Container[Owner] = ()  # that lived at the last look

    def read(self, lives: Callable[[Owner], bool]) -> Calls:
        """One look at everything. `lives(owner)` is asked only where the kernel can't tell exits.

        Raises OSError when the kernel refuses, which it does not while the maps are open.
        """
        start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        live, overflow, lost = self._processes()
        entries = len(live)
        if not self._tells_exits:
            self._ended |= self._take_vanished(live, lives)
        for owner in self._ended:
            live.pop(owner, None)

        def dead(owner: Owner) -> bool:
            """Nothing more comes from it. Between a birth and the entry in the map a newcomer may
            have to wait for a CPU: one that was never there and is young is not dead."""
            return owner in self._ended or (
                owner not in live and (owner in self._known or 0 < owner.born < start - _MOST_WAIT)
            )

        shares, places = self._shares(dead)
        live = {owner: _with(activity, shares.get(owner)) for owner, activity in live.items()}
        # What the dead did elsewhere than at home is final, too. Those that `ended` had no room
        # for have nothing but that here.
        for owner, parts in shares.items():
            if dead(owner):
                self._ended[owner] = _with(self._ended.get(owner, Activity(0, {})), parts)
        errors, failures = self._errors(dead)
        asked = self._asked()
        if self._ended or lost["ended"] != self._folded:
            self._left_behind = True
        self._tidy(live, dead, lost)
        calls = Calls(
            live=live,
            ended=self._ended,
            overflow=overflow,
            errors=errors,
            lost={name: lost[name] for name in LOST},
            entries={
                "processes": entries,
                "ended": len(self._ended),
                "shares": places,
                "failures": failures,
                **self._counts,
            },
            capacity={name: m.capacity for name, m in self._maps.items() if m.capacity > 1},
            asked=asked,
        )
        self._known = live.keys()
        self._ended, self._folded = {}, lost["ended"]  # last: a failed read loses none
        return calls

    def footprints(self) -> dict[Place, Footprint]:
        """What the live allocations of each process take of each of its devices.

        Walks every allocation: some 2 µs each (measured), so not at every look. Those that went
        with their context are dropped on the way.
        """
        gone, found = footprints(
            self._batches["allocations"].read(), self._batches["contexts"].read()
        )
        for key in gone:
            _delete(self._maps["allocations"].fd, key)
        return found

    # --- processes ------------------------------------------------------------------------------

    def _processes(self) -> tuple[dict[Owner, Activity], int, dict[str, int]]:
        """The living processes, the overflow and what was lost; the ended ones are collected.

        A process that ends while this looks moves from `processes` to `ended`, which is therefore
        read second: it may show up in both, never in none. Where `ended` is full it moves to the
        overflow, and what it did can't be told from the rest: then it is all read again.
        """
        for _ in range(_MOST_TRIES):
            done = self._lost()[FOLDED]
            live: dict[Owner, Activity] = {}
            for key, value in self._batches["processes"].read():
                (pid,) = struct.unpack("I", key)
                born, activity = _process(value)
                live[Owner(pid, born)] = activity
            for key, value in self._batches["ended"].read(delete=True):
                born, pid = _OWNER.unpack(key)
                self._ended[Owner(pid, born)] = _process(value)[1]
            overflow = self._overflow()
            lost = self._lost()
            if lost["ended"] == done:  # none was begun that was not done before
                break
        return live, overflow, lost

    def _overflow(self) -> int:
        m = self._maps["overflow"]
        value = ctypes.create_string_buffer(m.value_size)
        syscalls.map_lookup(m.fd, b"\0\0\0\0", value)
        return lanes.pack(value.raw[_PROCESS.size + _GAUGES.size :])

    def _take_vanished(
        self, live: Mapping[Owner, Activity], lives: Callable[[Owner], bool]
    ) -> dict[Owner, Activity]:
        """Without an exit program: what belongs to processes that are no more is final."""
        gone = {}
        for owner, activity in live.items():
            if not lives(owner):
                gone[owner] = activity
                _delete(self._maps["processes"].fd, struct.pack("I", owner.pid))
        for key, _ in self._batches["threads"].read():
            if struct.unpack("Q", key)[0] >> 32 in {owner.pid for owner in gone}:
                _delete(self._maps["threads"].fd, key)
        return gone

    def _shares(self, dead: Callable[[Owner], bool]) -> tuple[_Shares, int]:
        """What processes did elsewhere than at home, and how many entries that takes.

        Those of dead processes are final and leave the map.
        """
        shares: _Shares = defaultdict(dict)
        rows = self._batches["shares"].read()
        for key, value in rows:
            born, pid, device = _PLACE.unpack(key)
            owner = Owner(pid, born)
            shares[owner][_ordinal(device)] = _part(value)
            if dead(owner):
                _delete(self._maps["shares"].fd, key)
        return shares, len(rows)

    # --- the rest -------------------------------------------------------------------------------

    def _lost(self) -> dict[str, int]:
        m = self._maps["lost"]
        value = ctypes.create_string_buffer(m.value_size * self._cpus)
        syscalls.map_lookup(m.fd, b"\0\0\0\0", value)
        counts = memoryview(value).cast("B").cast("Q")
        names = (*LOST, FOLDED)
        return {name: sum(counts[i :: len(names)]) for i, name in enumerate(names)}

    def _errors(
        self, dead: Callable[[Owner], bool]
    ) -> tuple[dict[tuple[Owner, str, int], int], int]:
        """The failures by (process, function, error), and how many entries they take.

        Those of dead processes are final and leave the map.
        """
        errors: dict[tuple[Owner, str, int], int] = {}
        rows = self._batches["failures"].read()
        for key, value in rows:
            born, pid, function, error = _FAILURE.unpack(key)
            owner = Owner(pid, born)
            errors[owner, self._functions[function], error] = int.from_bytes(value, "little")
            if dead(owner):
                _delete(self._maps["failures"].fd, key)
        return errors, len(rows)

    def _asked(self) -> dict[Owner, dict[int, Asked]]:
        """What processes were told of their devices."""
        said: dict[tuple[Owner, int], dict[str, bytes]] = defaultdict(dict)
        for key, value in self._batches["answers"].read():
            ordinal, born, pid, what = _NAME.unpack(key)
            if what < len(ANSWERS):
                said[Owner(pid, born), ordinal][ANSWERS[what]] = value
        asked: dict[Owner, dict[int, Asked]] = defaultdict(dict)
        for (owner, ordinal), answers in said.items():
            uuid = answers.get("uuid_v2", answers.get("uuid"))
            bus = answers.get("pci_bus_id")
            asked[owner][ordinal] = Asked(
                uuid[:16] if uuid else None,
                bus.split(b"\0", 1)[0].decode("ascii", "replace") if bus else None,
            )
        return asked

    def _tidy(
        self, live: Container[Owner], dead: Callable[[Owner], bool], lost: Mapping[str, int]
    ) -> None:
        """Drops what dead processes left behind. Walking the maps of a busy node takes tens of
        milliseconds, and processes may end all the time: it takes 5 % of a CPU at most, 20 %
        while something is lost for want of room."""
        begin = time.monotonic()
        full = any(lost[name] != self._lost_before.get(name, 0) for name in _NAMED)
        self._lost_before = lost
        if not self._left_behind or begin < (self._tidy_at - self._tidy_rest * full):
            return
        self._left_behind = False
        self._counts = {name: self._forget(name, live, dead) for name in _NAMED}
        end = time.monotonic()
        self._tidy_at = end + 20 * (end - begin)
        self._tidy_rest = 16 * (end - begin)

    def _forget(self, name: str, live: Container[Owner], dead: Callable[[Owner], bool]) -> int:
        """Drops what dead processes left in a map by struct name; how many entries are left."""
        count = 0
        for key, _ in self._batches[name].read():
            _, born, pid, _ = _NAME.unpack(key)
            owner = Owner(pid, born)
            if dead(owner):
                _delete(self._maps[name].fd, key)
                continue
            count += 1
            if owner not in live:  # too young to be sure
                self._left_behind = True
        return count


def _process(value: bytes) -> tuple[int, Activity]:
    """A struct process: when it was born, its calls, and what it did at home."""
    born, _, _, _, settled, home, _, _ = _PROCESS.unpack_from(value)
    end = _PROCESS.size + _GAUGES.size + lanes.FACT_BYTES
    part = _part(value[_PROCESS.size : end])
    parts = {_ordinal(home): part} if settled else {}
    return born, Activity(lanes.pack_calls(value[end:]), parts)


def _part(value: bytes) -> Part:
    live, peak = _GAUGES.unpack_from(value)
    return Part(lanes.pack(value[_GAUGES.size :]), live, peak)


def _ordinal(device: int) -> Ordinal:
    return device if device < DEVICES else None


def _with(activity: Activity, parts: Mapping[Ordinal, Part] | None) -> Activity:
    """What a process did at home and elsewhere. What became its home later is in both: the share
    changes no more then."""
    if not parts:
        return activity
    merged = dict(activity.parts)
    for ordinal, part in parts.items():
        home = merged.get(ordinal)
        merged[ordinal] = (
            part
            if home is None
            else Part(
                home.counters + part.counters,
                home.live + part.live,
                max(part.peak, part.live + home.peak),
            )
        )
    return activity._replace(parts=merged)


def _delete(fd: int, key: bytes) -> None:
    try:
        syscalls.map_delete(fd, key)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _possible_cpus() -> int:
    """A per-CPU value has a slot for every CPU that could ever be there."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        last = file.read().strip().replace(",", "-").split("-")[-1]
    return int(last) + 1
