"""gpubpf.exporter: clients that are slow, many, or elsewhere; addresses that can't be had."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import cast

import pytest

from gpubpf.config import Options
from gpubpf.errors import ListenError
from gpubpf.exporter import MOST_REQUESTS, Server
from gpubpf.monitor import Monitor
from gpubpf.web.server import MOST_CONNECTIONS
from tests.unit.test_exporter import StandIn, Start, ask, monitor, start

__all__ = ["monitor", "start"]  # fixtures


def test_one_connection_takes_many_requests(start: Start) -> None:
    connection = http.client.HTTPConnection(*start().address, timeout=30)
    connection.connect()
    ours = connection.sock.getsockname()
    for path, status in (("/metrics", 200), ("/nothing", 404), ("/healthz", 200), ("/", 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
        assert connection.sock.getsockname() == ours
    connection.close()


def test_slow_clients_do_not_hold_others(start: Start) -> None:
    server = start()
    slow = [socket.create_connection(server.address, timeout=30) for _ in range(2 * MOST_REQUESTS)]
    for index, client in enumerate(slow):
        client.sendall((b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: a\r\n")[index % 3])
    assert ask(server, "/metrics")[0] == 200
    # Nor is one of them forgotten.
    slow[1].sendall(b"ics HTTP/1.1\r\n\r\n")
    assert slow[1].recv(12) == b"HTTP/1.1 200"
    for client in slow:
        client.close()
    assert ask(server, "/metrics")[0] == 200


def test_a_client_that_goes_away_is_its_own_affair(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    server = start()
    for _ in range(20):
        with socket.create_connection(server.address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert ask(server, "/metrics")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_more_requests_than_there_are_slots(start: Start, monitor: StandIn) -> None:
    server = start()
    monitor.gate.clear()
    statuses: list[int] = []
    clients = [
        threading.Thread(target=lambda: statuses.append(ask(server, "/readyz")[0]))
        for _ in range(MOST_REQUESTS)
    ]
    for client in clients:
        client.start()
    for _ in clients:
        assert monitor.asked.acquire(timeout=30)  # it is being answered now
    status, headers, _ = ask(server, "/metrics")
    assert status == 503
    assert headers["Connection"] == "close"
    monitor.gate.set()
    for client in clients:
        client.join(30)
    assert statuses == [200] * MOST_REQUESTS
    for _ in range(2 * MOST_REQUESTS):  # the slots were given back
        assert ask(server, "/readyz")[0] == 200


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /metrics HTTP/1.1\r\nHost: a\r\n"])
def test_more_silent_clients_than_there_are_connections(start: Start, sent: bytes) -> None:
    server = start()
    with contextlib.ExitStack() as clients:
        silent = []
        for _ in range(2 * MOST_CONNECTIONS):
            client = clients.enter_context(socket.create_connection(server.address, timeout=30))
            client.sendall(sent)
            silent.append(client)
        assert ask(server, "/metrics")[0] == 200
        assert ask(server, "/healthz")[0] == 200
        # The newest one kept its place.
        silent[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"[len(sent) :])
        assert silent[-1].recv(12) == b"HTTP/1.1 200"
        # Those that waited longest went, and half a request was not answered.
        for client in silent[: MOST_CONNECTIONS - 1]:
            assert _is_closed(client)


def test_a_client_that_is_being_answered_keeps_its_place(start: Start, monitor: StandIn) -> None:
    server = start()
    monitor.gate.clear()
    with contextlib.ExitStack() as clients:

        def connect() -> socket.socket:
            return clients.enter_context(socket.create_connection(server.address, timeout=30))

        asking = connect()
        asking.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert monitor.asked.acquire(timeout=30)
        silent = [connect() for _ in range(2 * MOST_CONNECTIONS)]
        assert _is_closed(silent[0])
        monitor.gate.set()
        assert asking.recv(12) == b"HTTP/1.1 200"


def test_when_all_are_being_answered_the_next_is_closed(start: Start, monitor: StandIn) -> None:
    server = start()
    monitor.gate.clear()
    with contextlib.ExitStack() as clients:
        asking = []
        for _ in range(MOST_CONNECTIONS):  # /healthz: it takes no slot
            client = clients.enter_context(socket.create_connection(server.address, timeout=30))
            client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert monitor.asked.acquire(timeout=30)
            asking.append(client)
        with socket.create_connection(server.address, timeout=30) as late:
            assert _is_closed(late)
        monitor.gate.set()
        for client in asking:
            assert client.recv(12) == b"HTTP/1.1 200"


def test_no_thread_to_be_had(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        for _ in range(MOST_CONNECTIONS + 1):
            with socket.create_connection(server.address, timeout=30) as client:
                assert _is_closed(client)
    assert server._http._waiting == {}
    for _ in range(MOST_CONNECTIONS):  # the places were given back
        assert server._http.connections.acquire(timeout=30)
    for _ in range(MOST_CONNECTIONS):
        server._http.connections.release()
    assert ask(server, "/metrics")[0] == 200


def _is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_taken_port(start: Start) -> None:
    _, port = start().address
    with pytest.raises(ListenError) as caught:
        Server(("127.0.0.1", port), cast(Monitor, StandIn(None)), Options())
    assert str(caught.value) == (
        f"can't listen on 127.0.0.1:{port}: Address already in use; "
        "choose another address with --listen"
    )
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "::2"])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(ListenError, match=r"can't listen on .*; choose another") as caught:
        Server((host, 0), cast(Monitor, StandIn(None)), Options())
    assert "\n" not in str(caught.value)


def test_ipv6_and_every_interface(start: Start) -> None:
    six = start("::1")
    assert six.address[0] == "::1"
    assert ask(six, "/metrics")[0] == 200
    everywhere = start("")
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, everywhere.address[1]), timeout=30) as client:
            client.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"


def test_a_port_is_free_again_after_a_stop() -> None:
    monitor = cast(Monitor, StandIn(None))
    server = Server(("127.0.0.1", 0), monitor, Options())
    server.start()
    assert ask(server, "/healthz")[0] == 200
    server.stop()
    again = Server(server.address, monitor, Options())
    again.stop()  # never started
