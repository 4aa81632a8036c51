"""An HTTP server whose threads are bounded, whoever connects: a place for each connection.

A connection that is slow to ask, or silent, has its place only as long as nobody else needs it; one
that is being answered keeps it. A TLS handshake takes place in the connection's own thread.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler
from typing import Any

from gpubpf.web.gate import Gate

MOST_CONNECTIONS = 128  # each has a thread; one more takes the place of who waits longest
TIMEOUT = 10.0  # seconds for a client to send its request and to take the answer
PLACE_TIMEOUT = 1.0  # seconds for a connection that was shut down to give up its place


class HttpServer(ThreadingHTTPServer):
    """Its handler says with `answers` and `waits` when a connection has its place for itself."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, listen: tuple[str, int], handler: type[BaseRequestHandler], gate: Gate
    ) -> None:
        """`listen`: host, "" for all addresses, and port, 0 for a free one. Raises OSError, and
        OverflowError for a port that can't be."""
        self.gate = gate
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, None] = {}  # not being answered; longest first
        host, port = listen
        if not host:
            self.address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        elif ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a connection. When all are taken, clients that are silent or slow to ask
        make room; only where every one is being answered is the new one closed."""
        if not self._place():
            self.shutdown_request(request)
            return
        self.waits(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # can't start new thread
            self.shutdown_request(request)
            self.connections.release()

    def _place(self) -> bool:
        if self.connections.acquire(blocking=False):
            return True
        with self._lock:  # shut down under it, so that the descriptor is still this connection's
            longest = next(iter(self._waiting), None)
            if longest is None:
                return False
            del self._waiting[longest]
            with contextlib.suppress(OSError):  # the client may have gone
                # The socket's, not TLS's, which another thread may be in; its thread reads the end.
                socket.socket.shutdown(longest, socket.SHUT_RDWR)
        return self.connections.acquire(timeout=PLACE_TIMEOUT)

    def waits(self, connection: socket.socket) -> None:
        """From now on it may have to give up its place."""
        with self._lock:
            self._waiting[connection] = None

    def answers(self, connection: socket.socket) -> bool:
        """It keeps its place until it `waits` again. False: it has lost it."""
        with self._lock:
            kept = connection in self._waiting
            self._waiting.pop(connection, None)
        return kept

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._waiting.pop(request, None)
        super().shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a handshake may take as long as its client likes."""
        rules = self.gate.rules()
        if rules.context is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(TIMEOUT)
        if not self.answers(request):
            return
        secure = rules.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        self.waits(secure)  # the place is now this socket's: it took the other's descriptor
        try:
            secure.do_handshake()
            if rules.admits(secure):
                super().finish_request(secure, client_address)
        finally:
            self.shutdown_request(secure)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6 and not self.server_address[0]:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # HTTPServer.server_bind asks the resolver for our name: nothing here needs it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is its own affair."""
