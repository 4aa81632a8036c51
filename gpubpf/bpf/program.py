"""The text of the BPF program: definitions, the handlers of `probes/`, and thin stubs over them.

A stub is one BPF program. Where the kernel passes attach cookies (5.15 on) one stub serves every
function of a shape and its cookie says which function was called; before that, every function has
a stub of its own with the same number compiled in.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gpubpf import lanes
from gpubpf.symbols import DEVICES, DIRECTIONS, KINDS, MEASURES, Symbol

MAPS = (
    "processes",
    "ended",
    "shares",
    "overflow",
    "since",
    "threads",
    "pending",
    "allocations",
    "contexts",
    "handles",
    "graphs",
    "answers",
    "failures",
    "lost",
)

BIRTHS = "births"
"""The ring buffer that tells at once of a process's first call."""

BIRTH_PAGES = 16
"""Of the ring buffer; each holds 170 births."""

LOST = (
    "processes",
    "ended",
    "shares",
    "threads",
    "pending",
    "allocations",
    "contexts",
    "handles",
    "graphs",
    "answers",
    "failures",
    "births",
    "unreadable",
    "implausible",
    "unmapped",
)
"""What `lost` counts, by the map that was full, or why a value could not be added up."""

FOLDED = "folded"
"""Counted next to LOST, for `Maps` alone: the processes of `ended` that are done (exit.c)."""

SLOTS = 256
"""Libraries that a cookie can tell apart."""

MOST_DESCRIPTORS = 250
"""File descriptors in one message of the loader (the kernel's SCM_MAX_FD is 253)."""

FILES = {
    "memory": ("memory.c", "virtual.c"),
    "copy": ("copy.c",),
    "wait": ("wait.c",),
}
"""Handlers that only their group uses."""

TRACEPOINTS = {"on_exit": "sched_process_exit", "on_exec": "sched_process_exec"}
"""Programs of exit.c -> the raw tracepoint that each is for."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Map capacities. The kernel allocates them at start; what doesn't fit is counted as lost."""

    processes: int = 2048  # living processes that call the driver; and as many ended ones
    shares: int = 4096  # (process, device) beyond the first device of each
    threads: int = 16384  # threads that made a context current
    pending: int = 16384  # threads inside an allocation, a free or a wait
    allocations: int = 65536  # live allocations on the node
    contexts: int = 8192
    handles: int = 32768  # streams; events of captures; nodes, pools, mappings
    graphs: int = 8192  # graphs and their instances
    answers: int = 8192  # what processes were told of devices
    failures: int = 4096  # (process, function, error) combinations


@dataclass(frozen=True, slots=True)
class Stub:
    """A BPF program: its name, its handler, and the functions that it serves."""

    name: str
    handler: str
    call: str  # C expression of the packed call


def cookie(symbol: Symbol, index: int, slot: int = 0) -> int:
    """What a probe is told about its function and its library (CALL_… in `probes/count.h`)."""
    stream = 0 if symbol.stream is None else symbol.stream + 1
    flags = int(symbol.narrow) | stream << 1 | int(symbol.per_thread) << 6
    measure = MEASURES.index(symbol.shape.measure)
    return index | symbol.detail << 16 | flags << 24 | measure << 32 | slot << 40


def stub_names(symbol: Symbol, *, cookies: bool) -> tuple[str, str]:
    """The programs for its entry and its return ("" where the return isn't probed)."""
    shape = symbol.shape
    if cookies:
        return f"probe_{shape.entry}", f"probe_{shape.back}_return" if shape.back else ""
    return f"probe_{symbol.name}", f"probe_{symbol.name}_return" if shape.back else ""


def stubs(symbols: Sequence[Symbol], *, cookies: bool) -> tuple[Stub, ...]:
    made: dict[str, Stub] = {}
    for index, symbol in enumerate(symbols):
        call = "bpf_get_attach_cookie(ctx)" if cookies else f"{cookie(symbol, index)}ULL"
        handlers = (symbol.shape.entry, f"{symbol.shape.back}_return")
        for name, handler in zip(stub_names(symbol, cookies=cookies), handlers, strict=True):
            if name:
                made.setdefault(name, Stub(name, f"on_{handler}", call))
    return tuple(made.values())


def defines(
    functions: int, sizes: Sizes, offsets: dict[str, int], births: bool = False
) -> dict[str, int]:
    values = lanes.defines(functions)
    values |= {f"KIND_{kind.upper()}": i for i, kind in enumerate(KINDS)}
    values |= {f"MEASURE_{name.upper()}": i for i, name in enumerate(MEASURES)}
    values |= {f"DIRECTION_{name.upper()}": i for i, name in enumerate(DIRECTIONS)}
    values |= {f"LOST_{name.upper()}": i for i, name in enumerate((*LOST, FOLDED))}
    values |= {
        "KINDS": len(KINDS) - 1,
        "DEVICES": DEVICES + 1,
        "DEVICE_UNKNOWN": DEVICES,
        "SLOTS": SLOTS,
        "LOST_COUNT": len(LOST) + 1,
    }
    if births:  # bcc's macro counts in the kernel's pages
        values |= {"BIRTH_PAGES": BIRTH_PAGES, "PAGE_SIZE": mmap.PAGESIZE}
    values |= {name.upper(): size for name, size in asdict(sizes).items()}
    return values | offsets


def probes_folder() -> Path:
    """Where the handlers and the header stubs are."""
    from importlib import resources  # the agent imports this module and needs no text of it

    return Path(str(resources.files("gpubpf.probes")))


def source(
    symbols: Sequence[Symbol],
    sizes: Sizes,
    *,
    cookies: bool,
    offsets: dict[str, int],
    births: bool = False,
) -> str:
    """One translation unit: bcc rewrites map accesses in the main file only."""
    folder = probes_folder()
    groups = [g for g in FILES if any(s.group == g for s in symbols)]
    names = ["maps.h", "arguments.h", "cuda.h", "count.h", "where.h"]
    names += ["context.c", "device.c", "graph.c", "node.c", "stream.c", "launch.c"]
    names += [name for group in groups for name in FILES[group]]
    names.append("exit.c")
    parts = ["#include <uapi/linux/ptrace.h>", "#include <uapi/linux/bpf.h>"]
    values = defines(len(symbols), sizes, offsets, births)
    parts += [f"#define {name} {value}" for name, value in values.items()]
    for name in names:
        parts += [f'#line 1 "{name}"', (folder / name).read_text(encoding="utf-8")]
    for stub in stubs(symbols, cookies=cookies):
        parts.append(
            f"int {stub.name}(struct pt_regs *ctx) {{ return {stub.handler}(ctx, {stub.call}); }}"
        )
    return "\n".join(parts) + "\n"
