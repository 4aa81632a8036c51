"""Which GPU each process's devices are: remembers what `ordinals` needs, and what it answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from gpubpf.model import (
    UNKNOWN_GPU,
    Asked,
    Calls,
    Device,
    DeviceInfo,
    Ordinal,
    Owner,
    Place,
)
from gpubpf.ordinals import GpuIdentity, Node, Source, Surroundings

_MOST_TRIES = 10

_Facts = tuple[Mapping[int, Asked], Collection[str], frozenset[int], Surroundings | None]


class Attribution:
    """`look` after every read of the maps, by one thread. `read` gives a process's surroundings."""

    def __init__(self, read: Callable[[int], Surroundings]) -> None:
        self._read = read
        self._infos: tuple[DeviceInfo, ...] = ()
        self._node = Node(())
        self._surroundings: dict[Owner, Surroundings | None] = {}
        self._tries: Counter[Owner] = Counter()
        self._facts: dict[Owner, _Facts] = {}
        self._anew = False  # the GPUs are others than at the last look
        self._answers: dict[Place, tuple[str | None, Source]] = {}
        self.told: Counter[str] = Counter({source.value: 0 for source in Source})
        """How often each source told the GPU of a process's device."""
        self.unknown: set[Owner] = set()
        """The processes with a device of which it is not known which GPU it is."""

    def look(self, calls: Calls, devices: tuple[Device, ...] | None) -> dict[Place, str]:
        """The GPU, or UNKNOWN_GPU, of every device of every process in `calls`.

        `devices` None: NVML said nothing this time, and what was known stays.
        """
        if devices is not None and tuple(device.info for device in devices) != self._infos:
            self._infos = tuple(device.info for device in devices)
            self._node = Node(map(_identity, self._infos))
            self._anew = True
        listed = _listed(devices) if devices is not None else None
        found: dict[Place, str] = {}
        for owner, activity in calls.live.items():
            self._look_around(owner)
            known = self._facts.get(owner)
            # NVML forgets a process before its last calls are read; an ordinal's GPU is for life.
            on = (listed or {}).get(owner.pid) or (known[1] if known else ())
            self._resolve(owner, activity.parts, calls.asked.get(owner, {}), on, found)
        for owner, activity in calls.ended.items():  # its pid may be another's by now
            before = self._facts.get(owner)
            self._resolve(
                owner,
                activity.parts,
                calls.asked.get(owner, {}),
                before[1] if before else (),
                found,
            )
        for owner in self._surroundings.keys() - calls.live.keys():
            del self._surroundings[owner]
            del self._tries[owner]
        for owner in self._facts.keys() - calls.live.keys():
            del self._facts[owner]
        for place in self._answers.keys() - found.keys():
            del self._answers[place]
        self._anew = False
        self.unknown = {place[0] for place, gpu in found.items() if gpu == UNKNOWN_GPU}
        return found

    def _look_around(self, owner: Owner) -> None:
        """Reads a process's surroundings once; again, a few times, where they could not be read:
        another process may have been in the way."""
        before = self._surroundings.get(owner)
        if before is not None and (before.readable or self._tries[owner] >= _MOST_TRIES):
            return
        self._tries[owner] += 1
        self._surroundings[owner] = self._read(owner.pid)

    def _resolve(
        self,
        owner: Owner,
        parts: Collection[Ordinal],
        asked: Mapping[int, Asked],
        listed: Collection[str],
        found: dict[Place, str],
    ) -> None:
        used = frozenset(ordinal for ordinal in parts if ordinal is not None)
        surroundings = self._surroundings.get(owner)
        facts: _Facts = (asked, listed, used, surroundings)
        fresh = self._anew or self._facts.get(owner) != facts
        self._facts[owner] = facts
        for ordinal in parts:
            place = (owner, ordinal)
            answer = self._answers.get(place)
            if fresh or answer is None:
                new = self._node.resolve(ordinal, asked, surroundings, listed, used)
                if answer is None or new.source != answer[1]:
                    self.told[new.source.value] += 1
                self._answers[place] = answer = new
            found[place] = answer[0] or UNKNOWN_GPU


def _identity(info: DeviceInfo) -> GpuIdentity:
    return GpuIdentity(
        index=info.index,
        uuid=info.uuid,
        name=info.name,
        pci_bus_id=info.pci_bus_id,
        minor=info.minor,
        mig_mode=info.mig,
        children=info.children,
    )


def _listed(devices: tuple[Device, ...]) -> dict[int, tuple[str, ...]]:
    """pid -> the GPUs on which NVML lists it."""
    on: dict[int, tuple[str, ...]] = {}
    for device in devices:
        for process in device.processes or ():
            uuid = process.mig or device.info.uuid
            if uuid not in on.get(process.pid, ()):
                on[process.pid] = (*on.get(process.pid, ()), uuid)
    return on
