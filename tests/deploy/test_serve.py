"""`gpubpf serve` as operators run it: a real process, real probes, a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gpubpf.symbols import chosen
from tests.conftest import GPUBPF, Agent, eventually, get, value
from tests.fakegpu.node import Node
from tests.fakegpu.nvml_control import NvmlControl

Serve = Callable[..., Agent]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROBED = {symbol.name for symbol in chosen(("launch", "memory"))}
BREAKPOINT = 0xCC
JE = 0x74  # what stands at a stub's probe point: see gpubpf.bpf.elf


def labels_of(agent: Agent, name: str) -> list[dict[str, str]]:
    """The labels of every sample of this name."""
    return [dict(labels) for (sample, labels), _ in agent.metrics().items() if sample == name]


# --- clients ------------------------------------------------------------------------------------


CLIENT = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
zeros = [ctypes.c_void_p(0)] * 11
print(ctypes.cast(library.cuLaunchKernel, ctypes.c_void_p).value, flush=True)
for line in sys.stdin:
    name, times = line.split()
    function = getattr(library, name)
    for _ in range(int(times)):
        assert function(*zeros) != 0  # no context, no device
    print("done", flush=True)
"""


class Client:
    """A process that has NVIDIA's library loaded and makes calls, all of which fail, when told."""

    def __init__(self, library: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._launch = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def call(self, name: str, times: int) -> None:
        """Returns when the calls have been made."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name} {times}\n")
        self.process.stdin.flush()
        assert self._line() == "done\n"

    def probe_point(self) -> int:
        """The byte in its memory at which cuLaunchKernel is probed."""
        with open(f"/proc/{self.process.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self._launch + 10)
            return memory.read(1)[0]

    def detached(self) -> int:
        """The byte once it is the library's own again; the kernel takes its time."""
        return eventually(self.probe_point, lambda byte: byte != BREAKPOINT)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="session")
