"""Asking a running agent to let go of the GPUs and to take them up again: by socket, by signal.

On the socket, a Unix one, each side says one line: a JSON object with the protocol's version as
`gpubpf`. Who may ask is told by the kernel (SO_PEERCRED): root, and the agent's own user.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from gpubpf.errors import GpubpfError, ListenError, PrivilegeError, UsageError

Command = Literal["release", "resume"]

VERSION = 1  # of the lines; an agent answers another one with an error
LONGEST_LINE = 256  # bytes of a request, with its end
LONGEST_ANSWER = 8192
MOST_WAITING = 4  # clients
CLIENT_TIMEOUT = 2.0  # seconds for a client to say its line, while the next one waits
PATIENCE = 30.0  # seconds that `ask` waits: before that a Handler is done, or gives up


class Handler(Protocol):
    """What can be asked for. Called in the Control's thread, one call at a time. The text is a line
    for the person who asked; a GpubpfError says why it can't be. Each may be asked for twice."""

    def release(self, seconds: float | None) -> str:
        """Lets go, for so long or (None) until `resume`. Returns when all is let go."""

    def resume(self) -> str:
        """Takes up again, or says that nothing was let go."""


class Control:
    """The agent's side. It listens from when it is made, and answers from `start` on."""

    def __init__(self, path: str, handler: Handler, client_timeout: float = CLIENT_TIMEOUT) -> None:
        """Raises ListenError where the socket can't be had."""
        self._path, self._handler, self._timeout = path, handler, client_timeout
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            _check_directory(os.path.dirname(path))
            _remove_stale(path)
            os.fchmod(self._listener.fileno(), 0o600)  # unix_bind() makes the file with this mode
            self._listener.bind(path)  # follows no symbolic link
            self._own = os.lstat(path)
            if stat.S_IMODE(self._own.st_mode) != 0o600 or self._own.st_uid != os.geteuid():
                os.unlink(path)
                raise OSError(0, "its file system can't make it the agent's alone")
            self._listener.listen(MOST_WAITING)
        except (OSError, ValueError) as error:  # ValueError: a null in it
            self._listener.close()
            why = getattr(error, "strerror", None) or error
            do = "--control-socket names another, --control-socket '' turns it off"
            raise ListenError(f"can't have the control socket {path}: {why}; {do}") from None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Removes the socket, if it is still its own. Safe to call twice, and without `start`."""
        if self._stopping:
            return
        self._stopping = True
        with contextlib.suppress(OSError):  # before it is closed: until then nobody replaces it
            if os.path.samestat(os.lstat(self._path), self._own):
                os.unlink(self._path)
        self._listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        if self._thread.is_alive():
            self._thread.join(2 * self._timeout)  # no longer for a handler that hangs
        self._listener.close()

    def _serve(self) -> None:
        """One client after the other: only root's and the agent's own are listened to."""
        while not self._stopping:
            try:
                client, _ = self._listener.accept()
            except OSError:  # stopped; or no file descriptors left, and this must not spin
                time.sleep(0.0 if self._stopping else 0.1)
                continue
            with client, contextlib.suppress(OSError):  # it may go at any time
                try:
                    code, text = 0, self._answer(client)
                except Exception as error:  # the boundary: no request ends the thread
                    text = str(error) if isinstance(error, GpubpfError) else f"it failed: {error!r}"
                    code = getattr(error, "exit_code", 1)
                client.settimeout(self._timeout)
                client.sendall(_line(code=code, text=text[: LONGEST_ANSWER // 16]))

    def _answer(self, client: socket.socket) -> str:
        who = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid = struct.unpack("iII", who)[1]
        if uid not in (0, os.geteuid()):
            raise PrivilegeError(f"user {uid} may not ask this: be root, or the agent's user")
        match _read(client, LONGEST_LINE, self._timeout):
            case {"gpubpf": int(version)} if version != VERSION:
                raise UsageError(f"the agent speaks version {VERSION} of this, not {version}")
            case {"gpubpf": _, "command": "resume"}:
                return self._handler.resume()
            case {"gpubpf": _, "command": "release", "seconds": None | int() | float() as s}:
                if s is None or 0 < s < math.inf:
                    return self._handler.release(s)
        raise UsageError("that is no request: the agent knows release and resume")


def ask(path: str, command: Command, seconds: float | None = None, wait: float = PATIENCE) -> str:
    """The client's side: has the agent do it, and waits for that. Raises GpubpfError."""
    if not path:
        raise UsageError("--control-socket is empty: where does the agent listen?")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(wait)
        try:
            agent.connect(path)
            with contextlib.suppress(BrokenPipeError):  # it has said why, then
                agent.sendall(_line(command=command, seconds=seconds))
            answer = _read(agent, LONGEST_ANSWER, wait)
        except (FileNotFoundError, ConnectionRefusedError):
            why = f"is gpubpf serve running, of a version that can {command}, with this socket?"
            raise GpubpfError(f"no agent listens at {path}: {why}") from None
        except PermissionError:
            raise PrivilegeError(f"can't ask at {path}: be root, or the agent's user") from None
        except (BlockingIOError, TimeoutError):
            why = f"it is busy or hangs, and may still {command}; ask again"
            raise GpubpfError(f"no answer from the agent: {why}") from None
        except OSError as error:
            raise GpubpfError(f"can't ask at {path}: {error.strerror or error}") from None
    match answer:
        case {"gpubpf": int(version)} if version != VERSION:
            age = "older" if version < VERSION else "newer"
            raise GpubpfError(f"the agent is {age} than this gpubpf: restart it with this version")
        case {"gpubpf": _, "code": 0, "text": str(text)}:
            return text
        case {"gpubpf": _, "code": int(code), "text": str(text)}:
            told = GpubpfError(text)
            told.exit_code = code
            raise told
    raise GpubpfError(f"no answer from {path}: the agent ended, or it is none; see its log")


