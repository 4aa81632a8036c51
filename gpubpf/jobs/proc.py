"""Reading one process's files in /proc, through a descriptor of its directory. Nothing raises."""

from __future__ import annotations

import os
import pwd
from functools import lru_cache
from typing import NamedTuple


class Stat(NamedTuple):
    name: str  # comm
    parent: int  # 0: outside of this /proc's pid namespace, or none
    start: int  # ticks since boot


def read(directory: int, name: str, most: int) -> bytes | None:
    """The first bytes of one file of the process; None where it can't be read."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    text = b""
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
        try:
            while len(text) < most and (part := os.read(descriptor, most - len(text))):
                text += part
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return text


def read_stat(directory: int) -> Stat | None:
    """The name stands between the first "(" and the last ")", and may itself hold both."""
    text = read(directory, "stat", 4096) or b""
    try:
        end = text.rindex(b")")
        fields = text[end + 2 :].split()
        name = text[text.index(b"(") + 1 : end].decode("utf-8", "replace")
        return Stat(name, int(fields[1]), int(fields[19]))
    except (ValueError, IndexError):
        return None


def user_name(uid: int) -> str:
    """By the agent's own NSS: in a container, the image's."""
    try:
        return _known_name(uid)
    except (KeyError, OSError):
        return str(uid)


@lru_cache(maxsize=4096)  # NSS may ask over the network; a failure isn't remembered
def _known_name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name
