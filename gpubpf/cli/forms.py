"""The forms in which `gpubpf top` shows what happened: a table, and JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from gpubpf import cuda_errors
from gpubpf.cli import table
from gpubpf.cli.activity import FACTS, Activity, OnGpu, Row
from gpubpf.cli.table import Column, number, percent, size
from gpubpf.model import Device

SCHEMA = 1
"""Of the JSON: it grows when a key goes or means something else; new keys may come any time."""

_INDENT = "  "


def _json_help() -> Iterator[str]:
    yield "--format json prints one object (null: not known):"
    yield "  processes[]   pid name user command start_time_seconds ended and"
    for group, facts in groupby(FACTS, lambda fact: fact.group):
        yield f"    of the group {group}:"
        for fact in facts:
            yield f"      {fact.key:<31}{fact.help}"
    yield "    …_per_second      each of these over span_seconds"
    yield "    calls             driver function: its calls, if any"
    yield "    gpus[]            gpu uuid sm_utilization_ratio memory_used_bytes"
    yield "  others        the same keys, for all processes together that did not fit"
    yield "                into the kernel's map; null if all did"
    yield "  node          the same keys, for the whole node"
    yield "  errors[]      function error name count: failed calls on the node"
    yield "  gpus[]        gpu uuid name, and NVML's figures at the end of the span"
    yield "  sources[]     name up error"
    yield "  time_seconds span_seconds probe[] libraries lost{} notes[] schema"
    yield ""


JSON_HELP = "\n".join(_json_help())


# --- JSON ---------------------------------------------------------------------------------------


def as_json(activity: Activity, probe: Sequence[str], notes: Sequence[str]) -> str:
    """One object, as JSON_HELP says. Counts are exact integers; times are seconds."""
    import json

    others = [row for row in activity.rows if row.pid is None]
    document = {
        "schema": SCHEMA,
        "time_seconds": activity.time,
        "span_seconds": activity.seconds,
        "probe": list(probe),
        "libraries": activity.libraries,
        "processes": [_process(row, activity) for row in activity.rows if row.pid is not None],
        "others": _counts(others[0], activity) if others else None,
        "node": _counts(activity.node, activity),
        "errors": [
            {"function": function, "error": error, "name": cuda_errors.name(error), "count": count}
            for (function, error), count in sorted(activity.errors.items())
        ],
        "gpus": None
        if activity.devices is None
        else [_device(device) for device in activity.devices],
        "sources": [{"name": s.name, "up": s.up, "error": s.error} for s in activity.sources],
        "lost": dict(activity.lost),
        "notes": list(notes),
    }
    return json.dumps(document, indent=2)


def _process(row: Row, activity: Activity) -> dict[str, Any]:
    known = row.process
    return {
        "pid": row.pid,
        "name": known.name if known else None,
        "user": known.user or None if known else None,
        "command": known.command or None if known else None,
        "start_time_seconds": known.start_time if known else None,
        "ended": row.ended,
        **_counts(row, activity),
        "gpus": [
            {
                "gpu": on.index if on.index >= 0 else None,
                "uuid": on.uuid,
                "sm_utilization_ratio": on.sm,
                "memory_used_bytes": on.memory_used,
            }
            for on in row.gpus
        ],
    }


def _counts(row: Row, activity: Activity) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for fact in FACTS:
        value = row.counts[fact.key]
        counts[fact.key] = value
        counts[f"{fact.key}_per_second"] = _rate(value, activity)
    return {**counts, "calls": dict(row.calls)}


def _device(device: Device) -> dict[str, Any]:
    return {
        "gpu": device.info.index,
        "uuid": device.info.uuid,
        "name": device.info.name,
        "utilization_ratio": device.get("utilization_ratio"),
        "memory_utilization_ratio": device.get("memory_utilization_ratio"),
        "memory_used_bytes": device.get("memory_used_bytes"),
        "memory_size_bytes": device.get("memory_size_bytes"),
        "power_watts": device.get("power_watts"),
        "temperature_celsius": device.get("temperature_celsius"),
    }


def _rate(value: float | None, activity: Activity) -> float | None:
    return None if value is None or activity.seconds <= 0 else value / activity.seconds


# --- text ---------------------------------------------------------------------------------------

_LEADING = (
    Column("", "PID "),
    Column("", "USER", left=True, worth=30),
    Column("", "GPU"),
    Column("SM", "%", worth=70),
    Column("GPU", "mem", worth=65),
)
_BY_FACT = {
    # fact: column and form, shown where the fact's group is probed
    "kernels": (Column("kernels", "/s"), number),
    "graph_launches": (Column("graphs", "/s", worth=60), number),
    "allocations": (Column("allocs", "/s", worth=40), number),
    "allocated_bytes": (Column("alloc", "B/s", worth=50), size),
    "copies": (Column("copies", "/s", worth=20), number),
    "copied_bytes": (Column("copied", "B/s", worth=44), size),
    "waits": (Column("waits", "/s", worth=10), number),
    "wait_seconds": (Column("wait", "%", worth=42), percent),
}
_COMMAND = Column("", "COMMAND", left=True)


def as_text(
    activity: Activity, probe: Sequence[str], notes: Sequence[str], width: int
) -> list[str]:
    """Lines of at most `width` characters, but for words that are longer."""
    lines = [*_heading(activity, probe, width), *_devices(activity, width), ""]
    if activity.rows:
        shown = [fact for fact in FACTS if fact.group in probe and fact.key in _BY_FACT]
        columns = [*_LEADING, *(_BY_FACT[fact.key][0] for fact in shown), _COMMAND]
        keys = [fact.key for fact in shown]
        cells = [line for row in activity.rows for line in _lines(row, keys, activity)]
        total = ["total ", "", "", "", "", *_rates(activity.node, keys, activity), ""]
        lines += table.fit(columns, [*cells, total] if shown else cells, width)
        if any(row.ended for row in activity.rows):
            lines.append("* ended during the span")
    else:
        lines.append("No process called the driver or was listed by NVML.")
    for remark in _remarks(activity, notes):
        lines += table.wrap(remark, width, _INDENT)
    return [table.clean(line) for line in lines]


def _heading(activity: Activity, probe: Sequence[str], width: int) -> list[str]:
    if probe:
        files = f"{activity.libraries} libcuda file{'' if activity.libraries == 1 else 's'}"
        what = f"probing {', '.join(probe)} in {files}"
    else:
        what = "probing nothing"
    return table.wrap(f"gpubpf top: {activity.seconds:.1f} s, {what}", width, _INDENT)


def _devices(activity: Activity, width: int) -> Iterator[str]:
    for device in activity.devices or ():
        facts = [
            f"{percent(device.get('utilization_ratio'))} % busy",
            f"{size(device.get('memory_used_bytes'))} of {size(device.get('memory_size_bytes'))}",
        ]
        for fact, unit in (("power_watts", "W"), ("temperature_celsius", "°C")):
            value = device.get(fact)
            if value is not None:
                facts.append(f"{value:.0f} {unit}")
        known = ", ".join(facts)
        name = table.cut(device.info.name, max(10, width - len(known) - 10))
        yield table.cut(f"GPU {device.info.index}: {name}: {known}", width)


def _lines(row: Row, keys: Sequence[str], activity: Activity) -> Iterator[list[str]]:
    """One line, or one for each GPU: calls can't be told apart by GPU, so they are on the first."""
    user = row.process.user if row.process else ""
    first: OnGpu | None = row.gpus[0] if row.gpus else None
    if row.pid is None:
        pid, command = "others ", "processes that did not fit into the kernel's map"
    else:
        pid, command = f"{row.pid}{'*' if row.ended else ' '}", _command(row)
    yield [pid, user or "-", *_on(first), *_rates(row, keys, activity), command]
    for on in row.gpus[1:]:
        yield ["", "", *_on(on), *[""] * len(keys), ""]


