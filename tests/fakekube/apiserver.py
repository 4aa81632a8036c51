"""An API server: metadata of objects over TLS, for who has the token."""

from __future__ import annotations

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import trustme


class FakeApiServer:
    """`objects`: path -> metadata, an int: the status that is answered, or bytes: the body."""

    def __init__(self, directory: Path) -> None:
        self.objects: dict[str, dict[str, Any] | int | bytes] = {}
        self.asked: list[str] = []
        self.seconds = 0.0  # that an answer takes
        self.drip = 0.0  # seconds between two bytes of an answer without end
        self.token = "first-token"
        self.account = directory / "serviceaccount"
        self.account.mkdir()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.account / "ca.crt"))
        self.renew(self.token)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def environment(self) -> dict[str, str]:
        port = str(self._server.server_address[1])
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}

    def renew(self, token: str) -> None:
        """As kubelet does from time to time."""
        self.token = token
        (self.account / "token").write_text(token)

    def pod(self, namespace: str, name: str, uid: str, *owners: Any, **labels: str) -> None:
        """`owners`: (apiVersion, kind, name, uid), each the controller of the one before it."""
        self._put("v1", "pods", namespace, name, uid, owners[:1], labels)
        for at, (version, kind, owner, owner_uid) in enumerate(owners):
            plural = kind.lower() + "s"
            self._put(version, plural, namespace, owner, owner_uid, owners[at + 1 : at + 2], {})

    def _put(
        self,
        version: str,
        plural: str,
        namespace: str,
        name: str,
        uid: str,
        owners: tuple[Any, ...],
        labels: dict[str, str],
    ) -> None:
        prefix = "/apis/" if "/" in version else "/api/"
        keys = ("apiVersion", "kind", "name", "uid")
        references = [{**dict(zip(keys, o, strict=True)), "controller": True} for o in owners]
        self.objects[f"{prefix}{version}/namespaces/{namespace}/{plural}/{name}"] = {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "labels": labels,
            "ownerReferences": [{"kind": "Other", "name": "no-controller"}, *references],
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.asked.append(self.path)
                while api.drip:  # a header that never ends
                    self.wfile.write(b"X")
                    time.sleep(api.drip)
                time.sleep(api.seconds)
                found = api.objects.get(self.path, 404)
                if self.headers["Authorization"] != f"Bearer {api.token}":
                    found = 401
                assert "as=PartialObjectMetadata" in self.headers["Accept"]
                body = b"{}"
                if isinstance(found, dict):
                    kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
                    body = json.dumps({**kind, "metadata": found}).encode()
                elif isinstance(found, bytes):
                    body = found
                self.send_response(found if isinstance(found, int) else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        return Handler

    def __enter__(self) -> FakeApiServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
