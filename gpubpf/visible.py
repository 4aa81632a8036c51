"""What of a node's GPUs a process can see, as CUDA counts them, and where that is read.

The rules are those of NVIDIA's CUDA Programming Guide ("CUDA Environment Variables") and MIG User
Guide ("CUDA Device Enumeration"), and, for what these leave open, PyTorch's
`torch/cuda/__init__.py`, whose reading of the variable was compared with driver 525.60.13 (pull
request 92315, with the driver's own counts):

* unset: all; empty, or an invalid first entry: none; the first invalid entry ends the list;
* a repeated entry before that: none at all;
* the first entry decides whether they are indices or UUIDs: one of the other kind ends the list;
* a UUID may be cut to a prefix that fits one GPU only;
* indices count in CUDA's own order, FASTEST_FIRST unless CUDA_DEVICE_ORDER is PCI_BUS_ID.

What CUDA might read in two ways (`010`, `1gpu2`) ends the list here: the rest isn't known. What
it reads in one way or not at all (blanks, `+1`, capital digits) is taken: if CUDA doesn't, no call
has that ordinal.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from gpubpf.deadline import Worker

LONGEST = 4096  # characters of the variable that are looked at; 64 MIG UUIDs are 2,624

_PCI = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])\0*")
_INDEX = re.compile(r"[ \t]*\+?(0|[1-9][0-9]{0,3})[ \t]*")
_NAME = re.compile(r"[ \t]*((?:GPU|MIG)-[0-9a-zA-Z/-]*)[ \t]*")
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]{36})/[0-9]{1,3}/[0-9]{1,3}")
_UUID_LENGTH = len("GPU-") + 36


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """One GPU of the node as NVML tells."""

    index: int
    uuid: str  # "GPU-…"
    name: str
    pci_bus_id: str | None = None  # "00000000:3B:00.0"
    minor: int | None = None  # N of /dev/nvidiaN
    mig_mode: bool = False
    children: tuple[str, ...] = ()  # UUIDs of its MIG devices, "MIG-…"

    def __hash__(self) -> int:  # it is in the sets of every look
        return hash(self.uuid)

    @property
    def mig(self) -> bool:
        return self.mig_mode or bool(self.children)


class Place(NamedTuple):
    """Where calls are: on a board, or on a MIG device of it."""

    board: GpuIdentity
    uuid: str  # the board's or the MIG device's


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of a process's environment matters."""

    readable: bool  # False: the variables aren't known, which is not the same as not set
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    order: str | None = None  # CUDA_DEVICE_ORDER
    minors: frozenset[int] | None = None  # of /dev/nvidiaN in its root; None: can't be seen


def pci_address(text: str | None) -> tuple[int, ...] | None:
    """Domain, bus, device, function; None for what isn't the whole of such an address (CUDA may
    be given a short buffer). NVML writes the domain in 8 digits, CUDA in 4."""
    match = None if text is None else _PCI.fullmatch(text)
    return None if match is None else tuple(int(part, 16) for part in match.groups())


def in_pci_order(devices: Iterable[GpuIdentity]) -> tuple[GpuIdentity, ...]:
    return tuple(sorted(devices, key=lambda device: (_address(device), device.uuid)))


def _address(device: GpuIdentity) -> tuple[int, ...]:
    return pci_address(device.pci_bus_id) or ()


@dataclass(frozen=True, slots=True)
class Boards:
    devices: tuple[GpuIdentity, ...]  # in PCI order
    seen: bool  # in the process's /dev; else they are all that the node has


def boards(surroundings: Surroundings, devices: Sequence[GpuIdentity]) -> Boards | None:
    """The boards that the process's /dev leaves it; None where it has one that NVML doesn't show.
    A /dev without any says nothing: there are drivers without such files."""
    minors = surroundings.minors
    if not minors or any(device.minor is None for device in devices):
        return Boards(tuple(devices), False)
    if minors - {device.minor for device in devices}:
        return None
    return Boards(tuple(device for device in devices if device.minor in minors), True)


@dataclass(frozen=True, slots=True)
class Names:
    """What a list of UUIDs leaves visible: by ordinal, or one board whatever the ordinal."""

    places: tuple[Place, ...] = ()
    all_on: Place | None = None

    def at(self, ordinal: int) -> Place | None:
        if self.all_on is not None:
            return self.all_on
        return self.places[ordinal] if 0 <= ordinal < len(self.places) else None


def names(
    surroundings: Surroundings, devices: Sequence[GpuIdentity], boards: Boards | None
) -> Names | None:
    """What the variable names by UUID; None where it isn't a list of UUIDs.

    With MIG, what is enumerated depends on the driver: before 570 one MIG device and no board
    beside it, from 570 on one for each GPU instance (MIG User Guide, "CUDA Device Enumeration"). So
    one MIG device is itself, several of one board are that board, and more can't be told.
    """
    text = surroundings.visible
    if text is None or not _NAME.match(text):
        return None
    if len(text) > LONGEST:
        return Names()
    entries = text.split(",")
    found: list[Place] = []
    for entry in entries:
        match = _NAME.fullmatch(entry)
        place = None if match is None else _named(match[1], devices, boards is not None)
        if place is None:
            break
        if place in found:
            return Names()
        found.append(place)
    if not any(p.board.mig for p in found) and not any("MIG-" in entry for entry in entries):
        return Names(tuple(found))
    if len(found) < len(entries) or len({place.board for place in found}) > 1:
        return Names()
    board = found[0].board
    one = len(found) == 1 and found[0].uuid != board.uuid
    return Names(tuple(found)) if one else Names(all_on=Place(board, board.uuid))


