"""The process's user as its job: for nodes that are shared without a scheduler.

Every process has one, so this source always knows: none after it is asked, and nothing is inherited
from a process's parents. It belongs at the end.
"""

from __future__ import annotations

from gpubpf.jobs.job import Sight, job
from gpubpf.model import Job


def resolve(sight: Sight) -> Job | None:
    return job("user", sight.user, user=sight.user)
