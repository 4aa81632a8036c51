"""What the driver tells by itself: XID and ECC errors (NVML API Reference, "Event Handling").

The driver keeps a queue for each event set, so that looking often is as good as waiting, and
needs no thread. What happens while nothing is registered, as during a driver's reload, is lost.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.nvml.library import Library, asked

ECC = pynvml.nvmlEventTypeSingleBitEccError | pynvml.nvmlEventTypeDoubleBitEccError
XID = pynvml.nvmlEventTypeXidCriticalError
MOST = 256  # in one look: an error storm must not hold it


class Events:
    """The events of the devices given, by UUID. `close` frees the set."""

    def __init__(self, library: Library, handles: Mapping[str, Any]) -> None:
        self._wait = library.function("nvmlEventSetWait_v2", "nvmlEventSetWait")
        self._uuids: dict[int | None, str] = {}
        self._data = pynvml.c_nvmlEventData_t()
        self._set = asked(pynvml.nvmlEventSetCreate) if self._wait else None
        if self._set is None:
            return
        for uuid, handle in handles.items():
            types = asked(pynvml.nvmlDeviceGetSupportedEventTypes, handle) or 0
            wanted = types & (XID | ECC)
            if wanted and self._registered(handle, wanted):
                self._uuids[ctypes.cast(handle, ctypes.c_void_p).value] = uuid

    def _registered(self, handle: Any, types: int) -> bool:
        try:
            pynvml.nvmlDeviceRegisterEvents(handle, types, self._set)
        except pynvml.NVMLError:
            return False
        return True

    def drain(self) -> tuple[list[tuple[str, int]], set[str]]:
        """(UUID, XID) of each XID error that came, and the devices that had an ECC error."""
        xids: list[tuple[str, int]] = []
        ecc: set[str] = set()
        for _ in range(MOST if self._uuids else 0):
            if self._wait(self._set, ctypes.byref(self._data), 0):
                break  # most often: a timeout, there is none
            pointer = ctypes.cast(self._data.device, ctypes.c_void_p).value
            uuid = self._uuids.get(pointer)
            if uuid is None:  # of a MIG device, or a handle by another pointer
                uuid = asked(pynvml.nvmlDeviceGetUUID, self._data.device) or ""
            if self._data.eventType & XID:
                xids.append((str(uuid), int(self._data.eventData)))
            elif self._data.eventType & ECC:
                ecc.add(str(uuid))
        return xids, ecc

    def close(self) -> None:
        if self._set is not None:
            asked(pynvml.nvmlEventSetFree, self._set)
            self._set = None
            self._uuids = {}
