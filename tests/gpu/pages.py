"""The agent's pages, and what is expected to have changed between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.gpu.model import Finding

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Page:
    """One reading of /metrics."""

    samples: Samples

    @classmethod
    def parse(cls, text: str) -> Page:
        # Here, so that --list works with the system's Python
        from prometheus_client.parser import text_string_to_metric_families

        samples: Samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        return cls(samples)

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of what has these labels, 0 where nothing has; None: no such metric."""
        if name not in self.samples:
            return None
        return sum(value for has, value in self.samples[name] if labels.items() <= has.items())

    def lacks(self, name: str, labels: Iterable[str]) -> str:
        """What of a metric's name and labels isn't on the page; empty: nothing."""
        if name not in self.samples:
            return f"metric {name}"
        has = {label for sample, _ in self.samples[name] for label in sample}
        missing = [label for label in labels if label not in has]
        return f"label {missing[0]} of {name}" if missing else ""

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The sums of what has these labels, by another label."""
        found: dict[str, float] = {}
        for has, value in self.samples.get(name, ()):
            if labels.items() <= has.items():
                found[has.get(label, "")] = found.get(has.get(label, ""), 0) + value
        return found

    def gpus(self) -> dict[str, dict[str, str]]:
        """The labels of gpubpf_gpu_info, by UUID."""
        return {row["uuid"]: row for row, _ in self.samples.get("gpubpf_gpu_info", ())}

    def uuid(self, bare: str) -> str:
        """The uuid label of a device, given without its GPU- or MIG-."""
        found = [uuid for uuid in self.gpus() if uuid.endswith(bare)]
        return found[0] if found else f"GPU-{bare}"


@dataclass(frozen=True, slots=True)
class Expect:
    """How much a fact of a process has grown: the sum over these names and labels.

    A fact is a metric's name without gpubpf_process_ and _total; several are added up. `least`: at
    least that much. A gauge is looked at as it is.
    """

    fact: str
    number: float
    labels: Mapping[str, str] = field(default_factory=dict)
    least: bool = False
    gauge: bool = False
    note: str = ""


def judge(pid: int, before: Page, after: Page, expected: Iterable[Expect]) -> list[Finding]:
    """What the agent says of a process, against what is expected."""
    return [_judge(pid, before, after, expect) for expect in expected]


def _judge(pid: int, before: Page, after: Page, expect: Expect) -> Finding:
    facts = [_Fact.of(name, pid, after, expect) for name in expect.fact.split("+")]
    missing = [fact.missing for fact in facts if fact.missing]
    absent = f"absent: {', '.join(missing)}" if missing else ""
    what = expect.note or _named(expect)
    if len(missing) == len(facts):
        return Finding(what, expect.number, None, False, absent)
    if any(fact.shared for fact in facts):
        what += ", of the node"
    uuids = after.gpus()
    seen = sum(fact.seen(after, uuids) for fact in facts)
    if not expect.gauge:
        seen -= sum(fact.seen(before, uuids) for fact in facts)
    ok = seen >= expect.number if expect.least else seen == expect.number
    return Finding(what, expect.number, seen, ok, absent)


@dataclass(frozen=True, slots=True)
class _Fact:
    """Where on a page a fact of a process is; `missing`: what there is not."""

    name: str
    labels: Mapping[str, str]
    missing: str = ""
    shared: bool = False  # the node's own: others that work on its GPUs count in it, too

    @classmethod
    def of(cls, fact: str, pid: int, page: Page, expect: Expect) -> _Fact:
        suffix = "" if expect.gauge else "_total"
        name, node = (f"gpubpf_{scope}_{fact}{suffix}" for scope in ("process", "gpu"))
        missing = page.lacks(name, expect.labels)
        if missing and name in FOR_THE_NODE and not page.lacks(node, expect.labels):
            return cls(node, expect.labels, shared=True)
        if missing and expect.number == 0 and node in page.samples:
            missing = ""  # a process has no series for what it never did; the node has one
        return cls(name, {"pid": str(pid), **expect.labels}, missing)

    def seen(self, page: Page, uuids: Iterable[str]) -> float:
        """`uuids`: the GPUs that there are; what is on none of them is another's."""
        if not self.shared:
            return page.total(self.name, **self.labels) or 0
        return sum(page.total(self.name, uuid=uuid, **self.labels) or 0 for uuid in uuids)


FOR_THE_NODE = {
    f"gpubpf_process_{fact}_total"
    for fact in (
        "allocations",
        "frees",
        "implicit_frees",
        "implicitly_freed_bytes",
        "set_bytes",
        "waits",
    )
}
"""Facts that are counted for the GPUs only: no process has a series for them."""


def _named(expect: Expect) -> str:
    labels = ", ".join(str(value) for value in expect.labels.values())
    return expect.fact.replace("_", " ").replace("+", " + ") + (f" ({labels})" if labels else "")
