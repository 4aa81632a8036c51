"""A client by Triton, without torch: a kernel compiled for the device and launched by Triton's own
launcher.

Triton builds that launcher with the C compiler when it first runs, against the libcuda.so.1 in
TRITON_LIBCUDA_PATH where that is set.
"""

import argparse
from typing import Any

import triton
import triton.language as tl
from cuda.bindings import driver
from triton.compiler import ASTSource


@triton.jit
def increment(values, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """Adds one to each value."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    tl.store(values + places, tl.load(values + places, mask=inside) + 1, mask=inside)


def call(function: Any, *arguments: Any) -> Any:
    """Calls the driver and gives what it returns besides its status."""
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function.__name__}: {status!r}")
    return values[0] if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=101)
    options = parser.parse_args()

    call(driver.cuInit, 0)
    device = call(driver.cuDeviceGet, 0)
    call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, device))
    count = 997
    pointer = call(driver.cuMemAlloc, 4 * count)

    target = triton.runtime.driver.active.get_current_target()
    signature = {"values": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    source = ASTSource(fn=increment, signature=signature, constexprs={"BLOCK": 128})
    kernel = triton.compile(source, target=target)
    for _ in range(options.launches):
        kernel[triton.cdiv(count, 128), 1, 1](int(pointer), count, 128)
    call(driver.cuCtxSynchronize)
    call(driver.cuMemFree, pointer)


if __name__ == "__main__":
    main()
