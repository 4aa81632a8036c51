"""The MIG devices of a board (NVML API Reference, "Multi Instance GPU Management")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import COMPUTE, MEMORY, Labels, MigDevice, MigInfo
from gpubpf.nvml import codes, gpm
from gpubpf.nvml.ask import Gpm
from gpubpf.nvml.facts import FACTS
from gpubpf.nvml.library import Library, asked
from gpubpf.nvml.plan import Plan, Sample, Target, Tick

_PROFILE = re.compile(r"\bMIG (\S+)$")
_MEMORY_FACTS = tuple(fact for fact in FACTS if fact.mig == "memory")
_GPM_FACTS = tuple(fact for fact in FACTS if fact.mig == "gpm")


def find(parent: Any) -> dict[str, Any] | None:
    """The handles of a board's MIG devices, by UUID; none where MIG is off. None: it won't say."""
    try:
        if pynvml.nvmlDeviceGetMigMode(parent)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return {}
        places = pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)
    except pynvml.NVMLError as error:
        return {} if error.value in codes.UNSUPPORTED else None
    found = {}
    for place in range(places):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, place)
            found[str(pynvml.nvmlDeviceGetUUID(handle))] = handle
        except pynvml.NVMLError as error:
            if error.value not in {pynvml.NVML_ERROR_NOT_FOUND, *codes.UNSUPPORTED}:
                return None
    return found


def shape(handle: Any) -> tuple[Any, ...]:
    """What tells one MIG device from another with its UUID: that is made of the place."""
    return (
        asked(pynvml.nvmlDeviceGetName, handle),
        asked(pynvml.nvmlDeviceGetGpuInstanceId, handle),
        asked(pynvml.nvmlDeviceGetComputeInstanceId, handle),
    )


class Instance:
    """One MIG device as it is read: memory of its own, GPM of its GPU instance."""

    def __init__(self, library: Library, parent: Any, uuid: str, handle: Any, tick: Tick) -> None:
        self.shape = shape(handle)
        name, gpu_instance, compute_instance = self.shape
        profile = _PROFILE.search(str(name or ""))
        attributes = asked(pynvml.nvmlDeviceGetAttributes, handle)
        self.info = MigInfo(
            uuid=uuid,
            profile=profile[1] if profile else "",
            gpu_instance=gpu_instance,
            compute_instance=compute_instance,
            multiprocessors=attributes.multiprocessorCount if attributes else None,
        )
        self._samples: dict[str, Sample] = {}
        self._memory = Plan(library, handle, _MEMORY_FACTS, tick, has_gpm=False, now=0.0)
        self._targets = [
            (way.id, Target(fact, labels, fact.times))
            for fact in _GPM_FACTS
            for labels, ways in fact.asks.items()
            for way in ways
            if isinstance(way, Gpm)
        ]
        self._reader = None
        if self.info.gpu_instance is not None and gpm.supported(library, parent):
            ids = [number for number, _ in self._targets]
            self._reader = gpm.Reader(library, parent, ids, self.info.gpu_instance)

    def read(self, sampled: str, tick: Tick) -> None:
        if sampled == MEMORY:
            self._samples[MEMORY] = self._memory.read(tick)
        elif sampled == COMPUTE and self._reader is not None:
            sample = self._samples[COMPUTE] = Sample()
            tick()
            code = self._reader.read()
            for (_, target), (each, figure) in zip(self._targets, self._reader.values, strict=True):
                if not code and not each:
                    sample.put(target, figure)

    def device(self) -> MigDevice:
        figures: dict[str, Mapping[Labels, float]] = {}
        for sample in self._samples.values():
            figures.update(sample.figures)
        return MigDevice(self.info, figures)

    def close(self) -> None:
        self._memory.close()
        if self._reader is not None:
            self._reader.close()
