"""`gpubpf serve`: the agent. Serves /metrics until it is told to stop."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from gpubpf.cli import release, table
from gpubpf.config import Options
from gpubpf.errors import GpubpfError, ListenError
from gpubpf.model import Snapshot
from gpubpf.notify import Notify
from gpubpf.stop import Stop

if TYPE_CHECKING:
    from gpubpf.control import Command, Control
    from gpubpf.monitor import Monitor

NAME = "serve"
HELP = "watch this node and serve its metrics to Prometheus"


def details() -> str:
    return ""


def run(options: Options) -> int:
    """Serves until SIGTERM, SIGINT or SIGHUP. Raises GpubpfError when it can't start."""
    from gpubpf.control import Requests
    from gpubpf.exporter import Server
    from gpubpf.monitor import Monitor

    stop = Stop()
    notify = Notify(os.environ)
    requests = Requests(stop.wake)
    requests.install({signal.SIGUSR1: "release", signal.SIGUSR2: "resume"})
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    monitor = Monitor(options)
    server = Server(options.listen, monitor, options)  # first: a taken port is known at once
    monitor.others.append(server.gate.reading)
    control = listen(options, monitor, stop)

    def woken() -> None:
        notify.alive()
        command = requests.take()
        if command is not None:
            print(f"gpubpf: {obey(command, options, monitor)}", file=sys.stderr, flush=True)

    try:
        server.start()
        monitor.open()
        if control is not None:
            control.start()  # before that there is nothing to let go of
        if not stop.is_set():
            snapshot = monitor.step()
            line = ready(server.address, options, snapshot, monitor.notes, server.scheme)
            print(f"gpubpf: {line}", file=sys.stderr, flush=True)
            notify.ready(line)
        monitor.run(stop, woken)
    except GpubpfError:
        if not stop.is_set():  # Ctrl-C ends the loader, too: that is no failure
            raise
    finally:
        server.stop()
        if control is not None:
            control.stop()
        monitor.close()
    print("gpubpf: stopped; nothing is left attached", file=sys.stderr, flush=True)
    return 0


class _Told:
    """What is asked by the socket: done, said in the agent's log, and on the page at once."""

    def __init__(self, monitor: Monitor, stop: Stop) -> None:
        self._monitor = monitor
        self._stop = stop

    def release(self, seconds: float | None) -> str:
        said = self._monitor.release(seconds)
        return self._log(said, f"; {release.until(seconds)}")

    def resume(self) -> str:
        return self._log(self._monitor.resume(), "")

    def _log(self, said: str, more: str) -> str:
        print(f"gpubpf: {said}{more}", file=sys.stderr, flush=True)
        self._stop.wake()
        return said


def listen(options: Options, monitor: Monitor, stop: Stop) -> Control | None:
    """Where `gpubpf release` asks. The agent does without, if it has to: it serves metrics."""
    from gpubpf.control import Control

    if not options.control_socket:
        return None
    try:
        control = Control(options.control_socket, _Told(monitor, stop))
    except ListenError as error:
        monitor.notes.append(f"gpubpf release can't be used: {error}")
        return None
    return control


def obey(command: Command, options: Options, monitor: Monitor) -> str:
    """What came of a request by signal."""
    try:
        if command == "resume":
            return monitor.resume()
        seconds = options.resume_after or None
        return f"{monitor.release(seconds)}; {release.until(seconds)}"
    except GpubpfError as error:
        return str(error)
    except Exception as error:  # the boundary: no request ends the agent
        return f"it failed: {error!r}"


def ready(
    address: tuple[str, int],
    options: Options,
    snapshot: Snapshot,
    notes: list[str],
    scheme: str = "http",
) -> str:
    """The one line that says what is served, what is watched and what is missing."""
    host, port = address
    host = host if host not in ("", "::", "0.0.0.0") else "localhost"  # noqa: S104
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/metrics"
    if options.probe:
        copies = len({probe.library for probe in snapshot.attached})
        probing = f"probing {', '.join(options.probe)} in {_number(copies, 'libcuda file')}"
    else:
        probing = "probing nothing"
    parts = [f"ready: {url}", probing]
    if snapshot.devices is not None:
        parts.append(_number(len(snapshot.devices), "GPU"))
    elif not options.nvml:
        parts.append("NVML is off")
    return table.clean("; ".join(parts + notes))


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
