"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.gpu.rig import Rig

OK, DIFFERS, NOT_POSSIBLE, FAILED = "ok", "differs", "not possible", "failed"
STATUSES = (OK, DIFFERS, NOT_POSSIBLE, FAILED)
"""FAILED: the check itself came to no end, so it tells nothing about gpubpf."""

Figure = float | str | None


class NotPossibleError(Exception):
    """This machine can't show it; the text says why."""


class CheckError(Exception):
    """The check came to no end: its process ended or took too long, or the agent did."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison. `absent`: there is no such metric, or it lacks a label."""

    what: str
    expected: Figure
    seen: Figure
    ok: bool
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a check. `figures` are told, without judgement."""

    status: str
    why: str = ""
    findings: tuple[Finding, ...] = ()
    figures: dict[str, Figure] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    claim: str  # of the README, that changes if this differs
    run: Callable[[Rig], Result]
    needs: tuple[str, ...] = ()  # rows of rig.NEEDS
    seconds: float = 60.0  # the most it may take
    simulated: bool = True  # whether the simulated node can run it


def judged(
    findings: list[Finding], figures: dict[str, Figure] | None = None, why: str = ""
) -> Result:
    """Ok if everything is as expected."""
    status = OK if all(finding.ok for finding in findings) else DIFFERS
    return Result(status, why, tuple(findings), figures or {})
