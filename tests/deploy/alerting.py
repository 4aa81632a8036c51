"""A real Alertmanager, and who it tells."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import eventually, get
from tests.deploy.programs import VERSIONS

SHIPPED = Path(__file__).parents[2] / "deploy" / "alertmanager" / "alertmanager.yml"


class Webhook:
    """What came, by the path that it came to."""

    def __init__(self) -> None:
        self.came: list[tuple[str, dict[str, Any]]] = []
        came = self.came

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                came.append((self.path, json.loads(self.rfile.read(length))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def told(self, path: str) -> list[tuple[str, frozenset[str]]]:
        """Notifications that came to a path: firing or resolved, and the names of the alerts."""
        return [
            (body["status"], frozenset(a["labels"]["alertname"] for a in body["alerts"]))
            for at, body in self.came
            if at == path
        ]


class Alertmanager:
    """One with the shipped configuration; only its addresses and times are the test's."""

    def __init__(
        self,
        directory: Path,
        webhook: Webhook,
        times: Mapping[str, str],
        program: str = VERSIONS["2"].alertmanager,
    ) -> None:
        directory.mkdir()
        text = SHIPPED.read_text().replace("localhost:9999", webhook.address)
        for name, value in times.items():
            before = text
            text = "\n".join(
                f"{line.partition(name)[0]}{name}: {value}"
                if line.strip().startswith(name)
                else line
                for line in before.split("\n")
            )
            assert text != before, name
        (directory / "alertmanager.yml").write_text(text)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.address = f"127.0.0.1:{server.getsockname()[1]}"
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={directory}/alertmanager.yml",
                    f"--storage.path={directory}/data",
                    f"--web.listen-address={self.address}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=log,
            )
        assert eventually(self._ready, bool, 30), (directory / "log").read_text()

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(get(f"http://{self.address}/-/ready"))
        return False

    def send(self, *alerts: Mapping[str, str], ended: bool = False) -> None:
        now = datetime.now(UTC)
        ends = now if ended else now + timedelta(minutes=5)
        rows = [
            {
                "labels": dict(labels),
                "startsAt": (now - timedelta(minutes=1)).isoformat(),
                "endsAt": ends.isoformat(),
            }
            for labels in alerts
        ]
        request = urllib.request.Request(
            f"http://{self.address}/api/v2/alerts",
            json.dumps(rows).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200

    def states(self) -> dict[str, str]:
        """By name: active or suppressed."""
        rows = json.loads(get(f"http://{self.address}/api/v2/alerts"))
        return {row["labels"]["alertname"]: row["status"]["state"] for row in rows}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def settled(webhook: Webhook, seconds: float) -> list[tuple[str, dict[str, Any]]]:
    """What had come after so long."""
    time.sleep(seconds)
    return [*webhook.came]
