"""gpubpf.bpf.footprint: the granules that live allocations take, and those that are gone."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf.bpf import program
from gpubpf.bpf.footprint import GRANULE, Row, footprints
from gpubpf.model import Footprint, Ordinal, Owner
from gpubpf.symbols import DEVICES, KINDS

PLACE = (Owner(7, 5), 0)
ADDRESS, PHYSICAL, ARRAY, CONTEXT, PRIMARY = range(5)
BY_ADDRESS, BY_SIZE, NOWHERE = ("device", "pool"), ("virtual", "array"), ("managed", "host")
MIB = 1 << 20


def row(
    address: int,
    size: int,
    kind: str | int = "device",
    *,
    device: int = 0,
    context: int = 0,
    made: int = 0,
    owner: Owner = PLACE[0],
    space: int = ADDRESS,
) -> Row:
    number = KINDS.index(kind) if isinstance(kind, str) else kind
    return (
        struct.pack("=QQII", address, owner.born, owner.pid, space),
        struct.pack("=QQQIIII", size, context, made, number, device, 1, 0),
    )


def context(value: int, made: int, space: int = CONTEXT, owner: Owner = PLACE[0]) -> Row:
    return (
        struct.pack("=QQII", value, owner.born, owner.pid, space),
        struct.pack("=QIIII", made, 0, 1, 0, 0) + bytes(8 * 2 * (len(KINDS) - 1)),
    )


def of(*rows: Row) -> Footprint:
    gone, found = footprints(rows, ())
    assert gone == []
    assert set(found) <= {PLACE}
    return found.get(PLACE, Footprint(0, 0))


# --- the layout -----------------------------------------------------------------------------------


def test_the_layout_is_that_of_the_handlers() -> None:
    """The beginnings of the structures in probes/maps.h, and its numbers of spaces."""
    text = (program.probes_folder() / "maps.h").read_text()

    def fields(struct_: str) -> list[str]:
        body = text.partition(f"struct {struct_} {{")[2].partition("};")[0]
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        return [
            f"{kind} {name.strip()}"
            for kind, names in re.findall(r"(u\d+) ([^;]+);", body)
            for name in names.split(",")
        ]

    assert fields("name") == ["u64 value", "u64 born", "u32 pid", "u32 space"]
    assert fields("allocation")[:5] == [
        "u64 bytes", "u64 context", "u64 made", "u32 kind", "u32 device",
    ]  # fmt: skip
    assert fields("context")[0] == "u64 made"
    spaces = re.findall(r"SPACE_\w+", text.partition("enum space {")[2].partition("};")[0])
    assert [spaces.index(f"SPACE_{name}") for name in
            ("ADDRESS", "PHYSICAL", "ARRAY", "CONTEXT", "PRIMARY")] == list(range(5))  # fmt: skip


# --- granules -------------------------------------------------------------------------------------


def test_neighbours_share_a_granule() -> None:
    assert of(row(0, 512)) == Footprint(512, GRANULE)
    assert of(row(0, 512), row(512, 512), row(GRANULE - 1, 1)) == Footprint(1025, GRANULE)
    assert of(row(0, 512), row(GRANULE, 512)) == Footprint(1024, 2 * GRANULE)
    # The second begins in the first's last granule.
    assert of(row(0, 3 * MIB), row(3 * MIB, 3 * MIB)) == Footprint(6 * MIB, 3 * GRANULE)


def test_an_allocation_touches_what_it_lies_in() -> None:
    assert of(row(GRANULE - 1, 2)) == Footprint(2, 2 * GRANULE)
    assert of(row(5 * GRANULE, GRANULE)) == Footprint(GRANULE, GRANULE)
    assert of(row(5 * GRANULE + 1, GRANULE)) == Footprint(GRANULE, 2 * GRANULE)
    assert of(row(0, 10 * GRANULE), row(2 * GRANULE, 7)) == Footprint(
        10 * GRANULE + 7, 10 * GRANULE
    )


def test_the_order_does_not_matter() -> None:
    rows = [row(n * MIB, 512) for n in (9, 1, 4, 8, 0, 5)]
    assert of(*rows) == of(*reversed(rows)) == Footprint(6 * 512, 3 * GRANULE)


@pytest.mark.parametrize("kind", BY_ADDRESS)
def test_pools_lie_among_device_memory(kind: str) -> None:
    assert of(row(0, 512), row(512, 512, kind)) == Footprint(1024, GRANULE)


@pytest.mark.parametrize("kind", BY_SIZE)
@pytest.mark.parametrize(
    ("size", "granules"), [(1, 1), (GRANULE, 1), (GRANULE + 1, 2), (5 * GRANULE, 5)]
)
def test_handles_say_nothing_of_addresses(kind: str, size: int, granules: int) -> None:
    """Each takes its size rounded up, also if the values of the handles are near one another."""
    assert of(row(64, size, kind)) == Footprint(size, granules * GRANULE)
    assert of(row(64, size, kind), row(65, size, kind)) == Footprint(
        2 * size, 2 * granules * GRANULE
    )
    assert of(row(64, size, kind), row(64, 512)) == Footprint(size + 512, (granules + 1) * GRANULE)


@pytest.mark.parametrize("kind", [*NOWHERE, *range(len(KINDS) - 1, len(KINDS) + 3)])
def test_what_is_not_on_the_gpu_does_not_count(kind: str | int) -> None:
    """Nor do kinds that are kept in mind and counted nowhere (KIND_UNCOUNTED in memory.c)."""
    assert footprints([row(0, 512, kind)], ()) == ([], {})
    assert of(row(0, 512), row(GRANULE, 512, kind)) == Footprint(512, GRANULE)


def test_processes_and_devices_are_apart() -> None:
    """Two processes may have the same addresses: they are not of the same memory."""
    other = Owner(8, 5)
    again = Owner(7, 6)
    _, found = footprints(
        [
            row(0, 10), row(512, 20, device=1), row(0, 30, owner=other), row(0, 40, owner=again),
            row(1024, 50, device=DEVICES), row(2048, 60, device=DEVICES + 9),
        ],
        (),
    )  # fmt: skip
    places: dict[tuple[Owner, Ordinal], int] = {
        PLACE: 10, (PLACE[0], 1): 20, (other, 0): 30, (again, 0): 40, (PLACE[0], None): 110,
    }  # fmt: skip
    assert found == {place: Footprint(size, GRANULE) for place, size in places.items()}


# --- contexts -------------------------------------------------------------------------------------


def test_what_went_with_its_context_is_told_and_takes_nothing() -> None:
    kept, went = row(0, 512, context=0x7000, made=11), row(512, 512, context=0x8000, made=12)
    gone, found = footprints([kept, went], [context(0x7000, 11)])
    assert gone == [went[0]]
    assert found == {PLACE: Footprint(512, GRANULE)}


def test_a_handle_that_is_used_again_is_another_context() -> None:
    rows = [row(0, 512, context=0x7000, made=11)]
    assert footprints(rows, [context(0x7000, 11)])[0] == []
    assert footprints(rows, [context(0x7000, 99)])[0] == [rows[0][0]]


def test_another_processs_context_is_not_its_own() -> None:
    rows = [row(0, 512, context=0x7000, made=11)]
    for owner in (Owner(8, 5), Owner(7, 6)):
        assert footprints(rows, [context(0x7000, 11, owner=owner)])[0] == [rows[0][0]]


def test_of_a_context_from_before_nothing_is_known() -> None:
    """Neither when it was made, nor whether there is one."""
    for known in ({"context": 0x7000, "made": 0}, {"context": 0, "made": 11}, {}):
        assert of(row(0, 512, **known)) == Footprint(512, GRANULE)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [0, 1, DEVICES - 1, DEVICES])
def test_a_primary_context_is_named_by_its_device(device: int) -> None:
    """By 1 more than it (owner_of): 0 is none. An ordinary handle is an address, never so small."""
    rows = [row(0, 512, context=device + 1, made=11)]
    assert footprints(rows, [context(device, 11, PRIMARY)])[0] == []
    for wrong in (
        context(device, 12, PRIMARY), context(device + 1, 11, PRIMARY), context(device, 11),
        context(device + 1, 11),
    ):  # fmt: skip
        assert footprints(rows, [wrong])[0] == [rows[0][0]]


def test_the_first_number_that_is_a_handle() -> None:
    rows = [row(0, 512, context=DEVICES + 2, made=11)]
    assert footprints(rows, [context(DEVICES + 2, 11)])[0] == []
    assert footprints(rows, [context(DEVICES + 1, 11, PRIMARY)])[0] == [rows[0][0]]


# --- what a process may claim ---------------------------------------------------------------------


def test_absurd_sizes_are_left_out() -> None:
    """As the kernel does not add them up; what is near the end of the addresses stays a number."""
    assert footprints([row(0, (1 << 43) + 1), row(0, 2**64 - 1)], ()) == ([], {})
    assert of(row(512, 2**64 - 1), row(0, 512)) == Footprint(512, GRANULE)
    most = of(row(2**64 - 1, 1 << 43))
    assert most.live == 1 << 43
    assert 1 << 43 <= most.granules <= (1 << 43) + 2 * GRANULE


def test_nothing_is_nothing() -> None:
    assert footprints((), ()) == ([], {})
    assert footprints((), [context(1, 1)]) == ([], {})


SIZES = st.sampled_from((0, 1, 512, GRANULE - 1, GRANULE, GRANULE + 1, 7 * GRANULE)) | st.integers(
    0, 2**64 - 1
)
ADDRESSES = st.integers(0, 40 * GRANULE) | st.integers(0, 2**64 - 1)
ROWS = st.lists(
    st.builds(
        lambda address, size, kind, device, pid: row(
            address, size, kind, device=device, owner=Owner(pid, 1)
        ),
        ADDRESSES,
        SIZES,
        st.integers(0, 9),
        st.integers(0, DEVICES + 1),
        st.integers(1, 2),
    ),
    max_size=8,
)


@settings(max_examples=150)
@given(ROWS)
def test_granules_are_whole_and_never_more_than_each_alone(rows: list[Row]) -> None:
    gone, found = footprints(rows, ())
    alone: dict[object, int] = {}
    for one in rows:
        for place, print_ in footprints([one], ())[1].items():
            alone[place] = alone.get(place, 0) + print_.granules
    assert gone == []
    for place, print_ in found.items():
        assert print_.granules % GRANULE == 0
        assert 0 <= print_.granules <= alone[place]


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 3 * GRANULE), st.integers(1, 3 * GRANULE)), max_size=12),
    st.randoms(),
)
def test_memory_that_does_not_overlap_fits_into_its_granules(
    gaps: list[tuple[int, int]], random: object
) -> None:
    """Counted one by one: the granules with any byte of any allocation."""
    address, rows, touched, live = 0, [], set[int](), 0
    for gap, size in gaps:
        address += gap
        rows.append(row(address, size))
        touched |= set(range(address // GRANULE, (address + size - 1) // GRANULE + 1))
        live += size
        address += size
    random.shuffle(rows)  # type: ignore[attr-defined]
    print_ = of(*rows)
    assert print_ == Footprint(live, len(touched) * GRANULE)
    assert print_.live <= print_.granules
