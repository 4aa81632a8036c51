"""Serves the latest Snapshot over HTTP: /metrics, /healthz, /readyz and a landing page.

A request never touches a source: it is answered from the latest Snapshot, whose page is rendered
once per format, however many ask. A slow client holds one thread and nothing else.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder

from gpubpf import __version__, compat
from gpubpf.config import Options
from gpubpf.errors import ListenError
from gpubpf.model import Snapshot
from gpubpf.monitor import Monitor
from gpubpf.render import Page, Renderer
from gpubpf.view import View
from gpubpf.web.auth import BusyError
from gpubpf.web.gate import Gate
from gpubpf.web.server import TIMEOUT, HttpServer

MOST_REQUESTS = 32  # at once; more are told to come back
IDLE_TIMEOUT = 90.0  # seconds that a kept connection may be quiet
STALE_INTERVALS = 10  # not healthy when the latest snapshot is older than this many intervals


class Pages:
    """The pages of the latest Snapshot, made when first asked for."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._renderer = Renderer()
        self._hostname = compat.hostname(os.environ)
        self._snapshot: Snapshot | None = None
        self._pages: dict[bool, Page] = {}

    def page(self, snapshot: Snapshot, *, openmetrics: bool) -> Page:
        with self._lock:
            if snapshot is not self._snapshot:
                self._snapshot = snapshot
                self._pages = {}
            page = self._pages.get(openmetrics)
            if page is None:
                view = View(
                    snapshot,
                    process_metrics=self._options.process_metrics,
                    max_processes=self._options.max_processes,
                    compat=self._options.compat,
                    hostname=self._hostname,
                )
                body, series = self._renderer.page(view, openmetrics=openmetrics)
                page = Page(body, series, snapshot.at, openmetrics=openmetrics)
                self._pages[openmetrics] = page
            return page


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    server_version = "gpubpf"  # who may not pass learns no more
    sys_version = ""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # with it a page waits 40 ms for the client's delayed ACK
    wbufsize = -1  # headers and body in one write
    timeout = TIMEOUT
    _asked = False

    def handle_one_request(self) -> None:
        # Between two scrapes a kept connection is quiet for longer than a request may take.
        self.connection.settimeout(IDLE_TIMEOUT if self._asked else TIMEOUT)
        super().handle_one_request()

    def parse_request(self) -> bool:
        self._asked = True
        self.connection.settimeout(TIMEOUT)
        return super().parse_request()

    def do_GET(self) -> None:
        self._reply(self._get)

    do_HEAD = do_GET  # noqa: N815  the name is the base class's

    def _refuse(self) -> None:
        self._reply(self._not_allowed)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

    def _reply(self, answer: Callable[[], None]) -> None:
        """From here to the answer's last byte, this connection's place is its own."""
        if not self.server.answers(self.connection):  # what was read may be half a request
            self.close_connection = True
            return
        answer()
        self.wfile.flush()
        self.server.waits(self.connection)

    def _passes(self) -> bool:
        """Whether this request may be answered; if not, it is told so, and nothing else."""
        rules = self.server.gate.rules()
        if not rules.bucket.take():
            return self._turn_away(HTTPStatus.TOO_MANY_REQUESTS, "too many requests\n")
        if not rules.users:
            return True
        try:
            if rules.users.allow(self.headers.get("Authorization")):
                return True
        except BusyError:
            return self._turn_away(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once\n")
        return self._turn_away(HTTPStatus.UNAUTHORIZED, "unauthorized\n")

    def _turn_away(self, status: HTTPStatus, text: str) -> bool:
        self.close_connection = True
        self._answer(status, text)
        return False

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        healthy = self.server.open_health and path in ("/healthz", "/readyz")
        if not healthy and not self._passes():
            return
        if path == "/healthz":  # takes no slot: when scrapes have them all, the agent is not dead
            self._health()
            return
        if not self.server.slots.acquire(blocking=False):
            self.close_connection = True
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once\n")
            return
        try:
            self._route(path)
        finally:
            self.server.slots.release()

    def _not_allowed(self) -> None:
        if not self._passes():
            return
        self.close_connection = True  # its body, if it has one, is not read
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n", allow="GET, HEAD")

    def _route(self, path: str) -> None:
        if path == "/metrics":
            self._metrics()
        elif path == "/readyz":
            ready = self.server.monitor.latest() is not None
            self._say(ready, "ready" if ready else "no snapshot yet")
        elif path == "/":
            self._answer(HTTPStatus.OK, self._landing(), "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "not found; metrics are at /metrics\n")

    def _metrics(self) -> None:
        snapshot = self.server.monitor.latest()
        if snapshot is None:
            self._say(False, "no snapshot yet")
            return
        try:
            _, content_type = choose_encoder(self.headers.get("Accept", ""))
        except (TypeError, ValueError):  # a version that is no number
            content_type = CONTENT_TYPE_PLAIN_0_0_4
        openmetrics = content_type.startswith("application/openmetrics-text")
        self.server.monitor.keep(snapshot)
        page = self.server.pages.page(snapshot, openmetrics=openmetrics)
        now = time.monotonic()
        if _accepts_gzip(self.headers.get("Accept-Encoding", "")):
            body, encoding = page.gzipped(now), "gzip"
        else:
            body, encoding = page.plain(now), ""
        self._answer(HTTPStatus.OK, body, content_type, encoding)

    def _health(self) -> None:
        """Healthy while the loop turns; a GPU that fails doesn't make the agent unhealthy."""
        snapshot = self.server.monitor.latest()
        limit = max(STALE_INTERVALS * self.server.interval, 30.0)
        age = 0.0 if snapshot is None else time.monotonic() - snapshot.at
        self._say(age <= limit, "ok" if age <= limit else f"the last snapshot is {age:.0f} s old")

    def _landing(self) -> str:
        snapshot = self.server.monitor.latest()
        rows = [("version", __version__)]
        if snapshot is not None:
            devices = snapshot.devices
            rows += [
                ("GPUs", "not known" if devices is None else str(len(devices))),
                ("processes calling the driver", str(len(snapshot.processes))),
                ("probed functions", str(len({p.function for p in snapshot.attached if p.probed}))),
            ]
            rows += [(f"source {s.name}", s.error or "up") for s in snapshot.sources]
            rows += [
                (f"GPU {d.info.index}", f"{d.info.name} ({d.info.uuid})") for d in devices or ()
            ]
        rows += [("note", note) for note in self.server.monitor.notes]
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return _LANDING.replace("{rows}", cells)

    def _say(self, good: bool, text: str) -> None:
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, text + "\n")

    def _answer(
        self,
        status: HTTPStatus,
        body: str | bytes,
        content_type: str = "text/plain; charset=utf-8",
        encoding: str = "",
        allow: str = "",
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        headers = {"X-Content-Type-Options": "nosniff", **self.server.gate.rules().config.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="gpubpf", charset="UTF-8"')
        if encoding:
            self.send_header("Content-Encoding", encoding)
        if allow:
            self.send_header("Allow", allow)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its base's name
        """Silent: a scrape every few seconds is no news."""


def _accepts_gzip(header: str) -> bool:
    """By name, else by `*`; q=0 says no."""
    takes: dict[str, bool] = {}
    for part in header.lower().split(","):
        coding, *parameters = (word.strip() for word in part.split(";"))
        takes[coding] = not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", word) for word in parameters)
    return takes.get("gzip", takes.get("*", False))


class _HttpServer(HttpServer):
    """What the answers are made of."""

    def __init__(self, listen: tuple[str, int], monitor: Monitor, options: Options) -> None:
        self.monitor = monitor
        self.open_health = options.open_health
        self.interval = options.interval
        self.pages = Pages(options)
        self.slots = threading.BoundedSemaphore(MOST_REQUESTS)
        super().__init__(listen, _Handler, Gate(options.web_config))


class Server:
    """The HTTP side of `gpubpf serve`. Binds when made, serves after `start`."""

    def __init__(self, listen: tuple[str, int], monitor: Monitor, options: Options) -> None:
        """Raises ListenError."""
        try:
            self._http = _HttpServer(listen, monitor, options)
        except (OSError, OverflowError) as error:
            host, port = listen
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            reason = getattr(error, "strerror", None) or str(error)
            raise ListenError(
                f"can't listen on {where}: {reason}; choose another address with --listen"
            ) from None
        host, port = self._http.socket.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self.scheme = "http" if self.gate.rules().context is None else "https"
        self._thread = threading.Thread(target=self._http.serve_forever, name="http", daemon=True)

    @property
    def gate(self) -> Gate:
        return self._http.gate

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._http.socket.shutdown(socket.SHUT_RDWR)  # else it looks each half second
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


_LANDING = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>gpubpf</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid #ddd; padding: .3rem 1rem .3rem 0; text-align: left }
th { font-weight: 600; white-space: nowrap; vertical-align: top }
td { overflow-wrap: anywhere }
</style>
</head>
<body>
<h1>gpubpf</h1>
<p>Per-process GPU monitor. <a href="/metrics">Metrics</a> ·
<a href="/healthz">health</a> · <a href="/readyz">readiness</a></p>
<table>{rows}</table>
</body>
</html>
"""
