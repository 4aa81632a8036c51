"""Who may ask: users with bcrypt-hashed passwords, and how often anybody may."""

from __future__ import annotations

import base64
import binascii
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

LONGEST_PASSWORD = 72  # bytes: all that bcrypt looks at
MOST_KNOWN = 256  # passwords that are remembered as right
MOST_WAITING = 8  # requests for their turn: others' connections are not kept by them
PATIENCE = 5.0  # seconds that a request waits for its turn
REST = 4.0  # a wrong password costs others so many times the time that it took

# Of nobody's password, at the cost that most have: a name that isn't known takes as long.
_NOBODY = b"$2b$10$" + b"." * 53


class BusyError(Exception):
    """Too many passwords are being looked at."""


class Users:
    """By any thread. bcrypt is slow by intent: one password is looked at at a time, a right one
    only once, and after a wrong one there is a rest: guessing takes a fifth of a CPU at most."""

    def __init__(
        self,
        users: Mapping[str, bytes],
        check: Callable[[bytes, bytes], bool] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._users = dict(users)
        self._check = check or _check()
        self._sleep = sleep
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(MOST_WAITING)
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._secret = os.urandom(32)

    def __bool__(self) -> bool:
        return bool(self._users)

    def allow(self, authorization: str | None) -> bool:
        """Whether the header is a user's. Raises BusyError."""
        name, password = _credentials(authorization)
        if name is None or password is None:
            return False
        hashed = self._users.get(name)
        key = self._key(name, hashed or b"", password)
        if key in self._known:
            return True
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            if not self._turn.acquire(timeout=PATIENCE):
                raise BusyError
            try:
                return key in self._known or self._is_right(key, password, hashed)
            finally:
                self._turn.release()
        finally:
            self._places.release()

    def _is_right(self, key: bytes, password: bytes, hashed: bytes | None) -> bool:
        began = time.monotonic()
        if not self._check(password, hashed or _NOBODY) or hashed is None:
            self._sleep(REST * (time.monotonic() - began))
            return False
        self._known[key] = None
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return True

    def _key(self, name: str, hashed: bytes, password: bytes) -> bytes:
        """What is remembered in place of a password; it says nothing once the process is gone."""
        import hmac  # OpenSSL: only who has users pays for it

        message = b"\0".join((name.encode("utf-8", "surrogateescape"), hashed, password))
        return hmac.digest(self._secret, message, "sha256")


def _check() -> Callable[[bytes, bytes], bool]:
    import bcrypt  # only who has users needs it

    return bcrypt.checkpw


def _credentials(authorization: str | None) -> tuple[str | None, bytes | None]:
    """Of `Basic …` (RFC 7617)."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None, None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        if not colon or len(password) > LONGEST_PASSWORD or b"\0" in password:
            return None, None
        return name.decode(), password
    except (binascii.Error, ValueError):
        return None, None


class Bucket:
    """Requests that may come: `burst` at once, one more after each `interval` (seconds; 0: all)."""

    def __init__(
        self, interval: float, burst: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = interval
        self._burst = burst
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._left = float(burst)
        self._at = monotonic()

    def take(self) -> bool:
        if not self._interval:
            return True
        with self._lock:
            now = self._monotonic()
            self._left = min(float(self._burst), self._left + (now - self._at) / self._interval)
            self._at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True
