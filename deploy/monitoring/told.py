"""What an alert's description says beside its own value: other series of the same GPU, job or
source, asked for by the template when the alert is told (by functions of Prometheus's templates,
which vmalert has too)."""

from __future__ import annotations

_OF_GPU = ("cluster", "instance", "gpu", "uuid")
_SHOWN = {
    "bytes": "{{ .Value | humanize1024 }}B",
    "seconds": "{{ .Value | humanizeDuration }}",
    "ratio": "{{ .Value | humanizePercentage }}",
    "second": "{{ .Value | humanize }}",
}
"""By the last word of an input's name"""


def _known(selector: str, shown: str, *same: str) -> str:
    """What else is known of the same, asked for when the alert is told: `shown` of a series whose
    labels `same` are the alert's. One that the alert hasn't (job_id, where jobs are off) it hasn't
    either. A rule may be asked where that series isn't kept."""
    matchers = ",".join((selector, *(f"{label}=%q" for label in same)))
    values = " ".join(f"$labels.{label}" for label in same)
    found = f"{{{{ with query (printf `{{{matchers}}}` {values}) }}}}"
    return f"{found}{{{{ with first . }}}}{shown}{{{{ end }}}}{{{{ else }}}}unknown{{{{ end }}}}"


def measured(name: str) -> str:
    """An input of a diagnosis: of the same job on the same GPU, or of the GPU."""
    selector = f'__name__=~"gpubpf_(gpu|job)_diagnosis_input",input="{name}"'
    shown = _SHOWN[name.split("_")[-1]]
    return f"{name} {_known(selector, shown, *_OF_GPU, 'job_id')}"


SOURCE_DOWN = _known(
    '__name__="gpubpf_agent_source_down_reason"', "{{ .Labels.reason }}",
    "cluster", "instance", "source",
)  # fmt: skip
GPU_DOWN = _known('__name__="gpubpf_gpu_down_reason"', "{{ .Labels.reason }}", *_OF_GPU)
"""Why: each has one reason at a time"""
