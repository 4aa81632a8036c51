"""How one class of figures is read from one device: decided once, then only calls.

Every alternative of every row of FACTS is tried when the plan is made. What the driver or the
device doesn't support is left out, so that a round makes no call in vain.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import Labels
from gpubpf.nvml import codes, gpm
from gpubpf.nvml.ask import Fact, Field, Gpm, Part, Query, Scaled, Way
from gpubpf.nvml.library import Library


class Watch:
    """Called before every NVML call, by who makes it; this one doesn't care."""

    def __init__(self) -> None:
        self.at = ""  # UUID of the device that is being asked
        self.done: set[str] = set()  # UUIDs of those that were read

    def __call__(self) -> None:
        """May note the time; raises where nobody waits for the answer any more."""


Tick = Callable[[], None]

_NOT_AVAILABLE = frozenset((2**32 - 1, 2**64 - 1))  # all bits set, in nvml.h
_HUGE = 2**63
_SURE = 2**32 - 256  # what is no more is no error code and not "not available"
_PLAIN = frozenset((0, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND))
# nvmlFieldValue_t: id, scope, time and latency left out, type, return, value. Unpacked at once, as
# pynvml's structures take a microsecond for each member.
_FIELD = struct.Struct("=24xIIQ")
_FIELD_TYPES = tuple(map(struct.Struct, "dIQQqiH"))  # by nvmlValueType_t
MOST_FIELDS = 128  # in one call


class Target:
    """Where a figure goes, and what it is multiplied and divided by."""

    __slots__ = ("labels", "most", "name", "per", "scaled", "sure", "times")

    def __init__(self, fact: Fact, labels: Labels, times: float) -> None:
        self.name, self.labels = fact.name, labels
        self.times, self.per = times, fact.per
        self.scaled = times != 1 or fact.per != 1
        self.most = math.inf if fact.most is None else fact.most
        self.sure = min(self.most, _SURE)  # up to it nothing else has to be looked at


