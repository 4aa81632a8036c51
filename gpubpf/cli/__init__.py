"""The command line: one module per command, its options from the table in `gpubpf.config`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol, TextIO, cast

from gpubpf import __version__
from gpubpf.cli import doctor, release, serve, table, top
from gpubpf.config import CONFIG_VARIABLE, OPTIONS, Option, Options, load
from gpubpf.errors import GpubpfError, UsageError


class Command(Protocol):
    """What a command's module has."""

    NAME: str
    HELP: str  # one line

    def details(self) -> str:
        """What `--help` says below the options, lines as they stand; "" for nothing."""

    def run(self, options: Options) -> int:
        """Does it; returns the exit code. Raises GpubpfError."""


COMMANDS: tuple[Command, ...] = (serve, top, doctor, release.Release(), release.Resume())

INTERRUPTED = 130  # as a shell says of a program that SIGINT ended
BROKEN_PIPE = 141  # likewise SIGPIPE

_ABOUT = """\
Counts by eBPF what each process asks of the GPUs of this node, and joins it
with what NVML measures."""

_EXIT_CODES = """\
exit codes:
  0  done              4  BPF or uprobes can't be used here
  1  something failed  5  NVML can't be used, and it was asked for
  2  bad option        6  the address to serve on can't be had
  3  not privileged    130  interrupted

gpubpf COMMAND --help shows the options of a command.
"""

_PRECEDENCE = f"""\
An option may also be set by an environment variable (--some-name is
GPUBPF_SOME_NAME) or in the TOML file (some-name = ...) that --config or
{CONFIG_VARIABLE} names. The command line wins, then the variable, then the file.
"""


class _OutputError(Exception):
    """Standard output can't be written."""


class _Output:
    """Standard output, whose errors are told from those of anything else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._errors():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @staticmethod
    @contextlib.contextmanager
    def _errors() -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _OutputError(error.strerror or str(error)) from None


class _Parser(argparse.ArgumentParser):
    command: Command | None = None

    def format_help(self) -> str:
        if self.command is not None:  # made only when it is asked for
            self.epilog = "\n".join(filter(None, (self.command.details(), _PRECEDENCE)))
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    # What is left out must stay out: the environment or the file may say it.
    if option.is_flag:
        parser.add_argument(
            f"--{option.name}",
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=option.help,
        )
    else:
        parser.add_argument(
            f"--{option.name}",
            metavar=option.metavar,
            action="append" if option.repeats else "store",
            default=argparse.SUPPRESS,
            help=option.help,
        )


def _parser() -> _Parser:
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="gpubpf",
        description=_ABOUT,
        epilog=_EXIT_CODES,
        formatter_class=form,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gpubpf {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=_Parser
    )
    for command in COMMANDS:
        one = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=f"{command.HELP[:1].upper()}{command.HELP[1:]}.",
            formatter_class=form,
            allow_abbrev=False,
        )
        one.command = command
        one.add_argument("--config", metavar="PATH", help="TOML file to read options from")
        for option in OPTIONS:
            if command.NAME in option.commands:
                _add(one, option)
    return parser


def _parse(arguments: Sequence[str] | None) -> tuple[Command, dict[str, str | bool], str | None]:
    """The command, what the command line says (by option attribute), and the file to read."""
    known, unknown = _parser().parse_known_args(arguments)
    given = vars(known)
    name, path = given.pop("command"), given.pop("config", None)
    if unknown:
        raise UsageError(f"no such option: {' '.join(unknown)} (see gpubpf {name or ''} --help)")
    if name is None:
        names = ", ".join(command.NAME for command in COMMANDS)
        raise UsageError(f"which command? One of {names} (see gpubpf --help)")
    values = {key: ",".join(v) if isinstance(v, list) else v for key, v in given.items()}
    return next(command for command in COMMANDS if name == command.NAME), values, path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Expected errors are one line on standard error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-: nobody wants to read it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the end
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no … or ° gets a ?
            stream.reconfigure(errors="replace")
    with contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout))):
        try:
            return _run(argv)
        except GpubpfError as error:
            print(f"gpubpf: {table.clean(str(error))}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:  # whoever read our output has had enough
            _drop_output()
            return BROKEN_PIPE
        except _OutputError as error:
            _drop_output()
            print(f"gpubpf: can't write the output: {error}", file=sys.stderr)
            return 1


def _run(argv: Sequence[str] | None) -> int:
    try:
        command, values, path = _parse(argv)
        return command.run(load(values, os.environ, path, command.NAME))
    finally:
        sys.stdout.flush()  # here also for --help, which ends by SystemExit


def _drop_output() -> None:
    """What is left of it would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
