"""What every source of jobs needs: how a job is made of what other processes say.

Whatever names a job was written by somebody else: an environment, a cgroup's name, a command line.
It becomes a label: short, and printable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from gpubpf.model import Job, JobKey

_DIGEST = 8  # bytes of a long id's hash
LONGEST = 128  # characters of an id, a name, a namespace, a user
OTHER, NONE = "other", "none"
"""Values of job_id that are no job: the jobs without series of their own, and no job at all."""


class Sight(Protocol):
    """What can be seen of a process; each is read when it is first asked for.

    All of it was written by the process's owner. What can't be read is "" or None.
    """

    @property
    def pid(self) -> int: ...

    @property
    def user(self) -> str:
        """Its name, else its uid."""

    @property
    def name(self) -> str:
        """comm."""

    @property
    def command(self) -> str:
        """The command line, arguments joined by blanks."""

    @property
    def cgroup(self) -> str:
        """/proc/PID/cgroup, 16 KiB at most."""

    @property
    def environment(self) -> Mapping[bytes, bytes] | None:
        """The one that its latest exec was given."""


Resolver = Callable[[Sight], Job | None]
"""The job that a process is of, as one source sees it; None: the source knows of none."""


def label(text: str | bytes, longest: int = LONGEST) -> str:
    """Text of another's making as a label value: printable, one line, and cut."""
    if isinstance(text, bytes):
        text = text[: 4 * longest].decode("utf-8", "replace")
    clean = "".join(c if c.isprintable() else "?" for c in text[: 4 * longest]).strip()
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def job(
    scheduler: str,
    id: str | bytes,  # noqa: A002  a job's
    *,
    namespace: str | bytes = "",
    name: str | bytes = "",
    user: str | bytes = "",
) -> Job | None:
    """A job of what another said; None where nothing is left of its id."""
    ident = label(id)
    if not ident:
        return None
    whole = id.encode("utf-8", "surrogatepass") if isinstance(id, str) else id
    if ident.encode() != whole.strip(b" "):  # two that were cut or cleaned must not become one
        from hashlib import blake2s  # it loads OpenSSL: only who has such an id pays for it

        begin = ident.removesuffix("…")[: LONGEST - 1 - 2 * _DIGEST]
        ident = f"{begin}…{blake2s(whole, digest_size=_DIGEST).hexdigest()}"
    return Job(JobKey(scheduler, ident), label(namespace), label(name), label(user))
