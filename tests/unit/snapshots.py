"""Snapshots of every kind, for what reads them: hostile names, odd numbers, gaps."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from gpubpf import lanes
from gpubpf.model import (
    CLASSES,
    UNKNOWN_GPU,
    Agent,
    Attached,
    Device,
    DeviceInfo,
    DeviceProcess,
    Figures,
    Finding,
    Footprint,
    Job,
    JobAccount,
    JobKey,
    Jobs,
    MigDevice,
    MigInfo,
    NodeFacts,
    Own,
    Owner,
    Part,
    Plane,
    Pressure,
    Process,
    ProcessView,
    Scope,
    Share,
    SharedMemory,
    Snapshot,
    Source,
    Usage,
    Work,
    Xid,
)
from gpubpf.nvml.ask import COUNTER
from gpubpf.nvml.facts import FACTS as DEVICE_FACTS
from gpubpf.symbols import GROUPS, SYMBOLS, chosen

UUIDS = ("GPU-0a", "GPU-1b", 'MIG-"2c"')
MAPS = ("processes", "allocations", "failures")
SOURCES = st.lists(st.sampled_from(("bpf", "nvml", "discovery", "node")), unique=True)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ('"', "\\", "\n", '\\"', "\\n", "a\nb", '"}\n# EOF\n', "\r\u2028\x85\0", "é漢\U0001f600", " ")
)
COUNTS = st.sampled_from((0, 1, 999_999, 1_000_000, 2**53 + 1, 2**62, 2**63 - 1)) | st.integers(
    0, 2**63 - 1
)
NUMBERS = st.floats() | st.integers(0, 2**64) | st.sampled_from((0, 0.5, 1e-9, 1e6, 1e21))
SHARES = st.none() | NUMBERS
TOTALS = st.floats(0, 1e300) | COUNTS  # what a counter may be
WORDS = st.none() | TEXT


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
    kinds=st.lists(st.sampled_from(("compute", "graphics", "mps")), unique=True).map(tuple),
    share=st.none() | st.builds(Share, NUMBERS, NUMBERS, NUMBERS, NUMBERS, SHARES, SHARES),
)
COUNTER_FACTS = {fact.name for fact in DEVICE_FACTS if fact.kind == COUNTER}
FACT_LABELS = {fact.name: list(fact.asks) or [()] for fact in DEVICE_FACTS}
# One of each kind, of those with labels and without, of MIG devices too, and derived.
TOLD = (
    "utilization_ratio",
    "power_watts",
    "temperature_celsius",
    "memory_used_bytes",
    "memory_size_bytes",
    "sm_occupancy_ratio",
    "tensor_pipe_utilization_ratio",
    "clock_reason_active",
    "energy_joules",
    "sm_busy_seconds",
    "throttled_seconds",
    "ecc_errors",
    "nvlink_link_bytes",
)


@st.composite
def figures(draw: st.DrawFn, names: Sequence[str]) -> Figures:
    """Figures of some of the facts, of some of their labels."""
    found = {}
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=4)):
        labels = st.sampled_from(FACT_LABELS[name])
        values = TOTALS if name in COUNTER_FACTS else NUMBERS
        found[name] = draw(st.dictionaries(labels, values, max_size=3))
    return found


@st.composite
def planes(draw: st.DrawFn) -> Plane | None:
    if draw(st.booleans()):
        return None
    found = []
    of_mig = [fact.name for fact in DEVICE_FACTS if fact.mig and fact.name in TOLD]
    for index, uuid in enumerate(draw(st.lists(st.sampled_from(UUIDS), unique=True))):
        mig: tuple[MigDevice, ...] = ()
        if draw(st.booleans()):
            number = st.none() | st.integers(0, 9)
            own = MigInfo(f"MIG-{index}", draw(TEXT), draw(number), draw(number), draw(number))
            mig = (MigDevice(own, draw(figures(of_mig))),)
        found.append(
            Device(
                DeviceInfo(
                    index,
                    uuid,
                    draw(TEXT),
                    draw(TEXT),
                    draw(st.none() | TEXT),
                    serial=draw(TEXT),
                    children=tuple(each.info.uuid for each in mig),
                ),
                draw(figures(TOLD)),
                draw(st.none() | st.lists(DEVICE_PROCESSES, max_size=2).map(tuple)),
                mig,
                draw(st.none() | TEXT),
                draw(st.dictionaries(TEXT, COUNTS, max_size=2)),
                draw(st.none() | st.booleans()),
            )
        )
    xids = st.builds(Xid, COUNTS, NUMBERS)
    places = st.tuples(st.sampled_from(UUIDS), st.integers(0, 200))
    return Plane(
        tuple(found),
        draw(st.dictionaries(st.sampled_from(CLASSES), NUMBERS)),
        draw(st.dictionaries(places, xids, max_size=3)),
        draw(COUNTS),
    )


NODES = st.builds(
    NodeFacts,
    st.none() | st.builds(SharedMemory, COUNTS, COUNTS, COUNTS),
    COUNTS,
    SHARES,
    st.none() | st.builds(Work, COUNTS, COUNTS, TOTALS, COUNTS, COUNTS),
    st.dictionaries(
        st.sampled_from(("cpu", "memory", "io")),
        st.builds(Pressure, TOTALS, st.none() | TOTALS),
    ),
    st.builds(Own, COUNTS, COUNTS, COUNTS, st.none() | COUNTS, st.none() | COUNTS),
)


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
        process, job_id = draw(st.none() | known), draw(st.sampled_from(JOB_IDS))
        views.append(ProcessView(Owner(pid, born), process, counters, on, gpus, job_id=job_id))
    return tuple(views)


RATIOS = st.dictionaries(TEXT, NUMBERS, max_size=2)
JOB_IDS = ("other", "none", "4711", 'a"b')


@st.composite
def jobs(draw: st.DrawFn, uuids: Sequence[str]) -> Jobs:
    accounts = []
    used = st.builds(Usage, FACTS, TOTALS, TOTALS, TOTALS, TOTALS, st.none() | NUMBERS)
    for job_id in JOB_IDS:
        job = None
        if job_id not in ("other", "none"):
            key = JobKey(draw(TEXT), job_id)
            job = Job(key, draw(TEXT), draw(TEXT), draw(TEXT))
        accounts.append(
            JobAccount(
                job_id,
                job,
                draw(st.floats(0, 1e10)),
                draw(st.booleans()),
                draw(st.dictionaries(st.sampled_from((UNKNOWN_GPU, *uuids)), used)),
                draw(st.dictionaries(st.integers(1, 65535), COUNTS, max_size=2)),
            )
        )
    joules = st.dictionaries(st.sampled_from((UNKNOWN_GPU, *uuids)), TOTALS)
    waiting, merged, closed, unseen = (draw(COUNTS) for _ in range(4))
    return Jobs(tuple(accounts), waiting, merged, closed, unseen, draw(joules))


@st.composite
def findings(draw: st.DrawFn, uuids: Sequence[str]) -> dict[Scope, Finding]:
    if not uuids:
        return {}
    scopes = st.tuples(st.none() | st.sampled_from(JOB_IDS), st.sampled_from(uuids))
    verdicts = st.dictionaries(TEXT, st.booleans(), max_size=2)
    return draw(st.dictionaries(scopes, st.builds(Finding, RATIOS, verdicts), max_size=4))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    groups = draw(st.lists(st.sampled_from(GROUPS), unique=True))
    functions = tuple(symbol.name for symbol in chosen(tuple(groups)))
    seen = draw(planes())
    indices = {
        uuid: device.info.index
        for device in (seen.devices if seen else ())
        for uuid in (device.info.uuid, *device.info.children)
    }
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
        plane=seen,
        processes=draw(processes(len(functions), list(indices))),
        indices=indices,
        attached=draw(st.lists(st.builds(Attached, TEXT, names, places), max_size=4)),
        sources=tuple(
            Source(name, draw(st.booleans()), draw(WORDS), draw(NUMBERS), draw(WORDS))
            for name in draw(SOURCES)
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
        node=draw(st.none() | NODES),
        jobs=draw(st.none() | jobs(list(indices))),
        findings=draw(findings(list(indices))),
    )
