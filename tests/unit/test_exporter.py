"""gpubpf.exporter: the HTTP server as its clients see it, with a stand-in for the monitor."""

from __future__ import annotations

import gzip
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gpubpf.config import Options
from gpubpf.exporter import Server
from gpubpf.model import UNKNOWN_GPU, Device, DeviceInfo, Plane, Snapshot, Source
from gpubpf.monitor import Monitor
from gpubpf.symbols import SYMBOLS

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
HOSTILE = "<script>alert('&\"')</script>"
Answer = tuple[int, Mapping[str, str], bytes]


class Looks(dict[str, int]):
    """A Snapshot's totals, which knows how often it has been looked at: once a rendering."""

    def __init__(self) -> None:
        super().__init__({UNKNOWN_GPU: 7})
        self.lock, self.times = threading.Lock(), 0

    def items(self):  # type: ignore[no-untyped-def]
        with self.lock:
            self.times += 1
        return super().items()


class StandIn:
    """What the exporter asks of a monitor."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self.snapshot = snapshot
        self.notes: list[str] = [HOSTILE]
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Semaphore(0)

    def latest(self) -> Snapshot | None:
        self.asked.release()
        self.gate.wait(60)
        return self.snapshot

    def keep(self, snapshot: Snapshot) -> None:
        self.kept = snapshot


def snapshot() -> Snapshot:
    info = DeviceInfo(0, "GPU-0", HOSTILE, "1")
    return Snapshot(
        at=time.monotonic(),
        time=time.time(),
        functions=tuple(symbol.name for symbol in SYMBOLS),
        totals=Looks(),
        calls=0,
        errors={},
        plane=Plane((Device(info),)),
        processes=(),
        indices={"GPU-0": 0},
        sources=(Source("nvml", False, HOSTILE, 0.0),),
    )


Start = Callable[..., Server]


@pytest.fixture
def monitor() -> StandIn:
    return StandIn(snapshot())


@pytest.fixture
def start(monitor: StandIn) -> Iterator[Start]:
    servers: list[Server] = []

    def make(host: str = "127.0.0.1", port: int = 0) -> Server:
        servers.append(Server((host, port), cast(Monitor, monitor), Options()))
        servers[-1].start()
        return servers[-1]

    yield make
    monitor.gate.set()
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    """One for all tests that only look."""
    server = Server(("127.0.0.1", 0), cast(Monitor, StandIn(snapshot())), Options())
    server.start()
    yield server
    server.stop()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def ageless(body: bytes) -> list[bytes]:
    """The lines but the one that tells the page's age, which every request has of its own."""
    lines = body.split(b"\n")
    return [line for line in lines if not line.startswith(b"gpubpf_agent_snapshot_age_seconds ")]


@pytest.mark.parametrize("accept", [PROMETHEUS_2_42, PROMETHEUS_3])
def test_prometheus_gets_openmetrics(served: Server, accept: str) -> None:
    status, headers, body = ask(served, "/metrics", Accept=accept)
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; ")
    parse = openmetrics.text_string_to_metric_families
    assert len(list(parse(body.decode()))) > 10  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html", "text/plain;version=x"])
def test_others_get_the_text_format(served: Server, accept: str) -> None:
    status, headers, body = ask(served, "/metrics?x=y", Accept=accept)
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b"# EOF" not in body
    assert len(list(text_string_to_metric_families(body.decode()))) > 10


@pytest.mark.parametrize(
    ("header", "packed"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("deflate, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0.001", True),
        ("", False),
        ("identity", False),
        ("deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;\tq=0", False),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("*;q=0, gzip", True),
        ("notgzip", False),
    ],
)
def test_gzip_is_for_who_takes_it(served: Server, header: str, packed: bool) -> None:
    _, headers, body = ask(served, "/metrics", Accept_Encoding=header)
    assert headers.get("Content-Encoding", "") == ("gzip" if packed else "")
    text = gzip.decompress(body) if packed else body
    assert ageless(text) == ageless(ask(served, "/metrics", Accept_Encoding="identity")[2])


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/nothing"])
def test_head_is_get_without_the_body(served: Server, path: str) -> None:
    with socket.create_connection(served.address, timeout=30) as client:
        client.sendall(f"HEAD {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        head = client.makefile("rb").read()
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1
    status, headers, body = ask(served, path)
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert f"\r\nContent-Type: {headers['Content-Type']}\r\n".encode() in head
    assert b"\r\nContent-Length: " in head
    assert int(headers["Content-Length"]) == len(body)


def test_what_is_not_there(served: Server) -> None:
    assert ask(served, "/metric")[0] == 404
    assert ask(served, "/metrics/../etc/passwd")[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(served, "/metrics", method)[0] in (405, 501)
    assert ask(served, "/metrics")[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept-Encoding: \xff;;q=,=\r\nAccept: \xff\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=lambda request: repr(request[:60]),
)
def test_an_odd_request_gets_an_answer(served: Server, request_: bytes) -> None:
    with socket.create_connection(served.address, timeout=30) as client:
        client.sendall(request_)
        first = client.makefile("rb").readline()
    assert first.startswith((b"HTTP/1.1 ", b"<!DOCTYPE", b"<html"))  # the latter: HTTP/0.9
    assert ask(served, "/metrics")[0] == 200


def test_before_the_first_snapshot(start: Start, monitor: StandIn) -> None:
    monitor.snapshot = None
    server = start()
    assert ask(server, "/metrics")[0] == 503
    assert ask(server, "/readyz")[0] == 503
    assert ask(server, "/healthz")[0] == 200
    assert ask(server, "/")[0] == 200
    monitor.snapshot = snapshot()
    assert [ask(server, path)[0] for path in ("/metrics", "/readyz")] == [200, 200]


def test_not_healthy_when_the_loop_stands_still(start: Start, monitor: StandIn) -> None:
    server = start()
    assert ask(server, "/healthz")[::2] == (200, b"ok\n")
    monitor.snapshot = replace(snapshot(), at=time.monotonic() - 1000)
    status, _, body = ask(server, "/healthz")
    assert status == 503
    assert b"1000 s old" in body
    assert ask(server, "/metrics")[0] == 200  # whose age tells it too


def test_the_landing_page_escapes_what_others_say(served: Server) -> None:
    _, headers, body = ask(served, "/")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"<script" not in body
    assert body.count(b"&lt;script&gt;alert(&#x27;&amp;&quot;&#x27;)") == 3  # GPU, source, note
    assert b"{rows}" not in body


def test_one_rendering_a_snapshot_and_format(start: Start, monitor: StandIn) -> None:
    server = start()
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda _: ask(server, "/metrics")[2], range(24)))
        for _ in pool.map(lambda _: ask(server, "/metrics", Accept=PROMETHEUS_3), range(8)):
            pass
    assert len({tuple(ageless(body)) for body in bodies}) == 1
    assert monitor.snapshot is not None
    assert cast(Looks, monitor.snapshot.totals).times == 2
    monitor.snapshot = snapshot()
    ask(server, "/metrics")
    assert cast(Looks, monitor.snapshot.totals).times == 1
