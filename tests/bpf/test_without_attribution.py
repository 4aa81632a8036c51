"""--no-attribution: launches are counted without a return probe anywhere, on no GPU."""

from __future__ import annotations

import os
from pathlib import Path

from gpubpf.bpf import attach
from gpubpf.bpf.load import load
from gpubpf.symbols import chosen
from tests.bpf.probing import Probing, own_node
from tests.fakegpu.programs import run
from tests.fakegpu.small_programs import START, lines


def test_launches_without_returns(tmp_path: Path) -> None:
    symbols = chosen(("launch",), attribution=False)
    loaded = load(("launch",), attribution=False)
    try:
        assert not [name for name in loaded.programs if name.endswith("_return")]
        assert {symbol.group for symbol in symbols} == {"launch"}
        with own_node(tmp_path, 2) as node:
            fd = os.open(node.library, os.O_RDONLY)
            made = attach.attach(loaded, symbols, fd, str(node.library))
            os.close(fd)
            try:
                result = run(node, lines(START + "7 x 0 cuLaunchKernel 1 3"))
                launched = node.process(result.pid).counts.activity[0].launches
                probes = Probing(loaded, symbols)
                assert probes.devices_of(result.pid)[None]["kernel_launches"] == [launched]
                assert probes.total().calls == {"cuLaunchKernel": launched}
            finally:
                attach.detach(made.links)
    finally:
        loaded.close()
