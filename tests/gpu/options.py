"""What `tests/gpu/run` is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from tests.gpu.checks import CHECKS
from tests.gpu.extras import EXTRAS
from tests.gpu.model import Check

TIME = 540.0  # seconds

DETAILS = f"""\
Runs the checks that only a machine with an NVIDIA GPU can make, each against an
agent that this starts on a free port of the loopback address, and prints a
report: what is as the README claims, what differs and by how much, and what
this machine can't show. As root, on Debian 12 or a derivative; it installs what
is missing, into the checkout (.build) but for Debian packages.

It changes no setting of a GPU and resets none, holds less than 1 GiB of a GPU's
memory, and leaves no process behind. Others may use the GPU meanwhile: counts
are those of this run's own processes, but for those marked "of the node", which
then differ; and times are not worth much.

--with takes {", ".join(EXTRAS)}, or any
requirement of pip (--with torch==2.8.0: for an older driver). The frameworks
may be elsewhere, too: --python names the Python to run them with.

exit code: 0  all that was possible is as claimed
           1  something differs, a check came to no end, or the set-up failed
           2  bad option
           3  not root
           4  the agent doesn't start (BPF, uprobes)
           5  no NVIDIA driver, or no GPU
         130  interrupted
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    checks: tuple[Check, ...]
    packages: tuple[str, ...]
    python: str
    seconds: float
    format: str
    every: bool
    listed: bool
    simulated: bool
    before_setup: bool


def parse(arguments: Sequence[str] | None = None) -> Wanted:
    """Ends with 2 where they are wrong, with 0 after --help."""
    parser = argparse.ArgumentParser(
        "tests/gpu/run",
        description=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="show the checks, and run none")
    add("--only", metavar="NAME,…", default="", help="run these")
    add("--skip", metavar="NAME,…", default="", help="run all but these")
    add("--with", metavar="NAME,…", default="", dest="packages", help="install these for the run")
    add("--python", metavar="PATH", default="", help="runs the programs that use the GPU")
    add("--time", metavar="SECONDS", type=float, default=TIME, help=f"at most (default {TIME:g})")
    add("--format", choices=("text", "json"), default="text", help="of the report (default text)")
    add("--all", action="store_true", help="show every comparison, not only what differs")
    # For the tests of the checks themselves: tests/fakegpu in the place of a GPU.
    add("--simulated", action="store_true", help=argparse.SUPPRESS)
    # For `run`: everything that can be refused is, before anything is installed.
    add("--before-setup", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    known = {check.name for check in CHECKS}
    only, skip = _names(given.only), _names(given.skip)
    for name in sorted((only | skip) - known):
        parser.error(f"there is no check {name}: --list shows them")
    if not given.time > 0:
        parser.error("--time must be more than 0")
    return Wanted(
        tuple(c for c in CHECKS if (not only or c.name in only) and c.name not in skip),
        tuple(name for name in given.packages.split(",") if name),
        given.python,
        given.time,
        given.format,
        given.all,
        given.list,
        given.simulated,
        given.before_setup,
    )


def _names(text: str) -> set[str]:
    return {name for name in text.split(",") if name}
