"""gpubpf.lanes: the layout that kernel and agent share, and adding without a carry."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf import lanes
from gpubpf.bpf import program
from gpubpf.symbols import DIRECTIONS, KINDS, SYMBOLS

FUNCTIONS = 3
LANES = lanes.count(FUNCTIONS)
MOST = 2**63 - 1  # of a total
LIMIT = (1 << 62) + (1 << 48)  # of what the kernel counts in a lane (probes/count.h)


def rows(most: int) -> st.SearchStrategy[list[int]]:
    edge = st.sampled_from((0, 1, most // 2, most - 1, most))
    return st.lists(edge | st.integers(0, most), min_size=LANES, max_size=LANES)


def packed(row: list[int]) -> int:
    return lanes.pack(b"".join(value.to_bytes(8, "little") for value in row))


def test_the_facts_follow_each_other_without_a_gap() -> None:
    lane = 0
    for name, variants in lanes.FACTS:
        assert lanes.FIRST[name] == lane
        lane += len(variants)
    assert lanes.FIRST["calls"] == lane
    assert lanes.FIRST.keys() == {*(name for name, _ in lanes.FACTS), "calls"}
    assert lanes.count(0) == lane
    assert lanes.count(len(SYMBOLS)) == lane + len(SYMBOLS)


def test_a_fact_by_kind_has_a_lane_for_every_kind() -> None:
    variants = dict(lanes.FACTS)
    for fact in ("allocations", "allocated_bytes", "frees", "freed_bytes",
                 "implicit_frees", "implicitly_freed_bytes"):  # fmt: skip
        assert variants[fact] == KINDS
    assert variants["copied_bytes"] == DIRECTIONS


@given(st.integers(0, 500))
def test_the_definitions_are_the_layout(functions: int) -> None:
    values = lanes.defines(functions)
    whole = program.defines(functions, program.Sizes(), {})
    assert values.items() <= whole.items()
    for index, kind in enumerate(KINDS):
        assert whole[f"KIND_{kind.upper()}"] == index
    for index, direction in enumerate(DIRECTIONS):
        assert whole[f"DIRECTION_{direction.upper()}"] == index
    assert values.pop("FACT_LANES") == lanes.count(0)
    assert values.pop("CALL_LANES") == functions
    expected = {f"LANE_{fact.upper()}": lane for fact, lane in lanes.FIRST.items()}
    del expected["LANE_CALLS"]  # they are an array of their own
    assert values == expected


def test_the_classes_of_sizes_are_those_of_the_handler() -> None:
    """size_class in probes/memory.c: one class more for each bound that a size is beyond."""
    text = (program.probes_folder() / "memory.c").read_text()
    body = text[text.index("size_class(u64 bytes) {") :].partition("}")[0]
    shifts = [int(shift) for shift in re.findall(r"\(last >> (\d+) != 0\)", body)]
    assert tuple(1 << shift for shift in shifts) == lanes.SIZE_BOUNDS
    assert dict(lanes.FACTS)["allocation_sizes"] == (*map(str, lanes.SIZE_BOUNDS), "+Inf")


@settings(max_examples=40)
@given(rows(2**64 - 1))
def test_what_is_packed_comes_out_again(row: list[int]) -> None:
    assert list(lanes.unpack(packed(row), FUNCTIONS)) == row


@settings(max_examples=40)
@given(st.data())
def test_a_sum_is_the_sum_of_each_lane(data: st.DataObject) -> None:
    total = data.draw(rows(MOST))
    old = data.draw(rows(LIMIT))
    deltas = [
        data.draw(st.integers(0, min(MOST - t, LIMIT - o))) for t, o in zip(total, old, strict=True)
    ]
    new = [o + d for o, d in zip(old, deltas, strict=True)]
    result = lanes.Adder(FUNCTIONS).add(packed(total), packed(new), packed(old))
    assert result is not None
    expected = [t + d for t, d in zip(total, deltas, strict=True)]
    assert list(lanes.unpack(result, FUNCTIONS)) == expected


@settings(max_examples=40)
@given(st.lists(rows(2**40), max_size=20))
def test_many_looks_add_up(looks: list[list[int]]) -> None:
    """As the ledger does it: each look at a process adds what came since the one before."""
    adder = lanes.Adder(FUNCTIONS)
    running = [0] * LANES
    total: int | None = 0
    for look in looks:
        grown = [a + b for a, b in zip(running, look, strict=True)]
        assert total is not None
        total = adder.add(total, packed(grown), packed(running))
        running = grown
    assert total == packed(running)


@settings(max_examples=40)
@given(rows(MOST), rows(LIMIT), st.integers(0, LANES - 1), st.integers(0, 2**48))
def test_an_addition_that_leaves_63_bits_is_refused_whole(
    total: list[int], delta: list[int], lane: int, beyond: int
) -> None:
    """In whichever lane it is, and whatever the others do."""
    delta[lane] = max(delta[lane], 1)
    total[lane] = min(MOST, MOST - delta[lane] + 1 + beyond)
    assert total[lane] + delta[lane] > MOST
    assert lanes.Adder(FUNCTIONS).add(packed(total), packed(delta), 0) is None


@settings(max_examples=40)
@given(rows(2**40), rows(2**40), st.integers(0, LANES - 1))
def test_the_last_value_that_fits_leaves_its_neighbours_alone(
    total: list[int], delta: list[int], lane: int
) -> None:
    total[lane], delta[lane] = MOST - LIMIT, LIMIT
    result = lanes.Adder(FUNCTIONS).add(packed(total), packed(delta), 0)
    assert result is not None
    assert list(lanes.unpack(result, FUNCTIONS)) == [
        t + d for t, d in zip(total, delta, strict=True)
    ]


@settings(max_examples=40)
@given(rows(MOST), st.integers(0, LANES - 1))
def test_a_difference_below_zero_is_refused(total: list[int], lane: int) -> None:
    """Not counted by the kernel in any way known: it must not borrow from a neighbour."""
    total[lane] = 0
    old = [0] * LANES
    old[lane] = 1
    assert lanes.Adder(FUNCTIONS).add(packed(total), 0, packed(old)) is None


# --- facts and calls ------------------------------------------------------------------------------


@settings(max_examples=40)
@given(rows(2**64 - 1))
def test_facts_and_calls_come_apart(row: list[int]) -> None:
    """And together again; `pack_calls` is of the calls alone."""
    facts, calls = lanes.split(packed(row))
    start = lanes.FIRST["calls"]
    assert list(lanes.unpack(facts, FUNCTIONS)) == [*row[:start], *[0] * FUNCTIONS]
    assert list(lanes.unpack(calls, FUNCTIONS)) == [*[0] * start, *row[start:]]
    assert facts + calls == packed(row)
    only = b"".join(value.to_bytes(8, "little") for value in row[start:])
    assert lanes.pack_calls(only) == lanes.pack_calls(memoryview(only)) == calls
    assert len(only) + lanes.FACT_BYTES == 8 * LANES


_HELD = (
    ("allocations", "frees", "implicit_frees"),
    ("allocated_bytes", "freed_bytes", "implicitly_freed_bytes"),
)


@settings(max_examples=60)
@given(rows(2**62))
def test_what_is_held_is_what_nothing_freed(row: list[int]) -> None:
    """By kind, never below zero, as implicit frees and nothing else; calls don't matter."""
    expected = [0] * LANES
    for made, freed, gone in _HELD:
        for kind in range(len(KINDS) - 1):
            a, b, c = (row[lanes.FIRST[fact] + kind] for fact in (made, freed, gone))
            expected[lanes.FIRST[gone] + kind] = max(0, a - b - c)
    held = lanes.held(packed(row))
    assert list(lanes.unpack(held, FUNCTIONS)) == expected
    assert lanes.held(lanes.split(packed(row))[0]) == held


@settings(max_examples=40)
@given(rows(2**60))
def test_once_freed_nothing_is_held(row: list[int]) -> None:
    assert lanes.held(packed(row) + lanes.held(packed(row))) == 0


def test_frees_of_what_was_not_seen_are_not_held_against_others() -> None:
    """Of the kind `unknown`, and more frees than allocations of a kind."""
    row = [0] * LANES
    row[lanes.FIRST["frees"] + KINDS.index("unknown")] = 9
    row[lanes.FIRST["allocations"] + KINDS.index("unknown")] = 5  # there is no such thing
    row[lanes.FIRST["frees"] + KINDS.index("device")] = 3
    row[lanes.FIRST["allocations"] + KINDS.index("pool")] = 2
    held = list(lanes.unpack(lanes.held(packed(row)), FUNCTIONS))
    assert held.pop(lanes.FIRST["implicit_frees"] + KINDS.index("pool")) == 2
    assert not any(held)
