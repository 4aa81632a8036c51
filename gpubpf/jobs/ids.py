"""What a job is called on the page: `job_id` follows from `--jobs` and the job alone.

The id is the source's own where only that source can give it: a pod's UID, a Slurm job's number,
with the same `--jobs` on each node of a cluster. Where a source that stands before it in `--jobs`
might say the same, the later one's ids have its name in front, `environ:123`, always. So what one
source says is never taken for what another said, and no job is called this on one node and that on
another because of who came first there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from gpubpf.jobs.job import NONE, OTHER
from gpubpf.jobs.sources import SOURCES, Spec, schedulers
from gpubpf.model import JobKey

_CUT = r".*…[0-9a-f]{16}"  # an id that was cut or cleaned, of any source (`gpubpf.jobs.job.job`)
_RESERVED = rf"{OTHER}|{NONE}|(?:{'|'.join(SOURCES)})[0-9]*:.*"


def job_ids(specs: Iterable[Spec]) -> Callable[[JobKey], str]:
    """The job_id of each key; no two keys have the same one, and none has gpubpf's own."""
    named = schedulers(specs)
    before = [SOURCES[spec.source].ids for _, spec in named]
    taken = {
        name: re.compile("|".join([_RESERVED, *before[:place], *([_CUT] if place else ())]), re.S)
        for place, (name, _) in enumerate(named)
    }

    def job_id(key: JobKey) -> str:
        # One of another --jobs, from a file of an agent before this one, is no job of now.
        pattern = taken.get(key.scheduler)
        if pattern is None or pattern.fullmatch(key.id):
            return f"{key.scheduler}:{key.id}"
        return key.id

    return job_id