def _on(gpu: OnGpu | None) -> list[str]:
    if gpu is None:
        return ["-", "-", "-"]
    index = str(gpu.index) if gpu.index >= 0 else "?"
    return [index, percent(gpu.sm), size(gpu.memory_used)]


def _rates(row: Row, keys: Sequence[str], activity: Activity) -> list[str]:
    return [_BY_FACT[key][1](_rate(row.counts[key], activity)) for key in keys]


def _command(row: Row) -> str:
    """The command line without the program's directory; else, as ps has it, [name]."""
    if row.process is None:
        return "-"
    program, space, rest = row.process.command.partition(" ")
    return os.path.basename(program) + space + rest if program else f"[{row.process.name}]"


def _remarks(activity: Activity, notes: Sequence[str]) -> Iterator[str]:
    if activity.errors:
        failed = sorted(activity.errors.items(), key=lambda item: -item[1])
        shown = [
            f"{function} {count:,}x {cuda_errors.name(error)} ({error})"
            for (function, error), count in failed[:5]
        ]
        if len(failed) > 5:
            shown.append(f"{len(failed) - 5} more kinds")
        yield f"failed calls, {sum(activity.errors.values()):,} on the node: {'; '.join(shown)}"
    if activity.lost:
        lost = ", ".join(f"{name} {count:,}" for name, count in sorted(activity.lost.items()))
        yield f"lost (could not be kept; calls are still counted): {lost}"
    for source in activity.sources:
        if not source.up and not any((source.error or "") in note for note in notes):
            yield f"{source.name} is down: {source.error}"
    yield from notes
