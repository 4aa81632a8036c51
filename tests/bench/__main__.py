"""Measures everything, or what --only names, and prints a Markdown table.

It reports, it doesn't judge: slowness fails nothing (the machine may be busy), a wrong count does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tests.bench import (
    calls,
    counting,
    footprint,
    idle,
    jobs,
    launches,
    rendering,
    sampling,
    scrape,
    scrapers,
    start,
    table,
)
from tests.bench.agent import warm_up
from tests.bench.bench import Bench
from tests.bench.machine import describe
from tests.bench.table import Mismatch, Row


class Benchmark(Protocol):
    """What a benchmark's module has."""

    NAME: str

    def run(self, bench: Bench) -> Iterator[Row | Mismatch]:
        """Measures, and yields its rows as they are known."""


BENCHES: tuple[Benchmark, ...] = (
    launches,
    calls,
    counting,
    start,
    footprint,
    idle,
    jobs,
    sampling,
    scrape,
    scrapers,
    rendering,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    names = [bench.NAME for bench in BENCHES]
    parser.add_argument("--only", action="append", choices=names, help="this one (repeatable)")
    parser.add_argument("--quick", action="store_true", help="less of everything, for a look")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this file")
    options = parser.parse_args()
    rows: list[Row] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gpubpf-bench-") as folder:
        bench = Bench(options.quick, Path(folder))
        warm_up(bench.scratch)
        for one in BENCHES:
            if options.only and one.NAME not in options.only:
                continue
            begin = time.monotonic()
            for result in one.run(bench):
                if isinstance(result, Mismatch):
                    wrong.append(f"{one.NAME}: {result.what}")
                else:
                    rows.append(result)
            print(f"{one.NAME}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    text = table.markdown(rows, describe())
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(table.replaced(page, text), encoding="utf-8")
    for line in wrong:
        print(f"WRONG COUNT: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
