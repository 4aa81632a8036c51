"""--web-config with a real agent and a real Prometheus: who has the certificate and the password
scrapes, and nobody else; the same file is one for Prometheus."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme

from tests.conftest import GPUBPF, Agent, eventually
from tests.deploy.test_serve import Prometheus

SCRAPERS = ("right", "wrong-password", "no-password", "no-certificate", "plain")


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A configuration with everything on, and the files of its clients beside it."""
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("prometheus.example")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, pair in (("server", server), ("client", client)):
        pair.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        pair.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.crt"))
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(10)).decode()
    path = tmp_path / "web.yml"
    path.write_text(
        f"""tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.pem
  min_version: TLS13
http_server_config:
  headers:
    Strict-Transport-Security: max-age=3600
basic_auth_users:
  prometheus: {hashed}
"""
    )
    return path


def test_the_file_is_one_for_prometheus(web: Path) -> None:
    told = subprocess.run(["promtool", "check", "web-config", web], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


@pytest.fixture
def scraping(web: Path) -> Iterator[Callable[[Agent], Prometheus]]:
    with ExitStack() as stack:

        def start(agent: Agent) -> Prometheus:
            target = agent.url.removeprefix("https://")
            one = Scraping(web.parent, target)
            stack.callback(one.stop)
            return one

        yield start


class Scraping(Prometheus):
    """Each of SCRAPERS is a job of it."""

    def __init__(self, files: Path, target: str) -> None:
        self._files = files
        super().__init__(files / "prometheus", target)

    def config(self, target: str) -> dict[str, Any]:
        certificate = {
            "ca_file": str(self._files / "ca.pem"),
            "cert_file": str(self._files / "client.crt"),
            "key_file": str(self._files / "client.key"),
        }
        password = {"username": "prometheus", "password": "secret"}
        by_name: dict[str, dict[str, Any]] = {
            "right": {"tls_config": certificate, "basic_auth": password},
            "wrong-password": {
                "tls_config": certificate,
                "basic_auth": {**password, "password": "guess"},
            },
            "no-password": {"tls_config": certificate},
            "no-certificate": {
                "tls_config": {"ca_file": certificate["ca_file"]},
                "basic_auth": password,
            },
            "plain": {"scheme": "http"},
        }
        rows = [
            {
                "job_name": name,
                "scheme": "https",
                "static_configs": [{"targets": [target]}],
                **by_name[name],
            }
            for name in SCRAPERS
        ]
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": rows,
        }


def test_who_may_scrape(
    serve: Callable[..., Agent], scraping: Callable[[Agent], Prometheus], web: Path
) -> None:
    agent = serve("--web-config", str(web), "--no-nvml", "--probe", "launch")
    assert agent.url.startswith("https://")
    prometheus = scraping(agent)

    def up() -> dict[str, float]:
        return {labels["job"]: number for labels, number in prometheus.query("up")}

    expected = {name: float(name == "right") for name in SCRAPERS}
    assert eventually(up, lambda seen: seen == expected, 30) == expected
    rows = prometheus.query('gpubpf_agent_source_up{source="web_config"}')
    assert [(labels["job"], number) for labels, number in rows] == [("right", 1.0)]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text("basic_auth_users: {alice: secret}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = subprocess.run(
        [GPUBPF, "serve", "--listen", address, "--web-config", str(tmp_path / "web.yml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 2
    assert told.stderr == (
        f"gpubpf: --web-config {tmp_path}/web.yml: basic_auth_users.alice: "
        "no bcrypt hash ($2y$10$…)\n"
    )
    assert json.dumps("secret") not in told.stderr
