"""What a launch costs while it is counted, against doing nothing there and against other designs.

Every case is timed in turn, repetition by repetition; the CPU time of the calling threads is what
counts. "Added" is a case's time less the unprobed call's of the same repetition. The library is
NVIDIA's own, which has no device here: what the kernel side would know of a process with one device
is written into its entry. Without it, it goes the way of processes with several devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from gpubpf.bpf.load import load
from gpubpf.symbols import chosen
from tests.bench import probing
from tests.bench.bench import Bench
from tests.bench.caller import Caller
from tests.bench.probing import Watch
from tests.bench.table import Mismatch, Row, at_least, at_most, ratios

Case = Callable[[], AbstractContextManager[Watch]]

NAME = "launches"
_FUNCTION = "cuLaunchKernel"
_GROUPS = ("launch",)
_NEAR, _CHEAPER = 1.15, 10.0


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    with ExitStack() as stack:
        loaded = load(_GROUPS)
        stack.callback(loaded.close)
        for threads in (1, 2):
            yield from _with_threads(bench, threads, partial(probing.gpubpf, loaded=loaded))


def _with_threads(
    bench: Bench, threads: int, gpubpf: Callable[..., AbstractContextManager[Watch]]
) -> Iterator[Row | Mismatch]:
    library = bench.library()
    with Caller(library, "launch", threads) as caller:
        cases: dict[str, tuple[Case, int]] = {  # and how much slower than the fastest it is
            "unprobed": (partial(probing.nothing, library, caller), 1),
            "empty": (partial(probing.empty, library, caller, [_FUNCTION]), 1),
            "gpubpf": (partial(gpubpf, library, caller, symbols=chosen(_GROUPS), plain=True), 1),
            "elsewhere": (partial(gpubpf, library, caller, symbols=chosen(_GROUPS)), 1),
            "bpftrace": (partial(probing.bpftrace, library, caller, _FUNCTION), 10),
            "events": (partial(probing.events, library, caller, _FUNCTION), 2),
        }
        times: dict[str, list[float]] = defaultdict(list)
        watches: dict[str, list[tuple[int, Watch]]] = defaultdict(list)
        caller.run(10_000)
        for _ in range(bench.amount(7, 2)):
            for name, (case, slower) in cases.items():
                rounds = bench.amount(300_000, 50_000) // slower
                with case() as watch:
                    caller.run(1000)
                    times[name].append(caller.run(rounds))
                watches[name].append((threads * (rounds + 1000), watch))
    yield from _mismatches(watches)
    added = {
        name: [time - before for time, before in zip(values, times["unprobed"], strict=True)]
        for name, values in times.items()
    }
    of = f", {threads} thread{'s' * (threads > 1)}"
    near = ratios(times["gpubpf"], times["empty"])
    cheaper = ratios(added["bpftrace"], added["gpubpf"])
    yield Row(f"a launch, unprobed{of}", times["unprobed"], "ns")
    yield Row(f"… with an empty uprobe at the same place{of}", times["empty"], "ns")
    yield Row(
        f"… counted by gpubpf{of}", times["gpubpf"], "ns",
        near, "the empty uprobe", f"≤ {_NEAR} times", at_most(near, _NEAR),
    )  # fmt: skip
    yield Row(f"added by gpubpf{of}", added["gpubpf"], "ns")
    yield Row(
        f"… counted by gpubpf, a process of several devices{of}", times["elsewhere"], "ns",
        ratios(times["elsewhere"], times["empty"]), "the empty uprobe",
    )  # fmt: skip
    yield Row(
        f"added by bpftrace `@[pid] = count()`{of}", added["bpftrace"], "ns",
        cheaper, "gpubpf's", f"≥ {_CHEAPER:g} times", at_least(cheaper, _CHEAPER),
    )  # fmt: skip
    yield Row(
        f"added by an event per launch (64 bytes, ring buffer, Python reader){of}",
        added["events"], "ns", ratios(added["events"], added["gpubpf"]), "gpubpf's",
    )  # fmt: skip
    yield Row(
        f"… its reader's CPU, per launch{of}",
        [watch.cpu * 1e9 / made for made, watch in watches["events"]], "ns",
    )  # fmt: skip
    yield Row(
        f"… events lost{of}",
        [100 * (1 - watch.seen / made) for made, watch in watches["events"]], "%",
    )  # fmt: skip


def _mismatches(watches: dict[str, list[tuple[int, Watch]]]) -> Iterator[Mismatch]:
    for made, watch in watches["bpftrace"]:
        if watch.seen != made:
            yield Mismatch(f"bpftrace saw {watch.seen} of {made} launches: not the same calls")
