"""For the checks of `gpubpf doctor`: what one says, and the machine that all of them look at."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gpubpf import capabilities
from gpubpf.bpf import attach, elf
from gpubpf.bpf.load import Loaded, load
from gpubpf.config import Options
from gpubpf.errors import GpubpfError
from gpubpf.libraries import Copy, Libraries
from gpubpf.model import Device
from gpubpf.symbols import chosen

OK, INFO, WARN, FAIL = "ok", "info", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found. `what` and `do` are for a person, `details` for programs (JSON)."""

    name: str
    status: str  # OK, INFO (no judgement), WARN (works, not fully) or FAIL (does not work)
    what: str
    do: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probed:
    """A copy of libcuda, and what came of attaching to it."""

    copy: Copy
    attachment: attach.Attachment | None
    error: str = ""


class Machine:
    """This machine as these options would have it watched. `close` detaches and closes."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.symbols = chosen(options.probe, options.attribution)
        self.load_seconds = 0.0
        self.missing: list[str] = []  # files named with --library that aren't there

    @cached_property
    def status(self) -> dict[str, str]:
        """/proc/self/status."""
        return capabilities.own_status()

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """The effective ones of those that matter here."""
        return capabilities.effective(self.status)

    @cached_property
    def devices(self) -> tuple[list[Device], list[str]] | GpubpfError:
        """What NVML has, with its problems; or why it can't be asked."""
        from gpubpf.nvml import Nvml

        source = Nvml(self.options.nvml_library)
        try:
            source.open()
            return list(source.read()), list(source.problems)
        except GpubpfError as error:
            return error
        finally:
            source.close()

    @property
    def gpus(self) -> int:
        """How many there are that have series: a MIG device counts as one. 0: not known."""
        if not self.options.nvml or isinstance(self.devices, GpubpfError):
            return 0
        devices, _ = self.devices
        return sum(1 + len(device.mig) for device in devices)

    @cached_property
    def loaded(self) -> Loaded | GpubpfError | None:
        """The programs, really loaded; or why not; None where nothing is to be probed."""
        if not self.symbols:
            return None
        start = time.monotonic()
        try:
            return load(self.options.probe, attribution=self.options.attribution)
        except GpubpfError as error:
            return error
        finally:
            self.load_seconds = time.monotonic() - start

    @cached_property
    def copies(self) -> list[Copy]:
        """Every libcuda file found, as `gpubpf serve` finds them."""
        libraries = Libraries(
            self.options.proc_root,
            self.options.host_root,
            self.options.library,
            os.environ.get("LD_LIBRARY_PATH", ""),
        )
        found = [*libraries.usual(), *libraries.mapped()]
        self.missing = list(libraries.missing)
        return found

    @cached_property
    def probed(self) -> list[Probed]:
        """Every copy, with probes really attached; empty where there are no programs."""
        loaded = self.loaded
        if not isinstance(loaded, Loaded):
            return []
        tried = []
        for copy in self.copies:
            try:
                attachment = attach.attach(loaded, self.symbols, copy.fd, copy.name)
                tried.append(Probed(copy, attachment))
            except (elf.NotALibraryError, GpubpfError, OSError) as error:
                tried.append(Probed(copy, None, str(error)))
        return tried

    def close(self) -> None:
        """Detaches the probes and closes the files. What was never asked for is not opened."""
        found = self.__dict__
        for probed in found.get("probed", ()):
            if probed.attachment is not None:
                attach.detach(probed.attachment.links)
        for copy in found.get("copies", ()):
            os.close(copy.fd)
        if isinstance(found.get("loaded"), Loaded):
            found["loaded"].close()
        found.clear()
