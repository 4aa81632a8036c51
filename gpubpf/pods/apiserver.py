"""The Kubernetes API server, as a pod asks it: metadata of one object at a time, nothing else.

Where it is and who the agent is: the environment and the files that Kubernetes gives a pod with a
service account (kubernetes.io, "Accessing the Kubernetes API from a Pod").
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

TIMEOUT = 5.0  # seconds for each part of an answer
LONGEST = 15.0  # seconds for all of it
MOST_BYTES = 2 << 20  # of an answer: etcd keeps no object of more than 1.5 MiB

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750

# "Receiving resources as … metadata only" of kubernetes.io, "Kubernetes API Concepts".
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class ApiError(Exception):
    """No answer now: a line for a person."""


class UnreachableError(ApiError):
    """Nor would another question have one."""


class RefusedError(ApiError):
    """The server says that the agent may not ask this."""


class ApiServer:
    """One thread uses it. `close` ends its connection, and the next question begins another."""

    def __init__(self, account: str, environ: Mapping[str, str]) -> None:
        self._account = account
        self._host = environ.get("KUBERNETES_SERVICE_HOST", "")
        self._port = environ.get("KUBERNETES_SERVICE_PORT", "443")
        self._connection: http.client.HTTPSConnection | None = None
        self._began: float | None = (
            None  # the question that is being asked, CLOCK_MONOTONIC seconds
        )

    def missing(self) -> str | None:
        """What keeps it from asking at all: a line for a person. Asks nothing."""
        try:
            self._connect()
            self._token()
        except (OSError, ValueError) as error:
            return f"{self._where()}: {_why(error)}"
        return None

    def metadata(self, path: str) -> dict[str, Any] | None:
        """The `metadata` of the object there; None where there is none. Raises ApiError."""
        self._began = time.monotonic()
        try:
            return self._metadata(path)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UnreachableError(f"{self._where()}: {_why(error)}") from error
        except (ValueError, RecursionError) as error:
            self.close()
            raise ApiError(f"{self._where()}: {_why(error)}") from error
        finally:
            self._began = None

    def watch(self, now: float) -> None:
        """Ends a question that takes too long as a whole, though each part of its answer comes in
        time. By any thread."""
        began, connection = self._began, self._connection
        if began is not None and now - began > LONGEST and connection is not None:
            with contextlib.suppress(OSError, AttributeError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _where(self) -> str:
        return f"the API server {self._host}:{self._port}" if self._host else "the API server"

    def _metadata(self, path: str) -> dict[str, Any] | None:
        if self._connection is None:
            self._connection = self._connect()
        headers = {"Accept": _METADATA, "Authorization": f"Bearer {self._token()}"}
        self._connection.request("GET", path, headers=headers)
        response = self._connection.getresponse()
        body = _read(response, time.monotonic() + TIMEOUT)
        if response.status == 404:
            return None
        if response.status in (401, 403):
            raise RefusedError(f"{self._where()} answers {response.status} to GET {path}")
        if response.status != 200:
            raise ApiError(f"{self._where()} answers {response.status} to GET {path}")
        metadata = json.loads(body)
        metadata = metadata.get("metadata") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict):
            raise ValueError("an answer without metadata")
        return metadata

    def _token(self) -> str:
        """As it is now: kubelet renews it."""
        with open(f"{self._account}/token", encoding="latin-1") as file:
            token = file.read(65536).strip()
        if not _TOKEN.fullmatch(token):  # what http.client says of it would have it in it
            raise ValueError(f"{self._account}/token holds no token")
        return token

    def _connect(self) -> http.client.HTTPSConnection:
        if not self._host:
            raise ValueError("KUBERNETES_SERVICE_HOST isn't set; is this a pod?")
        # Not ssl.create_default_context: it takes an empty file for the public CAs.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with open(f"{self._account}/ca.crt", encoding="ascii") as file:
            context.load_verify_locations(cadata=file.read(1 << 20))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(
            self._host, int(self._port), timeout=TIMEOUT, context=context
        )


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"an answer of more than {MOST_BYTES >> 20} MiB")
        if time.monotonic() > until:
            raise TimeoutError(f"no whole answer in {TIMEOUT:g} s")
    response.close()  # of itself it ends only after read(), which may wait for more than `until`
    return b"".join(parts)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: no such file; the pod needs a service account with its token"
    if isinstance(error, RecursionError | UnicodeError):
        return "an answer that can't be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def path_of(api_version: str, kind: str, namespace: str, name: str) -> str:
    """Of an object in a namespace. The plural is guessed as Kubernetes itself does where it must
    (apimachinery, meta.UnsafeGuessKindToResource())."""
    prefix = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    singular = kind.lower()
    if singular.endswith("s"):
        plural = singular + "es"
    elif singular.endswith("y"):
        plural = singular[:-1] + "ies"
    else:
        plural = singular + "s"
    return f"{prefix}/namespaces/{namespace}/{plural}/{name}"
