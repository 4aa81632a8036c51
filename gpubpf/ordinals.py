"""Which GPU a CUDA device ordinal of a process is. Pure: no I/O, no clock.

An ordinal counts in the process's own enumeration, which no one outside can ask for. What tells,
the surest first:

1. What the driver answered the process about that ordinal. `cuDeviceGetUuid_v2` gives a MIG
   device's own UUID (CUDA Driver API, "Device Management"; of the older `cuDeviceGetUuid` it
   doesn't say: either is understood), `cuDeviceGetPCIBusId` the board.
2. Its surroundings: `CUDA_VISIBLE_DEVICES` and the boards in its /dev. They are the process's at
   its start, and a script may set the variable later, or a device cgroup hide boards that /dev
   shows, so that indices count among those left (Slurm's `ConstrainDevices`; IBM LSF, "NVIDIA GPU
   access enforcement"). So what stands at a place in a list is believed where NVML's process list
   confirms it (see `_unchanged`), a UUID also while that lists the process nowhere, and one board
   alone in /dev is what it is.
3. NVML's process list, where it leaves one choice.

Else it is unknown, which is never a GPU. An answer that fits no GPU of this node doesn't fall back
on weaker sources: they could only name another one. Nor is it passed on as it is: processes could
invent as many as they like. For the same reason nothing is told where NVML is off.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from gpubpf import visible
from gpubpf.model import Asked
from gpubpf.visible import GpuIdentity, Place, Surroundings, pci_address

__all__ = ["Answer", "Asked", "GpuIdentity", "Node", "Source", "Surroundings", "resolve"]


class Source(StrEnum):
    """What told which GPU it is: values of a metric's label."""

    UUID = "uuid"
    PCI_BUS_ID = "pci_bus_id"
    VISIBLE_DEVICES = "visible_devices"
    NVML = "nvml"
    UNKNOWN = "unknown"


class Answer(NamedTuple):
    """A GPU ("GPU-…") or MIG device ("MIG-…") of the node, or None; and what told."""

    uuid: str | None
    source: Source


UNKNOWN = Answer(None, Source.UNKNOWN)
VIEWS = 256  # kept for surroundings that differ

_View = tuple[visible.Boards | None, visible.Names | None, dict[int, Place]]


class Node:
    """The GPUs of a node as NVML tells; made anew when they change, asked for every ordinal."""

    def __init__(self, devices: Iterable[GpuIdentity]) -> None:
        self._devices = visible.in_pci_order(devices)
        self._places = {
            uuid.casefold(): Place(device, uuid)
            for device in self._devices
            for uuid in (device.uuid, *device.children)
        }
        self._views: dict[Surroundings, _View] = {}
        self._addresses: dict[tuple[int, ...], GpuIdentity | None] = {}
        for device in self._devices:
            address = pci_address(device.pci_bus_id)
            if address is not None:  # two devices at one address: neither
                self._addresses[address] = None if address in self._addresses else device

    def resolve(
        self,
        ordinal: int | None,
        asked: Mapping[int, Asked],
        surroundings: Surroundings | None,
        listed: Collection[str],
        used: Collection[int] = (),
    ) -> Answer:
        """The GPU that `ordinal` of a process is.

        `ordinal` None: calls of which the kernel side doesn't know the device. `listed`: the GPUs
        and MIG devices on which NVML lists the process. `used`: its ordinals with calls; the more
        of them are given, the less has to be left unknown, and the surer is what isn't.
        """
        if ordinal is not None and ordinal in asked:
            said = self._said(asked[ordinal])
            if said is not None:
                return said
        on = self._listed(listed)
        if on is None:
            return UNKNOWN
        answers = ((other, self._said(asked[other])) for other in asked if other != ordinal)
        told = {other: self._place_of(answer) for other, answer in answers if answer is not None}
        facts = _Facts(on, frozenset(used) - {ordinal}, told)
        place = self._surrounded(ordinal, surroundings, facts)
        if place is not None:
            return Answer(place.uuid, Source.VISIBLE_DEVICES)
        place = _remaining(ordinal, facts)
        return UNKNOWN if place is None else Answer(place.uuid, Source.NVML)

    # --- what the process asked ---------------------------------------------------------------

    def _said(self, asked: Asked) -> Answer | None:
        """None: it asked nothing, or what is there can't be an answer."""
        key = _key(asked.uuid)
        address = pci_address(asked.pci_bus_id)
        board = None if address is None else self._addresses.get(address)
        place = self._places.get(f"gpu-{key}") or self._places.get(f"mig-{key}")
        if place is not None:
            own = pci_address(place.board.pci_bus_id)
            if own is not None and address is not None and own != address:
                return UNKNOWN  # one ordinal is two boards: one of the answers is old, or forged
            return Answer(place.uuid, Source.UUID)
        if board is not None:  # the UUID, if any, of a MIG device that NVML doesn't list
            return Answer(board.uuid, Source.PCI_BUS_ID)
        return None if key is None and address is None else UNKNOWN

    def _place_of(self, answer: Answer) -> Place | None:
        return None if answer.uuid is None else self._places[answer.uuid.casefold()]

    # --- its surroundings ---------------------------------------------------------------------

    def _surrounded(
        self, ordinal: int | None, surroundings: Surroundings | None, facts: _Facts
    ) -> Place | None:
        if surroundings is None:
            return None
        boards, named, places = self._view(surroundings)
        if boards is not None and boards.seen and len(boards.devices) == 1:
            # Whatever the variable says: an ordinal that works is of this board.
            (board,) = boards.devices
            alone = Place(board, board.uuid)
            ordinals = {ordinal or 0, *facts.others, *facts.told}
            possible = board.mig or ordinals == {0}
            return alone if possible and facts.allow(lambda _: alone, (0,)) else None
        if ordinal is None or not surroundings.readable:
            return None
        if named is None and not facts.on:
            return None
        return _unchanged(named.at if named else places.get, ordinal, facts)

    def _view(self, surroundings: Surroundings) -> _View:
        """What a process with these surroundings sees of this node; they are alike for many."""
        view = self._views.get(surroundings)
        if view is None:
            boards = visible.boards(surroundings, self._devices)
            named = visible.names(surroundings, self._devices, boards)
            view = boards, named, dict(enumerate(visible.positions(surroundings, boards)))
            if len(self._views) >= VIEWS:
                self._views.clear()
            self._views[surroundings] = view
        return view

    # --- NVML's process list ------------------------------------------------------------------

    def _listed(self, listed: Collection[str]) -> frozenset[Place] | None:
        """Where the process is; None where that is on no device of ours: NVML's two lists differ.

        Of a board and MIG devices of it, only the devices stay.
        """
        places = [self._places.get(uuid.casefold()) for uuid in listed]
        known = {place for place in places if place is not None}
        if len(known) < len(set(listed)):
            return None
        exact = {place.board.uuid for place in known if place.uuid != place.board.uuid}
        return frozenset(
            place
            for place in known
            if place.uuid != place.board.uuid or place.board.uuid not in exact
        )


