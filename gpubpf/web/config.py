"""The web configuration file, in the format of Prometheus's exporter-toolkit (its
docs/web-configuration.md): TLS, client certificates, users, headers, a limit on requests.

A file that works for Prometheus, node_exporter or Alertmanager works here. What Python's ssl module
can't do as Go's does is refused, and says what to write instead; it is never ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpubpf.errors import UsageError

LARGEST = 1 << 20  # bytes of the file

# Go's names (crypto/tls) of the suites of TLS 1.2 that it takes, and OpenSSL's.
CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
_OF_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
CURVES = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",  # X25519 can't be named to Python's ssl
}
VERSIONS = {"TLS12": "TLSv1_2", "TLS13": "TLSv1_3"}
"""Names of the file -> members of ssl.TLSVersion."""

NO_CERT, IF_GIVEN, VERIFY = "NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"
_CLIENTS = {
    "": NO_CERT,
    "RequestClientCert": NO_CERT,
    **{n: n for n in (NO_CERT, IF_GIVEN, VERIFY)},
}
_HEADERS: Mapping[str, tuple[str, ...]] = {  # which may be set, and to what if not to anything
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_BCRYPT = re.compile(r"\$2[abxy]\$(\d\d)\$[./A-Za-z0-9]{53}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Tls:
    """Where it is from: files, or the text itself (PEM)."""

    cert: str
    key: str
    client_ca: str = ""
    client_auth: str = NO_CERT
    client_sans: tuple[str, ...] = ()
    least: str = "TLSv1_2"
    most: str = "TLSv1_3"
    ciphers: str = ""  # OpenSSL's, in order
    prefer_own_ciphers: bool = True
    curve: str = ""


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What a file says. Secrets are in it: its repr has none."""

    tls: Tls | None = field(default=None, repr=False)
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # name -> bcrypt hash
    headers: Mapping[str, str] = field(default_factory=dict)
    interval: float = 0.0  # seconds between two requests in the long run; 0: no limit
    burst: int = 0  # requests that may come at once


class _File:
    """A mapping of the file, each key of which must be taken."""

    def __init__(self, where: str, raw: object, keys: tuple[str, ...]) -> None:
        self._where = where
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            raise ValueError(f"{where or 'the file'} is no mapping")
        for key in raw:
            if key not in keys:
                raise ValueError(f"{self._at(str(key))}: there is {', '.join(keys)}")
        self._raw = raw

    def _at(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def get(self, key: str, kind: type[Any], default: Any) -> Any:
        value = self._raw.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{self._at(key)} is no {kind.__name__}")
        return value

    def texts(self, key: str) -> list[str]:
        values = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self._at(key)} is no list of strings")
        return list(values)

    def one_of(self, key: str, known: Mapping[str, str], default: str) -> str:
        value = self.get(key, str, default)
        if value not in known:
            raise ValueError(
                f"{self._at(key)} is {value}: there is {', '.join(filter(None, known))}"
            )
        return known[value]


_TLS = (
    "cert", "key", "client_ca", "cert_file", "key_file", "client_ca_file", "client_auth_type",
    "client_allowed_sans", "min_version", "max_version", "cipher_suites",
    "prefer_server_cipher_suites", "curve_preferences",
)  # fmt: skip
_ALL = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")