def _named(name: str, devices: Sequence[GpuIdentity], all_shown: bool) -> Place | None:
    """The one device that the name, or a prefix of it, fits."""
    folded = name.casefold()
    if len(name) < _UUID_LENGTH and not all_shown:
        return None  # the prefix may be of a board that isn't among ours
    fits = [
        Place(device, uuid)
        for device in devices
        for uuid in (device.uuid, *device.children)
        if uuid.casefold().startswith(folded)
    ]
    if fits:
        return fits[0] if len(fits) == 1 else None
    old = _OLD_MIG.fullmatch(name)  # before driver 470; NVML's UUIDs are of the new form since
    if old is None:
        return None
    parents = [device for device in devices if device.uuid.casefold() == old[1].casefold()]
    return Place(parents[0], parents[0].uuid) if len(parents) == 1 else None


def positions(surroundings: Surroundings, boards: Boards | None) -> tuple[Place, ...]:
    """What stands at each ordinal, if all `boards` can be used and the variable is still so.

    Empty where CUDA's order can't be told. FASTEST_FIRST is a heuristic without a definition; older
    guides promise no more than that the fastest is the first. Boards of one model are equally fast
    and are then taken to stay in PCI order, which every report of a node with one model shows.
    """
    if boards is None or any(device.mig for device in boards.devices):
        return ()
    addresses = {_address(device) for device in boards.devices}
    if len(boards.devices) > 1 and (() in addresses or len(addresses) < len(boards.devices)):
        return ()
    if surroundings.order != "PCI_BUS_ID" and len({d.name for d in boards.devices}) > 1:
        return ()
    found = [Place(device, device.uuid) for device in boards.devices]
    if surroundings.visible is None:
        return tuple(found)
    indices = _indices(surroundings.visible, len(found))
    return tuple(found[index] for index in indices)


def _indices(text: str, count: int) -> list[int]:
    found: list[int] = []
    for entry in text.split(",") if len(text) <= LONGEST else ():
        match = _INDEX.fullmatch(entry)
        if match is None or int(match[1]) >= count:
            break
        index = int(match[1])
        if index in found:
            return []
        found.append(index)
    return found


# --- reading -------------------------------------------------------------------------------------

UNREADABLE = Surroundings(False)
LARGEST = 256 << 10  # bytes of an environment; a larger one counts as unreadable
ENTRIES = 4096  # of a /dev that are looked at
MAJOR = 195  # of /dev/nvidiaN (Linux, Documentation/admin-guide/devices.txt)
_NODE = re.compile(r"nvidia(0|[1-9][0-9]{0,2})")


class Reader:
    """Reads the surroundings of processes under one /proc, in a thread and for `seconds` at most:
    an environment lies in the process's memory, and its /dev on any file system it likes, so that
    either can be made to hang. While one read hangs, every process is unreadable."""

    def __init__(self, proc_root: str = "/proc", seconds: float = 0.2) -> None:
        self._root = proc_root
        self._seconds = seconds
        self._worker = Worker("surroundings")

    def read(self, pid: int) -> Surroundings:
        """Of the latest exec of `pid`. Never raises. Look at the start time after it: the pid may
        be another process's by now."""
        try:
            return self._worker.call(partial(_read, f"{self._root}/{pid}"), self._seconds)
        except (OSError, ValueError):  # a TimeoutError is an OSError
            return UNREADABLE


def _read(path: str) -> Surroundings:
    process = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # never another's
    try:
        minors = _minors(process)
        environment = environment_of(process)
    finally:
        os.close(process)
    if environment is None:
        return Surroundings(False, minors=minors)
    values = [environment.get(name) for name in (b"CUDA_VISIBLE_DEVICES", b"CUDA_DEVICE_ORDER")]
    visible, order = (
        v if v is None else v[: LONGEST + 1].decode("ascii", "replace") for v in values
    )
    return Surroundings(True, visible, order, minors)


def environment_of(process: int) -> dict[bytes, bytes] | None:
    """None where it can't be read, or a program wrote its title over it (setproctitle, as Ray does:
    what is left doesn't look like variables). An empty one is that of a process that is ending."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open("environ", flags, dir_fd=process)
        try:
            text = b""
            while len(text) <= LARGEST and (part := os.read(descriptor, LARGEST)):
                text += part
        finally:
            os.close(descriptor)
    except OSError:
        return None
    entries = [entry.partition(b"=") for entry in text.removesuffix(b"\0").split(b"\0")]
    whole = text.endswith(b"\0") and len(text) <= LARGEST
    if not whole or not all(name and equals for name, equals, _ in entries):
        return None
    return {name: value for name, _, value in reversed(entries)}  # getenv finds the first


def _minors(process: int) -> frozenset[int] | None:
    """None where /dev can't be seen, or has a nvidiaN that isn't that device. Symbolic links are
    not followed: they would lead through our own root."""
    flags = os.O_DIRECTORY | os.O_CLOEXEC
    found: set[int] = set()
    try:
        with contextlib.ExitStack() as stack:
            root = os.open("root", os.O_PATH | flags, dir_fd=process)
            stack.callback(os.close, root)
            directory = os.open("dev", os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=root)
            stack.callback(os.close, directory)
            for count, entry in enumerate(stack.enter_context(os.scandir(directory))):
                match = _NODE.fullmatch(entry.name)
                if count >= ENTRIES or (match and not _is_node(entry, int(match[1]))):
                    return None
                if match:
                    found.add(int(match[1]))
    except OSError:
        return None
    return frozenset(found)


def _is_node(entry: os.DirEntry[str], minor: int) -> bool:
    node = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(node.st_mode) and node.st_rdev == os.makedev(MAJOR, minor)
