"""NVML's error codes: what they mean for a person, for a series and for what to do next."""

from __future__ import annotations

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf import errors

DEFAULT_LIBRARY = "libnvidia-ml.so.1"


class NvmlError(errors.NvmlError):
    """`code` is NVML's, or None. `fatal`: the library named is the wrong one, no retry helps."""

    def __init__(self, message: str, code: int | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.fatal = fatal


ADVICE = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no NVIDIA driver is loaded: on a node with a GPU,"
    " modprobe nvidia",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: f"{DEFAULT_LIBRARY} was not found: install the NVIDIA"
    " driver's libraries (into a container NVIDIA's runtime brings them) or name one with"
    " --nvml-library",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "this driver's NVML is too old: update the driver",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to ask the GPU: run as root, or allow access to"
    " /dev/nvidiactl and /dev/nvidia*",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost (fallen off the bus): look for Xid in the"
    " kernel log, then reset the GPU or restart the node",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset: stop its processes, then"
    " nvidia-smi --gpu-reset",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVML and the loaded driver differ in version: load"
    " the installed driver (or restart the node), then restart gpubpf",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "the operating system refuses access to the GPU: check the"
    " device cgroup and /dev/nvidia*",
    pynvml.NVML_ERROR_UNINITIALIZED: "NVML is not initialised any more: gpubpf tries again",
    pynvml.NVML_ERROR_UNKNOWN: "NVML gives no reason (unknown error): the driver was reloaded or"
    " access to /dev/nvidia* was taken away; if it lasts, restart gpubpf or its container",
}

# Answers after which only a new nvmlInit can help.
BROKEN = frozenset(
    (
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
    )
)
# Of one device only: the library and the other devices may be well.
LOST = frozenset((pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED))

# Answers that stay until the driver, or how the board is divided, changes.
UNSUPPORTED = frozenset(
    (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
    )
)

NOT_NOW = -1  # not NVML's: there is no figure yet, such as before the second sample
BLOCKED = -2  # not NVML's: a call has not come back
GARBAGE = -3  # not NVML's: the figure can't be true
RELEASED = -4  # not NVML's: gpubpf was asked to let go of the driver

_REASONS = {
    NOT_NOW: "not_yet",
    BLOCKED: "timeout",
    GARBAGE: "garbage",
    RELEASED: "released",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "no_permission",
    pynvml.NVML_ERROR_NOT_FOUND: "not_found",
    pynvml.NVML_ERROR_NO_DATA: "not_found",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no_library",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no_driver",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver_mismatch",
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "needs_reset",
    pynvml.NVML_ERROR_TIMEOUT: "timeout",
    **dict.fromkeys(UNSUPPORTED, "unsupported"),
}


def reason(code: int) -> str:
    """One word for a label, of a bounded set."""
    return _REASONS.get(code, "failed")


def text(code: int) -> str:
    """One line for a person."""
    return ADVICE.get(code) or f"NVML error {code}: {pynvml.NVMLError(code)}"


def error(code: int) -> NvmlError:
    return NvmlError(text(code), code)
