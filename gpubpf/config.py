"""What can be set, and where it is read from: one row per option in `Options`.

An option `some-name` is `--some-name` on the command line, `GPUBPF_SOME_NAME` in the environment
and `some-name` in the TOML file. The first of these that says something wins, then the default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from gpubpf import diagnosis, parse
from gpubpf.compat import FLAVOURS
from gpubpf.diagnosis import THRESHOLDS
from gpubpf.errors import UsageError
from gpubpf.jobs import sources
from gpubpf.parse import DEFAULT_PORT, Address
from gpubpf.symbols import GROUPS

SERVE, TOP, DOCTOR = "serve", "top", "doctor"
RELEASE, RESUME = "release", "resume"
_ALL = (SERVE, TOP, DOCTOR)


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the table, as the command line and `load` need it."""

    name: str  # with dashes
    parse: Callable[[object], Any]
    default: Any
    metavar: str  # "" for a flag
    help: str
    commands: tuple[str, ...]

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return "GPUBPF_" + self.attribute.upper()

    @property
    def is_flag(self) -> bool:
        return self.parse is parse.flag

    @property
    def repeats(self) -> bool:
        """Whether it may be given several times on one command line."""
        return self.parse in (
            parse.words,
            parse.groups,
            parse.flavours,
            parse.label_keys,
            sources.parse,
            diagnosis.parse,
        )


def _row(
    parse: Callable[[object], Any], metavar: str, text: str, commands: tuple[str, ...] = _ALL
) -> dict[str, Any]:
    return {"parse": parse, "metavar": metavar, "help": text, "commands": commands}


