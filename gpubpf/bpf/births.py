"""First calls of processes, told while they happen: a BPF ring buffer, read without a library.

The layout is the kernel's (kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst): a page with the
consumer's position, a page with the producer's, then the data, mapped twice in a row so that no
record is ever split. A record is a length of 4 bytes, with two flags, 4 bytes of the kernel's own,
and the data, rounded up to 8 bytes.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading
from collections.abc import Callable

from gpubpf.bpf.program import BIRTH_PAGES
from gpubpf.model import Owner

_PAGE = mmap.PAGESIZE
_SIZE = BIRTH_PAGES * _PAGE
_BUSY, _DISCARD = 1 << 31, 1 << 30
_HEADER = 8
_OWNER = struct.Struct("=QQ")  # struct owner in probes/maps.h: born, pid


class Births:
    """A thread that calls `greet` at every first call, as soon as it can. `close` ends it."""

    def __init__(self, ring: int, greet: Callable[[Owner], None]) -> None:
        self._greet = greet
        self._consumer = mmap.mmap(ring, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._shared = mmap.mmap(
            ring, _PAGE + 2 * _SIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE
        )
        # Positions are read and written whole: as one 8-byte word.
        self._read_to = memoryview(self._consumer).cast("Q")
        self._written_to = memoryview(self._shared)[:8].cast("Q")
        self._words = memoryview(self._shared)[_PAGE:].cast("I")
        self._waker = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(ring, select.POLLIN)
        self._poll.register(self._waker, select.POLLIN)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="births", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """A greeting under way is waited for; the ring buffer may be closed then."""
        self._closing = True
        os.eventfd_write(self._waker, 1)
        self._thread.join()
        os.close(self._waker)
        for view in (self._read_to, self._written_to, self._words):
            view.release()
        self._consumer.close()
        self._shared.close()

    def _run(self) -> None:
        while not self._closing:
            self._poll.poll()
            self._drain()

    def _drain(self) -> None:
        at = self._read_to[0]
        while at < self._written_to[0] and not self._closing:
            start = at % _SIZE
            head = self._words[start // 4]
            if head & _BUSY:  # it is being written, and wakes us again
                return
            length = head & ~_DISCARD
            if not head & _DISCARD:
                born, pid = _OWNER.unpack_from(self._shared, _PAGE + start + _HEADER)
                self._greet(Owner(pid, born))
            at += (_HEADER + length + 7) // 8 * 8
            self._read_to[0] = at
