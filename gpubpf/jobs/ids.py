"""What a job is called on the page: `job_id` follows from `--jobs` and the job alone.

The id is the source's own where only that source can give it: a pod's UID, a Slurm job's number,
with the same `--jobs` on each node of a cluster. Where a source that stands before it in `--jobs`
might say the same, the later one's ids have its name in front, `environ:123`, always. So nobody who
makes up an id (in his environment, say) can take another job's, and no job is called this on one
node and that on another because of who came first there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from gpubpf.jobs.job import NONE, OTHER
from gpubpf.jobs.sources import SOURCES, Spec
from gpubpf.model import JobKey

_CUT = r".*…[0-9a-f]{16}"  # a long id of any source (see `gpubpf.jobs.job.job`)


def job_ids(specs: Iterable[Spec]) -> Callable[[JobKey], str]:
    """The job_id of each key; no two keys have the same one, and none has gpubpf's own."""
    sources = [*dict.fromkeys(spec.source for spec in specs)]
    own = rf"{OTHER}|{NONE}|(?:{'|'.join(sources)}):.*"
    taken = {
        source: re.compile("|".join([own, *_of(sources[:place])]), re.DOTALL)
        for place, source in enumerate(sources)
    }

    def job_id(key: JobKey) -> str:
        # of a source that isn't among them now: from a file of an agent before this one
        taken_by_others = taken.get(key.scheduler)
        if taken_by_others is None or taken_by_others.fullmatch(key.id):
            return f"{key.scheduler}:{key.id}"
        return key.id

    return job_id


def _of(sources: list[str]) -> list[str]:
    """What these may have given already."""
    return [*(SOURCES[source].ids for source in sources), _CUT] if sources else []