def resolve(
    ordinal: int | None,
    asked: Mapping[int, Asked],
    surroundings: Surroundings | None,
    devices: Sequence[GpuIdentity],
    listed: Collection[str],
    used: Collection[int] = (),
) -> Answer:
    """Node.resolve for who asks once."""
    return Node(devices).resolve(ordinal, asked, surroundings, listed, used)


def _key(answer: bytes | None) -> str | None:
    """The digits of a UUID; None for what is none: zeros are a structure that nobody filled."""
    if answer is None or len(answer) != 16 or not any(answer):
        return None
    return str(uuids.UUID(bytes=bytes(answer)))


def _same(one: Place, other: Place) -> bool:
    """Whether both can be true of one ordinal: a MIG device is on its board."""
    exact = one.uuid == other.uuid or one.board.uuid in (one.uuid, other.uuid)
    return one.board == other.board and exact


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is sure of a process, apart from the ordinal that is to be resolved."""

    on: frozenset[Place]  # by NVML's process list; it may lag behind
    others: frozenset[int]  # the other ordinals in use
    told: Mapping[int, Place | None]  # those that it asked about; None: no GPU of this node

    def listed(self, place: Place) -> bool:
        """Whether NVML lists the process there, or (yet) nowhere."""
        return not self.on or any(_same(place, other) for other in self.on)

    def allow(self, at: Callable[[int], Place | None], used: Iterable[int]) -> bool:
        """Whether these surroundings fit: what they give for the ordinals in use is listed, and
        what they give for those that the process asked about is what it was answered."""
        places = [at(ordinal) for ordinal in used]
        if not all(place is not None and self.listed(place) for place in places):
            return False
        pairs = [(at(ordinal), place) for ordinal, place in self.told.items()]
        return all(
            one is not None and other is not None and _same(one, other) for one, other in pairs
        )


def _unchanged(at: Callable[[int], Place | None], ordinal: int, facts: _Facts) -> Place | None:
    """What stands at `ordinal`, if the GPUs at all the ordinals in use are just those that NVML
    lists, or it lists none (yet).

    That they are is a proof as long as the list in force keeps the order of this one: two lists in
    the same order whose elements at the same places are the same set, are the same there. So it
    holds for boards that a device cgroup hides, and for a variable set later to other boards in
    that order; not for one set later to the same boards in another order.
    """
    used = (ordinal, *facts.others)
    if not facts.allow(at, used):
        return None
    boards = {place.board for place in map(at, used) if place is not None}
    if facts.on and boards != {place.board for place in facts.on}:
        return None
    return at(ordinal)


def _remaining(ordinal: int | None, facts: _Facts) -> Place | None:
    """The one GPU left for `ordinal` among those on which NVML lists the process.

    Two ordinals are two GPUs. So if the process uses others of which nobody knows where they are,
    or which are where NVML doesn't list it, the list is not (yet) the whole of it.
    """
    for other in facts.others:
        place = facts.told.get(other)
        sure = ordinal is None and other not in facts.told and len(facts.others) == 1
        if not sure and (place is None or not facts.listed(place)):
            return None
    left = facts.on
    if ordinal is not None:  # None may be any of them: there must be but one
        taken = {place.board for place in facts.told.values() if place and not place.board.mig}
        left = frozenset(place for place in left if place.board not in taken)
    if len({place.board for place in left}) != 1:
        return None
    board = next(iter(left)).board
    if board.mig and facts.others:  # ordinals may share the board, or the list may lag
        return None
    return next(iter(left)) if len(left) == 1 else Place(board, board.uuid)
