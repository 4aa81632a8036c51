"""The report: as text for a person, as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.gpu.model import DIFFERS, FAILED, NOT_POSSIBLE, OK, Check, Figure, Finding, Result

WIDTH = 80
STATUS = 14  # columns of the status, with the space after it
NAME = 16
SIMULATED = (
    "SIMULATED: no GPU was used. A simulated driver answered, so this report says only that the "
    "checks run, and nothing about real hardware."
)


def heading(machine: Mapping[str, str], simulated: bool) -> str:
    """What was looked at."""
    lines = [SIMULATED, ""] if simulated else []
    lines += [f"{name}: {value}" for name, value in machine.items()]
    return "\n".join(line for text in lines for line in _wrap(text, WIDTH, hanging=2)) + "\n"


def as_text(check: Check, result: Result, every: bool = False) -> str:
    """One check: what came of it, and all figures; of the comparisons those that differ."""
    begin = f"{result.status:<{STATUS}}{check.name:<{NAME}}"
    first, *rest = _wrap(result.why or check.claim, WIDTH - len(begin))
    lines = [begin + first, *(" " * len(begin) + line for line in rest)]
    if result.status in (DIFFERS, FAILED) and result.why:
        lines += _indented(f"claim: {check.claim}")
    for finding in result.findings:
        if (every or not finding.ok) and not _missing(finding):
            lines += _indented(compared(finding))
    for absent, times in Counter(f.absent for f in result.findings if _missing(f)).items():
        lines += _indented(f"! {absent} ({times} comparison{'s' * (times > 1)})")
    for name, value in result.figures.items():
        if value is not None:
            lines += _indented(f"{name}: {shown(value)}")
    return "\n".join(lines)


def _missing(finding: Finding) -> bool:
    """There is nothing to compare with; a metric that is absent is so for many comparisons."""
    return finding.seen is None and bool(finding.absent)


def compared(finding: Finding) -> str:
    mark = "" if finding.ok else "! "
    more = f" ({finding.absent})" if finding.absent else ""
    expected = shown(finding.expected)
    return f"{mark}{finding.what}: expected {expected}, seen {shown(finding.seen)}{more}"


def shown(value: Figure) -> str:
    if isinstance(value, str) or value is None:
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def summary(results: Sequence[Result], simulated: bool) -> str:
    found = Counter(result.status for result in results)
    parts = [f"{found[status]} {status}" for status in (OK, DIFFERS, FAILED, NOT_POSSIBLE)]
    text = f"{len(results)} checks: {', '.join(parts)}"
    return text + (" (SIMULATED)" if simulated else "")


def as_json(
    rows: Sequence[tuple[Check, Result]], machine: Mapping[str, str], simulated: bool
) -> str:
    checks = [
        {
            "name": check.name,
            "claim": check.claim,
            "needs": list(check.needs),
            **dataclasses.asdict(result),
            "seconds": round(result.seconds, 2),
        }
        for check, result in rows
    ]
    whole = {
        "simulated": simulated,
        "ok": not failed([result for _, result in rows]),
        "machine": dict(machine),
        "checks": checks,
    }
    return json.dumps(whole, indent=2)


def failed(results: Sequence[Result]) -> bool:
    """Something differs, a check came to no end, or none was possible at all."""
    statuses = {result.status for result in results}
    return bool(statuses & {DIFFERS, FAILED}) or OK not in statuses


def table(checks: Sequence[Check]) -> str:
    """The checks there are: name, needs and claim."""
    lines = []
    for check in checks:
        needs = f" (needs {', '.join(check.needs)})" if check.needs else ""
        first, *rest = _wrap(check.claim + needs, WIDTH - NAME)
        lines += [f"{check.name:<{NAME}}{first}", *(" " * NAME + line for line in rest)]
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [" " * STATUS + line for line in _wrap(text, WIDTH - STATUS, hanging=2)]


def _wrap(text: str, width: int, hanging: int = 0) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width, subsequent_indent=" " * hanging) or [""]
