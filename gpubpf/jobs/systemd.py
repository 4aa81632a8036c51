"""systemd's services and scopes, by the cgroup, as sd_pid_get_unit(3) and systemd-cgls tell them.

The system's unit is the first name after the slices (systemd's `cg_path_get_unit()`): what a
service makes below its own cgroup is its own matter. Below `user@UID.service` there is a user's
manager, and its unit is the job, found in the same way (`cg_path_get_user_unit()`). A user calls
his units what he likes, `nginx.service` too, so their ids begin with his manager's:
`user@1000.service/train.service`. What runs in a login session is the session: `session-3.scope`.
"""

from __future__ import annotations

import re

from gpubpf.jobs.job import Sight, job
from gpubpf.jobs.paths import lines
from gpubpf.model import Job

IDS = r".*\.(?:service|scope)"
_UNIT = re.compile(r"(?!.*@\.)[A-Za-z0-9:_.\\@-]+\.(?:service|scope)")  # `x@.service` is none
_MANAGER = re.compile(r"user@[0-9]+\.service")


def resolve(sight: Sight) -> Job | None:
    unit = unit_of(sight.cgroup)
    return job("systemd", unit, user=sight.user) if unit else None


def unit_of(cgroup: str) -> str:
    """The unit as a job's id; "" where the process is in none."""
    found = lines(cgroup)
    # version 1 has a hierarchy of systemd's own; version 2 has only the one
    own = [line.path for line in found if line.controllers == "name=systemd"]
    for path in own or [line.path for line in found if not line.controllers]:
        unit, below = _first(path.split("/"))
        if unit and _MANAGER.fullmatch(unit):
            inner, _ = _first(below)
            return f"{unit}/{inner}" if inner else unit
        if unit:
            return unit
    return ""


def _first(names: list[str]) -> tuple[str, list[str]]:
    """The first name that isn't a slice's, if it is a unit's, and what is below it."""
    for place, name in enumerate(names):
        if name in ("", "..") or name.endswith(".slice"):
            continue
        name = name.removeprefix("_")  # cg_escape(): of names that a controller's file could have
        return (name if _UNIT.fullmatch(name) else ""), names[place + 1 :]
    return "", []
