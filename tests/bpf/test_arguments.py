"""Arguments of a probed function, those on the stack too, as `probes/arguments.h` reads them."""

from __future__ import annotations

import ctypes
import os

import pytest

from gpubpf.bpf import elf, program, syscalls
from tests.bpf.probing import REAL_LIBCUDA, Find, at_entry

TEXT = """
#include <uapi/linux/ptrace.h>
{arguments}
BPF_ARRAY(seen, u64, 11);
static __always_inline void put(u32 n, u64 value) {{ seen.update(&n, &value); }}
int look(struct pt_regs *ctx) {{
    {look}
    return 0;
}}
"""
BY_NAME = """
    put(0, ARG(ctx, 0));
    put(1, ARG(ctx, 1));
    put(2, ARG(ctx, 2));
    put(3, ARG(ctx, 3));
    put(4, ARG(ctx, 4));
    put(5, ARG(ctx, 5));
    for (u32 n = ARG_REGISTERS; n < 11; n++)
        put(n, stack_argument(ctx, n));
"""
AT_RUN_TIME = """
#pragma clang loop unroll(disable)
    for (u32 n = 0; n < 11; n++)
        put(n, argument(ctx, n));
"""


@pytest.mark.parametrize("look", [BY_NAME, AT_RUN_TIME], ids=["by name", "at run time"])
@pytest.mark.parametrize("find", [elf.probe_points, at_entry], ids=["in the stub", "at the entry"])
def test_all_eleven_of_a_launch(find: Find, look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bcc import BPF

    folder = program.probes_folder()
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(folder / "headers"))
    text = TEXT.format(arguments=(folder / "arguments.h").read_text(), look=look).encode()
    loaded = BPF(text=text)
    function = loaded.load_func(b"look", BPF.KPROBE, attach_type=syscalls.TRACE_UPROBE_MULTI)
    fd = os.open(REAL_LIBCUDA, os.O_RDONLY)
    point = find(fd, {"cuLaunchKernel"})["cuLaunchKernel"]
    link = syscalls.link_uprobe_multi(
        function.fd, f"/proc/self/fd/{fd}".encode(), [point.offset], [], returns=False
    )
    try:
        expected = [0x1111_2222_0000_0000 + n for n in range(11)]
        cuda = ctypes.CDLL(REAL_LIBCUDA)
        assert cuda.cuLaunchKernel(*(ctypes.c_uint64(n) for n in expected)) != 0
    finally:
        os.close(link)
        os.close(fd)
    rows = {key.value: value.value for key, value in loaded[b"seen"].items()}
    assert [rows[n] for n in range(11)] == expected
