"""What counting costs a real launch, and what the agent itself takes."""

from __future__ import annotations

import statistics
import tempfile
import time

from tests.gpu.child import Child
from tests.gpu.model import CheckError, Figure, Finding, Result, judged
from tests.gpu.rig import PROGRAMS, Rig

TURNS = 3  # each case is measured so often
WORK = (
    # what, threads, rounds
    ("launch", 1, 40_000),
    ("launch", 2, 20_000),
    ("graph", 1, 10_000),
    ("allocate", 1, 2_000),
)
MOST_CPU = 1.0  # % of a CPU, with a look each second
WATCHED = 10.0  # seconds


def overhead(rig: Rig) -> Result:
    """Nanoseconds of each call, with the agent and without."""
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as place:
        timer = f"{place}/timer"
        source = str(PROGRAMS / "timer.c")
        built = rig.run(["cc", "-std=gnu11", "-O2", "-o", timer, source, "-ldl", "-pthread"])
        if built.returncode:
            raise CheckError(f"timer.c doesn't compile: {built.stderr.strip().splitlines()[0]}")
        rig.stop_agent()
        plain = _measured(rig, timer)
        rig.page()  # once: before Linux 6.6 an agent takes long to stop
        counted = _measured(rig, timer)
    for (what, threads, _), before, after in zip(WORK, plain, counted, strict=True):
        figures[f"{what}, {threads} thread{'s' * (threads > 1)}"] = (
            f"{before:,.0f} ns, counted {after:,.0f} ns: {after - before:+,.0f} ns, "
            f"{after / before:.2f} times"
        )
    return judged([], figures, "told, not judged")


def _measured(rig: Rig, timer: str) -> list[float]:
    """The medians of WORK's rows; one process at a time: a context is large."""
    medians = []
    for what, threads, rounds in WORK:
        process = rig.started([timer, str(threads)])
        turns = [_time(process, what, int(rounds * rig.effort)) for _ in range(TURNS)]
        medians.append(statistics.median(turns))
        process.close()
    return medians


def _time(timer: Child, what: str, rounds: int) -> float:
    return float(timer.ask(what, seconds=60, rounds=rounds))


def agent(rig: Rig) -> Result:
    """CPU and memory of an agent that looks once a second, all probes, real NVML."""
    agent = rig.start_agent(interval=1.0)
    client = rig.client("driver_client")
    client.ask("open")
    agent.settled()
    begin, cpu = time.monotonic(), agent.cpu_seconds()
    while time.monotonic() - begin < WATCHED * rig.effort:
        client.ask("launch", times=1000)
        client.ask("wait")
        time.sleep(0.1)
    share = 100 * (agent.cpu_seconds() - cpu) / (time.monotonic() - begin)
    page = agent.settled()
    figures: dict[str, Figure] = {
        "CPU": f"{share:.2f} % of a CPU",
        "memory (PSS)": f"{agent.memory() / 2**20:.1f} MiB",
    }
    for source, seconds in page.by("gpubpf_agent_source_read_seconds", "source").items():
        figures[f"a read of {source}"] = f"{1000 * seconds:.2f} ms"
    text = f"at most {MOST_CPU:g} %"
    findings = [Finding("the agent's CPU", text, f"{share:.2f} %", share <= MOST_CPU)]
    for name in ("bpf", "nvml"):
        up = page.total("gpubpf_agent_source_up", source=name)
        findings.append(Finding(f"source {name} is up", 1, up, up == 1))
    return judged(findings, figures)
