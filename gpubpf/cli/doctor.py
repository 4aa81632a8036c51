"""`gpubpf doctor`: what works here, what doesn't, and what to do about it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

from gpubpf.cli import table
from gpubpf.config import Options

if TYPE_CHECKING:
    from gpubpf.machine import Check

NAME = "doctor"
HELP = "check what gpubpf needs of this machine"
_DETAILS = """\
Each check is ok; info (no judgement); warn (works, but not fully); or fail. The
exit code is 1 if one failed, with --strict also if one warns.

--format json prints one object: ok, strict, checks[] with name status what do
details{}; the details of `probes` list every function and its probe point.
"""

_COLOURS = {"ok": "32", "info": "36", "warn": "33", "fail": "31"}
_NAMES = 16  # columns of the name, with the space after it
_STATUS = 6


def details() -> str:
    return _DETAILS


def run(options: Options) -> int:
    """Checks, prints, and returns 0 or 1. Loads and attaches the probes, for as long as it runs."""
    from gpubpf.checks import CHECKS
    from gpubpf.machine import Machine

    machine = Machine(options)
    results = []
    try:
        for check in CHECKS:
            result = check(machine)
            if result is None:  # not of these options
                continue
            results.append(result)
            if options.format == "text":  # as it goes: some take a moment
                print("\n".join(as_text(result, table.width(), colour=_colour())), flush=True)
    finally:
        machine.close()
    found = Counter(result.status for result in results)
    bad = found["fail"] + (found["warn"] if options.strict else 0)
    if options.format == "json":
        print(as_json(results, ok=not bad, strict=options.strict))
    else:
        print(f"\n{summary(found, strict=options.strict)}")
    return 1 if bad else 0


def as_text(check: Check, width: int, *, colour: bool = False) -> list[str]:
    """The lines of one check: status, name, what was found, and below what to do."""
    room = width - _STATUS - _NAMES
    what = table.wrap(table.clean(check.what), room)
    if check.do and check.status != "ok":
        what += [
            f"-> {line}" if i == 0 else f"   {line}"
            for i, line in enumerate(table.wrap(table.clean(check.do), room - 3))
        ]
    status = check.status.ljust(_STATUS)
    if colour:
        status = f"\x1b[{_COLOURS[check.status]}m{status}\x1b[0m"
    margin = " " * (_STATUS + _NAMES)
    first, *rest = what
    return [f"{status}{check.name:<{_NAMES}}{first}", *(margin + line for line in rest)]


def summary(found: Counter[str], *, strict: bool) -> str:
    if found["fail"]:
        said = f"{found['fail']} failed"
        said += f", {found['warn']} to look at" if found["warn"] else ""
    elif found["warn"]:
        said = f"nothing failed, {found['warn']} to look at"
        said += " (--strict: as good as failed)" if strict else ""
    else:
        said = "all is well"
    return f"{found.total()} checks: {said}."


def as_json(checks: list[Check], *, ok: bool, strict: bool) -> str:
    import dataclasses
    import json

    rows = [dataclasses.asdict(check) for check in checks]
    return json.dumps({"ok": ok, "strict": strict, "checks": rows}, indent=2)


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
