"""What can tell a process's job: the sources, and the syntax of `--jobs`.

`--jobs SOURCE[,SOURCE…]`: they are asked in this order, and the first that knows decides. Some take
an argument after a colon. A comma begins a source only if a source's name follows, and after that
a colon, a comma or the end: an argument may have commas of its own, as `cgroup:^/x{1,3}/…` does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from gpubpf.jobs import cgroup, command, environ, kubernetes, slurm, systemd, user
from gpubpf.jobs.job import Resolver, Sight, label
from gpubpf.model import Job


class Source(NamedTuple):
    make: Callable[[str], Resolver]  # of the argument; ValueError: what it must be
    argument: str = ""  # what it is called, for a person; "": it takes none
    ids: str = r".*"  # a regular expression: what the ids of its jobs can be


def _plain(resolve: Resolver, ids: str = Source._field_defaults["ids"]) -> Source:
    return Source(lambda _: resolve, ids=ids)


SOURCES = {
    "slurm": _plain(slurm.resolve, slurm.IDS),
    "kubernetes": _plain(kubernetes.resolve, kubernetes.IDS),
    "systemd": _plain(systemd.resolve, systemd.IDS),
    "environ": Source(environ.variable, "VARIABLE"),
    "cgroup": Source(cgroup.expression, "REGEX"),
    "command": Source(command.patterns, "PATTERN[|PATTERN…]"),
    "user": _plain(user.resolve),
}
"""A source's name -> how it is made. The name is also the `scheduler` of the jobs that it finds."""

_COMMA = re.compile(rf",(?=\s*(?:{'|'.join(SOURCES)})\s*(?:[:,]|\Z))")
_SHOWN = 60  # characters of a source that is refused


@dataclass(frozen=True, slots=True)
class Spec:
    """One source as it was asked for."""

    source: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.argument}" if self.argument else self.source


def written(name: str) -> str:
    """How a source is written in the option: `environ:VARIABLE`."""
    return str(Spec(name, SOURCES[name].argument))


def parse(raw: object) -> tuple[Spec, ...]:
    """In the manner of `gpubpf.parse`: one string, or a list of strings (TOML), each one source."""
    parts = _COMMA.split(raw) if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError("a comma-separated string, or a list of strings")
    given = [part.strip() for part in parts if part.strip()]
    if given == ["none"]:
        return ()
    specs = tuple(dict.fromkeys(_spec(part) for part in given))
    if Spec("user") in specs[:-1]:
        raise ValueError("user as the last source: every process has one, none after it is asked")
    return specs


def _spec(text: str) -> Spec:
    name, colon, argument = (part.strip() for part in text.partition(":"))
    source, shown = SOURCES.get(name), label(text, _SHOWN)
    if source is None:
        known = ", ".join(map(written, SOURCES))
        wrong = next(part for part in map(str.strip, text.split(",")) if part not in SOURCES)
        wrong = label(wrong, _SHOWN) or "nothing"
        raise ValueError(f"a comma-separated list of {known}; or none; not {wrong}")
    if bool(source.argument) != bool(argument) or (colon and not argument):
        raise ValueError(f"{written(name)}, not {shown}")
    try:
        source.make(argument)
    except ValueError as error:
        raise ValueError(f"{written(name)} with {error}; not {shown}") from None
    return Spec(name, argument)


def schedulers(specs: Iterable[Spec]) -> list[tuple[str, Spec]]:
    """The sources with the names of their own that their jobs have: a second `environ` is
    `environ2`, whose ids are not the first's."""
    count = Counter[str]()
    named = []
    for spec in specs:
        count[spec.source] += 1
        number = count[spec.source]
        named.append((spec.source if number == 1 else f"{spec.source}{number}", spec))
    return named


def resolvers(specs: Iterable[Spec]) -> tuple[Resolver, ...]:
    return tuple(
        _named(SOURCES[spec.source].make(spec.argument), name, spec)
        for name, spec in schedulers(specs)
    )


def _named(resolve: Resolver, name: str, spec: Spec) -> Resolver:
    if name == spec.source:
        return resolve

    def renamed(sight: Sight) -> Job | None:
        found = resolve(sight)
        return found and replace(found, key=found.key._replace(scheduler=name))

    return renamed
