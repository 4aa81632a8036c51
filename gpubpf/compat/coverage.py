"""Writes deploy/COVERAGE.md: what other exporters have, and what it is here.

python -m gpubpf.compat.coverage --write deploy/COVERAGE.md    writes it
python -m gpubpf.compat.coverage --check deploy/COVERAGE.md    fails where that would change it
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpubpf.compat import absent, dcgm, nvidia_smi, smi_rows
from gpubpf.compat.row import Row


@dataclass(frozen=True, slots=True)
class Entry:
    """A metric of another exporter's."""

    name: str
    ours: str  # our metric; or why there is none
    given: bool  # under its own name too, with --compat
    query: str = ""  # PromQL that gives the same figure, where it is one of ours


def _entries(
    rows: Mapping[str, Row],
    others: Mapping[str, str],
    without: Mapping[str, str],
) -> Iterator[Entry]:
    for name, row in rows.items():
        ours, query = row.source.ours, row.source.query
        if name.startswith(f"{nvidia_smi.PREFIX}mig_") and row in smi_rows.MIG_ROWS:
            ours, query = (text.replace("gpubpf_gpu_", "gpubpf_mig_") for text in (ours, query))
        yield Entry(name, ours, given=True, query=query)
    for name, ours in others.items():
        yield Entry(name, ours, given=True)
    for name, why in without.items():
        yield Entry(name, why, given=False)


def _prefixed(names: Mapping[str, str]) -> dict[str, str]:
    return {nvidia_smi.PREFIX + name: text for name, text in names.items()}


COVERAGE: dict[str, tuple[Entry, ...]] = {
    "dcgm-exporter": tuple(
        _entries({row.name: row for row in dcgm.ROWS}, dcgm.OTHERS, absent.DCGM)
    ),
    "nvidia_gpu_exporter": tuple(
        _entries(
            {nvidia_smi.PREFIX + row.name: row for row in (*smi_rows.ROWS, *smi_rows.MIG_ROWS)},
            nvidia_smi.OTHERS,
            _prefixed(absent.NVIDIA_SMI),
        )
    ),
}
"""By exporter."""

_HEAD = """\
# What other exporters have, and where it is in gpubpf

Written by `.venv/bin/python -m gpubpf.compat.coverage --write deploy/COVERAGE.md`. The third
column says whether `gpubpf serve --compat` gives the metric under its own name too: `--compat
dcgm` those of dcgm-exporter, `--compat nvidia-smi` those of nvidia_gpu_exporter. What stands here
is PromQL that gives the same figure in the same unit (DCGM cuts MiB, MHz and kB to whole ones); a
label without a value is where the answer stands. Profiling, MIG activity and NVLink throughput
come from GPM: Hopper and later. A series per process needs `--process-metrics`. How to change
over: [MIGRATION.md](MIGRATION.md).
"""

_OURS = re.compile(r"gpubpf_\w+(\{[^}]*\})?")


def document() -> str:
    parts = [_HEAD]
    for exporter, entries in COVERAGE.items():
        given = sum(entry.given for entry in entries)
        parts.append(f"\n## {exporter}: {given} of {len(entries)}\n\n")
        parts.append("| there | here | `--compat` |\n| --- | --- | --- |\n")
        for entry in sorted(entries, key=lambda entry: entry.name):
            ours = f"`{entry.query}`" if entry.query else _OURS.sub(r"`\g<0>`", entry.ours)
            parts.append(f"| `{entry.name}` | {ours} | {'yes' if entry.given else 'no'} |\n")
    return "".join(parts)


def main(
    arguments: Sequence[str] | None = None,
    text: Callable[[], str] = document,
    program: str = "gpubpf.compat.coverage",
) -> int:
    """Writes, or checks: 1 and what differs, if something does."""
    parser = argparse.ArgumentParser(
        prog=program, description="what other exporters have, and what it is here"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="say what is not up to date")
    what.add_argument("--write", action="store_true", help="write it")
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    new = text()
    if given.write:
        given.file.write_text(new, encoding="utf-8")
        return 0
    old = given.file.read_text(encoding="utf-8") if given.file.exists() else ""
    sys.stdout.writelines(
        difflib.unified_diff(
            old.splitlines(keepends=True),
            new.splitlines(keepends=True),
            f"{given.file}",
            f"{given.file} from the code: python -m {program} --write {given.file}",
        )
    )
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
