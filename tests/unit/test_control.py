"""gpubpf.control and the commands that ask: real sockets, a real second user, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gpubpf.cli.release import Release, Resume
from gpubpf.control import LONGEST_LINE, MOST_WAITING, Command, Control, Requests, ask
from gpubpf.errors import GpubpfError, ListenError, NvmlError, PrivilegeError, UsageError
from gpubpf.stop import Stop

NOBODY = 65534
PATIENT = 60.0  # longer than any test


class Agent:
    """A Handler that writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.error: Exception | None = None
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def release(self, seconds: float | None) -> str:
        return self._do(seconds, "let go")

    def resume(self) -> str:
        return self._do("resume", "taken up")

    def _do(self, what: object, text: str) -> str:
        self.asked.append(what)
        self.begun.release()
        assert self.gate.wait(PATIENT)
        if self.error is not None:
            raise self.error
        return text


Start = Callable[..., Control]


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "c.sock")


@pytest.fixture
def start(agent: Agent, path: str) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def make(at: str = path, client_timeout: float = PATIENT) -> Control:
            control = Control(at, agent, client_timeout)
            stack.callback(control.stop)
            stack.callback(agent.gate.set)  # first
            control.start()
            return control

        yield make


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)  # without a timeout it waits for a place in the queue
    client.settimeout(PATIENT)
    return client


def answer(client: socket.socket) -> dict[str, object]:
    with client, client.makefile("rb") as file:
        said = json.loads(file.readline())
        assert isinstance(said, dict)
        return said


def say(path: str, line: bytes) -> dict[str, object]:
    client = connect(path)
    client.sendall(line)
    return answer(client)


