"""The server behind a web configuration, as clients see it: TLS, users, limits, and changes."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import bcrypt
import pytest
import trustme

from gpubpf.config import Options
from gpubpf.errors import UsageError
from gpubpf.exporter import Server
from gpubpf.monitor import Monitor
from gpubpf.web import gate
from gpubpf.web.auth import MOST_WAITING, Bucket, BusyError, Users
from gpubpf.web.gate import Gate
from gpubpf.web.server import MOST_CONNECTIONS
from tests.conftest import eventually
from tests.unit.test_exporter import StandIn, snapshot

Ask = Callable[..., tuple[int, dict[str, str], bytes]]
PAGES = ("/", "/metrics", "/healthz", "/readyz", "/nothing")


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(text: str, **options: bool) -> Server:
        path = tmp_path / "web.yml"
        path.write_text(text)
        monitor = cast(Monitor, StandIn(snapshot()))
        given = Options(web_config=str(path), **options)  # type: ignore[arg-type]
        server = Server(("127.0.0.1", 0), monitor, given)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def tls(tmp_path: Path, authority: trustme.CA) -> str:
    """The lines of a configuration for a server of this authority."""
    write_pair(tmp_path, authority)
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    return "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


def write_pair(directory: Path, authority: trustme.CA) -> None:
    pair = authority.issue_cert("127.0.0.1")
    (directory / "server.key").write_bytes(pair.private_key_pem.bytes())
    (directory / "server.crt").write_bytes(pair.cert_chain_pems[0].bytes())


def trusting(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A client's; with a certificate of its own if it has names."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if names:
        authority.issue_cert(*names).configure_cert(context)
    return context


def ask(
    server: Server,
    path: str = "/metrics",
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
    method: str = "GET",
) -> tuple[int, dict[str, str], bytes]:
    host, port = server.address
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection(host, port, timeout=20)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=20, context=context)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


# --- users --------------------------------------------------------------------------------------


def test_without_a_user_nothing_is_seen(start: Callable[..., Server]) -> None:
    server = start(f"basic_auth_users: {{alice: {hashed('secret')}}}")
    for method in ("GET", "HEAD", "POST"):
        for path in PAGES:
            status, headers, body = ask(server, path, method=method)
            assert status == 401
            assert headers["WWW-Authenticate"].startswith("Basic ")
            assert body in (b"unauthorized\n", b"")
            assert "/" not in headers["Server"]  # no version
    for path in ("/", "/metrics", "/healthz", "/readyz"):
        assert ask(server, path, basic("alice", "secret"))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        basic("alice", "wrong"),
        basic("alice", ""),
        basic("bob", "secret"),
        basic("", "secret"),
        basic("alice", "secret" + "x" * 200),
        basic("alice", "secret\0"),
        {"Authorization": "Basic"},
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic " + base64.b64encode(b"alice").decode()},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:secret").decode()},
        {"Authorization": "Bearer secret"},
        {"Authorization": basic("alice", "secret")["Authorization"].replace("Basic", "Digest")},
    ],
)
def test_who_is_no_user(start: Callable[..., Server], headers: dict[str, str]) -> None:
    server = start(f"basic_auth_users: {{alice: {hashed('secret')}}}")
    assert ask(server, "/metrics", headers)[0] == 401


def test_open_health(start: Callable[..., Server]) -> None:
    server = start(f"basic_auth_users: {{alice: {hashed('secret')}}}", open_health=True)
    assert [ask(server, path)[0] for path in PAGES] == [401, 401, 200, 200, 401]


def test_headers(start: Callable[..., Server]) -> None:
    server = start("http_server_config: {headers: {X-Frame-Options: deny}}")
    headers = ask(server)[1]
    assert headers["X-Frame-Options"] == "deny"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_right_password_is_looked_at_once() -> None:
    looked: list[bytes] = []

    def check(password: bytes, hashed: bytes) -> bool:
        looked.append(password)
        return password == hashed

    users = Users({"a": b"x", "b": b"x"}, check, lambda _: None)
    for _ in range(3):
        assert users.allow(basic("a", "x")["Authorization"])
    assert looked == [b"x"]
    assert users.allow(basic("b", "x")["Authorization"])
    assert not users.allow(basic("a", "y")["Authorization"])
    assert not users.allow(basic("a", "y")["Authorization"])
    assert looked == [b"x", b"x", b"y", b"y"]


def test_guessing_is_slow_and_keeps_no_user_out() -> None:
    """One password at a time; those who are known pass meanwhile; most guesses are sent away."""
    release, rests = threading.Event(), list[float]()

    def check(password: bytes, _: bytes) -> bool:
        if password != b"right":
            release.wait(30)
        return password == b"right"

    users = Users({"a": b"h"}, check, rests.append)
    assert users.allow(basic("a", "right")["Authorization"])
    busy, wrong = threading.Semaphore(0), threading.Semaphore(0)

    def guess(number: int) -> None:
        try:
            assert not users.allow(basic("a", f"guess{number}")["Authorization"])
            wrong.release()
        except BusyError:
            busy.release()

    threads = [threading.Thread(target=guess, args=(n,)) for n in range(MOST_WAITING + 3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert busy.acquire(timeout=10)
    assert users.allow(basic("a", "right")["Authorization"])
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(rests) == MOST_WAITING
    assert all(rest > 0 for rest in rests[:1])


def test_a_bucket() -> None:
    now = [0.0]
    bucket = Bucket(2.0, 3, lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 2.0
    assert [bucket.take() for _ in range(2)] == [True, False]
    now[0] = 1000.0
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    assert all(Bucket(0, 0).take() for _ in range(100))


def test_a_limit_on_requests(start: Callable[..., Server]) -> None:
    server = start("rate_limit: {interval: 1h, burst: 2}")
    assert [ask(server)[0] for _ in range(3)] == [200, 200, 429]


# --- TLS ----------------------------------------------------------------------------------------


def test_tls(start: Callable[..., Server], tls: str, authority: trustme.CA) -> None:
    server = start(tls)
    assert server.scheme == "https"
    assert ask(server, context=trusting(authority))[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, context=trusting(trustme.CA()))
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(server)  # plain
    assert ask(server, context=trusting(authority))[0] == 200


def test_a_connection_serves_many_requests(
    start: Callable[..., Server], tls: str, authority: trustme.CA
) -> None:
    host, port = start(tls).address
    context = trusting(authority)
    connection = http.client.HTTPSConnection(host, port, timeout=20, context=context)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("GET", "/metrics")
            assert connection.getresponse().read()
        assert connection.sock is not None


@pytest.mark.parametrize(
    ("more", "names", "passes"),
    [
        ("", (), False),
        ("", ("prometheus.example",), True),
        ("\n  client_allowed_sans: [prometheus.example]", ("prometheus.example",), True),
        ("\n  client_allowed_sans: [10.0.0.1, x]", ("10.0.0.1",), True),
        ("\n  client_allowed_sans: [other.example]", ("prometheus.example",), False),
        ("\n  client_allowed_sans: [example]", ("prometheus.example",), False),
    ],
)
def test_clients_with_certificates(
    start: Callable[..., Server],
    tls: str,
    authority: trustme.CA,
    more: str,
    names: tuple[str, ...],
    passes: bool,
) -> None:
    auth = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem"
    server = start(tls + auth + more)
    if passes:
        assert ask(server, context=trusting(authority, *names))[0] == 200
    else:
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(server, context=trusting(authority, *names))
    stranger = trusting(authority)
    trustme.CA().issue_cert("prometheus.example", "10.0.0.1").configure_cert(stranger)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(server, context=stranger)


def test_a_certificate_if_there_is_one(
    start: Callable[..., Server], tls: str, authority: trustme.CA
) -> None:
    auth = "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem"
    server = start(tls + auth)
    assert ask(server, context=trusting(authority))[0] == 200
    assert ask(server, context=trusting(authority, "a.example"))[0] == 200
    stranger = trusting(authority)
    trustme.CA().issue_cert("a.example").configure_cert(stranger)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(server, context=stranger)


def test_old_tls_is_refused(start: Callable[..., Server], tls: str, authority: trustme.CA) -> None:
    server = start(tls + "  min_version: TLS13")
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        ask(server, context=context)
    assert ask(server, context=trusting(authority))[0] == 200


def test_who_never_shakes_hands_holds_nobody(
    start: Callable[..., Server], tls: str, authority: trustme.CA
) -> None:
    """More silent connections than there is room for: a scrape passes all the same."""
    server = start(tls)
    with contextlib.ExitStack() as silent:
        for _ in range(MOST_CONNECTIONS + 10):
            silent.enter_context(socket.create_connection(server.address, timeout=20))
        assert ask(server, context=trusting(authority))[0] == 200
    eventually(lambda: threading.active_count() < 30, bool)
    assert ask(server, context=trusting(authority))[0] == 200


def test_both(start: Callable[..., Server], tls: str, authority: trustme.CA) -> None:
    server = start(f"{tls}basic_auth_users: {{alice: {hashed('secret')}}}")
    context = trusting(authority)
    assert ask(server, context=context)[0] == 401
    assert ask(server, headers=basic("alice", "secret"), context=context)[0] == 200


# --- changes ------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LOOK", 0.0)


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.mark.usefixtures("at_once")
def test_a_user_who_goes(
    start: Callable[..., Server], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hashes = {name: hashed(name * 3) for name in ("alice", "bob")}
    lines = "".join(f"  {name}: {value}\n" for name, value in hashes.items())
    server = start(f"basic_auth_users:\n{lines}")
    assert ask(server, headers=basic("bob", "bob" * 3))[0] == 200
    replace(tmp_path / "web.yml", f"basic_auth_users:\n  alice: {hashes['alice']}\n")
    assert ask(server, headers=basic("bob", "bob" * 3))[0] == 401
    assert ask(server, headers=basic("alice", "alice" * 3))[0] == 200
    assert "read again" in capfd.readouterr().err


@pytest.mark.usefixtures("at_once")
def test_a_certificate_that_is_renewed(
    start: Callable[..., Server], tls: str, tmp_path: Path, authority: trustme.CA
) -> None:
    server = start(tls)
    assert ask(server, context=trusting(authority))[0] == 200
    other = trustme.CA()
    write_pair(tmp_path, other)
    assert ask(server, context=trusting(other))[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, context=trusting(authority))


@pytest.mark.usefixtures("at_once")
def test_between_the_writes_of_a_certificate_and_its_key(
    start: Callable[..., Server], tls: str, tmp_path: Path, authority: trustme.CA
) -> None:
    """What was there before goes on, and it is said; then the new pair holds."""
    server = start(tls)
    other = trustme.CA()
    (tmp_path / "new").mkdir()
    write_pair(tmp_path / "new", other)
    os.replace(tmp_path / "new" / "server.crt", tmp_path / "server.crt")
    assert ask(server, context=trusting(authority))[0] == 200
    reading = server.gate.reading(0.0)
    assert reading is not None
    assert "key values mismatch" in (reading.error or "")
    os.replace(tmp_path / "new" / "server.key", tmp_path / "server.key")
    assert ask(server, context=trusting(other))[0] == 200
    reading = server.gate.reading(0.0)
    assert reading is not None
    assert reading.error is None


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("text", ["", "basic_auth_users: {alice: x}", "nonsense: [", "{}", None])
def test_a_file_that_breaks_opens_nothing(
    start: Callable[..., Server], tls: str, tmp_path: Path, authority: trustme.CA, text: str | None
) -> None:
    server = start(f"{tls}basic_auth_users: {{alice: {hashed('secret')}}}")
    if text is None:
        (tmp_path / "web.yml").unlink()
    else:
        replace(tmp_path / "web.yml", text)
    context = trusting(authority)
    for _ in range(3):
        assert ask(server, context=context)[0] == 401
    assert ask(server, headers=basic("alice", "secret"), context=context)[0] == 200
    reading = server.gate.reading(0.0)
    assert reading is not None
    assert str(tmp_path / "web.yml") in (reading.error or "")


def test_it_looks_only_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "web.yml").write_text("rate_limit: {interval: 1h, burst: 1}")
    now = Gate(str(tmp_path / "web.yml"))
    replace(tmp_path / "web.yml", "rate_limit: {interval: 1h, burst: 2}")
    assert now.rules().config.burst == 1
    now._looked = time.monotonic() - gate.LOOK
    assert now.rules().config.burst == 2


def test_without_a_file_everybody_may_ask() -> None:
    assert Gate(None).reading(0.0) is None
    assert not Gate(None).rules().users


def test_a_file_that_is_wrong_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--web-config .*none.yml: No such file"):
        Gate(str(tmp_path / "none.yml"))
