"""What stands before the pages: the web configuration of the moment, read again when it changes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpubpf.errors import UsageError
from gpubpf.model import Reading
from gpubpf.web.auth import Bucket, Users
from gpubpf.web.config import WebConfig, contents, read

if TYPE_CHECKING:
    import ssl

LOOK = 1.0  # seconds between two looks whether a file has changed

Stamp = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a connection from its first byte on."""

    config: WebConfig
    users: Users
    bucket: Bucket
    context: ssl.SSLContext | None

    def admits(self, connection: ssl.SSLSocket) -> bool:
        """Whether a client may speak at all, after the handshake."""
        from gpubpf.web.tls import has_san

        return self.config.tls is None or has_san(connection, self.config.tls.client_sans)


class Gate:
    """By any thread. Without a file everybody may pass.

    A file that has become wrong (or a certificate without its key, between two writes) changes
    nothing: what was there before stays, `problem` says why, and so does a line in the log.
    """

    def __init__(
        self,
        path: str | None,
        say: Callable[[str], None] = lambda line: print(
            f"gpubpf: {line}", file=sys.stderr, flush=True
        ),
    ) -> None:
        """Raises UsageError."""
        self.problem: str | None = None
        self._path = path
        self._say = say
        self._lock = threading.Lock()
        self._files: dict[str, Stamp] = {}
        self._looked = time.monotonic()
        self._rules = Rules(WebConfig(), Users({}, lambda *_: False), Bucket(0, 0), None)
        if path:
            self._rules = self._load(path)

    def reading(self, at: float) -> Reading[None] | None:
        """Whether the file is what holds; None: there is none."""
        return Reading("web_config", at, 0.0, error=self.problem) if self._path else None

    def rules(self) -> Rules:
        """Those of now."""
        path, now = self._path, time.monotonic()
        if path and now - self._looked >= LOOK and self._lock.acquire(blocking=False):
            try:
                self._looked = now
                if any(_stamp(name) != stamp for name, stamp in self._files.items()):
                    self._reload(path)
            finally:
                self._lock.release()
        return self._rules

    def _reload(self, path: str) -> None:
        try:
            self._rules = self._load(path)
        except Exception as error:  # the boundary: no file ends the agent
            text = str(error) if isinstance(error, UsageError) else f"--web-config: {error!r}"
            self.problem = text
            self._say(f"{text}; what it said before stays")
        else:
            self._say(f"--web-config {path}: read again")
            self.problem = None

    def _load(self, path: str) -> Rules:
        files: dict[str, Stamp] = {}
        self._files = files  # also where it fails: the next change is tried

        def reader(name: str) -> bytes:
            files[name] = _stamp(name)
            return contents(name)

        config = read(path, reader)
        before = self._rules.config
        for name in ("tls", "users"):  # an empty file, as in the middle of a write, opens nothing
            if getattr(before, name) and not getattr(config, name):
                raise UsageError(
                    f"--web-config {path} has no {name} any more: restart to do without"
                )
        context: Any = None
        if config.tls is not None:
            from gpubpf.web.tls import context as make  # ssl: only who has TLS pays for it

            try:
                context = make(config.tls)
            except (ValueError, OSError) as error:
                raise UsageError(f"--web-config {path}: {error}") from None
        users = self._rules.users if config.users == before.users else _users(config)
        same = (config.interval, config.burst) == (before.interval, before.burst)
        bucket = self._rules.bucket if same else Bucket(config.interval, config.burst)
        return Rules(config, users, bucket, context)


def _users(config: WebConfig) -> Users:
    try:
        return Users(config.users)
    except ImportError:
        raise UsageError(
            "--web-config with users needs bcrypt: pip install 'gpubpf[web]'"
        ) from None


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)  # through links: Kubernetes changes a Secret by a link
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
