"""`gpubpf top`: what each process did with the GPUs, in a span of seconds or again and again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from gpubpf.cli import table
from gpubpf.config import Options

if TYPE_CHECKING:
    from gpubpf.cli.activity import Activity
    from gpubpf.monitor import Monitor

NAME = "top"
HELP = "show what each process asks of the GPUs, now"

_DETAILS = """\
Columns are per second of the span; - is what is not known. A process on several
GPUs has a line for each, its calls on the first. * marks those that ended.
"""

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def details() -> str:
    from gpubpf.cli.forms import JSON_HELP

    return f"{_DETAILS}\n{JSON_HELP}"


def run(options: Options) -> int:
    """Prints one span, or refreshes until the person quits. Raises GpubpfError."""
    from gpubpf.cli.forms import as_json, as_text
    from gpubpf.monitor import Monitor

    monitor = Monitor(as_often(options))
    monitor.open()
    try:
        if options.format == "json":
            print(as_json(watch(monitor, options), options.probe, monitor.notes))
        elif options.once or not sys.stdout.isatty():
            activity = watch(monitor, options)
            print("\n".join(as_text(activity, options.probe, monitor.notes, table.width())))
        else:
            refresh(monitor, options)
    finally:
        monitor.close()
    return 0


def as_often(options: Options) -> Options:
    """Whoever looks at a screen wants the figures of now."""
    often = options.interval
    return replace(
        options, compute_interval=often, memory_interval=often, heat_interval=max(often, 1.0)
    )


def watch(monitor: Monitor, options: Options) -> Activity:
    """What happens in the next `options.duration` seconds."""
    from gpubpf.cli.activity import Span

    span = Span(monitor.step())
    end = time.monotonic() + options.duration
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(options.interval, left))
        span.add(monitor.step())
    return span.activity()


def refresh(monitor: Monitor, options: Options) -> None:
    """Shows the last interval, again and again, until q, Ctrl-C or SIGTERM."""
    from gpubpf.cli.activity import Span
    from gpubpf.cli.forms import as_text

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves the screen in order
    with contextlib.suppress(KeyboardInterrupt), _screen():
        before = monitor.step()
        show(["counting …"])
        while not quits(options.interval):
            span = Span(before)
            before = monitor.step()
            span.add(before)
            lines = as_text(span.activity(), options.probe, monitor.notes, table.width())
            show([f"{time.strftime('%H:%M:%S')}  q quits", *lines])


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen; keys come one by one and unseen."""
    import termios
    import tty

    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = termios.tcgetattr(keys) if keys is not None else None
    try:
        if keys is not None:
            tty.setcbreak(keys)
        sys.stdout.write(_ENTER)
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)


def show(lines: list[str]) -> None:
    """As many lines as the terminal has, over those shown before."""
    room = table.height()
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more lines"]
    body = "\r\n".join(line + _REST_OF_LINE for line in lines)
    sys.stdout.write(_HOME + body + _REST_OF_SCREEN)
    sys.stdout.flush()


def quits(seconds: float) -> bool:
    """Whether q is pressed within this time."""
    import select

    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not sys.stdin.isatty():
            time.sleep(left)
        elif select.select([sys.stdin], [], [], left)[0]:
            # Not by sys.stdin: what it reads ahead select knows nothing of.
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys.lower():
                return True
    return False
