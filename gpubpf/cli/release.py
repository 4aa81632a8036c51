"""`gpubpf release` and `gpubpf resume`: a running agent lets go of the GPUs, and takes them up
again."""

from __future__ import annotations

from typing import Protocol

from gpubpf.cli import table

_RELEASE_DETAILS = """\
The agent of this node closes every file of the NVIDIA driver, then says so:
now a driver can be replaced, or a GPU be re-partitioned or reset. Meanwhile
nothing is measured on the GPUs; so the agent takes them up again by itself
after --resume-after, or at once by `gpubpf resume`. Asked again, it waits anew.

Be root, or the agent's user. SIGUSR1 does the same, and SIGUSR2 is to resume.
"""

_RESUME_DETAILS = """\
After `gpubpf release`, or SIGUSR1. Be root, or the agent's user.
"""


class Asked(Protocol):
    """Those of the options that these commands read."""

    @property
    def control_socket(self) -> str: ...

    @property
    def resume_after(self) -> float: ...


class Release:
    NAME = "release"
    HELP = "have the agent let go of the GPUs, as for a new driver"

    def details(self) -> str:
        return _RELEASE_DETAILS

    def run(self, options: Asked) -> int:
        from gpubpf.control import ask

        seconds = options.resume_after or None
        said = ask(options.control_socket, "release", seconds)
        print(table.clean(f"{said}; {until(seconds)}"))
        return 0


class Resume:
    NAME = "resume"
    HELP = "have the agent take up the GPUs again that it let go of"

    def details(self) -> str:
        return _RESUME_DETAILS

    def run(self, options: Asked) -> int:
        from gpubpf.control import ask

        print(table.clean(ask(options.control_socket, "resume")))
        return 0


def until(seconds: float | None) -> str:
    """What an operator must not forget."""
    if seconds is None:
        return "nothing is measured on them until `gpubpf resume`"
    return f"the agent takes them up again in {seconds:g} s, or at `gpubpf resume`"