@dataclass(frozen=True, slots=True)
class Options:
    """Every option's value. Times are in seconds."""

    listen: Address = field(
        default=("", DEFAULT_PORT),
        metadata=_row(
            parse.address,
            "HOST:PORT",
            "address to serve metrics on; an IPv6 address in brackets, no host: every interface"
            f" (default :{DEFAULT_PORT})",
            (SERVE,),
        ),
    )
    web_config: str | None = field(
        default=None,
        metadata=_row(
            parse.text,
            "FILE",
            "TLS, client certificates and users, in the format of Prometheus's exporter-toolkit;"
            " read again when it changes (default: none, and everybody may ask)",
            (SERVE,),
        ),
    )
    open_health: bool = field(
        default=False,
        metadata=_row(
            parse.flag,
            "",
            "with --web-config, answer /healthz and /readyz without a user's name (default: no)",
            (SERVE,),
        ),
    )
    interval: float = field(
        default=1.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "time between two looks, 0.1 to 3600 (default 1)",
            (SERVE, TOP),
        ),
    )
    probe: tuple[str, ...] = field(
        default=("launch", "memory"),
        metadata=_row(
            parse.groups,
            "GROUPS",
            f"what to count: a comma-separated list of {', '.join(GROUPS)}; or all; or none"
            " (default launch,memory)",
        ),
    )
    attribution: bool = field(
        default=True,
        metadata=_row(
            parse.flag,
            "",
            "follow contexts, streams, captures and graphs, so that calls count on their GPU and"
            " kernels when they run; without it no returns are probed for --probe launch"
            " (default: yes)",
        ),
    )
    nvml: bool = field(
        default=True, metadata=_row(parse.flag, "", "ask NVML about the GPUs (default: yes)")
    )
    nvml_library: str | None = field(
        default=None,
        metadata=_row(parse.text, "PATH", "NVML library to load (default libnvidia-ml.so.1)"),
    )
    library: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            parse.words,
            "PATH",
            "libcuda file to probe besides those that processes map and those in the usual"
            " places; may be repeated, or a comma-separated list",
        ),
    )
    process_metrics: bool = field(
        default=False,
        metadata=_row(parse.flag, "", "export series for each process (default: no)", (SERVE,)),
    )
    max_processes: int = field(
        default=100,
        metadata=_row(
            parse.integer(0, 100_000),
            "N",
            "with --process-metrics, processes with series of their own at most (default 100)",
            (SERVE,),
        ),
    )
    jobs: tuple[sources.Spec, ...] = field(
        default=(),
        metadata=_row(
            sources.parse,
            "SOURCES",
            "export series for each job, and what tells a process's job: a comma-separated list of"
            f" {', '.join(map(sources.written, sources.SOURCES))}, the first that knows decides;"
            " or none (default none)",
            (SERVE, DOCTOR),
        ),
    )
    max_jobs: int = field(
        default=100,
        metadata=_row(
            parse.integer(0, 10_000),
            "N",
            "with --jobs, jobs with series of their own at most; the rest share job_id other"
            " (default 100)",
            (SERVE, DOCTOR),
        ),
    )
    job_retention: float = field(
        default=600.0,
        metadata=_row(
            parse.seconds(0, 7 * 86400),
            "SECONDS",
            "how long the series of a job stay after its last process (default 600)",
            (SERVE,),
        ),
    )
    kubelet_socket: str | None = field(
        default=None,
        metadata=_row(
            parse.text,
            "PATH",
            "kubelet's pod-resources socket, empty for none (default /var/lib/kubelet/pod-resources"
            "/kubelet.sock in --host-root)",
            (SERVE, DOCTOR),
        ),
    )
    kubernetes_api: bool = field(
        default=False,
        metadata=_row(
            parse.flag,
            "",
            "ask the Kubernetes API server for the owners and labels of pods (default: no)",
            (SERVE, DOCTOR),
        ),
    )
    kubernetes_labels: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            parse.label_keys,
            "KEY[,KEY…]",
            "with --kubernetes-api, labels of pods that become gpubpf_job_label_info, "
            f"{parse.MOST_LABELS} at most (default none)",
            (SERVE, DOCTOR),
        ),
    )
    kubernetes_account: str = field(
        default="/var/run/secrets/kubernetes.io/serviceaccount",
        metadata=_row(
            parse.text,
            "PATH",
            "where the token and ca.crt of the agent's service account are"
            " (default /var/run/secrets/kubernetes.io/serviceaccount)",
            (SERVE, DOCTOR),
        ),
    )
    state: str | None = field(
        default=None,
        metadata=_row(
            parse.text,
            "FILE",
            "with --jobs, keep what jobs took, and the counts of the GPUs, over a restart of the"
            " agent, in this file (default: no)",
            (SERVE,),
        ),
    )
    thresholds: tuple[tuple[str, float], ...] = field(
        default=(),
        metadata=_row(
            diagnosis.parse,
            "NAME=VALUE",
            "thresholds of the diagnoses, a comma-separated list of"
            f" {', '.join(f'{name} ({row.default:g})' for name, row in THRESHOLDS.items())}",
            (SERVE,),
        ),
    )
    compat: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            parse.flavours,
            "NAMES",
            "give the figures under the names of other exporters too, a comma-separated list of"
            f" {', '.join(FLAVOURS)}; or none (default none)",
            (SERVE,),
        ),
    )
    discovery_interval: float = field(
        default=2.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "time between two searches for libcuda files in use (default 2)",
            (SERVE, TOP),
        ),
    )
    compute_interval: float = field(
        default=5.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "time between two samples of utilization, clocks and processes (default 5)",
            (SERVE,),
        ),
    )
    memory_interval: float = field(
        default=10.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "time between two samples of memory, ECC and the fragmentation (default 10)",
            (SERVE,),
        ),
    )
    link_interval: float = field(
        default=15.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "time between two samples of PCIe and NVLink (default 15)",
            (SERVE,),
        ),
    )
    heat_interval: float = field(
        default=30.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "time between two samples of temperature, power and settings (default 30)",
            (SERVE,),
        ),
    )
    node_interval: float = field(
        default=15.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "time between two looks at the node's shared memory and pressure (default 15)",
            (SERVE,),
        ),
    )
    nvml_timeout: float = field(
        default=5.0,
        metadata=_row(
            parse.seconds(0.1, 3600),
            "SECONDS",
            "how long one NVML call may take before its GPU is left alone (default 5)",
            (SERVE, TOP),
        ),
    )
    control_socket: str = field(
        default="/run/gpubpf/control.sock",
        metadata=_row(
            parse.text,
            "PATH",
            "Unix socket for gpubpf release and gpubpf resume, empty for none"
            " (default /run/gpubpf/control.sock)",
            (SERVE, RELEASE, RESUME),
        ),
    )
    resume_after: float = field(
        default=3600.0,
        metadata=_row(
            parse.seconds(0, 7 * 86400),
            "SECONDS",
            "take the GPUs up again by itself after so long, 0 for only by gpubpf resume"
            " (default 3600)",
            (SERVE, RELEASE),
        ),
    )
    proc_root: str = field(
        default="/proc",
        metadata=_row(parse.directory, "PATH", "where the node's /proc is mounted (default /proc)"),
    )
    host_root: str = field(
        default="/",
        metadata=_row(
            parse.directory, "PATH", "where the node's file system is mounted (default /)"
        ),
    )
    once: bool = field(
        default=False,
        metadata=_row(
            parse.flag,
            "",
            "look for --duration, print and end; so it is too where standard output is no"
            " terminal, and with --format json (default: no, refresh until q is pressed)",
            (TOP,),
        ),
    )
    duration: float = field(
        default=3.0,
        metadata=_row(
            parse.seconds(0.1, 86400), "SECONDS", "how long --once looks (default 3)", (TOP,)
        ),
    )
    format: str = field(
        default="text",
        metadata=_row(
            parse.one_of("text", "json"), "FORM", "text or json (default text)", (TOP, DOCTOR)
        ),
    )
    strict: bool = field(
        default=False,
        metadata=_row(parse.flag, "", "exit with 1 on warnings too (default: no)", (DOCTOR,)),
    )