def read(path: str, open_file: Callable[[str], bytes] | None = None) -> WebConfig:
    """The file at `path`, and what it names. Raises UsageError."""
    reader = open_file or contents
    try:
        import yaml  # here: only who has such a file needs it
    except ImportError:
        raise UsageError(
            "--web-config needs PyYAML and bcrypt: pip install 'gpubpf[web]'"
        ) from None
    try:
        return _parse(yaml.safe_load(reader(path)), os.path.dirname(path), reader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or "no YAML"
        raise UsageError(f"--web-config {path}{line}: {what}") from None
    except OSError as error:
        named = f": {error.filename}" if error.filename not in (None, path) else ""
        raise UsageError(f"--web-config {path}{named}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--web-config {path}: {error}") from None


def contents(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST >> 20} MiB")
    return data


def _parse(raw: object, directory: str, reader: Callable[[str], bytes]) -> WebConfig:
    file = _File("", raw, _ALL)
    rate = _File("rate_limit", file.get("rate_limit", dict, {}), ("interval", "burst"))
    http = _File(
        "http_server_config", file.get("http_server_config", dict, {}), ("http2", "headers")
    )
    http.get("http2", bool, True)  # it is offered nowhere, and clients do without
    tls = file.get("tls_server_config", dict, {})
    return WebConfig(
        _tls(_File("tls_server_config", tls, _TLS), directory, reader) if tls else None,
        _users(file.get("basic_auth_users", dict, {})),
        _headers(http.get("headers", dict, {})),
        _seconds(rate.get("interval", object, 0)),
        rate.get("burst", int, 0),
    )


def _tls(file: _File, directory: str, reader: Callable[[str], bytes]) -> Tls:
    def pem(key: str, *, needed: bool) -> str:
        text, path = file.get(key, str, ""), file.get(f"{key}_file", str, "")
        if text and path:
            raise ValueError(f"tls_server_config has both {key} and {key}_file: only one may be")
        if not text and not path and needed:
            raise ValueError(f"tls_server_config has neither {key} nor {key}_file")
        return reader(os.path.join(directory, path)).decode("ascii") if path else text

    if file.get("client_auth_type", str, "") == "RequireAnyClientCert":
        raise ValueError(
            "tls_server_config.client_auth_type RequireAnyClientCert verifies nothing, and gpubpf "
            f"doesn't do it: use {VERIFY}"
        )
    auth = file.one_of("client_auth_type", _CLIENTS, "")
    ca, sans = pem("client_ca", needed=False), tuple(file.texts("client_allowed_sans"))
    if bool(ca) != (auth != NO_CERT):
        raise ValueError(
            f"tls_server_config: client_ca_file and client_auth_type {VERIFY} need each other"
        )
    if sans and auth != VERIFY:
        raise ValueError(f"tls_server_config: client_allowed_sans needs client_auth_type {VERIFY}")
    least = file.one_of("min_version", VERSIONS, "TLS12")
    most = file.one_of("max_version", VERSIONS, "TLS13")
    if least > most:
        raise ValueError("tls_server_config: min_version is above max_version")
    return Tls(
        pem("cert", needed=True), pem("key", needed=True), ca, auth, sans, least, most,
        _ciphers(file.texts("cipher_suites")),
        file.get("prefer_server_cipher_suites", bool, True),
        _curve(file.texts("curve_preferences")),
    )  # fmt: skip


def _ciphers(names: list[str]) -> str:
    for name in names:
        if name not in CIPHERS and name not in _OF_TLS13:
            raise ValueError(
                f"tls_server_config.cipher_suites: {name}: there is {', '.join(CIPHERS)}"
            )
    return ":".join(CIPHERS[name] for name in names if name in CIPHERS)  # TLS 1.3 has its own


def _curve(names: list[str]) -> str:
    where = "tls_server_config.curve_preferences"
    for name in names:
        if name not in CURVES:
            raise ValueError(f"{where}: {name}: there is {', '.join(CURVES)}")
    if len(names) > 1:
        raise ValueError(f"{where}: Python's ssl takes one; leave it out to take all, X25519 first")
    return CURVES[names[0]] if names else ""


def _users(raw: Mapping[object, object]) -> dict[str, bytes]:
    users: dict[str, bytes] = {}
    for name, secret in raw.items():
        match = _BCRYPT.fullmatch(secret) if isinstance(secret, str) else None
        if not isinstance(name, str) or not name or ":" in name:
            raise ValueError("basic_auth_users: a name that is empty, has a colon or is no string")
        if match is None or not 4 <= int(match[1]) <= 31:
            raise ValueError(f"basic_auth_users.{name}: no bcrypt hash ($2y$10$…)")
        users[name] = str(secret).encode("ascii")
    return users


def _headers(raw: Mapping[object, object]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        if name not in _HEADERS:
            raise ValueError(f"http_server_config.headers.{name}: there is {', '.join(_HEADERS)}")
        allowed = _HEADERS[str(name)]
        if value in (None, ""):
            continue
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise ValueError(f"http_server_config.headers.{name} is no line of text")
        if allowed and value.lower() not in allowed:
            raise ValueError(f"http_server_config.headers.{name}: there is {', '.join(allowed)}")
        headers[str(name)] = value
    return headers


def _seconds(raw: object) -> float:
    """Go's durations; 0 has no unit."""
    if raw == 0 or raw == "0":
        return 0.0
    text = raw if isinstance(raw, str) else ""
    parts = _DURATION.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError(f"rate_limit.interval is {raw}: a duration as 1s or 100ms, or 0")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
