"""What the metrics of the diagnoses are read from, as in `gpubpf.view`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpubpf.model import Finding, Labels
from gpubpf.view import Samples, View


def _findings(view: View, jobs: bool) -> Iterable[tuple[Labels, Finding]]:
    for (job_id, uuid), finding in view.snapshot.findings.items():
        if (job_id is not None) == jobs:
            yield (*((job_id,) if job_id is not None else ()), *view.gpu(uuid)), finding


def verdicts(*, jobs: bool) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for labels, finding in _findings(view, jobs):
            for name, holds in finding.verdicts.items():
                yield (*labels, name), float(holds)

    return read


def inputs(*, jobs: bool) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for labels, finding in _findings(view, jobs):
            for name, value in finding.inputs.items():
                yield (*labels, name), value

    return read
