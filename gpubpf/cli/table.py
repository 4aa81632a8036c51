"""Plain text for a terminal: short numbers, tables that fit a width, wrapped paragraphs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

PLAIN_WIDTH, PLAIN_HEIGHT = 80, 24  # where the output is no terminal
LEAST_REST = 10  # characters that the last column keeps


def width() -> int:
    """Columns of the terminal that standard output is; 80 where it is none."""
    return max(40, _terminal()[0] or PLAIN_WIDTH)  # 0: a terminal that doesn't know


def height() -> int:
    """Lines of the terminal."""
    return max(8, _terminal()[1] or PLAIN_HEIGHT)


def _terminal() -> tuple[int, int]:
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):  # none, or closed
        return PLAIN_WIDTH, PLAIN_HEIGHT


def number(value: float | None) -> str:
    """At most five characters: 0, 0.05, 3.2, 480, 12.3k. `-` where it is not known."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if value < 0.01:
        return "<.01"
    if value < 0.995:
        return f"{value:.2f}"
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"), whole=isinstance(value, int))


def size(count: float | None) -> str:
    """Bytes in binary units: 0, 512, 1.5K, 23.4G."""
    if count is None:
        return "-"
    return _scaled(count, 1024, ("", "K", "M", "G", "T", "P", "E"), whole=True)


def _scaled(value: float, step: int, units: Sequence[str], *, whole: bool) -> str:
    unit = 0
    while value >= 999.5 and unit < len(units) - 1:
        value /= step
        unit += 1
    decimals = 1 if value < 99.95 and (unit or not whole) else 0
    return f"{value:.{decimals}f}".removesuffix(".0") + units[unit]


def percent(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return "<1" if 0 < ratio < 0.005 else f"{ratio * 100:.0f}"


@dataclass(frozen=True, slots=True)
class Column:
    """`over` stands above `head`. Those with the lowest `worth` go first when there is no room."""

    over: str
    head: str
    left: bool = False
    worth: int = 100


def fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], limit: int) -> list[str]:
    """The table in at most `limit` characters a line; its last column takes what is left."""
    widths = [
        max(len(text) for text in (column.over, column.head, *(row[i] for row in rows)))
        for i, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    last = kept[-1]
    droppable = sorted(kept[:-1], key=lambda i: columns[i].worth)

    def used() -> int:
        return sum(widths[i] + 1 for i in kept if i != last)

    while limit - used() < LEAST_REST and droppable and columns[droppable[0]].worth < 100:
        kept.remove(droppable.pop(0))
    widths[last] = max(LEAST_REST, limit - used())

    def line(cells: Sequence[str]) -> str:
        parts = []
        for i in kept:
            text = cut(cells[i], widths[i])
            parts.append(text.ljust(widths[i]) if columns[i].left else text.rjust(widths[i]))
        return " ".join(parts).rstrip()

    heads = [line([column.over for column in columns]), line([column.head for column in columns])]
    return [head for head in heads if head] + [line(row) for row in rows]


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def wrap(text: str, limit: int, indent: str = "") -> list[str]:
    """Lines of at most `limit` characters, all but the first indented. Long words are cut only
    where they don't fit a line of their own."""
    import textwrap

    return textwrap.wrap(
        text, max(limit, 20), subsequent_indent=indent, break_on_hyphens=False
    ) or [""]


def clean(text: str) -> str:
    """What can be shown on one line: a name or a path may hold escape sequences."""
    return "".join(c if c.isprintable() else "?" for c in text)