def _options() -> tuple[Option, ...]:
    rows = []
    for row in fields(Options):
        assert row.default is not MISSING
        name = row.name.replace("_", "-")
        rows.append(Option(name=name, default=row.default, **row.metadata))
    return tuple(rows)


OPTIONS = _options()
"""The table as rows, in the order in which --help shows them."""

CONFIG_VARIABLE = "GPUBPF_CONFIG"


def without_effect(options: Options) -> list[str]:
    """What was asked for and does nothing without something else: a line each."""
    pods = any(spec.source == "kubernetes" for spec in options.jobs)
    rows = (
        ("state", options.jobs, "--jobs"),
        ("kubernetes-api", pods, "--jobs kubernetes"),
        ("kubernetes-labels", pods and options.kubernetes_api, "--kubernetes-api"),
        ("kubelet-socket", pods, "--jobs kubernetes"),
        ("open-health", options.web_config, "--web-config"),
    )
    given = {option.name for option in OPTIONS if getattr(options, option.attribute)}
    return [
        f"--{n} does nothing without {needs}"
        for n, there, needs in rows
        if n in given and not there
    ]


# --- reading ------------------------------------------------------------------------------------


def load(
    values: Mapping[str, str | bool],
    environ: Mapping[str, str],
    path: str | None = None,
    command: str | None = None,
) -> Options:
    """The options: of the command line (`values`, by attribute), else of the environment, else of
    the TOML file at `path` (default: the one that $GPUBPF_CONFIG names), else the defaults. Those
    that aren't the command's have their defaults: the file of `serve` has no `top` keep totals.

    An empty variable is as good as none. Variables that are no option are left alone: Kubernetes
    makes some (GPUBPF_SERVICE_HOST …). Raises UsageError.
    """
    path = path or environ.get(CONFIG_VARIABLE) or None
    file, lines = _read(path) if path is not None else ({}, "")
    chosen: dict[str, Any] = {}
    for option in OPTIONS:
        if option.name in file:  # checked even if something else wins: a bad file is bad today
            raw = file[option.name]
            where = f"{path}{_line(lines, option.name)}: {option.name} = {_shown(raw)}"
            chosen[option.attribute] = _parse(option, raw, where)
        if environ.get(option.variable):
            raw = environ[option.variable]
            where = f"{option.variable}={raw} in the environment"
            chosen[option.attribute] = _parse(option, raw, where)
        if option.attribute in values:
            raw = values[option.attribute]
            chosen[option.attribute] = _parse(option, raw, f"--{option.name} {raw}")
        if command is not None and command not in option.commands:
            chosen.pop(option.attribute, None)
    return Options(**chosen)


def _parse(option: Option, raw: object, where: str) -> Any:
    try:
        return option.parse(raw)
    except ValueError as error:
        raise UsageError(f"{_one_line(where)}: expected {error}") from None


def _read(path: str) -> tuple[dict[str, Any], str]:
    """The keys of the file, and its text."""
    import difflib  # only who has a file pays for these
    import tomllib

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        keys = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"can't read the configuration {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML (the message says at which line)
        raise UsageError(f"{path} is not a TOML file: {error}") from None
    known = {option.name for option in OPTIONS}
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key.replace("_", "-"), known, 1, 0.75)
            instead = (
                f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            )
            where = f"{path}{_line(text, key)}"
            raise UsageError(f"{_one_line(f'{where}: {key}')} is no option: {instead}")
    return keys, text


def _line(text: str, key: str) -> str:
    """ " line N" of a top-level key; tomllib tells a line only where the syntax is wrong."""
    pattern = re.compile(rf"""[\s\["']*{re.escape(key)}["'\s]*[=.\]]""")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.match(line):
            return f" line {number}"
    return ""


def _shown(raw: object) -> str:
    if isinstance(raw, bool):
        return str(raw).lower()
    return f'"{raw}"' if isinstance(raw, str) else str(raw)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:300])