@dataclass(slots=True)
class Sample:
    """What one class of figures of a device was at one time."""

    figures: defaultdict[str, dict[Labels, float]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    codes: dict[str, int] = field(default_factory=dict)  # of facts without a figure
    broken: int = 0  # an error after which only a new nvmlInit helps
    garbage: int = 0

    def put(self, target: Target, value: float) -> None:
        if not (0 <= value <= target.sure or self._holds(target, value)):
            return
        if target.scaled:
            value = value * target.times / target.per
        self.figures[target.name][target.labels] = value

    def _holds(self, target: Target, value: float) -> bool:
        """Whether it can be true; a NaN can't."""
        if value in _NOT_AVAILABLE:
            self.codes.setdefault(target.name, pynvml.NVML_ERROR_NO_DATA)
            return False
        # Small negative numbers where the driver has none are error codes.
        if not (-_HUGE < value < _HUGE and value <= target.most) or 0 < 2**32 - value < 256:
            self.garbage += 1
            self.codes.setdefault(target.name, codes.GARBAGE)
            return False
        return True

    def fail(self, target: Target, code: int) -> None:
        self.codes.setdefault(target.name, code)

    @property
    def missing(self) -> Counter[str]:
        """Facts of which there is no figure, by reason."""
        rows = (code for name, code in self.codes.items() if name not in self.figures)
        return Counter(map(codes.reason, rows))


class _Call:
    """A query bound to a device, its results kept between reads."""

    def __init__(self, function: Any, handle: Any, query: Query) -> None:
        self.results = tuple(kind() for kind in query.results)
        if query.version:
            self.results[0].version = query.version
        pointers = map(ctypes.byref, self.results)
        self._function = function
        self._arguments = (handle, *query.arguments, *pointers)
        self.targets: list[tuple[Callable[[], float | None], int, Target]] = []

    def __call__(self) -> int:
        code: int = self._function(*self._arguments)
        return code

    def take(self, part: Part, target: Target) -> None:
        """Past pynvml's own look-up of attributes, which takes a microsecond."""
        result = self.results[part.result]
        member = getattr(type(result), part.attribute, None)
        get = (
            partial(member.__get__, result) if member else partial(getattr, result, part.attribute)
        )
        self.targets.append((get, part.bit, target))


class Plan:
    """Reads the facts given from one device. `close` frees what GPM holds."""

    def __init__(
        self,
        library: Library,
        handle: Any,
        facts: Iterable[Fact],
        tick: Tick,
        has_gpm: bool,
        now: float,
    ) -> None:
        self.made = now
        self.doubtful = False  # something failed in another way than by not being supported
        self._library = library
        self._handle = handle
        self._calls: dict[Query, _Call] = {}
        self._fields: list[tuple[Field, Target]] = []
        self._gpm: list[tuple[Gpm, Target]] = []
        self._unsupported: dict[str, int] = {}
        self._has_gpm = has_gpm
        self._codes: dict[Query | Field, int] = {}  # of what was tried
        facts = [fact for fact in facts if fact.asks]
        self._try_fields(facts, tick)
        for fact in facts:
            for labels, ways in fact.asks.items():
                self._choose(fact, labels, ways, tick)
        starts = range(0, len(self._fields), MOST_FIELDS)
        chunks = [self._fields[start : start + MOST_FIELDS] for start in starts]
        self._chunks = [(chunk, _array([row for row, _ in chunk])) for chunk in chunks]
        self._reader = self._gpm_reader()

    # --- made once ------------------------------------------------------------------------

    def _try_fields(self, facts: Iterable[Fact], tick: Tick) -> None:
        wanted = list(
            dict.fromkeys(
                field
                for fact in facts
                for ways in fact.asks.values()
                for field in map(_plain, ways)
                if isinstance(field, Field)
            )
        )
        function = self._library.function("nvmlDeviceGetFieldValues")
        missing = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
        for start in range(0, len(wanted), MOST_FIELDS):
            some = wanted[start : start + MOST_FIELDS]
            values = _array(some)
            tick()
            code = function(self._handle, len(some), values) if function else missing
            _raise_if_broken(code)
            for row, value in zip(some, values, strict=True):
                self._codes[row] = code or value.nvmlReturn

    def _choose(self, fact: Fact, labels: Labels, ways: Iterable[Way], tick: Tick) -> None:
        code = pynvml.NVML_ERROR_NOT_SUPPORTED
        for way in ways:
            code = self._try(way, tick)
            self.doubtful |= code not in _PLAIN
            if code not in codes.UNSUPPORTED:
                self._take(way, fact, labels)
                return
        self._unsupported.setdefault(fact.name, code)

    def _try(self, way: Way, tick: Tick) -> int:
        way = _plain(way)
        if isinstance(way, Gpm):
            return 0 if self._has_gpm else int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if isinstance(way, Field):
            return self._codes[way]
        code = self._codes.get(way.query)
        if code is None:
            function = self._library.function(way.query.function)
            if function is None:
                code = int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            else:
                tick()
                code = _Call(function, self._handle, way.query)()
                _raise_if_broken(code)
            self._codes[way.query] = code
        return code

    def _take(self, way: Way, fact: Fact, labels: Labels) -> None:
        times = fact.times * (way.times if isinstance(way, Scaled) else 1)
        target = Target(fact, labels, times)
        way = _plain(way)
        if isinstance(way, Gpm):
            self._gpm.append((way, target))
        elif isinstance(way, Field):
            self._fields.append((way, target))
        else:
            call = self._calls.get(way.query)
            if call is None:
                function = self._library.function(way.query.function)
                call = self._calls[way.query] = _Call(function, self._handle, way.query)
            call.take(way, target)

    def _gpm_reader(self) -> gpm.Reader | None:
        if not self._gpm:
            return None
        return gpm.Reader(self._library, self._handle, [way.id for way, _ in self._gpm])

    def close(self) -> None:
        if self._reader:
            self._reader.close()

    # --- every round ----------------------------------------------------------------------

    def read(self, tick: Tick) -> Sample:
        sample = Sample(codes=dict(self._unsupported))
        for call in self._calls.values():
            tick()
            code = call()
            if code in codes.BROKEN:
                sample.broken = code
                return sample
            for get, bit, target in call.targets:
                value = None if code else get()
                if value is None:
                    sample.fail(target, code or pynvml.NVML_ERROR_NO_DATA)
                else:
                    sample.put(target, float(bool(int(value) & bit)) if bit else value)
        for targets, values in self._chunks:
            tick()
            sample.broken = sample.broken or self._read_fields(sample, targets, values)
        if self._reader and not sample.broken:
            tick()
            code = self._reader.read()
            sample.broken = code if code in codes.BROKEN else 0
            for (_, target), (each, figure) in zip(self._gpm, self._reader.values, strict=True):
                if code or each:
                    sample.fail(target, code or each)
                else:
                    sample.put(target, figure)
        return sample

    def _read_fields(self, sample: Sample, targets: list[tuple[Field, Target]], values: Any) -> int:
        function = self._library.function("nvmlDeviceGetFieldValues")
        code = int(function(self._handle, len(values), values))
        if code in codes.BROKEN:
            return code
        if code:
            for _, target in targets:
                sample.fail(target, code)
            return 0
        put, whole = sample.put, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
        for (_, target), (kind, each, raw) in zip(targets, _FIELD.iter_unpack(values), strict=True):
            if each:
                if each in codes.LOST:
                    return int(each)
                sample.fail(target, each)
            elif kind == whole:  # most are
                put(target, raw)
            elif kind < len(_FIELD_TYPES):
                put(target, _FIELD_TYPES[kind].unpack_from(raw.to_bytes(8, sys.byteorder))[0])
            else:
                put(target, math.nan)  # a type that isn't known
        return 0


def _array(fields: list[Field]) -> Any:
    values = (pynvml.c_nvmlFieldValue_t * len(fields))()
    for value, row in zip(values, fields, strict=True):
        value.fieldId, value.scopeId = row.id, row.scope
    return values


def _plain(way: Way) -> Part | Field | Gpm:
    return way.of if isinstance(way, Scaled) else way


class BrokenError(Exception):
    """An error after which only a new nvmlInit helps; `code` is NVML's."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _raise_if_broken(code: int) -> None:
    if code in codes.BROKEN:
        raise BrokenError(code)
