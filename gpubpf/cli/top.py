"""`gpubpf top`: what each process did with the GPUs, in a span of seconds or again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from gpubpf.cli import table
from gpubpf.cli.activity import FACTS, Activity, OnGpu, Row, Span
from gpubpf.cli.table import Column, number, percent, size
from gpubpf.config import Options

NAME = "top"
HELP = "show what each process asks of the GPUs, now"

SCHEMA = 1
"""Of the JSON: grows when a key changes its meaning or goes; new keys may come any time."""


def _details() -> Iterator[str]:
    yield "Columns are per second of the span; - is what is not known. A process on several"
    yield "GPUs has a line for each, its calls on the first. * marks those that ended."
    yield ""
    yield "--format json prints one object; null is what is not known:"
    yield "  processes[]  pid name user command start_time_seconds ended, and"
    for fact in FACTS:
        yield f"    {fact.key:<16} {fact.help} (probe group {fact.group})"
    yield "    KEY_per_second   each of these over span_seconds"
    yield "    calls            calls by driver function, where there were any"
    yield "    gpus[]           gpu uuid sm_utilization_ratio memory_used_bytes"
    yield "  node         the same keys for the node; others: all processes that"
    yield "               didn't fit into the kernel's map, together"
    yield "  errors[]     function error name count: failed calls on the node"
    yield "  gpus[]       gpu uuid name and the figures of the last look"
    yield "  time_seconds span_seconds probe[] sources[] lost{} notes[] schema"
    yield ""


DETAILS = "\n".join(_details())


def run(options: Options) -> int:
    """Prints until the span is over, or until the person quits. Raises GpubpfError."""
    from gpubpf.monitor import Monitor

    monitor = Monitor(options)
    monitor.open()
    try:
        if options.once or options.format == "json" or not sys.stdout.isatty():
            activity = watch(monitor, options)
            if options.format == "json":
                import json

                json.dump(as_json(activity, options, monitor.notes), sys.stdout, indent=2)
                print()
            else:
                print("\n".join(as_text(activity, options, monitor.notes, table.width())))
        else:
            from gpubpf.cli import screen

            refresh(monitor, options, screen.Screen(sys.stdout))
    finally:
        monitor.close()
    return 0
