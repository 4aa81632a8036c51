"""Snapshots of every kind, for what reads them: hostile names, odd numbers, gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from gpubpf import lanes
from gpubpf.model import (
    UNKNOWN_GPU,
    Agent,
    Attached,
    Device,
    DeviceInfo,
    DeviceProcess,
    Footprint,
    Owner,
    Part,
    Process,
    ProcessView,
    Snapshot,
    Source,
)
from gpubpf.symbols import GROUPS, SYMBOLS, chosen

UUIDS = ("GPU-0a", "GPU-1b", 'MIG-"2c"')
MAPS = ("processes", "allocations", "failures")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ('"', "\\", "\n", '\\"', "\\n", "a\nb", '"}\n# EOF\n', "\r\u2028\x85\0", "é漢\U0001f600", " ")
)
COUNTS = st.sampled_from((0, 1, 999_999, 1_000_000, 2**53 + 1, 2**62, 2**63 - 1)) | st.integers(
    0, 2**63 - 1
)
NUMBERS = st.floats() | st.integers(0, 2**64) | st.sampled_from((0, 0.5, 1e-9, 1e6, 1e21))
SHARES = st.none() | NUMBERS
TOTALS = st.floats(0, 1e300) | COUNTS  # what a counter may be


def vector(row: dict[int, int]) -> int:
    return sum(count << 64 * lane for lane, count in row.items())


def vectors(functions: int) -> st.SearchStrategy[int]:
    """Calls alone, where functions are probed."""
    lane = st.integers(lanes.FIRST["calls"], lanes.count(functions) - 1)
    rows = st.dictionaries(lane, COUNTS, max_size=4) if functions else st.just({})
    return st.builds(vector, rows)


FACTS = st.builds(
    vector, st.dictionaries(st.integers(0, lanes.FIRST["calls"] - 1), COUNTS, max_size=6)
)
# Of one process: the kernel stops each lane (probes/count.h). Time and calls can't be claimed.
LIVING_FACTS = st.builds(
    vector,
    st.dictionaries(st.integers(0, lanes.FIRST["waits"] - 1), st.integers(0, 2**62), max_size=6),
)


DEVICE_PROCESSES = st.builds(
    DeviceProcess,
    pid=st.integers(1, 9),
    memory_used=st.none() | COUNTS,
    sm=SHARES,
    memory=SHARES,
    encoder=SHARES,
    decoder=SHARES,
)


@st.composite
def devices(draw: st.DrawFn) -> tuple[Device, ...] | None:
    if draw(st.booleans()):
        return None
    found = []
    for index, uuid in enumerate(draw(st.lists(st.sampled_from(UUIDS), unique=True))):
        text, number = draw(TEXT), draw(SHARES)
        info = DeviceInfo(index, uuid, text, draw(TEXT), draw(st.none() | TEXT))
        device = Device(
            info, utilization=number, power=draw(SHARES), energy=draw(st.none() | TOTALS)
        )
        found.append(replace(device, memory_used=draw(st.none() | COUNTS), temperature=number))
    return tuple(found)


@st.composite
def processes(draw: st.DrawFn, functions: int, uuids: Sequence[str]) -> tuple[ProcessView, ...]:
    views = []
    for pid in draw(st.lists(st.integers(1, 2**22), max_size=4, unique=True)):
        known = st.builds(Process, st.just(pid), NUMBERS, TEXT, TEXT, TEXT)
        gpus = {uuid: draw(DEVICE_PROCESSES) for uuid in uuids if draw(st.booleans())}
        born = draw(st.just(0) | st.integers(1, 2**60))
        on = {
            uuid: Part(draw(LIVING_FACTS), draw(COUNTS), draw(COUNTS))
            for uuid in (UNKNOWN_GPU, *uuids)
            if born and draw(st.booleans())
        }
        counters = draw(vectors(functions)) if born else 0
        counters += sum(part.counters for part in on.values())
        views.append(ProcessView(Owner(pid, born), draw(st.none() | known), counters, on, gpus))
    return tuple(views)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    groups = draw(st.lists(st.sampled_from(GROUPS), unique=True))
    functions = tuple(symbol.name for symbol in chosen(tuple(groups)))
    seen = draw(devices())
    indices = {device.info.uuid: device.info.index for device in seen or ()}
    names = st.sampled_from([symbol.name for symbol in SYMBOLS])
    numbers = st.dictionaries(st.sampled_from(MAPS), COUNTS)
    places = st.sampled_from(("stub+10", "entry", "absent", "alias"))
    labelled = st.dictionaries(TEXT, COUNTS, max_size=3)
    agent = st.builds(
        Agent, NUMBERS, TOTALS, COUNTS, COUNTS, st.none() | COUNTS, labelled, labelled
    )
    return Snapshot(
        at=1.0,
        time=2.0,
        functions=functions,
        totals={uuid: draw(FACTS) for uuid in (UNKNOWN_GPU, *indices)},
        calls=draw(vectors(len(functions))),
        errors=draw(st.dictionaries(st.tuples(names, st.integers(1, 65535)), COUNTS, max_size=4)),
        devices=seen,
        processes=draw(processes(len(functions), list(indices))),
        indices=indices,
        attached=draw(st.lists(st.builds(Attached, TEXT, names, places), max_size=4)),
        sources=tuple(
            Source(name, draw(st.booleans()), draw(st.none() | TEXT), draw(NUMBERS))
            for name in draw(st.lists(st.sampled_from(("bpf", "nvml", "discovery")), unique=True))
        ),
        footprints=draw(
            st.dictionaries(
                st.sampled_from((UNKNOWN_GPU, *indices)), st.builds(Footprint, COUNTS, COUNTS)
            )
        ),
        attributions=draw(labelled),
        lost=draw(numbers),
        entries=draw(numbers),
        capacity=draw(numbers),
        agent=draw(st.none() | agent),
    )
