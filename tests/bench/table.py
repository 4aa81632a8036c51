"""What a benchmark reports: rows of one Markdown table, each a median with its range."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratios` are to `baseline`, each taken within one repetition."""

    metric: str
    values: Sequence[float]
    unit: str
    ratios: Sequence[float] = ()
    baseline: str = ""
    goal: str = ""
    met: bool | None = None  # None: no goal


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A count that was not what it had to be: the run fails."""

    what: str


def at_most(values: Sequence[float], limit: float) -> bool:
    return statistics.median(values) <= limit


def at_least(values: Sequence[float], limit: float) -> bool:
    return statistics.median(values) >= limit


def ratios(values: Iterable[float], to: Iterable[float]) -> list[float]:
    """Repetition by repetition, so that what disturbs one disturbs both sides of its ratio."""
    return [a / b if b else float("inf") for a, b in zip(values, to, strict=True)]


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1e5 or value == int(value):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1g}"
    # three significant figures, written out
    return f"{float(f'{value:.3g}'):,.10g}"


def spread(values: Sequence[float]) -> str:
    median = _number(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} [{_number(min(values))} to {_number(max(values))}]"


def _line(row: Row) -> str:
    ratio = f"{spread(row.ratios)} times {row.baseline}" if row.ratios else ""
    met = "" if row.met is None else "yes" if row.met else "**no**"
    return f"| {row.metric} | {spread(row.values)} {row.unit} | {ratio} | {row.goal} | {met} |"


def markdown(rows: Iterable[Row], machine: str) -> str:
    lines = [
        "| metric | median [min to max] | ratio to its baseline | goal | met |",
        "|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        machine,
    ]
    return "\n".join(lines) + "\n"


def replaced(text: str, table: str) -> str:
    """The text with the table between its two markers. Raises ValueError where they are not."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END} in it")
    return f"{before}{BEGIN}\n{table}{END}{after}"
