"""Control of the simulated NVML: boards, figures, fields, GPM metrics, MIG, events, extra processes
and samples, faults, driver reloads.

The layout is written in state.h and nvml_state.h only, the figures' names in nvml_names.h; they are
parsed from there.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .nvml_boards import (
    BOARDS,
    GPM_OF_INSTANCES,
    SIMULATED,
    UNSUPPORTED,
    Figure,
    Instance,
    Told,
)

__all__ = ["BOARDS", "SIMULATED", "UNSUPPORTED", "NvmlControl", "StagedNode", "build_nvml"]

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / ".build" / "fakegpu"  # as in tests/conftest.py
FOREVER = 2**64 - 1
NO_MEMORY_FIGURE = 2**64 - 1
NO_INSTANCE = 2**32 - 1
KINDS = {"compute": 0, "graphics": 1, "mps": 2}
EVENTS = {
    "single_bit_ecc": 1,
    "double_bit_ecc": 2,
    "pstate": 4,
    "xid": 8,
    "clock": 16,
    "power_source": 128,
    "mig": 256,
}

_TYPES = {
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "i32": ctypes.c_int32,
    "char": ctypes.c_char,
    "fgn_value": ctypes.c_uint64,
}
_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\}(.*?);", re.M | re.S)
_MEMBER = re.compile(r"^\s+(?:struct )?(\w+) (\w+)((?:\[[^\]]+\])*);", re.M)
_CONSTANT = re.compile(r"^#define (\w+) ((?:0x)?[0-9A-Fa-f]+)$", re.M)


def parse_layout(*headers: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """The numeric constants of the headers and a ctypes structure for each of their structs."""
    text = "\n".join(header.read_text() for header in headers)
    constants = {name: int(value, 0) for name, value in _CONSTANT.findall(text)}
    types: dict[str, Any] = dict(_TYPES)
    alignment: dict[str, int] = {}
    for name, body, attributes in _STRUCT.findall(text):
        fields: list[tuple[str, Any]] = []
        for type_name, member, dimensions in _MEMBER.findall(body):
            kind = types[type_name]
            for size in reversed(re.findall(r"\[([^\]]+)\]", dimensions)):
                kind = kind * eval(size, {"__builtins__": {}}, constants)
            _pad(fields, alignment.get(type_name, 1))
            fields.append((member, kind))
        aligned = re.search(r"aligned\((\d+)\)", attributes)
        if aligned:  # ctypes knows no alignment beyond the members' own
            alignment[name] = int(aligned[1])
            _pad(fields, alignment[name])
        types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return constants, types


def _pad(fields: list[tuple[str, Any]], boundary: int) -> None:
    size = ctypes.sizeof(type("raw", (ctypes.Structure,), {"_fields_": fields}))
    if size % boundary:
        fields.append((f"_padding{size}", ctypes.c_uint8 * (-size % boundary)))


CONSTANTS, TYPES = parse_layout(HERE / "state.h", HERE / "nvml_state.h")


def _names(letter: str) -> dict[str, int]:
    text = (HERE / "nvml_names.h").read_text()
    found = re.findall(rf"^\s+{letter}_(\w+),$", text, re.M)
    return {name: place for place, name in enumerate(found)}


FIGURES, LINK_FIGURES, TEXTS = _names("F"), _names("L"), _names("T")


def encode(value: Figure) -> int:
    """A value as nvml_state.h has it."""
    if isinstance(value, Told):
        return value.value
    return (value & 2**64 - 1) ^ 1 << 63


@contextmanager
def kept_to_us(directory: Path) -> Iterator[None]:
    """Nobody else builds in this directory, or copies it, meanwhile."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_nvml(directory: Path = BUILD, newer: bool = False) -> Path:
    """Builds the simulated libnvidia-ml.so.1 where it is not up to date, and gives its path.
    newer: as of driver 570 instead of 535."""
    goal = "newer" if newer else "nvml"
    command = ["make", "-s", "-C", str(HERE), "-f", "nvml.mk", f"BUILD={directory}", goal]
    with kept_to_us(directory):
        subprocess.run(command, check=True)
    return directory / ("newer" if newer else "") / "libnvidia-ml.so.1"