class Requests:
    """The same by signals, whose handler may run inside anything: it takes no locks (gpubpf.stop).

    Of several the last one counts. Signals that wait together come by number, not by time.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake  # ends the loop's wait; called by the handler
        self._last: collections.deque[Command] = collections.deque(maxlen=1)

    def install(self, commands: Mapping[int, Command]) -> None:
        """By signal number; in the main thread."""
        for number, command in commands.items():
            signal.signal(number, lambda *_, command=command: self._ask(command))

    def _ask(self, command: Command) -> None:
        self._last.append(command)
        self._wake()

    def take(self) -> Command | None:
        """What was asked for since it was last taken."""
        return self._last.pop() if self._last else None


def _check_directory(path: str) -> None:
    """Makes it if need be. No other user may put a file of its own in the socket's place."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if not stat.S_ISDIR(found.st_mode) or shared or found.st_uid not in (0, os.geteuid()):
        raise OSError(0, f"{path} is no directory that only root or the agent's user can write")


def _remove_stale(path: str) -> None:
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(0, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(BlockingIOError):
        client.setblocking(False)
        try:
            client.connect(path)
        except ConnectionRefusedError:  # its agent died
            os.unlink(path)
            return
    raise OSError(0, "another agent listens there")  # even if its queue is full


def _line(**fields: Any) -> bytes:
    return json.dumps({"gpubpf": VERSION, **fields}).encode() + b"\n"


def _read(connection: socket.socket, longest: int, seconds: float) -> Any:
    """What the next line says; None where there is none. TimeoutError where it takes longer."""
    said, due = b"", time.monotonic() + seconds
    while not said.endswith(b"\n"):
        connection.settimeout(max(1e-3, due - time.monotonic()))
        part = connection.recv(longest - len(said))
        if not part:  # it has gone, or the line is too long
            return None
        said += part
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(said)
    return None
