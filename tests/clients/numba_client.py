"""A client by numba-cuda: a jitted kernel, and arrays copied to the device and back."""

import argparse
from typing import Any

import numpy as np
from numba import cuda


@cuda.jit
def double(values: Any, results: Any) -> None:
    """Doubles each value."""
    place = cuda.grid(1)
    if place < values.size:
        results[place] = 2 * values[place]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=101)
    parser.add_argument("--copies", type=int, default=13)
    options = parser.parse_args()

    values = np.arange(997, dtype=np.float32)
    source = cuda.to_device(values)
    target = cuda.device_array_like(values)
    for _ in range(options.launches):
        double[8, 128](source, target)
    cuda.synchronize()
    for _ in range(options.copies):
        source.copy_to_device(values)
        if not np.array_equal(source.copy_to_host(), values):
            raise RuntimeError("what came back is not what was sent")


if __name__ == "__main__":
    main()
