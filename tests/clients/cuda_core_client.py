"""A client by cuda.core: a program compiled at run time, stream-ordered buffers, and a captured
graph."""

import argparse

from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch

CODE = 'extern "C" __global__ void work(float *values) { values[threadIdx.x] += 1; }'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=101)
    parser.add_argument("--copies", type=int, default=13)
    parser.add_argument("--graph-kernels", type=int, default=7)
    parser.add_argument("--graph-launches", type=int, default=5)
    options = parser.parse_args()

    device = Device()
    device.set_current()
    stream = device.create_stream()
    program = Program(CODE, "c++", ProgramOptions(arch=f"sm_{device.arch}"))
    kernel = program.compile("cubin").get_kernel("work")
    config = LaunchConfig(grid=1, block=32)

    buffers = [device.allocate(4096, stream=stream) for _ in range(2)]
    for _ in range(options.launches):
        launch(stream, config, kernel, buffers[0])
    for _ in range(options.copies):
        buffers[1].copy_from(buffers[0], stream=stream)
    stream.sync()

    builder = device.create_graph_builder().begin_building()
    for _ in range(options.graph_kernels):
        launch(builder, config, kernel, buffers[0])
    graph = builder.end_building().complete()
    for _ in range(options.graph_launches):
        graph.launch(stream)
    stream.sync()

    stream.record().sync()
    if buffers[0].size != 4096:
        raise RuntimeError("a buffer has another size than it was asked for")
    for buffer in buffers:
        buffer.close(stream)
    stream.sync()


if __name__ == "__main__":
    main()