def nvidia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of NVIDIA's libcuda: an inode that nothing else on this machine maps, by a name at
    which no other agent looks."""
    shown = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True)
    path = next(line.split()[-1] for line in shown.stdout.splitlines() if "libcuda.so.1 " in line)
    copy = tmp_path_factory.mktemp("nvidia") / "driver.so"
    shutil.copyfile(path, copy)
    return copy


@pytest.fixture
def client(nvidia: Path) -> Iterator[Client]:
    client = Client(nvidia)
    yield client
    client.stop()


def run(*options: str, before: tuple[str, ...] = (), **variables: str) -> tuple[int, str]:
    """An agent that can't start: its exit code, and what it says."""
    done = subprocess.run(
        [*before, str(GPUBPF), "serve", "--listen", "127.0.0.1:0", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    assert not done.stdout
    assert done.stderr.startswith("gpubpf: ")
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


# --- the pages ----------------------------------------------------------------------------------


def test_pages(serve: Serve, node: Node) -> None:
    agent = serve(
        *("--library", str(node.library), "--nvml-library", str(node.nvml_library)),
        *("--process-metrics", "--probe", "all"),
        environment={"FAKEGPU_STATE": str(node.path)},
    )
    assert "launch, memory, copy, wait" in agent.ready
    assert "2 GPUs" in agent.ready
    subprocess.run([str(node.workload), "--primes"], env=node.environment(), check=True)
    page = eventually(
        lambda: get(f"{agent.url}/metrics"),
        lambda page: "cuLaunchKernel" in page and "H100" in page,
    )
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")
    assert "ready" in get(f"{agent.url}/readyz")
    assert "ok" in get(f"{agent.url}/healthz")
    assert "Simulated GPU" in get(agent.url)


def test_openmetrics(serve: Serve) -> None:
    agent = serve("--process-metrics")
    page = get(f"{agent.url}/metrics", {"Accept": OPENMETRICS})
    parsed = text_string_to_metric_families(page)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    assert page.endswith("# EOF\n")
    assert families["gpubpf_calls"].type == "counter"
    assert families["gpubpf_agent_cpu_seconds"].unit == "seconds"
    assert all(family.documentation for family in families.values())


# --- Prometheus ---------------------------------------------------------------------------------


class Prometheus:
    """Debian's, scraping one agent every second."""

    program = "prometheus"

    def __init__(self, directory: Path, target: str, *options: str) -> None:
        self._directory = directory
        directory.mkdir()
        text = json.dumps(self.config(target))  # JSON is YAML
        (directory / "prometheus.yml").write_text(text)
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        self.url = f"http://{address}"
        with (directory / "log").open("wb") as log:
            command = self.command(address, *options)
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def command(self, address: str, *options: str) -> list[str]:
        kind = "agent" if {"--enable-feature=agent", "--agent"} & {*options} else "tsdb"
        return [
            self.program,
            f"--config.file={self._directory}/prometheus.yml",
            f"--storage.{kind}.path={self._directory}/data",
            f"--web.listen-address={address}",
            *options,
        ]

    def config(self, target: str) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": "gpubpf", "static_configs": [{"targets": [target]}]},
            ],
        }

    def query(self, expression: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series, now or then; none while Prometheus is starting."""
        moment = "" if at is None else f"&time={at}"
        with contextlib.suppress(OSError):
            answer = json.loads(get(f"{self.url}/api/v1/query?query={quote(expression)}{moment}"))
            return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]
        return []

    def calls(self) -> dict[str, float]:
        """Calls by function, zeros left out."""
        rows = self.query("gpubpf_calls_total > 0")
        return {labels["function"]: number for labels, number in rows}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[Agent], Prometheus]]:
    started: list[Prometheus] = []

    def start(agent: Agent) -> Prometheus:
        started.append(Prometheus(tmp_path / "prometheus", agent.url.removeprefix("http://")))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_prometheus_has_what_the_driver_counted(
    serve: Serve,
    node: Node,
    nvidia: Path,
    client: Client,
    alone: tuple[str, ...],
    prometheus: Callable[[Agent], Prometheus],
    tmp_path: Path,
) -> None:
    library = tmp_path / "libcuda.so.1"  # an inode of this test's own
    shutil.copyfile(node.library, library)
    agent = serve(
        *("--library", f"{library},{nvidia}", "--nvml-library", str(node.nvml_library), *alone),
        environment={"FAKEGPU_STATE": str(node.path)},
    )
    scraper = prometheus(agent)
    workload = [str(node.workload), "--library", str(library), "--primes", "--threads", "3"]
    subprocess.run(workload, env=node.environment(), check=True)
    oracle = node.counts()
    expected = {name: float(n) for name, n in oracle.calls.items() if name in PROBED}
    assert expected["cuLaunchKernel"] > 3 * 1009
    seen = eventually(scraper.calls, lambda calls: calls == expected, 30)
    assert seen == expected
    assert [number for _, number in scraper.query("up")] == [1]
    failed = scraper.query("sum(gpubpf_call_errors_total) without (error) > 0")
    failures = {labels["function"]: number for labels, number in failed}
    assert failures == {
        name: sum(n for (function, _), n in oracle.errors.items() if function == name)
        for name in ("cuMemAlloc_v2", "cuMemFree_v2")
    }

    client.call("cuLaunchGridAsync", 1013)  # on NVIDIA's own library
    client.call("cuMemAllocManaged", 419)
    expected["cuLaunchGridAsync"] = 1013
    expected["cuMemAllocManaged"] += 419
    seen = eventually(scraper.calls, lambda calls: calls == expected, 30)
    assert seen == expected
    names = {labels["name"] for labels, _ in scraper.query("gpubpf_gpu_info")}
    assert names == {"Simulated GPU H100 (gpubpf)"}


def test_two_agents_count_alike(
    serve: Serve, nvidia: Path, client: Client, alone: tuple[str, ...]
) -> None:
    agents = [
        serve("--library", str(nvidia), *alone),
        serve("--library", str(nvidia), *alone, "--probe", "all"),
    ]
    client.call("cuLaunchGrid", 2003)
    assert [grids(agent, 2003) for agent in agents] == [2003, 2003]
    agents[0].stop()
    client.call("cuLaunchGrid", 11)
    assert grids(agents[1], 2014) == 2014


def grids(agent: Agent, expected: int) -> float:
    return eventually(lambda: agent.calls()["cuLaunchGrid"], lambda number: number == expected)


# --- the end of it ------------------------------------------------------------------------------


def test_sigterm_leaves_nothing(serve: Serve, nvidia: Path, client: Client) -> None:
    assert client.probe_point() == JE
    agent = serve("--library", str(nvidia))
    assert client.probe_point() == BREAKPOINT
    # The loader is gone by now, the self-check soon.
    assert eventually(psutil.Process(agent.pid).children, lambda found: not found) == []
    assert agent.stop() == 0
    assert client.detached() == JE
    assert len(agent.lines) == 2
    assert agent.lines[1] == "gpubpf: stopped; nothing is left attached"


def test_sigint_is_a_clean_stop_too(serve: Serve) -> None:
    agent = serve("--no-nvml")
    agent.process.send_signal(signal.SIGINT)
    assert agent.process.wait(10) == 0


def test_sigkill_leaves_nothing(serve: Serve, nvidia: Path, client: Client) -> None:
    agent = serve("--library", str(nvidia), "--probe", "all")
    assert client.probe_point() == BREAKPOINT
    agent.process.kill()
    assert agent.process.wait(10) == -signal.SIGKILL
    assert client.detached() == JE
    client.call("cuLaunchKernel", 7)


def test_sigkill_while_loading_leaves_nothing(nvidia: Path, client: Client) -> None:
    agent = subprocess.Popen(
        [GPUBPF, "serve", "--listen", "127.0.0.1:0", "--library", str(nvidia), "--probe", "all"],
        stderr=subprocess.PIPE,
    )
    with agent:
        loaders = eventually(psutil.Process(agent.pid).children, bool)
        agent.kill()
    assert loaders
    assert psutil.wait_procs(loaders, 30)[1] == []
    assert client.detached() == JE


# --- what it needs ------------------------------------------------------------------------------


def test_it_never_maps_llvm(serve: Serve) -> None:
    agent = serve("--probe", "all")
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "python3" in maps
    assert "LLVM" not in maps
    assert "libbcc" not in maps
    assert "libclang" not in maps


def test_without_a_driver_it_counts(serve: Serve, node: Node) -> None:
    control = NvmlControl(node.path)
    control.unload_driver()
    agent = serve(
        *("--library", str(node.library), "--nvml-library", str(node.nvml_library)),
        environment={"FAKEGPU_STATE": str(node.path)},
    )
    assert "no GPU figures: no NVIDIA driver is loaded" in agent.ready
    subprocess.run([str(node.workload), "--cooperative", "211"], env=node.environment(), check=True)
    seen = eventually(agent.metrics, lambda m: count(m) == 211)
    assert count(seen) == 211
    assert value(seen, "gpubpf_agent_source_up", source="nvml") == 0
    assert value(seen, "gpubpf_agent_source_up", source="bpf") == 1
    assert not any(name == "gpubpf_gpu_info" for name, _ in seen)
    control.clear_faults()
    control.close()


def count(metrics: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> float:
    return value(metrics, "gpubpf_calls_total", function="cuLaunchCooperativeKernel")


def test_port_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        code, text = run("--listen", address)
    assert code == 6
    assert address in text
    assert "--listen" in text


@pytest.mark.parametrize(
    "who",
    [
        ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),  # root of a bare container
        # may enter the checkout, wherever it is
        (
            *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
        ),
    ],
    ids=["without capabilities", "nobody"],
)
def test_not_privileged(who: tuple[str, ...]) -> None:
    code, text = run(before=who)
    assert code == 3
    assert "root" in text
    assert "CAP_BPF" in text


def test_capabilities_that_do_not_help() -> None:
    """As root of a user namespace, or under a filter, one has them all."""
    code, text = run(before=("unshare", "--user", "--map-root-user"))
    assert code == 3
    assert "though it has the capabilities: let the container's seccomp filter" in text


def test_nothing_to_watch() -> None:
    code, text = run("--probe", "none", "--no-nvml")
    assert code == 1
    assert "nothing to watch" in text


@pytest.mark.parametrize("what", ["missing", "directory", "not TOML", "no such option"])
def test_bad_configuration(what: str, tmp_path: Path) -> None:
    path = tmp_path / "gpubpf.toml"
    if what == "directory":
        path.mkdir()
    elif what != "missing":
        path.write_text("= 1" if what == "not TOML" else "intervall = 1")
    code, text = run("--config", str(path))
    assert code == 2
    assert str(path) in text


def test_a_library_that_is_not_there() -> None:
    code, text = run("--library", "/nowhere/libcuda.so.1")
    assert code == 2
    assert "/nowhere/libcuda.so.1" in text
    code, text = run("--nvml-library", "/nowhere/libnvidia-ml.so.1")
    assert code == 5
    assert "/nowhere/libnvidia-ml.so.1" in text


def test_a_python_without_bcc(tmp_path: Path) -> None:
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", tmp_path], check=True)
    ours = Path(psutil.__file__).parent.parent  # what we have, but not the system's packages
    theirs = next((tmp_path / "lib").glob("python3*/site-packages"))
    (theirs / "ours.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
    done = subprocess.run(
        [tmp_path / "bin" / "python", "-m", "gpubpf", "serve", "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 4
    assert "python3-bpfcc" in done.stderr
    assert "apt-get install" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("function", "reasons"),
    [
        ("nvmlDeviceGetTemperature", ["timeout", "timeout"]),  # of each GPU
        ("nvmlEventSetWait", []),  # of the library: no GPU is known any more
    ],
)
def test_a_driver_that_hangs_stops_neither_the_counting_nor_the_end(
    serve: Serve, node: Node, alone: tuple[str, ...], function: str, reasons: list[str]
) -> None:
    control = NvmlControl(node.path)
    agent = serve(
        "--nvml-library", str(node.nvml_library), "--library", str(node.library), *alone,
        environment={"FAKEGPU_STATE": str(node.path)},
    )  # fmt: skip
    assert value(agent.metrics(), "gpubpf_agent_source_up", source="nvml") == 1
    assert len(labels_of(agent, "gpubpf_gpu_temperature_celsius")) == 2
    control.fault(function, block_ms=60_000)

    def told() -> tuple[float, list[str]]:
        down = labels_of(agent, "gpubpf_gpu_down_reason")
        source = value(agent.metrics(), "gpubpf_agent_source_up", source="nvml")
        return source, [labels["reason"] for labels in down]

    assert eventually(told, (0, reasons).__eq__, seconds=20) == (0, reasons)
    assert labels_of(agent, "gpubpf_gpu_temperature_celsius") == []
    down = labels_of(agent, "gpubpf_agent_source_down_reason")
    assert down == [{"source": "nvml", "reason": "timeout"}]
    subprocess.run(
        [node.workload, "--library", node.library, "--launches", "211"],
        env=node.environment(), stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    launches = eventually(lambda: agent.calls()["cuLaunchKernel"], lambda n: n == 211)
    assert launches == 211
    assert get(f"{agent.url}/healthz") == "ok\n"
    assert agent.stop() == 0
