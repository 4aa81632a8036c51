"""What the metrics of jobs are read from, as in `gpubpf.view`. Nothing where jobs are off."""

from __future__ import annotations

from collections.abc import Callable

from gpubpf import cuda_errors
from gpubpf.model import DeviceProcess, Given, Jobs, Labels, Usage
from gpubpf.view import Samples, View


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
    for account in view.accounts:
        job = account.job
        if job is not None:
            yield (account.job_id, job.key.scheduler, job.namespace, job.name, job.user), 1


def labels(view: View) -> Samples:
    for account in view.accounts:
        for key, value in account.job.labels if account.job else ():
            yield (account.job_id, key, value), 1


def given(value: Callable[[Given], float | None]) -> Callable[[View], Samples]:
    """Of the GPUs and MIG devices that NVML has, too."""

    def read(view: View) -> Samples:
        for uuid, row in view.snapshot.given.items():
            known = value(row)
            if known is not None and uuid in view.snapshot.indices:
                yield view.gpu(uuid), known

    return read


def errors(view: View) -> Samples:
    for account in view.accounts:
        merged: dict[str, int] = {}
        for code, count in account.errors.items():
            name = cuda_errors.name(code)
            merged[name] = merged.get(name, 0) + count
        for name, count in sorted(merged.items()):
            yield (account.job_id, name), count


# --- gauges: of the processes that are there now ------------------------------------------------


def on_gpu(value: Callable[[DeviceProcess], float | None]) -> Callable[[View], Samples]:
    """Sums over the processes that NVML lists; absent where it says nothing of any."""

    def read(view: View) -> Samples:
        sums: dict[Labels, float] = {}
        for process in view.of_jobs:
            for uuid, row in process.gpus.items():
                known = value(row)
                if known is not None:
                    labels = (process.job_id or "", *view.gpu(uuid))
                    sums[labels] = sums.get(labels, 0) + known
        return sums.items()

    return read


def processes(view: View) -> Samples:
    counts: dict[Labels, int] = {}
    for process in view.of_jobs:
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
