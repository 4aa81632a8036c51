"""A real Alertmanager, and who it tells."""

from __future__ import annotations

import contextlib
import email
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.conftest import eventually, get
from tests.deploy.programs import VERSIONS

SHIPPED = Path(__file__).parents[2] / "deploy" / "alertmanager" / "alertmanager.yml"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Webhook:
    """What came, by the path that it came to."""

    def __init__(self) -> None:
        self.came: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []  # when
        came, times = self.came, self.times

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                times.append(time.monotonic())
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


class Mailbox:
    """Whose mail Alertmanager brings: an SMTP server on the loopback address."""

    def __init__(self) -> None:
        self.came: list[EmailMessage] = []
        self.address = free_address()
        host, _, port = self.address.partition(":")
        self._controller = Controller(self, hostname=host, port=int(port))
        self._controller.start()

    async def handle_DATA(self, _: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.came.append(message)
        return "250 taken"

    def stop(self) -> None:
        self._controller.stop()


class Alertmanager:
    """One with the shipped configuration; only its addresses and times are the test's."""

    def __init__(
        self,
        directory: Path,
        webhook: Webhook,
        mailbox: Mailbox,
        times: Mapping[str, str],
        program: str = VERSIONS["2"].alertmanager,
    ) -> None:
        directory.mkdir()
        for template in SHIPPED.parent.glob("*.tmpl"):
            shutil.copy(template, directory)
        text = SHIPPED.read_text()
        for shipped, ours in (
            ("localhost:9999", webhook.address),
            ("localhost:25", mailbox.address),
        ):
            assert shipped in text
            text = text.replace(shipped, ours)
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
        self.address = free_address()
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

    def send(
        self,
        *alerts: Mapping[str, str],
        ended: bool = False,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """As Prometheus does, which says it again and again."""
        now = datetime.now(UTC)
        ends = now if ended else now + timedelta(minutes=5)
        # What began longer ago than group_wait doesn't wait for the rest of its group.
        starts = now - timedelta(minutes=1) if ended else now
        rows = [
            {
                "labels": dict(labels),
                "annotations": dict(annotations or {}),
                "startsAt": starts.isoformat(),
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

    def states(self) -> dict[tuple[str, str], str]:
        """By name and label `case`: active or suppressed."""
        rows = json.loads(get(f"http://{self.address}/api/v2/alerts"))
        return {
            (row["labels"]["alertname"], row["labels"]["case"]): row["status"]["state"]
            for row in rows
        }

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def settled(webhook: Webhook, seconds: float) -> list[tuple[str, dict[str, Any]]]:
    """What had come after so long."""
    time.sleep(seconds)
    return [*webhook.came]
