"""How counters are laid out, in the kernel and in every packed vector.

What a process does on one device is a row of 64-bit counters ("lanes"), in the order of FACTS. The
row of a process's home device is followed by one lane per probed function with the number of its
calls. The layout is written once, here: `defines()` hands it to the compiler of `probes/`.

In the agent such a row is one Python integer of 64-bit little-endian lanes. Adding two vectors, or
taking their difference, is then one integer operation in C instead of a loop over hundreds of
lanes, as long as no lane carries into its neighbour: see `Adder`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpubpf.symbols import DIRECTIONS, KINDS

LANE_BITS = 64
LANE_BYTES = LANE_BITS // 8

SIZE_BOUNDS = tuple(1 << bits for bits in (12, 16, 20, 21, 24, 27, 30))
"""Upper bounds of the classes of allocation sizes, in bytes; a last class has none."""

FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # name, variants (one lane each)
    ("kernel_launches", ("",)),
    ("captured_launches", ("",)),
    ("graph_launches", ("",)),
    ("graph_kernels", ("",)),
    ("unknown_graph_launches", ("",)),  # of graphs whose kernels are not known
    ("host_functions", ("",)),
    ("allocations", KINDS),
    ("allocated_bytes", KINDS),
    ("frees", KINDS),
    ("freed_bytes", KINDS),
    ("implicit_frees", KINDS),  # with their context, by no call that frees
    ("implicitly_freed_bytes", KINDS),
    ("allocation_sizes", (*(str(bound) for bound in SIZE_BOUNDS), "+Inf")),  # all but host memory
    ("copied_bytes", DIRECTIONS),
    ("set_bytes", ("",)),
    ("captured_copied_bytes", ("",)),
    ("captured_set_bytes", ("",)),
    ("waits", ("",)),
    ("wait_nanoseconds", ("",)),
)


def _first_lanes() -> dict[str, int]:
    first: dict[str, int] = {}
    lane = 0
    for name, variants in FACTS:
        first[name] = lane
        lane += len(variants)
    first["calls"] = lane
    return first


FIRST = _first_lanes()
"""Fact -> its first lane; `calls` -> the lane of the first probed function."""


FACT_BYTES = FIRST["calls"] * LANE_BYTES


def pack_calls(row: bytes | memoryview) -> int:
    """Calls alone, at their place after the facts."""
    return pack(row) << 8 * FACT_BYTES


def split(vector: int) -> tuple[int, int]:
    """The facts and the calls of a vector that holds both."""
    facts = vector % (1 << 8 * FACT_BYTES)
    return facts, vector - facts


def held(vector: int) -> int:
    """What is left of a vector's allocations that nothing freed, as implicit frees."""
    row = memoryview(split(vector)[0].to_bytes(FACT_BYTES, "little")).cast("Q")
    made = 0
    for gone, allocated, freed in (
        ("implicit_frees", "allocations", "frees"),
        ("implicitly_freed_bytes", "allocated_bytes", "freed_bytes"),
    ):
        for kind in range(len(KINDS) - 1):
            lane = FIRST[gone] + kind
            left = row[FIRST[allocated] + kind] - row[FIRST[freed] + kind] - row[lane]
            made += max(0, left) << LANE_BITS * lane
    return made


def count(functions: int) -> int:
    """Number of lanes when this many functions are probed."""
    return FIRST["calls"] + functions


def defines(functions: int) -> dict[str, int]:
    """The layout as preprocessor definitions."""
    lanes = {f"LANE_{name.upper()}": lane for name, lane in FIRST.items() if name != "calls"}
    return {**lanes, "FACT_LANES": FIRST["calls"], "CALL_LANES": functions}


def pack(row: bytes | memoryview) -> int:
    return int.from_bytes(row, "little")


def unpack(vector: int, functions: int) -> Sequence[int]:
    """The lanes of a vector as a sequence of integers."""
    return memoryview(vector.to_bytes(count(functions) * LANE_BYTES, "little")).cast("Q")


def _top_bits(functions: int) -> int:
    return int.from_bytes(b"\0\0\0\0\0\0\0\x80" * count(functions), "little")


class Adder:
    """Adds to vectors what a process counted since the last look.

    The kernel side stops a lane well below 2**63 (`probes/count.h`), so a difference of two looks
    at one process is lane-wise non-negative. Totals over many processes could still grow past a
    lane if hostile programs reported absurd sizes: `add` refuses, and `saturate` does it slowly.
    """

    def __init__(self, functions: int) -> None:
        self._top = _top_bits(functions)

    def add(self, total: int, new: int, old: int) -> int | None:
        """`total` + (`new` - `old`), or None where a lane would leave its 63 bits."""
        result = total + (new - old)
        return None if result & self._top or result < 0 else result

    def saturate(self, total: int, new: int, old: int) -> int:
        """The same lane by lane, each stopping at its limit: slow, for what `add` refuses."""
        size = self._top.bit_length() // 8
        rows = (memoryview(v.to_bytes(size, "little")).cast("Q") for v in (total, new, old))
        lanes = (min(max(t, t + n - o), 2**63 - 1) for t, n, o in zip(*rows, strict=True))
        return pack(b"".join(value.to_bytes(8, "little") for value in lanes))
