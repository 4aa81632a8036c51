"""The CUDA driver by ctypes: what the checks' clients call, with nothing between them and it."""

from __future__ import annotations

import ctypes
import uuid
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

PTX = ".version {}\n.target {}\n.address_size 64\n.visible .entry work()\n{{\n ret;\n}}\n"
TARGETS = (("6.0", "sm_50"), ("6.3", "sm_75"), ("7.0", "sm_80"), ("8.6", "sm_100"))
"""The first that the driver's compiler takes: newer ones drop old targets."""
PINNED, ON_DEVICE, READ_WRITE = 1, 1, 3  # CU_MEM_ALLOCATION_TYPE_, CU_MEM_LOCATION_TYPE_, …ACCESS_
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_
NON_BLOCKING = 1  # CU_STREAM_


class CudaError(Exception):
    """`code` is the driver's."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} gave CUDA error {code}")
        self.code = code


class Location(ctypes.Structure):
    _fields_ = [("kind", c_int), ("id", c_int)]


class Properties(ctypes.Structure):
    """CUmemAllocationProp"""

    _fields_ = [
        ("kind", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("metadata", c_void_p),
        ("flags", c_uint64),
    ]


class Access(ctypes.Structure):
    """CUmemAccessDesc"""

    _fields_ = [("location", Location), ("flags", c_int)]


class Cuda:
    """One process's driver. Every method raises CudaError."""

    def __init__(self) -> None:
        self.library: Any = ctypes.CDLL("libcuda.so.1")
        self.device = 0

    def code(self, function: str, *arguments: Any) -> int:
        """What the driver answers."""
        return int(getattr(self.library, function)(*arguments))

    def call(self, function: str, *arguments: Any) -> None:
        code = self.code(function, *arguments)
        if code:
            raise CudaError(function, code)

    def version(self) -> int:
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return version.value

    def count(self) -> int:
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value

    def uuid(self, ordinal: int) -> str:
        """The bare UUID of a device, of the instance where it is one of MIG's."""
        raw = (ctypes.c_ubyte * 16)()
        device = c_int()
        self.call("cuDeviceGet", byref(device), c_int(ordinal))
        newer = hasattr(self.library, "cuDeviceGetUuid_v2")
        self.call("cuDeviceGetUuid_v2" if newer else "cuDeviceGetUuid", raw, device)
        return str(uuid.UUID(bytes=bytes(raw)))

    def retain(self, ordinal: int) -> c_void_p:
        """Makes a device's primary context current."""
        device, context = c_int(), c_void_p()
        self.call("cuDeviceGet", byref(device), c_int(ordinal))
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.device = device.value
        return context

    def create_context(self, ordinal: int) -> c_void_p:
        device, context = c_int(), c_void_p()
        self.call("cuDeviceGet", byref(device), c_int(ordinal))
        self.call("cuCtxCreate_v2", byref(context), c_uint(0), device)
        self.device = device.value
        return context

    def kernel(self) -> c_void_p:
        """An empty kernel in the current context."""
        module, kernel = c_void_p(), c_void_p()
        for place, target in enumerate(TARGETS):
            code = self.code("cuModuleLoadData", byref(module), PTX.format(*target).encode())
            if code == 0:
                break
            if place == len(TARGETS) - 1:
                raise CudaError("cuModuleLoadData", code)
        self.call("cuModuleGetFunction", byref(kernel), module, b"work")
        return kernel

    def launch(self, kernel: c_void_p, stream: c_void_p) -> None:
        one, none = c_uint(1), c_void_p()
        grid_and_block = (one, one, one, c_uint(32), one, one)
        self.call("cuLaunchKernel", kernel, *grid_and_block, c_uint(0), stream, none, none)

    def stream(self) -> c_void_p:
        stream = c_void_p()
        self.call("cuStreamCreate", byref(stream), c_uint(NON_BLOCKING))
        return stream

    def graph(self, kernel: c_void_p, kernels: int, stream: c_void_p) -> c_void_p:
        """An executable graph of so many kernels, captured."""
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", stream, c_int(THREAD_LOCAL))
        for _ in range(kernels):
            self.launch(kernel, stream)
        self.call("cuStreamEndCapture", stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
        self.call("cuGraphDestroy", graph)
        return executable

    def memory(self) -> tuple[int, int]:
        """Free and all of the current device's memory."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def pointer(self, name: str, version: int, flags: int) -> int:
        """What cuGetProcAddress hands out for a name; 0 where it has nothing."""
        pointer = c_void_p()
        arguments = [name.encode(), byref(pointer), c_int(version), c_uint64(flags)]
        if hasattr(self.library, "cuGetProcAddress_v2"):
            code = self.code("cuGetProcAddress_v2", *arguments, None)
        else:
            code = self.code("cuGetProcAddress", *arguments)
        return pointer.value or 0 if code == 0 else 0

    def address(self, export: str) -> int:
        """Where an export lies; 0 where there is none."""
        if not hasattr(self.library, export):
            return 0
        return ctypes.cast(self.library[export], c_void_p).value or 0

    # Memory, by the kinds that gpubpf tells apart

    def allocate(self, kind: str, size: int) -> tuple[Any, ...]:
        """What `free` needs to free it."""
        place = c_uint64()
        if kind == "device":
            self.call("cuMemAlloc_v2", byref(place), c_size_t(size))
        elif kind == "managed":
            self.call("cuMemAllocManaged", byref(place), c_size_t(size), c_uint(1))
        elif kind == "pool":
            self.call("cuMemAllocAsync", byref(place), c_size_t(size), c_void_p())
        elif kind == "host":
            pointer = c_void_p()
            self.call("cuMemAllocHost_v2", byref(pointer), c_size_t(size))
            return kind, pointer
        elif kind == "virtual":
            return (kind, *self._map(size))
        return kind, place

    def _properties(self) -> Properties:
        return Properties(kind=PINNED, location=Location(ON_DEVICE, self.device))

    def granule(self) -> int:
        """The unit of virtual memory."""
        size = c_size_t()
        properties = self._properties()
        self.call("cuMemGetAllocationGranularity", byref(size), byref(properties), c_int(0))
        return size.value

    def _map(self, size: int) -> tuple[c_uint64, c_uint64, c_size_t]:
        handle, place, bytes_ = c_uint64(), c_uint64(), c_size_t(size)
        properties, zero = self._properties(), c_uint64(0)
        access = Access(Location(ON_DEVICE, self.device), READ_WRITE)
        self.call("cuMemCreate", byref(handle), bytes_, byref(properties), zero)
        self.call("cuMemAddressReserve", byref(place), bytes_, c_size_t(0), zero, zero)
        self.call("cuMemMap", place, bytes_, c_size_t(0), handle, zero)
        self.call("cuMemSetAccess", place, bytes_, byref(access), c_size_t(1))
        return handle, place, bytes_

    def release(self, held: tuple[Any, ...]) -> None:
        """The first half of freeing virtual memory: it lives on until it is unmapped."""
        self.call("cuMemRelease", held[1])

    def unmap(self, held: tuple[Any, ...]) -> None:
        self.call("cuMemUnmap", held[2], held[3])
        self.call("cuMemAddressFree", held[2], held[3])

    def free(self, held: tuple[Any, ...]) -> None:
        kind, place = held[:2]
        if kind == "virtual":
            self.unmap(held)
            self.release(held)
        elif kind == "pool":
            self.call("cuMemFreeAsync", place, c_void_p())
        else:
            self.call("cuMemFreeHost" if kind == "host" else "cuMemFree_v2", place)