class NvmlControl:
    """What the simulated NVML over one state file is to say; writes the nvml areas only."""

    def __init__(self, state: Path) -> None:
        with state.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(TYPES["fg_state"]))
        self.state = TYPES["fg_state"].from_buffer(self._map)
        base = TYPES["fg_state"]
        self.node = TYPES["fgn_node"].from_buffer(self._map, base.nvml.offset)
        self._settings = [
            TYPES["fgn_device"].from_buffer(
                self._map,
                base.devices.offset
                + index * ctypes.sizeof(TYPES["fg_device"])
                + TYPES["fg_device"].nvml.offset,
            )
            for index in range(CONSTANTS["FG_MAX_DEVICES"])
        ]

    def close(self) -> None:
        """Lets go of the state file."""
        del self.state, self.node, self._settings
        self._map.close()

    def board(self, device: int, name: str) -> None:
        """Makes a device one of BOARDS: what it is, supports and says. Undoes figures, fields, GPM
        metrics and MIG devices; its processes stay."""
        board, settings, row = BOARDS[name], self._settings[device], self.state.devices[device]
        settings.board = name.encode()
        row.name, row.memory_bytes = board.name.encode(), board.memory_bytes
        row.compute_major, row.compute_minor = board.compute
        row.multiprocessors, row.memory_bus_bits = board.multiprocessors, board.memory_bus_bits
        row.clock_khz, row.memory_clock_khz = board.clock_mhz * 1000, board.memory_clock_mhz * 1000
        for names in (FIGURES, TEXTS):
            self.figures(device, **dict.fromkeys(names))
        for link in range(CONSTANTS["FGN_LINKS"]):
            self.link(device, link, **dict.fromkeys(LINK_FIGURES))
        for table in (settings.fields, settings.metrics, settings.places):
            ctypes.memset(ctypes.addressof(table), 0, ctypes.sizeof(table))
        for metric, value in board.metrics.items():
            self.gpm(device, metric, value)
        self.mig(device, board.mig)

    def _board(self, device: int) -> Any:
        return BOARDS[self._settings[device].board.decode() or "plain"]

    def figures(self, device: int, **values: Figure | str | None) -> None:
        """Sets figures (nvml_names.h: in NVML's units) and texts; None: what the board says.
        UNSUPPORTED, SIMULATED: as they say."""
        board, settings = self._board(device), self._settings[device]
        unnamed = SIMULATED if board is BOARDS["plain"] else UNSUPPORTED
        for name, value in values.items():
            if name in TEXTS:
                text = board.texts.get(name, "") if value is None else value
                settings.texts[TEXTS[name]].value = text.encode() if isinstance(text, str) else b""
                continue
            assert not isinstance(value, str), name
            figure = board.figures.get(name, unnamed) if value is None else value
            settings.figures[FIGURES[name]] = encode(figure)

    def link(self, device: int, link: int, **values: Figure | None) -> None:
        """Sets figures of one NVLink (active=0: it is down); None: what the board says."""
        links = self._board(device).links
        own: Mapping[str, int] = links[link] if link < len(links) else {}
        for name, value in values.items():
            figure = own.get(name, UNSUPPORTED) if value is None else value
            self._settings[device].links[link][LINK_FIGURES[name]] = encode(figure)

    def field(
        self,
        device: int,
        field: int,
        value: int | None = None,
        *,
        error: int = 0,
        scope: int | None = None,
    ) -> None:
        """What nvmlDeviceGetFieldValues says of one field id, of one scope or of all; neither value
        nor error: what the figures say."""
        wanted = (field, scope or 0, scope is None)
        rows = self._settings[device].fields
        for row in rows:
            if row.used and (row.field, row.scope, bool(row.any_scope)) == wanted:
                row.used = 0
        if value is None and not error:
            return
        row = next(row for row in rows if not row.used)
        row.field, row.scope, row.any_scope = wanted
        row.error, row.value = error, (value or 0) & 2**64 - 1
        row.used = 1

    def gpm(
        self,
        device: int,
        metric: int,
        value: float | None = None,
        *,
        error: int = 0,
        instance: int | None = None,
    ) -> None:
        """A GPM metric of a device, or of one of its GPU instances: what samples from now on hold.
        Neither value nor error: it has none (NOT_SUPPORTED)."""
        whose = 0 if instance is None else instance + 1
        rows = self._settings[device].metrics
        same = [
            r for r in rows if r.used and (r.metric, r.gpu_instance_plus_one) == (metric, whose)
        ]
        if value is None and not error:
            for row in same:
                row.used = 0
            return
        row = same[0] if same else next(row for row in rows if not row.used)
        row.metric, row.gpu_instance_plus_one, row.error = metric, whose, error
        row.value = struct.unpack("Q", struct.pack("d", value or 0.0))[0]
        row.used = 1

    def mig(self, device: int, rows: Sequence[Instance | None] | None) -> None:
        """Puts a device into MIG mode with these MIG devices, by index (None: an empty place);
        instead of the list None: MIG mode off. Handles of devices that are gone turn invalid."""
        board, settings, own = (
            self._board(device),
            self._settings[device],
            self.state.devices[device],
        )
        ctypes.memset(
            ctypes.addressof(settings.instances), 0, ctypes.sizeof(settings.instances)
        )  # fmt: skip
        for row in settings.metrics:
            row.used = row.used and not row.gpu_instance_plus_one
        own.is_mig = rows is not None
        for index, told in enumerate(rows or ()):
            if told is None:
                continue
            profile, gpu_instance, compute_instance, memory, *uuid = told
            instance = settings.instances[index]
            slices = re.findall(r"(\d+)([cg])\.", profile)
            instance.gpu_slices = int(slices[-1][0])
            instance.compute_slices = int(slices[0][0])
            instance.profile = profile.encode()
            instance.gpu_instance, instance.compute_instance = gpu_instance, compute_instance
            instance.memory_bytes = memory
            instance.multiprocessors = instance.compute_slices * (board.slice_multiprocessors or 2)
            instance.copy_engines = instance.gpu_slices
            engines = [number * instance.gpu_slices // 7 for number in board.engines]
            instance.decoders, instance.jpeg_engines, instance.ofa_engines = engines
            default = bytes(
                (device + 1, index + 1, gpu_instance, compute_instance, *b"simulated me")
            )
            instance.uuid[:] = uuid[0] if uuid else default
            instance.used = 1
            if not any(settings.instances[place].used for place in range(index)):
                own.mig_uuid[:] = bytes(instance.uuid)  # what a CUDA process sees
            for metric in GPM_OF_INSTANCES if board.metrics else ():
                self.gpm(device, metric, metric * 7 + gpu_instance / 16, instance=gpu_instance)

    def place(self, device: int, pid: int, gpu_instance: int, compute_instance: int = 0) -> None:
        """Puts a simulated CUDA process into a MIG device (others are in the first)."""
        row = next(row for row in self._settings[device].places if row.pid in (0, pid))
        row.gpu_instance, row.compute_instance, row.pid = gpu_instance, compute_instance, pid

    def event(
        self,
        device: int,
        kind: str,
        data: int = 0,
        gpu_instance: int | None = None,
        compute_instance: int | None = None,
    ) -> None:
        """An event (kind: one of EVENTS; data: an XID's number) for every registered set."""
        row = self.node.events[self.node.events_written % CONSTANTS["FGN_EVENTS"]]
        row.type, row.data, row.device = EVENTS[kind], data, device
        row.gpu_instance = NO_INSTANCE if gpu_instance is None else gpu_instance
        row.compute_instance = NO_INSTANCE if compute_instance is None else compute_instance
        self.node.events_written += 1

    def processes(
        self,
        device: int,
        *rows: tuple[int, str, int | None] | tuple[int, str, int | None, int, int],
        hide_memory: bool = False,
    ) -> None:
        """Lists processes that no simulated CUDA process stands behind: (pid, kind, bytes[, GPU
        instance, compute instance]), kind one of KINDS, bytes None for "not available".
        hide_memory: no process has a figure."""
        settings = self._settings[device]
        settings.process_count = 0
        for index, (pid, kind, memory, *instance) in enumerate(rows):
            row = settings.processes[index]
            row.pid, row.kind = pid, KINDS[kind]
            row.memory = NO_MEMORY_FIGURE if memory is None else memory
            gpu, compute = (n + 1 for n in instance) if instance else (0, 0)
            row.gpu_instance_plus_one, row.compute_instance_plus_one = gpu, compute
        settings.process_count = len(rows)
        settings.hide_memory = hide_memory

    def samples(self, device: int, *rows: tuple[int, ...], only: bool = True) -> None:
        """Rows of process utilization: (pid, sm, memory, encoder, decoder[, time_us[, jpeg, ofa]])
        in percent, out of range where a test wants it; time_us 0 or absent: that of the newest
        sample. only: instead of the simulated busy time."""
        settings = self._settings[device]
        settings.sample_count = 0
        for index, (pid, sm, memory, encoder, decoder, *more) in enumerate(rows):
            row = settings.samples[index]
            row.pid, row.sm, row.memory, row.encoder, row.decoder = (
                pid,
                sm,
                memory,
                encoder,
                decoder,
            )
            row.time_us = more[0] if more else 0
            row.jpeg, row.ofa = more[1:] if len(more) > 1 else (0, 0)
        settings.samples_only = only
        settings.sample_count = len(rows)

    def fault(
        self,
        function: str,
        error: int = 0,
        device: int | None = None,
        times: int = FOREVER,
        block_ms: float = 0,
    ) -> None:
        """Makes an NVML function (named without _v suffix; "*": all; nvmlInit) sleep, then fail."""
        row = next(row for row in self.node.faults if not row.function)
        row.error, row.remaining = error, times
        row.device_plus_one = 0 if device is None else device + 1
        row.block_ns = int(block_ms * 1e6)
        row.function = function.encode()
        self.node.faults_active = 1

    def clear_faults(self) -> None:
        """Ends all faults, and a driver unload."""
        self.node.faults_active = self.node.unloaded = 0
        for row in self.node.faults:
            row.function = b""

    def lose(self, device: int, lost: bool = True) -> None:
        """Takes a device off the bus, for NVML and CUDA alike."""
        self.state.devices[device].lost = lost
        self.state.faults_active |= lost

    def reload_driver(self) -> None:
        """Who initialised NVML before gets errors from now on."""
        self.node.generation += 1

    def unload_driver(self) -> None:
        """nvmlInit fails until clear_faults."""
        self.node.unloaded = 1


class StagedNode(NvmlControl):
    """A state file of its own, with processes that hold memory but make no CUDA call."""

    def __init__(self, path: Path, devices: int, board: str = "plain") -> None:
        path.touch()
        os.truncate(path, ctypes.sizeof(TYPES["fg_state"]))
        super().__init__(path)
        self.path = path
        self.children: list[subprocess.Popen[bytes]] = []
        state = self.state
        state.magic, state.version = CONSTANTS["FG_MAGIC"], CONSTANTS["FG_VERSION"]
        state.layout_bytes = ctypes.sizeof(TYPES["fg_state"])
        state.device_count, state.driver_version, state.driver_branch = devices, 12020, b"535.1.2"
        for index in range(devices):
            device = state.devices[index]
            device.name = b"Simulated GPU"
            device.uuid[0], device.pci_bus = index + 1, index + 7
            device.memory_bytes = 1 << 30
            if board != "plain":
                self.board(index, board)

    def start(self, device: int, memory: int, *command: str) -> int:
        """A living process with a context and memory on a device; its pid."""
        child = subprocess.Popen(command or ["sleep", "60"])
        self.children.append(child)
        self._occupy(device, memory, child.pid, child.pid)
        return child.pid

    def start_in_a_container(self, device: int, memory: int) -> int:
        """The same in a pid namespace of its own; its pid outside."""
        child = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "60"])
        self.children.append(child)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        while not (inner := children.read_text().split()):
            time.sleep(0.01)
        self._occupy(device, memory, int(inner[0]), 1)
        return int(inner[0])

    def _occupy(self, device: int, memory: int, pid: int, inner_pid: int) -> None:
        place = self.state.slots_used
        row = self.state.ids[place]
        stat = Path(f"/proc/{pid}/stat").read_text()
        row.pid, row.start_time = inner_pid, int(stat.rpartition(")")[2].split()[19])
        row.pid_namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
        activity = self.state.processes[place].activity[device]
        activity.contexts, activity.held_bytes = 1, memory
        self.state.devices[device].memory_used += memory
        row.status = CONSTANTS["FG_SLOT_LIVE"]
        self.state.slots_used += 1

    def stop(self) -> None:
        """Ends the processes."""
        for child in self.children:
            child.kill()
            child.wait()
