"""Parsers of option values, for `gpubpf.config`.

Each takes a string, or what TOML made of the value, and returns it checked and typed. What doesn't
fit raises ValueError, whose text says what is expected and reads on after "expected ".
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable

from gpubpf.compat import FLAVOURS
from gpubpf.symbols import GROUPS

DEFAULT_PORT = 10440
"""Given to nobody on the Prometheus project's list of default ports, whose range 9100 to 9999 is
full; and far from the ports that the list hands out next (from 10027 on) and from kubelet's."""

MOST_LABELS = 8
"""Labels of a pod that may be exported: each is a series of each job."""

_LABEL_KEY = re.compile(
    r"(?:(?=[^/]{1,253}/)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?/)?"
    r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

Address = tuple[str, int]
"""Host (empty: every interface) and TCP port."""


def text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("a string")
    return raw


def address(raw: object) -> Address:
    expected = ValueError(
        f"HOST:PORT with a port from 0 to 65535, as in :{DEFAULT_PORT}, 127.0.0.1:{DEFAULT_PORT} "
        f"or [::1]:{DEFAULT_PORT}"
    )
    host, colon, port = str(raw).strip().rpartition(":")
    if isinstance(raw, bool) or not colon or not (port.isascii() and port.isdecimal()):
        raise expected
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if int(port) > 65535 or bracketed != (":" in host) or any(c in host for c in "[]/ "):
        raise expected
    return host, int(port)


def seconds(least: float, most: float) -> Callable[[object], float]:
    def parse(raw: object) -> float:
        number = math.nan
        if isinstance(raw, (str, int, float)) and not isinstance(raw, bool):
            with contextlib.suppress(ValueError, OverflowError):
                number = float(raw)
        if not least <= number <= most:
            raise ValueError(f"a number of seconds from {least:g} to {most:g}")
        return number

    return parse


def integer(least: int, most: int) -> Callable[[object], int]:
    def parse(raw: object) -> int:
        number = least - 1
        if isinstance(raw, (str, int)) and not isinstance(raw, bool):
            with contextlib.suppress(ValueError):
                number = int(raw)
        if not least <= number <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return number

    return parse


def flag(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower() if isinstance(raw, (str, int)) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("true or false")


def words(raw: object) -> tuple[str, ...]:
    """One string with commas, or a list of strings (TOML), whose commas are their own."""
    parts = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError("a comma-separated string, or a list of strings")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def groups(raw: object) -> tuple[str, ...]:
    given = words(raw)
    if given == ("all",):
        return GROUPS
    chosen = tuple(group for group in GROUPS if group in given)  # in table order
    if given != ("none",) and (not given or len(chosen) != len(given)):
        raise ValueError(f"a comma-separated list of {', '.join(GROUPS)}; or all; or none")
    return chosen


def flavours(raw: object) -> tuple[str, ...]:
    given = words(raw)
    chosen = tuple(name for name in FLAVOURS if name in given)
    if given != ("none",) and len(chosen) != len(given):
        raise ValueError(f"a comma-separated list of {', '.join(FLAVOURS)}; or none")
    return chosen


def label_keys(raw: object) -> tuple[str, ...]:
    """Keys of Kubernetes labels (apimachinery, validation.IsQualifiedName())."""
    keys = words(raw)
    if len(keys) > MOST_LABELS or not all(map(_LABEL_KEY.fullmatch, keys)):
        raise ValueError(
            f"at most {MOST_LABELS} keys of Kubernetes labels, as in team,app.kubernetes.io/name"
        )
    return keys


def directory(raw: object) -> str:
    path = text(raw)
    if not os.path.isdir(path):
        raise ValueError("a directory that exists")
    return path


def one_of(*words: str) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if raw not in words:
            raise ValueError(" or ".join(words))
        return str(raw)

    return parse
