"""`gpubpf serve`: the agent. Serves /metrics until it is told to stop."""

from __future__ import annotations

import signal
import sys

from gpubpf.cli import table
from gpubpf.config import Options
from gpubpf.errors import GpubpfError
from gpubpf.model import Snapshot
from gpubpf.stop import Stop

NAME = "serve"
HELP = "watch this node and serve its metrics to Prometheus"


def details() -> str:
    return ""


def run(options: Options) -> int:
    """Serves until SIGTERM or SIGINT. Raises GpubpfError when it can't start."""
    from gpubpf.exporter import Server
    from gpubpf.monitor import Monitor

    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    monitor = Monitor(options)
    server = Server(options.listen, monitor, options)  # first: a taken port is known at once
    try:
        server.start()
        monitor.open()
        if not stop.is_set():
            snapshot = monitor.step()
            line = ready(server.address, options, snapshot, monitor.notes)
            print(f"gpubpf: {line}", file=sys.stderr, flush=True)
        monitor.run(stop)
    except GpubpfError:
        if not stop.is_set():  # Ctrl-C ends the loader, too: that is no failure
            raise
    finally:
        server.stop()
        monitor.close()
    print("gpubpf: stopped; nothing is left attached", file=sys.stderr, flush=True)
    return 0


def ready(address: tuple[str, int], options: Options, snapshot: Snapshot, notes: list[str]) -> str:
    """The one line that says what is served, what is watched and what is missing."""
    host, port = address[:2]
    host = host if host not in ("", "::", "0.0.0.0") else "localhost"  # noqa: S104
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
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
