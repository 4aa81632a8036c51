"""The agent's loop: asks the sources, joins what they say, keeps the latest Snapshot.

The error boundary is here: a source that fails is a Reading with an error, its series are absent
until it works again, and the others go on.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from gpubpf import pointers
from gpubpf.attribution import Attribution
from gpubpf.bpf import attach, elf
from gpubpf.bpf.load import Loaded, load
from gpubpf.bpf.maps import Maps
from gpubpf.config import Options, without_effect
from gpubpf.copies import Copies
from gpubpf.diagnosis import Diagnoses
from gpubpf.errors import GpubpfError, UsageError
from gpubpf.evidence import evidence
from gpubpf.join import Ledger, Readings, join
from gpubpf.libraries import Libraries
from gpubpf.model import (
    COMPUTE,
    HEAT,
    LINKS,
    MEMORY,
    PROCESSES,
    Agent,
    Calls,
    Footprint,
    Job,
    NodeFacts,
    Owner,
    Place,
    Plane,
    Process,
    Reading,
    Snapshot,
)
from gpubpf.node import NodeReader
from gpubpf.nvml import Nvml, NvmlError
from gpubpf.nvml.sampler import Sampler
from gpubpf.processes import Processes
from gpubpf.stop import Stop
from gpubpf.symbols import chosen
from gpubpf.visible import Reader

if TYPE_CHECKING:
    from gpubpf.keeper import Keeper

T = TypeVar("T")

INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
YOUNG_NS = 10_000_000_000  # age up to which NVML is asked again at once where a process is
_PAGE = os.sysconf("SC_PAGE_SIZE")
_START = time.time()


class Monitor:
    """`open`, then `step` or `run` by one thread; `latest` may be called by any."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.notes: list[str] = []  # one-line remarks for the operator
        self._symbols = chosen(options.probe, options.attribution)
        self._ledger = Ledger(tuple(symbol.name for symbol in self._symbols))
        self._processes = Processes(options.proc_root)
        self._libraries = Libraries(
            options.proc_root,
            options.host_root,
            options.library,
            os.environ.get("LD_LIBRARY_PATH", ""),
        )
        self._loaded: Loaded | None = None
        self._maps: Maps | None = None
        self._nvml: Sampler | None = None
        self._node = NodeReader(options.proc_root, options.host_root)
        self._node_facts: Reading[NodeFacts] | None = None
        self._copies: Copies | None = None
        self._tracepoints: list[int] = []
        self._discovery: Reading[int] | None = None
        self._callers: dict[Owner, Process] = {}
        self._attribution = Attribution(Reader(options.proc_root).read)
        self._footprints_at = -math.inf  # when the allocations were last walked
        self._pointers_elsewhere: int | None = None  # until the self-check has an answer
        self._keeper: Keeper | None = None
        if options.jobs:
            from gpubpf.keeper import Keeper  # only who has jobs pays for it

            self._keeper = Keeper(options, self._ledger, _START)
        self.others: list[Callable[[float], Reading[None] | None]] = []  # sources beside its own
        self._diagnoses = Diagnoses(dict(options.thresholds), options.probe)
        self._latest: Snapshot | None = None

    # --- life -----------------------------------------------------------------------------

    def open(self) -> None:
        """Loads and attaches. Raises GpubpfError; nothing stays attached then."""
        try:
            self._open_keeper()
            self._open_bpf()
            self._open_nvml()
            if self._loaded is None and self._nvml is None:
                raise GpubpfError("nothing to watch: --probe none and --no-nvml leave nothing on")
        except BaseException:
            self.close()
            raise

    def _open_keeper(self) -> None:
        self.notes += without_effect(self.options)
        note = None if self._keeper is None else self._keeper.open()
        if note is not None:
            self.notes.append(note)

    def keep(self, snapshot: Snapshot) -> None:
        """Called before anything of it is served: it must not be forgotten. By any thread."""
        if self._keeper is not None:
            self._keeper.keep(snapshot)

    def _open_bpf(self) -> None:
        if not self._symbols:
            return
        # Every library copy takes some twenty links, by perf events some hundreds.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        own = os.stat("/proc/self/ns/pid").st_ino
        if own != INITIAL_PID_NAMESPACE and self.options.proc_root == "/proc":
            self.notes.append(
                "this is not the node's pid namespace: processes can't be told; start gpubpf in it "
                "(hostPID, --pid=host)"
            )
        self._loaded = load(
            self.options.probe,
            attribution=self.options.attribution,
            births=self._keeper is not None,
        )
        if self._keeper is not None:
            self._keeper.listen(self._loaded)
        self._maps = Maps(self._loaded, self._symbols)
        self._tracepoints = attach.attach_tracepoints(self._loaded)
        if not self._loaded.tells_exits:
            self.notes.append(
                "the kernel has no BTF: a pid that is used again within one interval is not noticed"
            )
        self._copies = Copies(self._loaded, self._symbols, self._libraries, self.notes)
        drivers = self._copies.open_usual()
        # In a thread: it takes as long as loading the driver library, and nothing waits for it.
        threading.Thread(target=self._check_pointers, args=(drivers,), daemon=True).start()
        self._discover()
        if self._libraries.missing:
            raise UsageError(f"--library {self._libraries.missing[0]}: no such regular file")
        seen = self._libraries.looked - self._libraries.unseen
        if seen < self._libraries.unseen:  # a few are refused even to root
            self.notes.append(
                f"what {self._libraries.unseen} of {self._libraries.looked} processes map can't be "
                "seen: calls to a libcuda that only they use are not counted; add CAP_SYS_PTRACE"
            )
        if not self._copies.attached:
            self.notes.append("no libcuda found yet: probing starts when a process maps one")

    def _check_pointers(self, drivers: list[int]) -> None:
        """The self-check: are the functions that the driver hands out those that are probed?"""
        names = [symbol.name for symbol in self._symbols]
        elsewhere: set[str] = set()
        for fd in drivers:
            try:
                answers = pointers.look_up(fd, names)
            except (OSError, ValueError, subprocess.SubprocessError, elf.NotALibraryError):
                continue  # `gpubpf doctor` says why
            else:
                elsewhere |= {p.name for p in answers if p.export is None}
                self._pointers_elsewhere = len(elsewhere)
            finally:
                os.close(fd)
        if elsewhere:
            self.notes.append(
                f"the driver hands out {len(elsewhere)} functions past their probed exports "
                f"({', '.join(sorted(elsewhere))[:200]}): their calls are missed; see gpubpf doctor"
            )

    def _open_nvml(self) -> None:
        if not self.options.nvml:
            return
        options = self.options
        intervals = {
            COMPUTE: options.compute_interval,
            PROCESSES: options.compute_interval,
            MEMORY: options.memory_interval,
            LINKS: options.link_interval,
            HEAT: options.heat_interval,
        }
        nvml = Sampler(Nvml(options.nvml_library), intervals, options.nvml_timeout)
        try:
            nvml.open()
        except NvmlError as error:
            self.notes.append(f"no GPU figures: {error}")
            if options.nvml_library is not None and error.fatal:
                raise
        self._nvml = nvml  # it tries again by itself

    def close(self) -> None:
        """Detaches every probe and lets go of the driver. Safe to call twice."""
        if self._copies is not None:
            self._copies.close()
            self._copies = None
        attach.detach(self._tracepoints)
        self._tracepoints.clear()
        if self._keeper is not None:
            self._keeper.close(self._latest)
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
            self._maps = None
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None

    def run(self, stop: Stop, woken: Callable[[], None] = lambda: None) -> None:
        """Steps at the interval until `stop`. A step that takes longer skips beats.

        `woken` is called after every wait (see `Stop.rest`), and looks why it ended if it is too
        early.
        """
        due = time.monotonic()
        while not stop.is_set():
            self.step()
            due = max(due + self.options.interval, time.monotonic())
            stop.rest(due, woken)

    def release(self, seconds: float | None) -> str:
        """Lets go of the driver's device files for so long, or until `resume`; what was done.

        Called by any thread. Raises NvmlError where a call into the driver hangs.
        """
        if self._nvml is None:
            raise UsageError("NVML is off (--no-nvml): the agent holds no GPU")
        self._nvml.release(seconds)
        return f"the agent (pid {os.getpid()}) let go of every device file of the NVIDIA driver"

    def resume(self) -> str:
        """Takes the driver up again at the next step; what was done. Called by any thread."""
        if self._nvml is None or not self._nvml.resume():
            return "nothing was let go of"
        return f"the agent (pid {os.getpid()}) takes the NVIDIA driver up again at its next look"

    # --- one step -------------------------------------------------------------------------

    def latest(self) -> Snapshot | None:
        return self._latest

    def step(self) -> Snapshot:
        """Reads every source once and joins. Never raises for a source's failure."""
        at, now = time.monotonic(), time.time()
        calls = self._read("bpf", self._read_calls) if self._maps else None
        plane = self._poll(calls)
        self._discover_if_due(at, calls)
        gpus = self._attribute(calls, plane)
        processes = self._look_up(calls, plane)
        snapshot = join(
            Readings(
                at=at,
                time=now,
                calls=calls,
                plane=plane,
                processes=processes,
                node=self._look_at_node(at, processes),
                gpus=gpus,
                attached=self._copies.attached if self._copies else (),
                discovery=self._discovery,
                footprints=self._footprints_if_due(at),
                attributions=dict(self._attribution.told),
                agent=self._agent(),
                jobs=self._name(calls, plane, processes, gpus),
                unseen=self._keeper.unseen if self._keeper else 0,
                kept=self._others(at),
                given=self._keeper.given() if self._keeper else {},
            ),
            self._ledger,
        )
        findings = self._diagnoses.look(at, evidence(snapshot))
        self._latest = snapshot = replace(snapshot, findings=findings)
        return snapshot

    def _others(self, at: float) -> tuple[Reading[None], ...]:
        """How what is no part of a look is doing."""
        told = [other(at) for other in self.others]
        kept = self._keeper.kept(at) if self._keeper else ()
        return (*kept, *(reading for reading in told if reading is not None))

    def _read(self, source: str, function: Callable[[], T]) -> Reading[T]:
        at = time.monotonic()
        try:
            value = function()
        except Exception as error:  # the boundary: no source's failure ends the agent
            message = str(error) if isinstance(error, GpubpfError | OSError) else repr(error)
            reason = "failed"
            return Reading(source, at, time.monotonic() - at, error=message, reason=reason)
        return Reading(source, at, time.monotonic() - at, value)

    def _read_calls(self) -> Calls:
        assert self._maps is not None
        return self._maps.read(self._lives)

    def _lives(self, owner: Owner) -> bool:
        """Whether a caller is still there, and not another process with its pid."""
        process = self._callers.get(owner)
        if process is None:
            return os.path.exists(f"{self.options.proc_root}/{owner.pid}")
        return self._processes.alive(owner.pid, process.start_time)

    def _name(
        self,
        calls: Reading[Calls] | None,
        plane: Reading[Plane] | None,
        processes: Iterable[Owner],
        gpus: Mapping[Place, str],
    ) -> Reading[dict[Owner, Job]] | None:
        """The jobs of whoever called the driver since the last look, and of whom NVML lists."""
        if self._keeper is None:
            return None
        keeper, value = self._keeper, calls.value if calls else None
        callers = (*value.live, *value.ended) if value else ()
        devices = plane.value.devices if plane and plane.value else ()
        return self._read("jobs", lambda: keeper.look((*callers, *processes), devices, gpus))

    def _poll(self, calls: Reading[Calls] | None) -> Reading[Plane] | None:
        if self._nvml is None:
            return None
        nvml, urgent = self._nvml, self._urgent(calls)
        reading = self._read("nvml", lambda: nvml.poll(*urgent))
        if reading.value is not None:
            return reading.value
        return Reading("nvml", reading.at, reading.seconds, None, reading.error, reading.reason)

    def _urgent(self, calls: Reading[Calls] | None) -> tuple[str, ...]:
        """What NVML is asked before it is due: where processes are that have just come."""
        value = calls.value if calls else None
        if value is None:
            return ()
        young = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - YOUNG_NS
        for owner in value.live:
            if owner not in self._callers or (
                owner.born > young and owner in self._attribution.unknown
            ):
                return (PROCESSES,)
        return ()

    def _attribute(
        self, calls: Reading[Calls] | None, plane: Reading[Plane] | None
    ) -> dict[Place, str]:
        if calls is None or calls.value is None:
            return {}
        devices = plane.value.devices if plane and plane.value else None
        return self._attribution.look(calls.value, devices)

    def _look_at_node(
        self, now: float, processes: dict[Owner, Process]
    ) -> Reading[NodeFacts] | None:
        last = self._node_facts
        pids = {owner.pid for owner in processes}
        first = bool(pids) and last is not None and not (last.value and last.value.work)
        if last is None or first or now - last.at >= self.options.node_interval:
            facts = self._read("node", lambda: self._node.read(pids))
            if facts.value is not None and not pids:  # nobody knows of any, or there are none
                facts = replace(facts, value=replace(facts.value, work=None))
            self._node_facts = facts
        return self._node_facts

    def _footprints_if_due(self, now: float) -> dict[Place, Footprint] | None:
        due = self._footprints_at + self.options.memory_interval
        if self._maps is None or "memory" not in self.options.probe or now < due:
            return None
        self._footprints_at = now
        return self._read("allocations", self._maps.footprints).value

    def _look_up(
        self, calls: Reading[Calls] | None, plane: Reading[Plane] | None
    ) -> dict[Owner, Process]:
        """Who the callers are, and the processes that NVML lists; each is asked for once."""
        found: dict[Owner, Process] = {}
        value = calls.value if calls else None
        callers: set[int] = set()
        if value is not None:
            for owner in (*value.live, *value.ended):
                process = self._callers.get(owner)
                if process is None:
                    process = self._processes.lookup(owner.pid, owner.born)
                if process is not None:
                    found[owner] = process
            callers = {owner.pid for owner in value.live}
        for device in plane.value.devices if plane and plane.value else ():
            for row in device.processes or ():
                if row.pid in callers:
                    continue
                process = self._processes.current(row.pid)
                if process is not None:
                    found[Owner(row.pid, 0)] = process
        gone = self._callers.keys() - found.keys()
        self._processes.forget((owner.pid, owner.born) for owner in gone)
        self._callers = found
        return found

    def _agent(self) -> Agent | None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        try:
            with open("/proc/self/statm", "rb", buffering=0) as file:
                resident = int(file.read(128).split()[1]) * _PAGE
        except OSError:  # no file descriptors left
            return None
        peak = self._loaded.loader_peak_bytes if self._loaded else 0
        used = usage.ru_utime + usage.ru_stime
        copies = self._copies
        return Agent(
            _START,
            used,
            resident,
            peak,
            self._pointers_elsewhere,
            copies.states() if copies else {},
            copies.events() if copies else {},
        )

    # --- library copies -------------------------------------------------------------------

    def _discover_if_due(self, now: float, calls: Reading[Calls] | None) -> None:
        if self._copies is None:
            return
        last = self._discovery.at if self._discovery else 0.0
        if now - last >= self.options.discovery_interval:
            value = calls.value if calls else None
            self._discover({owner.pid for owner in value.live} if value else set())

    def _discover(self, covered: Container[int] = ()) -> None:
        assert self._copies is not None
        copies = self._copies
        self._discovery = self._read("discovery", lambda: copies.look(covered))
