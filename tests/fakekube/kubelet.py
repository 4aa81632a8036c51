"""kubelet's pod-resources socket: a real gRPC server in a process of its own.

What it says is read from a file at each call, so that a test can change it while it runs.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fakekube import messages

SERVICE = "v1.PodResourcesLister"


class FakeKubelet:
    """`start` and `stop` as often as wanted; `say` at any time."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "kubelet.sock"
        self._said = directory / "kubelet.json"
        self._process: subprocess.Popen[str] | None = None
        self.say()

    def say(
        self,
        pods: list[Any] | None = None,
        allocatable: dict[str, list[str]] | None = None,
        *,
        seconds: float = 0,
        instead: bytes | None = None,
    ) -> None:
        """As in `messages`; None for `allocatable`: it is too old to know. `seconds`: how long it
        takes; `instead`: what it says in place of its list."""
        said = {
            "pods": base64.b64encode(
                messages.listed(pods or []) if instead is None else instead
            ).decode(),
            "allocatable": allocatable,
            "seconds": seconds,
        }
        new = self._said.with_suffix(".new")
        new.write_text(json.dumps(said))
        os.replace(new, self._said)

    def start(self) -> None:
        command = (
            sys.executable,
            "-m",
            "tests.fakekube.kubelet",
            str(self.socket),
            str(self._said),
        )
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
        self.socket.unlink(missing_ok=True)

    def __enter__(self) -> FakeKubelet:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


def main(socket: str, said: str) -> None:
    import grpc

    def now() -> Any:
        return json.loads(Path(said).read_text())

    def pods(request: bytes, context: Any) -> bytes:
        answer = now()
        time.sleep(answer["seconds"])
        return base64.b64decode(answer["pods"])

    def allocatable(request: bytes, context: Any) -> bytes:
        answer = now()["allocatable"]
        if answer is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
        return messages.allocatable(answer)

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {
        "List": grpc.unary_unary_rpc_method_handler(pods),
        "GetAllocatableResources": grpc.unary_unary_rpc_method_handler(allocatable),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
