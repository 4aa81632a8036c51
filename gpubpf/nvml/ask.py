"""How a figure is asked of NVML: the vocabulary of the table in `gpubpf.nvml.facts`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpubpf.model import Figures, Labels

COUNTER, GAUGE = "counter", "gauge"

UINT, INT, ULONG = ctypes.c_uint, ctypes.c_int, ctypes.c_ulonglong


@dataclass(frozen=True, slots=True)
class Query:
    """One NVML call of the form f(device, *arguments, *results), each result by its address."""

    function: str
    results: tuple[type[Any], ...] = (UINT,)
    arguments: tuple[int, ...] = ()
    version: int = 0  # for a structure that carries its own


@dataclass(frozen=True, slots=True)
class Part:
    """What of a query's results: the n-th, an attribute of it, and of that one bit."""

    query: Query
    attribute: str = "value"
    result: int = 0
    bit: int = 0  # 0: the whole


@dataclass(frozen=True, slots=True)
class Field:
    """A field value (nvmlDeviceGetFieldValues), which is asked with others in one call."""

    id: int
    scope: int = 0  # the NVLink, for fields that are asked by link


@dataclass(frozen=True, slots=True)
class Gpm:
    """A metric of GPU performance monitoring, between two samples: Hopper and later."""

    id: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """Another's figure in another unit than the fact's other alternatives have it."""

    of: Part | Field | Gpm
    times: float = 1


Way = Part | Field | Gpm | Scaled
Ways = tuple[Way, ...]
"""The first that the driver and the device support is taken."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a derived figure is made of: two samples of its class, and the time between them."""

    now: Figures  # the figures of all classes, the newest of each
    before: Figures
    seconds: float


@dataclass(frozen=True, slots=True)
class Fact:
    """One measured fact of a device: a metric of `gpubpf_gpu_…` (and of `gpubpf_mig_…`)."""

    name: str  # the metric's, without the prefix and `_total`
    kind: str
    help: str
    unit: str
    sampled: str  # one of `gpubpf.model.CLASSES`
    asks: Mapping[Labels, Ways]  # by label values
    labels: Labels = ()  # names
    per: int = 1  # NVML's units in one of ours
    times: int = 1  # our units in one of NVML's
    most: int | None = None  # NVML's largest value that can be true
    mig: str = ""  # "memory" or "gpm": how a MIG device is asked for it too; "": it isn't
    derived: Callable[[Past], Iterable[tuple[Labels, float]]] | None = None
    adds: bool = False  # what `derived` gives is added to what there was

    @property
    def metric(self) -> str:
        return f"gpubpf_gpu_{self.name}"
