"""The web configuration: what exporter-toolkit takes, and what is wrong with the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from gpubpf.errors import UsageError
from gpubpf.web import config
from gpubpf.web.config import Tls, WebConfig, read
from gpubpf.web.tls import context

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"


def parsed(tmp_path: Path, text: str) -> WebConfig:
    (tmp_path / "web.yml").write_text(text)
    return read(str(tmp_path / "web.yml"))


@pytest.fixture
def pair(tmp_path: Path) -> str:
    """The files of a server beside the configuration, and the lines that name them."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "server.key").write_bytes(server.private_key_pem.bytes())
    (tmp_path / "server.crt").write_bytes(server.cert_chain_pems[0].bytes())
    return "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


def test_all_of_it(tmp_path: Path, pair: str) -> None:
    found = parsed(
        tmp_path,
        pair
        + f"""
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: {tmp_path / "ca.pem"}
  client_allowed_sans: [prometheus.example, 10.0.0.1]
  min_version: TLS12
  max_version: TLS12
  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP256]
http_server_config:
  http2: false
  headers:
    X-Frame-Options: deny
    Content-Security-Policy: default-src 'self'
    X-XSS-Protection: ""
basic_auth_users:
  alice: {HASH}
rate_limit:
  interval: 1m500ms
  burst: 20
""",
    )
    assert found.tls is not None
    assert found.tls.cert.startswith("-----BEGIN CERTIFICATE")
    assert found.tls.client_sans == ("prometheus.example", "10.0.0.1")
    assert found.tls.ciphers == "ECDHE-RSA-AES128-GCM-SHA256"
    assert (found.tls.least, found.tls.most, found.tls.curve) == (
        "TLSv1_2",
        "TLSv1_2",
        "prime256v1",
    )
    assert found.users == {"alice": HASH.encode()}
    assert found.headers == {
        "X-Frame-Options": "deny",
        "Content-Security-Policy": "default-src 'self'",
    }
    assert (found.interval, found.burst) == (60.5, 20)
    made = context(found.tls)
    assert {cipher["name"] for cipher in made.get_ciphers()} >= {"ECDHE-RSA-AES128-GCM-SHA256"}


@pytest.mark.parametrize("text", ["", "{}", "basic_auth_users:\n", "tls_server_config: {}\n"])
def test_nothing_of_it(tmp_path: Path, text: str) -> None:
    assert parsed(tmp_path, text) == WebConfig()


def test_inline(tmp_path: Path, pair: str) -> None:
    def indented(name: str) -> str:
        return "".join(f"    {line}\n" for line in (tmp_path / name).read_text().splitlines())

    cert, key = indented("server.crt"), indented("server.key")
    found = parsed(tmp_path, f"tls_server_config:\n  cert: |\n{cert}  key: |\n{key}")
    assert found.tls is not None
    context(found.tls)


def test_every_cipher_and_curve_is_known_to_openssl(tmp_path: Path, pair: str) -> None:
    lines = "".join(f"    - {name}\n" for name in config.CIPHERS)
    for curve in config.CURVES:
        text = f"{pair}  cipher_suites:\n{lines}  curve_preferences: [{curve}]\n"
        tls = parsed(tmp_path, text).tls
        assert tls is not None
        names = {cipher["name"] for cipher in context(tls).get_ciphers()}
        assert names >= set(config.CIPHERS.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "the file is no mapping"),
        ("a: {b", "line 1: expected"),
        ("tls: {}", "tls: there is tls_server_config"),
        ("tls_server_config: {cert_fil: x}", r"tls_server_config.cert_fil: there is cert, key"),
        ("tls_server_config: [1]", "tls_server_config is no dict"),
        ("tls_server_config: {cert_file: x}", r"web.yml: \S*x: No such file"),
        ("tls_server_config: {min_version: TLS12}", "neither cert nor cert_file"),
        ("tls_server_config: {cert: x}", "neither key nor key_file"),
        ("tls_server_config: {cert: x, cert_file: y, key: z}", "both cert and cert_file"),
        (
            "tls_server_config: {cert: x, key: y, min_version: TLS10}",
            "TLS10: there is TLS12, TLS13",
        ),
        (
            "tls_server_config: {cert: x, key: y, min_version: TLS13, max_version: TLS12}",
            "min_version is above",
        ),
        (
            "tls_server_config: {cert: x, key: y, client_auth_type: RequireAnyClientCert}",
            "verifies nothing.*use RequireAndVerifyClientCert",
        ),
        ("tls_server_config: {cert: x, key: y, client_auth_type: Yes1}", "Yes1: there is"),
        (
            "tls_server_config: {cert: x, key: y, client_auth_type: RequireAndVerifyClientCert}",
            "need each other",
        ),
        ("tls_server_config: {cert: x, key: y, client_ca: z}", "need each other"),
        (
            "tls_server_config: {cert: x, key: y, client_allowed_sans: [a]}",
            "client_allowed_sans needs",
        ),
        ("tls_server_config: {cert: x, key: y, client_allowed_sans: [1]}", "no list of strings"),
        ("tls_server_config: {cert: x, key: y, cipher_suites: [RC4]}", "RC4: there is"),
        ("tls_server_config: {cert: x, key: y, curve_preferences: [C]}", "C: there is CurveP256"),
        (
            "tls_server_config: {cert: x, key: y, curve_preferences: [CurveP384, CurveP256]}",
            "takes one",
        ),
        ("basic_auth_users: {alice: secret}", r"basic_auth_users.alice: no bcrypt hash"),
        ("basic_auth_users: {alice: 7}", "no bcrypt hash"),
        (f"basic_auth_users: {{'a:b': {HASH}}}", "has a colon"),
        (f"basic_auth_users: {{'': {HASH}}}", "is empty"),
        (f"basic_auth_users: {{a: {HASH.replace('$10$', '$03$')}}}", "no bcrypt hash"),
        ("http_server_config: {http2: 7}", "http_server_config.http2 is no bool"),
        ("http_server_config: {headers: {Server: x}}", r"headers.Server: there is Content-"),
        ("http_server_config: {headers: {X-Frame-Options: maybe}}", "there is deny, sameorigin"),
        (
            'http_server_config: {headers: {Content-Security-Policy: "a\\r\\nSet-Cookie: b"}}',
            "no line of text",
        ),
        ("rate_limit: {interval: 5}", "interval is 5: a duration"),
        ("rate_limit: {interval: 5 years}", "a duration"),
        ("rate_limit: {burst: true}", "burst is no int"),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parsed(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("tls", "says"),
    [
        (Tls("x", "y"), "cert and key"),
        (Tls("", ""), "cert and key"),
    ],
)
def test_what_is_no_certificate(tls: Tls, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        context(tls)


def test_a_key_of_another(tmp_path: Path, pair: str) -> None:
    (tmp_path / "server.key").write_bytes(
        trustme.CA().issue_cert("localhost").private_key_pem.bytes()
    )
    tls = parsed(tmp_path, pair).tls
    assert tls is not None
    with pytest.raises(ValueError, match="key values mismatch"):
        context(tls)


def test_secrets_are_not_shown(tmp_path: Path, pair: str) -> None:
    shown = repr(parsed(tmp_path, pair + f"basic_auth_users: {{alice: {HASH}}}"))
    assert "PRIVATE" not in shown
    assert HASH not in shown


def test_a_file_without_end(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_bytes(b"#" * (config.LARGEST + 1))
    with pytest.raises(UsageError, match="more than 1 MiB"):
        read(str(tmp_path / "web.yml"))
