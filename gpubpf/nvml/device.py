"""One GPU as it is kept between rounds: its plans, its newest samples, what follows from them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gpubpf.model import (
    CLASSES,
    LINKS,
    MEMORY,
    PROCESSES,
    Device,
    DeviceInfo,
    DeviceProcess,
    Figures,
    Labels,
)
from gpubpf.nvml import codes, gpm, mig
from gpubpf.nvml.ask import COUNTER, Past
from gpubpf.nvml.counters import Counters
from gpubpf.nvml.facts import FACTS
from gpubpf.nvml.library import Library, divided
from gpubpf.nvml.plan import BrokenError, Plan, Sample, Tick
from gpubpf.nvml.processes import ProcessReader

DOUBT = 1800.0  # seconds after which what failed for an odd reason is tried again
_BY_CLASS = {name: tuple(fact for fact in FACTS if fact.sampled == name) for name in CLASSES}
_COUNTERS = {
    name: tuple(f for f in facts if f.kind == COUNTER) for name, facts in _BY_CLASS.items()
}
_DERIVED = {name: tuple(f for f in facts if f.derived) for name, facts in _BY_CLASS.items()}


class Gpu:
    """A device with its handle, or without one and the reason why (`error`, a code)."""

    def __init__(
        self,
        info: DeviceInfo,
        library: Library,
        handle: Any,
        counters: Counters,
        clock: Callable[[], float],
        before: Gpu | None = None,
    ) -> None:
        """`before`: the same device, before NVML was opened again."""
        self.info = info
        self.error = 0
        self.handle = handle
        self._library = library
        self._counters = counters
        self._clock = clock
        self._plans: dict[str, Plan] = {}
        self._samples: dict[str, Sample] = {}
        self._past = {} if before is None else before.past
        self._instances: dict[str, mig.Instance] = {}
        self._processes: tuple[DeviceProcess, ...] | None = None
        self._reader: ProcessReader | None = None
        if handle is not None:
            self._reader = ProcessReader(library, handle, clock)

    @property
    def past(self) -> dict[str, tuple[float, Figures]]:
        """The figures at the last sample of each class, and when that was."""
        return self._past

    def without_handle(self, error: int) -> Gpu:
        """The same, as long as it can't be asked; `error`: why not."""
        gpu = Gpu(self.info, self._library, None, self._counters, self._clock)
        gpu.error = error
        return gpu

    def forget(self) -> None:
        """Nothing is worked out of what was before, nor shown of it."""
        self._past = {}
        self._samples = {}
        self._processes = None

    def let_go(self) -> None:
        """The library is unloaded: nothing of it may be called any more."""
        self.handle = self._reader = None

    @property
    def garbage(self) -> int:
        """Rows of processes that could not be true."""
        return self._reader.garbage if self._reader else 0

    def read(self, classes: Collection[str], tick: Tick, now: float) -> int:
        """New samples of the classes; how many figures could not be true.

        A device that is lost has no figures and says so in `error`.
        """
        if self._reader is None:
            return 0
        self.error = 0
        garbage = 0
        try:
            if MEMORY in classes:
                self._look_for_mig(tick)
            for name in CLASSES:
                if name in classes and name != PROCESSES:
                    garbage += self._read_class(name, tick, now)
            if PROCESSES in classes:
                self._read_processes(tick)
        except BrokenError as error:
            self._lose(error.code)
        return garbage

    def _read_class(self, name: str, tick: Tick, now: float) -> int:
        plan = self._plans.get(name)
        if plan is not None and plan.doubtful and now - plan.made > DOUBT:
            self._plans.pop(name).close()
            plan = None
        if plan is None:
            facts = _BY_CLASS[name]
            has_gpm = gpm.supported(self._library, self.handle)
            plan = self._plans[name] = Plan(self._library, self.handle, facts, tick, has_gpm, now)
        sample = plan.read(tick)
        if sample.broken:
            raise BrokenError(sample.broken)
        self._forget_links(name, sample)
        self._samples[name] = sample
        self._keep_counters(name, sample)
        self._derive(name, sample, now)
        for instance in self._instances.values():
            instance.read(name, tick)
        return sample.garbage

    def _forget_links(self, name: str, sample: Sample) -> None:
        """A link that comes up tells more than it did: what it supports is tried again."""
        before = self._samples.get(name)
        if name == LINKS and before is not None:
            up = "nvlink_link_up"
            if before.figures.get(up) != sample.figures.get(up):
                self._plans.pop(name).close()

    def _read_processes(self, tick: Tick) -> None:
        assert self._reader is not None
        places = {
            (info.gpu_instance, info.compute_instance): uuid
            for uuid, info in ((u, i.info) for u, i in self._instances.items())
            if info.gpu_instance is not None and info.compute_instance is not None
        }
        self._processes = self._reader.read(tick, places)

    def _keep_counters(self, name: str, sample: Sample) -> None:
        for fact in _COUNTERS[name]:
            series = sample.figures.get(fact.name)
            if series:
                self._counters.keep(self.info.uuid, fact.name, series)

    def _derive(self, name: str, sample: Sample, now: float) -> None:
        """What follows from this sample and the one before; at first only where counters start."""
        at, before = self._past.get(name, (now, {}))
        figures = self._figures()
        past = Past(figures, before, now - at)
        for fact in _DERIVED[name]:
            if fact.derived is None or not (fact.adds or name in self._past):
                continue
            series = dict(fact.derived(past))
            if fact.adds:
                series = {
                    labels: self._counters.add(self.info.uuid, fact.name, labels, more)
                    for labels, more in series.items()
                }
            if series:
                sample.figures[fact.name] = figures[fact.name] = series
        self._past[name] = now, figures

    def _look_for_mig(self, tick: Tick) -> None:
        """Boards are divided while the agent runs."""
        tick()
        found = mig.find(self.handle)
        if found is None or {uuid: mig.shape(handle) for uuid, handle in found.items()} == {
            uuid: instance.shape for uuid, instance in self._instances.items()
        }:
            return
        for instance in self._instances.values():
            instance.close()
        self._instances = {
            uuid: mig.Instance(self._library, self.handle, uuid, handle, tick)
            for uuid, handle in found.items()
        }
        self.info = dataclasses.replace(
            self.info, mig=divided(self.handle), children=tuple(self._instances)
        )
        self._forget_plans()  # a divided board supports less

    def _lose(self, code: int) -> None:
        self.error = code
        self.forget()

    def _forget_plans(self) -> None:
        for plan in self._plans.values():
            plan.close()
        self._plans = {}

    def close(self) -> None:
        """Frees what the library holds for it; only while the library is initialised."""
        self._forget_plans()
        for instance in self._instances.values():
            instance.close()
        self._instances = {}

    def _figures(self) -> dict[str, Mapping[Labels, float]]:
        figures: dict[str, Mapping[Labels, float]] = {}
        for sample in self._samples.values():
            figures.update(sample.figures)
        return figures

    def device(self, error: int = 0) -> Device:
        """What is known of it now; `error`: it can't be asked for another reason."""
        error = error or self.error
        if error:
            return Device(self.info, reason=codes.reason(error))
        missing: Counter[str] = Counter()
        for sample in self._samples.values():
            missing += sample.missing
        return Device(
            self.info,
            self._figures(),
            self._processes,
            tuple(instance.device() for instance in self._instances.values()),
            missing=missing,
            process_utilization=self._reader.supported if self._reader else None,
        )

    @property
    def failing(self) -> int:
        """The code of a device of which nothing can be read, though nobody calls it lost."""
        if self.error or not self._samples or self._processes is not None:
            return self.error
        found = [
            code
            for sample in self._samples.values()
            for code in sample.codes.values()
            if code not in codes.UNSUPPORTED and code > 0
        ]
        return found[0] if found and not any(s.figures for s in self._samples.values()) else 0
