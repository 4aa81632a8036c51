"""An SSLContext of a web configuration. The only importer of ssl on the server's side."""

from __future__ import annotations

import os
import ssl

from gpubpf.web.config import IF_GIVEN, NO_CERT, VERIFY, Tls

_VERIFY = {NO_CERT: ssl.CERT_NONE, IF_GIVEN: ssl.CERT_OPTIONAL, VERIFY: ssl.CERT_REQUIRED}


def context(tls: Tls) -> ssl.SSLContext:
    """Raises ValueError: a line for a person."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion[tls.least]
    made.maximum_version = ssl.TLSVersion[tls.most]
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if not tls.prefer_own_ciphers:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_alpn_protocols(["http/1.1"])
    if tls.ciphers:
        made.set_ciphers(tls.ciphers)
    if tls.curve:
        made.set_ecdh_curve(tls.curve)
    _load_pair(made, tls)
    if tls.client_ca:
        try:
            made.load_verify_locations(cadata=tls.client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"tls_server_config: client_ca_file: {_why(error)}") from None
    made.verify_mode = _VERIFY[tls.client_auth]
    return made


def _load_pair(made: ssl.SSLContext, tls: Tls) -> None:
    """ssl takes a pair only from a file: one in memory, that nobody else can open."""
    descriptor = os.memfd_create("gpubpf-tls", os.MFD_CLOEXEC)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(f"{tls.key}\n{tls.cert}\n")
        file.flush()
        try:
            # A key with a passphrase would be asked for at the terminal.
            made.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_passphrase)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"tls_server_config: cert and key: {_why(error)}") from None


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; gpubpf can't ask for it")


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error)


def has_san(connection: ssl.SSLSocket, allowed: tuple[str, ...]) -> bool:
    """Whether the client's certificate, which was verified, has one of these names exactly."""
    if not allowed:
        return True
    certificate = connection.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    return any(str(name) in allowed for _, name in names)  # type: ignore[str-unpack]
