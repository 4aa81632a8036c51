"""Tells systemd that the agent serves, and that it lives (sd_notify(3)), where systemd asks."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping


class Notify:
    """Says nothing where the environment names no socket: gpubpf was started by something else."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # An abstract name is written with an @.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watched = "WATCHDOG_USEC" in environment

    def ready(self, status: str) -> None:
        """`status`: one line, for `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        if self._watched:
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # It must neither fail nor wait for it: who serves metrics goes on without systemd.
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as out:
            out.sendto(text.encode(), self._address)
