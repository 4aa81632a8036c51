"""A gRPC server that is strict about what Go's is strict about: HTTP/2's :authority.

grpc's Python server takes any; kubelet's net/http2 refuses a percent-encoded path.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import h2.config
import h2.connection
import h2.events

_HOST = re.compile(rb"[A-Za-z0-9.-]+(?::\d+)?")


@contextlib.contextmanager
def strict(path: Path, answers: Mapping[str, bytes]) -> Iterator[list[bytes]]:
    """Serves these methods; yields the authorities that were seen."""
    seen: list[bytes] = []
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), client:
                _talk(client, answers, seen)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def _talk(client: socket.socket, answers: Mapping[str, bytes], seen: list[bytes]) -> None:
    config = h2.config.H2Configuration(client_side=False, header_encoding=None)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    client.sendall(connection.data_to_send())
    while data := client.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                _answer(connection, event, answers, seen)
        client.sendall(connection.data_to_send())


def _answer(
    connection: h2.connection.H2Connection,
    event: h2.events.RequestReceived,
    answers: Mapping[str, bytes],
    seen: list[bytes],
) -> None:
    headers = {bytes(name): bytes(value) for name, value in event.headers}
    seen.append(headers[b":authority"])
    stream = event.stream_id
    if not _HOST.fullmatch(headers[b":authority"]):
        connection.send_headers(stream, [(b":status", b"400")], end_stream=True)
        return
    body = answers[headers[b":path"].decode()]
    kind = [(b":status", b"200"), (b"content-type", b"application/grpc")]
    connection.send_headers(stream, kind)
    connection.send_data(stream, b"\0" + len(body).to_bytes(4, "big") + body)
    connection.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)
