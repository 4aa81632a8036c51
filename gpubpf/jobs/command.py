"""Jobs by what a process runs: PATTERN[|PATTERN…], the first that fits.

A pattern is plain text, found anywhere in the command line (its arguments joined by blanks, 4 KiB
of them) or in the process's name, capitals as they are: nothing has to be escaped, and nothing that
a user writes takes long. `train.py|vllm serve` gives the jobs `train.py` and `vllm serve`. A job
gets another id as NAME=PATTERN, as in `chat=vllm serve`, where NAME has letters, digits, `_`, `.`
and `-` and doesn't begin with `-`: `--model=llama` is a pattern, `lr=0.1` is written `lr=lr=0.1`.
"""

from __future__ import annotations

import re

from gpubpf.jobs.job import Resolver, Sight, job
from gpubpf.model import Job

_NAMED = re.compile(r"([A-Za-z0-9_.][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)


def patterns(text: str) -> Resolver:
    table = [_pattern(part.strip()) for part in text.split("|")]
    if not all(pattern for _, pattern in table):
        raise ValueError("patterns separated by |, none of them empty")

    def resolve(sight: Sight) -> Job | None:
        for name, pattern in table:
            if pattern in sight.name or pattern in sight.command:
                return job("command", name, user=sight.user)
        return None

    return resolve


def _pattern(text: str) -> tuple[str, str]:
    named = _NAMED.fullmatch(text)
    return (text, text) if named is None else (named[1], named[2])
