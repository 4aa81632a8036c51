"""Control of the simulated NVML: figures, extra processes and samples, faults, driver reloads.

The layout is written in state.h and nvml_state.h only; it is parsed from there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / ".build" / "fakegpu"  # as in tests/conftest.py
FOREVER = 2**64 - 1
NO_MEMORY_FIGURE = 2**64 - 1
KINDS = {"compute": 0, "graphics": 1, "mps": 2}

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


def build_nvml(directory: Path = BUILD) -> Path:
    """Builds the simulated libnvidia-ml.so.1 where it is not up to date, and gives its path."""
    command = ["make", "-s", "-C", str(HERE), "-f", "nvml.mk", f"BUILD={directory}", "nvml"]
    subprocess.run(command, check=True)
    return directory / "libnvidia-ml.so.1"


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

    def figures(self, device: int, **values: int | None) -> None:
        """Sets figures in NVML's units (percent, mW, mJ, MHz …); None: as simulated."""
        for name, value in values.items():
            field = dict(TYPES["fgn_device"]._fields_)[name]
            assert field is ctypes.c_uint64, name
            setattr(self._settings[device], name, 0 if value is None else value + 1)

    def processes(
        self, device: int, *rows: tuple[int, str, int | None], hide_memory: bool = False
    ) -> None:
        """Lists processes that no simulated CUDA process stands behind: (pid, kind, bytes), kind
        one of KINDS, bytes None for "not available". hide_memory: no process has a figure."""
        settings = self._settings[device]
        settings.process_count = 0
        for index, (pid, kind, memory) in enumerate(rows):
            row = settings.processes[index]
            row.pid, row.kind = pid, KINDS[kind]
            row.memory = NO_MEMORY_FIGURE if memory is None else memory
        settings.process_count = len(rows)
        settings.hide_memory = hide_memory

    def samples(self, device: int, *rows: tuple[int, ...], only: bool = True) -> None:
        """Rows of process utilization: (pid, sm, memory, encoder, decoder[, time_us]) in percent,
        out of range where a test wants it; time_us 0 or absent: that of the newest sample.
        only: instead of the simulated busy time."""
        settings = self._settings[device]
        settings.sample_count = 0
        for index, (pid, sm, memory, encoder, decoder, *time_us) in enumerate(rows):
            row = settings.samples[index]
            row.pid, row.sm, row.memory, row.encoder, row.decoder = (
                pid,
                sm,
                memory,
                encoder,
                decoder,
            )
            row.time_us = time_us[0] if time_us else 0
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

    def __init__(self, path: Path, devices: int) -> None:
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
