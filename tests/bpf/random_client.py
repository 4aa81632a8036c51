"""A client that does what it is told: lists of calls as JSON, one for each thread.

A call is [function, argument…]. Arguments that start with "$" name variables that earlier calls
filled ("$3"); "&3" is where a call stores its result. Sizes are integers.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from typing import Any

cuda = ctypes.CDLL(sys.argv[1])


class Array2D(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("channels", ctypes.c_uint),
    )


class Array3D(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


def converted(argument: Any, variables: dict[str, ctypes.c_uint64]) -> Any:
    if isinstance(argument, str) and argument[0] == "&":
        return ctypes.byref(variables.setdefault(argument[1:], ctypes.c_uint64()))
    if isinstance(argument, str) and argument[0] == "$":
        return variables.get(argument[1:], ctypes.c_uint64(0))
    if isinstance(argument, list):
        kind = Array2D if len(argument) == 4 else Array3D
        return ctypes.byref(kind(*argument))
    return ctypes.c_uint64(argument)


def run(calls: list[list[Any]]) -> None:
    variables: dict[str, ctypes.c_uint64] = {}
    context = ctypes.c_void_p()
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    cuda.cuCtxSetCurrent(context)
    for function, *arguments in calls:
        getattr(cuda, function)(*(converted(argument, variables) for argument in arguments))


def main() -> None:
    assert cuda.cuInit(0) == 0
    threads = [threading.Thread(target=run, args=(calls,)) for calls in json.loads(sys.argv[2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
