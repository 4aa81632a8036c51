"""A job's id in a variable of the environment: for schedulers that set one, and for habits.

The environment is the one that the latest exec was given. Whoever starts a process can write any
other's id there: it says whose work it is where users have no reason to lie.
"""

from __future__ import annotations

import re

from gpubpf.jobs.job import Resolver, Sight, job
from gpubpf.model import Job

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def variable(name: str) -> Resolver:
    if not _NAME.fullmatch(name):
        raise ValueError("the name of an environment variable")
    key = name.encode("ascii")

    def resolve(sight: Sight) -> Job | None:
        value = (sight.environment or {}).get(key, b"")
        return job("environ", value, user=sight.user) if value else None

    return resolve
