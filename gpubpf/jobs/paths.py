"""/proc/PID/cgroup: one line for each hierarchy, `ID:CONTROLLERS:/PATH` (cgroups(7)).

A process's owner may have named the end of a path: whoever is given a cgroup of his own makes
others below it and calls them what he likes. So what stands first in a path counts, never what
stands last. He can't make lines: the kernel refuses a newline in a name (cgroup_mkdir(), "make
/proc/<pid>/cgroup unparsable").

A reader in a cgroup namespace of its own sees paths relative to its root: `/../../kubepods…`. No
cgroup can be named "..", so these are the kernel's.
"""

from __future__ import annotations

from typing import NamedTuple

LARGEST = 16 << 10  # characters of the file that are looked at
LONGEST = 4096  # characters of a path; PATH_MAX is the most that the kernel writes
_DELETED = " (deleted)"  # the kernel's mark of a cgroup that was removed (cgroups(7))


class Line(NamedTuple):
    controllers: str  # "memory", "cpu,cpuacct", "name=systemd"; "" is version 2
    path: str


def _whole(text: str) -> str:
    """What fits of it, in whole lines: a job's number that was cut is another job's."""
    if len(text) <= LARGEST:
        return text
    return text[: text.rfind("\n", 0, LARGEST) + 1]


def lines(cgroup: str) -> list[Line]:
    """Of the file's text. A line that isn't one, or is longer than can be, is left out."""
    found = []
    for line in _whole(cgroup).split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        path = path.removesuffix(_DELETED)
        if number.isdecimal() and path.startswith("/") and len(path) <= LONGEST:
            found.append(Line(controllers, path))
    return found


def paths(cgroup: str) -> list[str]:
    """The paths, each once, in the file's order: they are mostly the same."""
    return list(dict.fromkeys(line.path for line in lines(cgroup)))
