"""What allocations, copies and waits cost while they are probed, on entry and on return.

On the simulated driver, where they succeed: that is the longer way through the probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from gpubpf.bpf.load import load
from gpubpf.symbols import GROUPS, chosen
from tests.bench import probing
from tests.bench.bench import Bench
from tests.bench.caller import Caller
from tests.bench.table import Mismatch, Row, ratios

NAME = "calls"

_CASES = (
    # what a caller does, how to name it, the functions that it calls
    ("allocate", "an allocation and its free", ("cuMemAlloc_v2", "cuMemFree_v2")),
    ("wait", "a wait", ("cuCtxSynchronize",)),
    ("copy", "a copy", ("cuMemcpyHtoD_v2",)),
)


def run(bench: Bench) -> Iterator[Row | Mismatch]:
    with ExitStack() as stack:
        symbols = chosen(GROUPS)
        loaded = load(GROUPS)
        stack.callback(loaded.close)
        node = stack.enter_context(bench.node(1))
        for what, title, functions in _CASES:
            caller = stack.enter_context(Caller(node.library, what, 1, 0, node.environment()))
            back = [s.name for s in symbols if s.name in functions and s.shape.returns]
            cases = {
                "unprobed": partial(probing.nothing, node.library, caller),
                "empty": partial(probing.empty, node.library, caller, functions, back),
                "gpubpf": partial(probing.gpubpf, node.library, caller, loaded, symbols),
            }
            times: dict[str, list[float]] = defaultdict(list)
            for _ in range(bench.amount(7, 2)):
                for name, case in cases.items():
                    with case():
                        caller.run(1000)
                        times[name].append(caller.run(bench.amount(60_000, 10_000)))
            added = {
                name: [a - b for a, b in zip(values, times["unprobed"], strict=True)]
                for name, values in times.items()
            }
            how = "entry and return" if back else "entry"
            yield Row(
                f"added by gpubpf to {title} ({how})", added["gpubpf"], "ns",
                ratios(added["gpubpf"], added["empty"]), "empty uprobes at the same places",
            )  # fmt: skip
