"""Writes the README's tables of metrics, options, functions and diagnoses from those in the code.

python -m gpubpf.reference --write README.md    replaces what stands between the markers
python -m gpubpf.reference --check README.md    fails where that would change anything
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from gpubpf.config import OPTIONS
from gpubpf.diagnosis import DIAGNOSES, INPUTS, THRESHOLDS
from gpubpf.job_metrics import JOB_METRICS
from gpubpf.metric import Metric
from gpubpf.metrics import LATE, METRICS
from gpubpf.symbols import GROUPS, STATE, SYMBOLS


def metrics() -> str:
    """One row per metric; `needs` is the probe group or the flag without which it is absent."""
    return _table(
        ("name", "type", "unit", "labels", "needs", "what"),
        (
            (
                f"`{metric.sample_name}`",
                metric.kind,
                metric.unit,
                " ".join(f"`{label}`" for label in metric.labels),
                _needs(metric),
                metric.help,
            )
            for metric in METRICS + LATE
        ),
    )


def _needs(metric: Metric) -> str:
    groups = metric.group.split()
    needs = [f"`--probe {group}`" for group in groups if group != STATE]
    needs += ["`--attribution`"] * (STATE in groups)
    if metric.name.startswith("gpubpf_process"):
        needs.append("`--process-metrics`")
    if metric in JOB_METRICS:
        needs.append("`--jobs`")
    return ", ".join(needs)


def options() -> str:
    """One row per option; its help says the default."""
    return _table(
        ("option", "variable", "of", "what"),
        (
            (
                f"`--[no-]{option.name}`"
                if option.is_flag
                else f"`--{option.name} {option.metavar}`",
                f"`{option.variable}`",
                ", ".join(option.commands),
                option.help,
            )
            for option in OPTIONS
        ),
    )


def functions() -> str:
    """One row per probe group, one name for all forms of a function."""
    return _table(
        ("group", "probed functions, in all their forms (`_v2`, `_v3`, `_ptsz`, `_ptds`)"),
        (
            (group, " ".join(f"`{name}`" for name, _ in groupby(sorted(_plain_names(group)))))
            for group in (*GROUPS, STATE)
        ),
    )


def _plain_names(group: str) -> Iterable[str]:
    return (re.sub(r"(_v\d)?(_pt[sd][sz])?$", "", s.name) for s in SYMBOLS if s.group == group)


def diagnoses() -> str:
    """One row per diagnosis, with the inputs that it needs."""
    return _table(
        ("diagnosis", "holds when", "needs"),
        (
            (f"`{name}`", row.help, " ".join(f"`{need}`" for need in row.needs))
            for name, row in DIAGNOSES.items()
        ),
    )


def thresholds() -> str:
    return _table(
        ("threshold", "default", "what"),
        ((f"`{name}`", f"{row.default:g}", row.help) for name, row in THRESHOLDS.items()),
    )


def inputs() -> str:
    return _table(("input", "what"), ((f"`{name}`", what) for name, what in INPUTS.items()))


TABLES: dict[str, Callable[[], str]] = {
    "metrics": metrics,
    "options": options,
    "functions": functions,
    "diagnoses": diagnoses,
    "thresholds": thresholds,
    "inputs": inputs,
}
"""By the name in the markers `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def updated(text: str) -> str:
    """The text with every table that it has markers for."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        if found:
            _, found, after = rest.partition(end)
            if not found:
                raise ValueError(f"{begin} without {end}")
            text = f"{before}{begin}\n{table()}{end}{after}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes, or checks: 1 and what differs, if something does."""
    parser = argparse.ArgumentParser(prog="gpubpf.reference", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="say what is not up to date")
    what.add_argument("--write", action="store_true", help="bring it up to date")
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    old = given.file.read_text(encoding="utf-8")
    new = updated(old)
    if given.write:
        given.file.write_text(new, encoding="utf-8")
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            old.splitlines(keepends=True),
            new.splitlines(keepends=True),
            f"{given.file}",
            f"{given.file} from the code: python -m gpubpf.reference --write {given.file}",
        )
    )
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
