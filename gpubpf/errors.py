"""Errors that a person reads: one line, what is wrong and what to do about it."""

from __future__ import annotations


class GpubpfError(Exception):
    """The base of all of them. `exit_code` is documented in the README."""

    exit_code = 1


class UsageError(GpubpfError):
    """A bad option, variable or configuration file."""

    exit_code = 2


class PrivilegeError(GpubpfError):
    """Not root, or a capability is missing."""

    exit_code = 3


class BpfError(GpubpfError):
    """BPF or uprobes can't be used on this machine."""

    exit_code = 4


class NvmlError(GpubpfError):
    """NVML can't be used; `gpubpf` then counts calls only."""

    exit_code = 5


class ListenError(GpubpfError):
    """The address to serve on can't be had."""

    exit_code = 6
