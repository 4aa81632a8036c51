"""A client of the driver API alone: does what it is told, and no call more."""

from __future__ import annotations

import json
import mmap
import os
import re
from ctypes import byref, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any

from tests.gpu.programs import talk
from tests.gpu.programs.driver import Cuda

STREAMS = {"legacy": 1, "per-thread": 2}  # CU_GET_PROC_ADDRESS_*_DEFAULT_STREAM
_SUFFIX = re.compile(r"(_v\d+)?(_pt[sd][sz])?$")


class Client:
    def __init__(self) -> None:
        self.cuda = Cuda()
        self.kernel = self.context = c_void_p()
        self.stream = c_void_p()  # the default one
        self.held: dict[str, list[Any]] = {}
        self.graphs: list[c_void_p] = []
        self.child: tuple[int, int] | None = None  # pid, and the pipe that holds it

    # What there is

    def about(self) -> dict[str, Any]:
        return {"version": self.cuda.version(), "pid": os.getpid()}

    def devices(self) -> dict[str, Any]:
        self.cuda.call("cuInit", c_uint(0))
        return {"count": self.cuda.count()}

    def uuid(self, device: int) -> str:
        return self.cuda.uuid(device)

    def memory(self) -> dict[str, int]:
        free, total = self.cuda.memory()
        return {"free": free, "total": total, "granule": self.cuda.granule()}

    def pointers(self, names: list[str], versions: list[int]) -> list[list[Any]]:
        """[name, version, stream, the export] of what is handed out; None: none of `names`."""
        exports = {self.cuda.address(name): name for name in names}
        exports.pop(0, None)
        answers = []
        for name in sorted({_SUFFIX.sub("", name) for name in exports.values()}):
            for version in versions:
                for stream, flag in STREAMS.items():
                    pointer = self.cuda.pointer(name, version, flag)
                    if pointer:
                        answers.append([name, version, stream, exports.get(pointer)])
        return answers

    def exports(self, pattern: str) -> list[str]:
        """The library's exports of these names, as a regular expression."""
        look = re.compile(rb"\0(%b)(?=\0)" % pattern.encode())
        file = os.open(self.library(), os.O_RDONLY)
        with mmap.mmap(file, 0, prot=mmap.PROT_READ) as text:
            names = {found[1].decode() for found in look.finditer(text)}
        os.close(file)
        return sorted(name for name in names if self.cuda.address(name))

    def library(self) -> str:
        """The file that this process has of libcuda."""
        with open("/proc/self/maps") as maps:
            paths = {line.split(None, 5)[5].strip() for line in maps if "/libcuda.so" in line}
        return os.path.realpath(min(paths))

    # Contexts and work

    def open(self, device: int = 0, own: bool = False) -> dict[str, int]:
        """A context, the primary one or one of its own, and a kernel."""
        self.cuda.call("cuInit", c_uint(0))
        make = self.cuda.create_context if own else self.cuda.retain
        self.context = make(device)
        self.kernel = self.cuda.kernel()
        return {"pid": os.getpid()}

    def close(self, device: int = 0) -> None:
        self.cuda.call("cuDevicePrimaryCtxRelease_v2", c_int(device))

    def destroy(self) -> None:
        """The own context, with all that is allocated in it."""
        self.cuda.call("cuCtxDestroy_v2", self.context)
        self.held.clear()

    def set_current(self) -> None:
        self.cuda.call("cuCtxSetCurrent", self.context)

    def launch(self, times: int) -> None:
        for _ in range(times):
            self.cuda.launch(self.kernel, self.stream)

    def make_graph(self, kernels: int) -> None:
        stream = self.cuda.stream()
        self.graphs.append(self.cuda.graph(self.kernel, kernels, stream))
        self.cuda.call("cuStreamDestroy_v2", stream)

    def launch_graph(self, times: int) -> None:
        for _ in range(times):
            self.cuda.call("cuGraphLaunch", self.graphs[-1], self.stream)

    def wait(self, times: int = 1) -> None:
        for _ in range(times):
            self.cuda.call("cuCtxSynchronize")

    def allocate(self, kind: str, size: int, times: int = 1) -> None:
        for _ in range(times):
            self.held.setdefault(kind, []).append(self.cuda.allocate(kind, size))

    def free(self, kind: str, times: int = 1) -> None:
        for _ in range(times):
            self.cuda.free(self.held[kind].pop())

    def release(self) -> None:
        self.cuda.release(self.held["virtual"][-1])

    def unmap(self) -> None:
        self.cuda.unmap(self.held["virtual"].pop())

    def touch(self, kind: str) -> None:
        """Writes to what was allocated last, on the device: managed memory then lives there."""
        self.cuda.call("cuMemsetD8_v2", self.held[kind][-1][1], c_ubyte(1), c_size_t(1 << 20))

    def copy(self, size: int, times: int) -> None:
        """To the device and back, through what was allocated last."""
        sent = (c_ubyte * size).from_buffer(bytearray(os.urandom(size)))
        received = (c_ubyte * size)()
        place = self.held["device"][-1][1]
        for _ in range(times):
            self.cuda.call("cuMemcpyHtoD_v2", place, byref(sent), c_size_t(size))
            self.cuda.call("cuMemcpyDtoH_v2", byref(received), place, c_size_t(size))
        if bytes(sent) != bytes(received):
            raise RuntimeError("what came back is not what was sent")

    def set(self, size: int, times: int) -> None:
        for _ in range(times):
            place = self.held["device"][-1][1]
            self.cuda.call("cuMemsetD8_v2", place, c_ubyte(7), c_size_t(size))

    # Forks

    def fork_and_try(self) -> dict[str, Any]:
        """A child after initialisation: what the driver answers it, while it lives on."""
        return self._fork(self._try)

    def _try(self) -> dict[str, Any]:
        place = c_uint64()
        one = c_uint(1)
        launch = [self.kernel, one, one, one, one, one, one, c_uint(0), c_void_p(), None, None]
        return {
            "cuInit": self.cuda.code("cuInit", c_uint(0)),
            "cuMemAlloc_v2": self.cuda.code("cuMemAlloc_v2", byref(place), c_size_t(4096)),
            "cuLaunchKernel": self.cuda.code("cuLaunchKernel", *launch),
        }

    def fork_and_work(self, device: int, launches: int) -> dict[str, Any]:
        """A child before initialisation: it works as any process."""
        return self._fork(lambda: self._work(device, launches))

    def _work(self, device: int, launches: int) -> dict[str, Any]:
        self.open(device)
        self.launch(launches)
        self.wait()
        return {}

    def _fork(self, work: Any) -> dict[str, Any]:
        told, tell = os.pipe()
        waits, hold = os.pipe()
        pid = os.fork()
        if pid == 0:
            talk.end_with_parent()
            os.close(hold)
            try:
                text = json.dumps(work())
            except Exception as error:
                text = json.dumps({"error": str(error)})
            os.write(tell, text.encode())
            os.close(tell)
            os.read(waits, 1)
            os._exit(0)
        os.close(tell)
        os.close(waits)
        with os.fdopen(told) as answer:
            codes = json.loads(answer.read() or "{}")
        self.child = pid, hold
        return {"pid": pid, **codes}

    def end_child(self) -> None:
        assert self.child
        os.close(self.child[1])
        os.waitpid(self.child[0], 0)


def main() -> None:
    client = Client()
    names = [name for name in dir(Client) if not name.startswith("_")]
    talk.serve({name: getattr(client, name) for name in names})


if __name__ == "__main__":
    main()
