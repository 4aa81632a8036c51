"""What the metrics of jobs are read from, as in `gpubpf.view`. Nothing where jobs are off."""

from __future__ import annotations

from collections.abc import Callable

from gpubpf import cuda_errors, lanes
from gpubpf.model import DeviceProcess, Jobs, Labels, Share, Usage
from gpubpf.symbols import KINDS
from gpubpf.view import Samples, View, left


def usage(value: Callable[[Usage], float | None]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for labels, _, used in view.job_parts:
            known = value(used)
            if known is not None:
                yield labels, known

    return read


def since_launch(view: View) -> Samples:
    for labels, _, used in view.job_parts:
        if used.launched is not None:
            yield labels, max(0.0, view.snapshot.at - used.launched)


def info(view: View) -> Samples:
    for account in view.snapshot.jobs.accounts if view.snapshot.jobs else ():
        job = account.job
        if job is not None:
            yield (account.job_id, job.key.scheduler, job.namespace, job.name, job.user), 1


def errors(view: View) -> Samples:
    for account in view.snapshot.jobs.accounts if view.snapshot.jobs else ():
        merged: dict[str, int] = {}
        for code, count in account.errors.items():
            name = cuda_errors.name(code)
            merged[name] = merged.get(name, 0) + count
        for name, count in sorted(merged.items()):
            yield (account.job_id, name), count


# --- gauges: of the processes that are there now ------------------------------------------------


def held_by_job(made: str, *gone: str) -> Callable[[View], Samples]:
    first = lanes.FIRST[made]

    def read(view: View) -> Samples:
        sums: dict[Labels, int] = {}
        for process in view.snapshot.processes if view.snapshot.jobs else ():
            for uuid, part in process.on.items():
                row = view.unpack(part.counters)
                labels = (process.job_id or "", *view.gpu(uuid))
                for i, value in enumerate(left(row, made, gone)):
                    if row[first + i]:  # it once had some: 0 is 0, not absent
                        key = (*labels, KINDS[i])
                        sums[key] = min(sums.get(key, 0) + value, 2**63 - 1)
        return sums.items()

    return read


def on_gpu(value: Callable[[DeviceProcess], float | None]) -> Callable[[View], Samples]:
    """Sums over the processes that NVML lists; absent where it says nothing of any."""

    def read(view: View) -> Samples:
        sums: dict[Labels, float] = {}
        for process in view.snapshot.processes if view.snapshot.jobs else ():
            for uuid, row in process.gpus.items():
                known = value(row)
                if known is not None:
                    labels = (process.job_id or "", *view.gpu(uuid))
                    sums[labels] = sums.get(labels, 0) + known
        return sums.items()

    return read


def share(value: Callable[[Share], float | None]) -> Callable[[View], Samples]:
    return on_gpu(lambda row: value(row.share) if row.share else None)


def processes(view: View) -> Samples:
    counts: dict[Labels, int] = {}
    for process in view.snapshot.processes if view.snapshot.jobs else ():
        labels = (process.job_id or "",)
        counts[labels] = counts.get(labels, 0) + 1
    return counts.items()


# --- how well it is kept ------------------------------------------------------------------------


def unattributed(view: View) -> Samples:
    for uuid, joules in (
        view.snapshot.jobs.unattributed_energy.items() if view.snapshot.jobs else ()
    ):
        yield view.gpu(uuid), joules


def states(view: View) -> Samples:
    if view.snapshot.jobs:
        own = [account for account in view.snapshot.jobs.accounts if account.job]
        yield ("running",), sum(account.ended is None for account in own)
        yield ("ended",), sum(account.ended is not None for account in own)
        yield ("other",), view.snapshot.jobs.waiting


def kept(value: Callable[[Jobs], float]) -> Callable[[View], Samples]:
    return lambda view: (((), value(view.snapshot.jobs)),) if view.snapshot.jobs else ()
