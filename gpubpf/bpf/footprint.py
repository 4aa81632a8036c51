"""How much device memory live allocations take, by their addresses and sizes.

The driver hands memory out in granules of 2 MiB; what an allocation leaves of a granule others may
use, or nobody. A process's granules are those that its device and pool allocations touch, counted
once however many share one; virtual memory and arrays, whose handles say nothing of addresses, take
their size rounded up. Managed memory is where it was last touched, host memory is not on a GPU:
neither counts.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable

from gpubpf.model import Footprint, Ordinal, Owner, Place
from gpubpf.symbols import DEVICES, KINDS

GRANULE = 2 << 20

_NAME = struct.Struct("QQII")  # struct name: value, born, pid, space
_ALLOCATION = struct.Struct("QQQII")  # struct allocation: bytes, context, made, kind, device
_MADE = struct.Struct("Q")  # struct context
_SPACE_CONTEXT, _SPACE_PRIMARY = 3, 4  # enum space
_BY_ADDRESS = frozenset((KINDS.index("device"), KINDS.index("pool")))
_BY_SIZE = frozenset((KINDS.index("virtual"), KINDS.index("array")))
_MOST_BYTES = 1 << 43  # as in probes/count.h

Row = tuple[bytes, bytes]


def footprints(
    allocations: Iterable[Row], contexts: Iterable[Row]
) -> tuple[list[bytes], dict[Place, Footprint]]:
    """The keys of allocations that went with their context, and the footprints of the others."""
    made = {key: _MADE.unpack_from(value)[0] for key, value in contexts}
    gone: list[bytes] = []
    live: dict[Place, int] = defaultdict(int)
    rounded: dict[Place, int] = defaultdict(int)
    spans: dict[Place, list[tuple[int, int]]] = defaultdict(list)
    for key, value in allocations:
        address, born, pid, _ = _NAME.unpack(key)
        size, context, born_with, kind, device = _ALLOCATION.unpack_from(value)
        if context <= DEVICES + 1:  # a device's primary context, see owner_of in memory.c
            with_context = _NAME.pack(max(0, context - 1), born, pid, _SPACE_PRIMARY)
        else:
            with_context = _NAME.pack(context, born, pid, _SPACE_CONTEXT)
        if context and born_with and made.get(with_context) != born_with:
            gone.append(key)
            continue
        ordinal: Ordinal = device if device < DEVICES else None
        place = (Owner(pid, born), ordinal)
        if size > _MOST_BYTES or not (kind in _BY_ADDRESS or kind in _BY_SIZE):
            continue
        live[place] += size
        if kind in _BY_ADDRESS:
            spans[place].append((address // GRANULE, -(-(address + size) // GRANULE)))
        else:
            rounded[place] += -(-size // GRANULE)
    return gone, {
        place: Footprint(bytes_, GRANULE * (rounded[place] + _covered(spans[place])))
        for place, bytes_ in live.items()
    }


def _covered(spans: list[tuple[int, int]]) -> int:
    """How many numbers lie in at least one of these half-open spans."""
    total = reached = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
