"""How a process's counters are laid out, in the kernel and in every packed vector.

A process has one value in the BPF map: `born`, then 64-bit counters ("lanes"). The facts come
first, in the order of FACTS, then one lane per probed function with the number of its calls. The
layout is written once, here: `defines()` hands it to the compiler of `probes/`.

In the agent such a row is one Python integer of 64-bit little-endian lanes. Adding two vectors, or
taking their difference, is then one integer operation in C instead of a loop over hundreds of
lanes, as long as no lane carries into its neighbour: see `add()`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpubpf.symbols import DIRECTIONS, KINDS

LANE_BITS = 64
LANE_BYTES = LANE_BITS // 8

FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # name, variants (one lane each)
    ("multi_device_launches", ("",)),  # kernels of cuLaunchCooperativeKernelMultiDevice
    ("allocations", KINDS),
    ("allocated_bytes", KINDS),
    ("frees", KINDS),
    ("freed_bytes", KINDS),
    ("copied_bytes", DIRECTIONS),
    ("set_bytes", ("",)),
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


def count(functions: int) -> int:
    """Number of lanes when this many functions are probed."""
    return FIRST["calls"] + functions


def defines(functions: int) -> dict[str, int]:
    """The layout as preprocessor definitions."""
    lanes = {f"LANE_{name.upper()}": lane for name, lane in FIRST.items()}
    return {**lanes, "LANES": count(functions)}


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