def as_nobody(function: Callable[[], str]) -> str:
    """What it returns, or raises, in a process of another user."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            said = function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(there, said.encode())
        os._exit(0)
    os.close(there)
    with open(here) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


# --- asking ---------------------------------------------------------------------------------------


def test_release_and_resume(start: Start, agent: Agent, path: str) -> None:
    start()
    assert ask(path, "release", 2.5) == "let go"
    assert ask(path, "release", 60) == "let go"
    assert ask(path, "release") == "let go"
    assert ask(path, "resume") == "taken up"
    assert agent.asked == [2.5, 60, None, "resume"]


def test_who_asks_waits_until_it_is_done(start: Start, agent: Agent, path: str) -> None:
    start()
    agent.gate.clear()
    said: list[str] = []
    client = threading.Thread(target=lambda: said.append(ask(path, "release", wait=PATIENT)))
    client.start()
    assert agent.begun.acquire(timeout=PATIENT)
    assert said == []
    agent.gate.set()
    client.join(PATIENT)
    assert said == ["let go"]


def test_requests_before_start_are_answered_after_it(agent: Agent, path: str) -> None:
    control = Control(path, agent)
    client = connect(path)
    client.sendall(b'{"gpubpf": 1, "command": "resume"}\n')
    control.start()
    assert answer(client) == {"gpubpf": 1, "code": 0, "text": "taken up"}
    control.stop()


@pytest.mark.parametrize("error", [GpubpfError("a GPU hangs"), NvmlError("no library")])
def test_a_failure_is_told_with_its_exit_code(
    start: Start, agent: Agent, path: str, error: GpubpfError
) -> None:
    start()
    agent.error = error
    with pytest.raises(GpubpfError, match=str(error)) as raised:
        ask(path, "release")
    assert raised.value.exit_code == error.exit_code
    agent.error = None
    assert ask(path, "release") == "let go"


@pytest.mark.parametrize("error", [RuntimeError("oh"), OSError(5, "oh"), TimeoutError("oh")])
def test_a_handler_that_breaks_ends_nothing(
    start: Start, agent: Agent, path: str, error: Exception
) -> None:
    start()
    agent.error = error
    with pytest.raises(GpubpfError, match=r"it failed: .*oh"):
        ask(path, "release")
    agent.error = None
    assert ask(path, "resume") == "taken up"


def test_a_long_text_still_arrives(start: Start, agent: Agent, path: str) -> None:
    start()
    agent.error = GpubpfError("\N{COLLISION SYMBOL}" * 10_000)
    with pytest.raises(GpubpfError, match="\N{COLLISION SYMBOL}" * 100):
        ask(path, "release")


def test_no_answer_in_time(start: Start, agent: Agent, path: str) -> None:
    start()
    agent.gate.clear()
    with pytest.raises(GpubpfError, match="busy or hangs, and may still release"):
        ask(path, "release", wait=0.05)


def test_nobody_there(agent: Agent, path: str, tmp_path: Path) -> None:
    with pytest.raises(GpubpfError, match=f"no agent listens at {path}: is gpubpf serve running"):
        ask(path, "resume")
    control = Control(path, agent)
    control.stop()
    with pytest.raises(GpubpfError, match="no agent listens"):
        ask(path, "resume")
    with pytest.raises(GpubpfError, match="Not a directory"):
        ask(f"{__file__}/c.sock", "resume")
    with pytest.raises(GpubpfError, match="too long"):
        ask(str(tmp_path / ("n" * 108)), "resume")
    with pytest.raises(UsageError, match="empty"):
        ask("", "resume")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"gpubpf": 0, "code": 2, "text": "x"}\n', "the agent is older than this gpubpf"),
        (b'{"gpubpf": 2, "code": 0, "text": "x"}\n', "the agent is newer than this gpubpf"),
        (b'{"gpubpf": 1, "code": 0}\n', "no answer from"),
        (b"HTTP/1.1 400 Bad Request\r\n", "no answer from"),
        (b"[" * 5000 + b"\n", "no answer from"),
        (b"x" * 100_000, "no answer from"),
        (b"", "no answer from"),
    ],
)
def test_answers_of_others(path: str, line: bytes, said: str) -> None:
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()

        def reply() -> None:
            client, _ = other.accept()
            with client, contextlib.suppress(OSError):
                client.recv(LONGEST_LINE)
                client.sendall(line)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(GpubpfError, match=said):
            ask(path, "release")
        thread.join(PATIENT)


def test_more_clients_than_may_wait(start: Start, agent: Agent, path: str) -> None:
    start()
    agent.gate.clear()
    clients = [connect(path)]
    clients[0].sendall(b'{"gpubpf": 1, "command": "resume"}\n')
    assert agent.begun.acquire(timeout=PATIENT)
    clients += [connect(path) for _ in range(MOST_WAITING + 1)]  # Linux takes one more
    with pytest.raises(GpubpfError, match="it is busy"):
        ask(path, "resume")
    agent.gate.set()
    clients[-1].sendall(b'{"gpubpf": 1, "command": "resume"}\n')
    for client in clients[:-1]:
        client.close()
    assert answer(clients[-1])["text"] == "taken up"
    assert ask(path, "resume", wait=PATIENT) == "taken up"


# --- who may, and what is said --------------------------------------------------------------------


def test_another_user_is_refused_by_the_file(start: Start, agent: Agent, path: str) -> None:
    start()
    said = as_nobody(lambda: ask(path, "release"))
    assert said == f"PrivilegeError: can't ask at {path}: be root, or the agent's user"
    assert agent.asked == []


def test_another_user_is_refused_by_the_agent(start: Start, agent: Agent, path: str) -> None:
    """Whatever the modes of the files have become. The connection is made by the other user."""
    start()
    os.chmod(path, 0o666)
    os.chmod(os.path.dirname(path), 0o755)
    with contextlib.chdir(os.path.dirname(path)):  # what is above is not for this user
        said = as_nobody(lambda: ask("c.sock", "release"))
        answered = as_nobody(lambda: json.dumps(answer(connect("c.sock"))))
    assert said == f"GpubpfError: user {NOBODY} may not ask this: be root, or the agent's user"
    assert json.loads(answered)["code"] == PrivilegeError.exit_code
    assert agent.asked == []
    assert ask(path, "release") == "let go"


def test_the_agents_own_user_may_ask(tmp_path: Path) -> None:
    directory = tmp_path.parent / f"{tmp_path.name}-nobody"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)

    def both() -> str:
        control = Control("./c.sock", Agent())
        control.start()
        said = ask("./c.sock", "release")
        control.stop()
        return said

    with contextlib.chdir(directory):  # what is above is not for this user
        assert as_nobody(both) == "let go"


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"release\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"[" * 200 + b"\n",
        b"{}\n",
        b'{"command": "release", "seconds": null}\n',
        b'{"gpubpf": 2, "command": "release", "seconds": null}\n',
        b'{"gpubpf": 1}\n',
        b'{"gpubpf": 1, "command": "reset"}\n',
        b'{"gpubpf": 1, "command": "release"}\n',
        b'{"gpubpf": 1, "command": "release", "seconds": "9"}\n',
        b'{"gpubpf": 1, "command": "release", "seconds": 0}\n',
        b'{"gpubpf": 1, "command": "release", "seconds": -1}\n',
        b'{"gpubpf": 1, "command": "release", "seconds": NaN}\n',
        b'{"gpubpf": 1, "command": "release", "seconds": 1e999}\n',
        b'{"gpubpf": 1, "command": "release", "seconds": [1]}\n',
        b'{"gpubpf": 1, "command": "resume"}\n{"gpubpf": 1, "command": "resume"}\n',
        b'{"gpubpf": 1, "command": "resume"' + b" " * LONGEST_LINE + b"}\n",
        b"x" * 100 * LONGEST_LINE,
    ],
)
def test_what_is_no_request_is_refused(start: Start, agent: Agent, path: str, line: bytes) -> None:
    start()
    client = connect(path)
    with contextlib.suppress(BrokenPipeError):
        client.sendall(line)
    assert answer(client)["code"] == UsageError.exit_code
    assert agent.asked == []
    assert ask(path, "resume") == "taken up"


def test_a_line_in_pieces(start: Start, path: str) -> None:
    start()
    client = connect(path)
    for byte in b'{"gpubpf": 1, "command": "resume", "more": "later"}\n':
        client.sendall(bytes([byte]))
    assert answer(client)["text"] == "taken up"


def test_the_longest_line(start: Start, path: str) -> None:
    start()
    line = b'{"gpubpf": 1, "command": "resume"}'
    assert say(path, line.ljust(LONGEST_LINE - 1) + b"\n")["code"] == 0
    assert say(path, line.ljust(LONGEST_LINE) + b"\n")["code"] == UsageError.exit_code


def test_slow_clients_are_dropped(start: Start, agent: Agent, path: str) -> None:
    start(client_timeout=0.05)
    silent, slow = connect(path), connect(path)
    slow.sendall(b'{"gpubpf": 1,')
    assert ask(path, "resume", wait=PATIENT) == "taken up"
    for client in (silent, slow):
        assert answer(client)["code"] == 1
    assert agent.asked == ["resume"]


def test_clients_that_go_away(start: Start, agent: Agent, path: str) -> None:
    start()
    for _ in range(20):
        connect(path).close()
        with connect(path) as client:
            client.sendall(b'{"gpubpf": 1, "comm')
    assert agent.asked == []
    with connect(path) as client:
        client.sendall(b'{"gpubpf": 1, "command": "release", "seconds": 7}\n')
    assert agent.begun.acquire(timeout=PATIENT)  # it is done all the same
    assert ask(path, "resume") == "taken up"
    assert agent.asked == [7, "resume"]


# --- the socket's file ----------------------------------------------------------------------------


def test_modes_whatever_the_umask(start: Start, path: str) -> None:
    before = os.umask(0)
    try:
        start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


def test_stop_removes_it_and_may_be_called_twice(start: Start, path: str) -> None:
    control = start()
    control.stop()
    control.stop()
    assert not os.path.lexists(path)
    start()
    assert ask(path, "resume") == "taken up"


def test_stop_does_not_wait_for_a_handler_that_hangs(start: Start, agent: Agent, path: str) -> None:
    control = start(client_timeout=0.05)
    client = connect(path)
    client.sendall(b'{"gpubpf": 1, "command": "resume"}\n')
    assert agent.begun.acquire(timeout=PATIENT)
    agent.gate.clear()
    control.stop()
    assert not os.path.lexists(path)
    client.close()


def test_stop_leaves_what_is_not_its_own(start: Start, path: str) -> None:
    control = start()
    os.unlink(path)
    Path(path).write_text("another's")
    control.stop()
    assert Path(path).read_text() == "another's"


def test_a_stale_socket_is_replaced(start: Start, path: str) -> None:
    script = (
        "import os, sys; from gpubpf.control import Control; Control(sys.argv[1], None);"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], check=False)
    assert done.returncode == -9
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    start()
    assert ask(path, "resume") == "taken up"


def test_two_agents(start: Start, agent: Agent, path: str) -> None:
    start()
    for _ in range(3):
        with pytest.raises(ListenError, match=f"control socket {path}: another agent listens"):
            Control(path, Agent())
    assert ask(path, "resume") == "taken up"
    agent.gate.clear()
    clients = [connect(path) for _ in range(2)]
    clients[0].sendall(b'{"gpubpf": 1, "command": "resume"}\n')
    agent.begun.acquire(timeout=PATIENT)
    assert agent.begun.acquire(timeout=PATIENT)
    with contextlib.suppress(BlockingIOError):
        while True:  # until nobody more can wait
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].setblocking(False)
            clients[-1].connect(path)
    with pytest.raises(ListenError, match="another agent listens"):
        Control(path, Agent())
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link", "dangling", "to socket"])
def test_what_is_no_socket_is_left_alone(
    start: Start, tmp_path: Path, path: str, kind: str
) -> None:
    target = tmp_path / "target"
    os.mkdir(os.path.dirname(path))
    if kind == "file":
        Path(path).write_text("x")
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if kind == "link":
            target.write_text("x")
        elif kind == "to socket":  # a stale one
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(target))
        os.symlink(target, path)
    before = os.lstat(path), target.exists()
    with pytest.raises(ListenError, match="something that is no socket is there") as raised:
        start()
    assert "\n" not in str(raised.value)
    after = os.lstat(path), target.exists()
    assert (after[0].st_ino, after[0].st_mode, after[1]) == (
        before[0].st_ino,
        before[0].st_mode,
        before[1],
    )


@pytest.mark.parametrize("kind", ["link", "file", "writable", "another's"])
def test_directories_that_others_may_change(start: Start, tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "d"
    if kind == "link":
        (tmp_path / "real").mkdir()
        directory.symlink_to("real")
    elif kind == "file":
        directory.write_text("x")
    else:
        directory.mkdir()
        if kind == "writable":
            directory.chmod(0o770)
        else:
            os.chown(directory, NOBODY, NOBODY)
    with pytest.raises(ListenError, match="is no directory that only root"):
        start(str(directory / "c.sock"))


def test_directories_that_are_well(start: Start, tmp_path: Path) -> None:
    for mode in (0o755, 0o1777):  # systemd's RuntimeDirectory; /tmp
        directory = tmp_path / f"{mode:o}"
        directory.mkdir()
        directory.chmod(mode)
        start(str(directory / "c.sock")).stop()
        assert stat.S_IMODE(directory.stat().st_mode) == mode


def test_places_that_cannot_be(start: Start, tmp_path: Path) -> None:
    for bad, said in (
        (str(tmp_path / "no" / "such" / "c.sock"), "No such file"),
        (str(tmp_path / ("n" * 108)), "too long"),
        ("c.sock", "No such file"),
        (f"{tmp_path}/c\0.sock", "null"),
    ):
        with pytest.raises(ListenError, match=said):
            start(bad)


# --- the commands ---------------------------------------------------------------------------------


class Given(NamedTuple):
    control_socket: str
    resume_after: float = 3600.0


def test_the_commands_say_when_it_ends(
    start: Start, agent: Agent, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    assert Release().run(Given(path)) == 0
    assert Release().run(Given(path, 0)) == 0
    assert Resume().run(Given(path)) == 0
    assert agent.asked == [3600.0, None, "resume"]
    assert capsys.readouterr().out.splitlines() == [
        "let go; the agent takes them up again in 3600 s, or at `gpubpf resume`",
        "let go; nothing is measured on them until `gpubpf resume`",
        "taken up",
    ]


def test_the_commands_print_nothing_on_failure(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (Release(), Resume()):
        with pytest.raises(GpubpfError, match="no agent listens"):
            command.run(Given(path))
    assert capsys.readouterr().out == ""


def test_help_fits() -> None:
    for command in (Release(), Resume()):
        assert max(map(len, command.details().splitlines())) <= 80


# --- by signal ------------------------------------------------------------------------------------

SIGNALS: dict[int, Command] = {signal.SIGUSR1: "release", signal.SIGUSR2: "resume"}


@pytest.fixture
def restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored")
def test_signals_are_taken_once_and_the_last_one_counts() -> None:
    woken: list[None] = []
    requests = Requests(lambda: woken.append(None))
    requests.install(SIGNALS)
    assert requests.take() is None
    signal.raise_signal(signal.SIGUSR1)
    assert requests.take() == "release"
    assert requests.take() is None
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGUSR1)
    assert requests.take() == "release"
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    assert requests.take() == "resume"
    assert requests.take() is None
    assert len(woken) == 5


@pytest.mark.usefixtures("restored")
def test_a_signal_wakes_the_loop() -> None:
    stop = Stop()
    requests = Requests(stop.set)
    requests.install(SIGNALS)
    waker = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    waker.start()
    stop.wait(PATIENT)
    waker.join()
    assert stop.is_set()
    assert requests.take() == "release"


@pytest.mark.usefixtures("restored")
def test_signals_at_any_instruction() -> None:
    """None is lost between two looks, and none is taken twice."""
    asked = taken = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    requests = Requests(count)
    requests.install({signal.SIGALRM: "release"})
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    while asked < 3000:
        taken += requests.take() is not None
    signal.setitimer(signal.ITIMER_REAL, 0)
    taken += requests.take() is not None
    assert 0 < taken <= asked
    assert requests.take() is None


def test_the_layout_of_the_credentials() -> None:
    """struct ucred: pid, uid, gid."""
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        raw = here.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    assert struct.unpack("iII", raw) == (os.getpid(), os.geteuid(), os.getegid())
