"""Prometheus and Alertmanager in two versions, Debian's own and the next major one, and what else
tests/run fetches from a later Debian."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

import pytest

from tests.conftest import ROOT


def later(package: str, program: str = "") -> str:
    return str(ROOT / ".build" / "later" / package / "usr" / "bin" / (program or package))


class Version(NamedTuple):
    prometheus: str = "prometheus"
    promtool: str = "promtool"
    alertmanager: str = "prometheus-alertmanager"
    amtool: str = "amtool"


ALERTMANAGER = "prometheus-alertmanager"
VERSIONS = {
    "2": Version(),
    "3": Version(
        later("prometheus"),
        later("promtool"),
        later(ALERTMANAGER),
        later(ALERTMANAGER, "amtool"),
    ),
}
both = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def says(*command: str) -> str:
    """What a program says, but for warnings, that succeeds."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
