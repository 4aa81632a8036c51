"""A job in a cgroup's path, by the operator's regular expression: for what has no source here.

It is searched for in each path of /proc/PID/cgroup (Python's `re`); its group `job` is the id, and
`name`, `user` and `namespace`, where it has them, the rest. The expression is trusted, the paths
aren't: users name the ends of theirs. So a path is looked at only if it has 4096 characters at most
(`paths.LONGEST`), and an expression should begin at `^/`, where no user can write. That
bounds what is read, not how long it takes: one that repeats what repeats, `(a+)+b`, can be kept
busy by a path made for it, and `re` can't be interrupted. Write `[^/]+` between slashes instead.
"""

from __future__ import annotations

import re

from gpubpf.jobs.job import Resolver, Sight, job
from gpubpf.jobs.paths import paths
from gpubpf.model import Job


def expression(text: str) -> Resolver:
    """ValueError says what is wrong with the expression, and where."""
    compiled = _compile(text)

    def resolve(sight: Sight) -> Job | None:
        for path in paths(sight.cgroup):
            match = compiled.search(path)
            groups = {} if match is None else match.groupdict("")
            found = job(
                "cgroup",
                groups.get("job", ""),
                namespace=groups.get("namespace", ""),
                name=groups.get("name", ""),
                user=groups.get("user") or sight.user,
            )
            if found is not None:
                return found
        return None

    return resolve


def _compile(text: str) -> re.Pattern[str]:
    wanted = "a regular expression with a group (?P<job>…)"
    try:
        compiled = re.compile(text)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        raise ValueError(f"{wanted}; this one has {error.msg!r}{where}") from None
    except (RecursionError, OverflowError):
        raise ValueError(f"{wanted}; this one is too deep") from None
    if "job" not in compiled.groupindex:
        raise ValueError(wanted)
    return compiled
