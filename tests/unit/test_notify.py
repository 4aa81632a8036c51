from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gpubpf.notify import Notify


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told(tmp_path: Path, abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(10)
        manager.bind(f"\0{name}" if abstract else name)
        named = {"NOTIFY_SOCKET": f"@{name}" if abstract else name}
        Notify(named).alive()  # it isn't watched: nothing is said
        notify = Notify({**named, "WATCHDOG_USEC": "1000000"})
        notify.ready("ready: … 2 GPUs")
        notify.alive()
        said = [manager.recv(1000).decode() for _ in range(2)]
    assert said == ["READY=1\nSTATUS=ready: … 2 GPUs", "WATCHDOG=1"]


def test_nobody_there(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "gone"), "@gpubpf-test-gone", "x" * 200, "vsock:2:1"):
        notify = Notify({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
        notify.ready("x")
        notify.alive()


def test_a_manager_that_takes_nothing_holds_nobody(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        notify = Notify({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1"})
        for _ in range(5000):  # more than its queue holds (net.unix.max_dgram_qlen)
            notify.alive()
