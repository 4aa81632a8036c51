"""Attaches the programs to library files; whatever is attached ends when its links are closed."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from gpubpf.bpf import elf, syscalls
from gpubpf.bpf.load import Loaded
from gpubpf.bpf.program import TRACEPOINTS, cookie, stub_names
from gpubpf.errors import BpfError
from gpubpf.model import Attached
from gpubpf.symbols import Symbol


@dataclass(frozen=True, slots=True)
class Attachment:
    """The probes of one library file.

    `late`, which are among `links`: those that only tell of what processes made before they were
    attached. Some programs call these functions before every launch.
    """

    probes: tuple[Attached, ...]
    links: tuple[int, ...]
    late: tuple[int, ...] = ()

    def without_late(self, symbols: Sequence[Symbol]) -> Attachment:
        """What is left once the caller has closed the late links."""
        names = {symbol.name for symbol in symbols if symbol.shape.late}
        return Attachment(
            tuple(
                Attached(probe.library, probe.function, "unneeded")
                if probe.function in names and probe.probed
                else probe
                for probe in self.probes
            ),
            tuple(link for link in self.links if link not in self.late),
        )


def attach(
    loaded: Loaded,
    symbols: Sequence[Symbol],
    fd: int,
    name: str,
    find: Callable[[int, Collection[str]], Mapping[str, elf.ProbePoint]] = elf.probe_points,
    slot: int = 0,
) -> Attachment:
    """Attaches to the library that `fd` is open on; `name` is what to call it to a person.

    `find` says where in the file each function is to be probed; `slot` is the library's own among
    those that are attached (below program.SLOTS).

    The kernel is given /proc/self/fd/N, so that what was examined is what is probed, whatever
    happens to the path meanwhile. Raises elf.NotALibraryError, or BpfError when the kernel refuses.
    """
    points = find(fd, {symbol.name for symbol in symbols})
    probes: list[Attached] = []
    wanted: dict[tuple[bool, bool, str], list[tuple[int, int]]] = defaultdict(list)
    taken: set[int] = set()
    for index, symbol in enumerate(symbols):
        point = points.get(symbol.name)
        if point is None:
            probes.append(Attached(name, symbol.name, "absent"))
            continue
        if point.offset in taken:  # two names of one function: one probe, or it counts twice
            probes.append(Attached(name, symbol.name, "alias"))
            continue
        taken.add(point.offset)
        probes.append(Attached(name, symbol.name, point.at))
        entry, back = stub_names(symbol, cookies=loaded.cookies)
        place = (point.offset, cookie(symbol, index, slot))
        late = symbol.shape.late
        wanted[True, late, entry].append(place)
        if back:
            wanted[False, late, back].append(place)
    links: list[int] = []
    of_late: list[int] = []
    try:
        # Returns first: a call whose entry is seen has its return seen too.
        for (is_entry, late, program), places in sorted(wanted.items()):
            path = f"/proc/self/fd/{fd}"
            made = _link(loaded, program, path, places, returns=not is_entry)
            links += made
            of_late += made if late else []
    except OSError as error:
        detach(links)
        raise BpfError(f"the kernel refused to probe {name}: {error.strerror}") from None
    # A process that began later than this made no call to it that we didn't see.
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    key = (slot if loaded.cookies else 0).to_bytes(4, "little")
    syscalls.map_update(loaded.maps["since"].fd, key, now.to_bytes(8, "little"))
    return Attachment(tuple(probes), tuple(links), tuple(of_late))


def _link(
    loaded: Loaded, program: str, path: str, places: list[tuple[int, int]], *, returns: bool
) -> list[int]:
    fd = loaded.programs[program]
    offsets = [offset for offset, _ in places]
    cookies = [value for _, value in places]
    if loaded.multi:
        return [syscalls.link_uprobe_multi(fd, path.encode(), offsets, cookies, returns=returns)]
    kept: list[int] = []
    for offset, value in places:
        given = value if loaded.cookies else None
        kept += syscalls.perf_uprobe(fd, path.encode(), offset, given, returns=returns)
    return kept


def detach(links: Sequence[int]) -> None:
    """Closes links, many at a time: the kernel waits some 40 ms for each, and the waits overlap."""
    if links:
        from concurrent.futures import ThreadPoolExecutor  # at the end: not the agent's memory

        with ThreadPoolExecutor(min(32, len(links))) as pool:
            list(pool.map(os.close, links))


def attach_tracepoints(loaded: Loaded) -> list[int]:
    """Watches the ends and the execs of processes; the links to keep. Raises BpfError."""
    links: list[int] = []
    for program, tracepoint in TRACEPOINTS.items():
        try:
            links.append(syscalls.link_raw_tracepoint(loaded.programs[program], tracepoint))
        except OSError as error:
            detach(links)
            raise BpfError(f"the kernel refused to watch {tracepoint}: {error.strerror}") from None
    return links
