"""Jobs that come and go by the thousand: the page stays small, and nothing is lost."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gpubpf.bound import per_job
from tests.conftest import Agent, eventually, get, value
from tests.fakegpu.node import Node
from tests.fakegpu.small_programs import START, lines

PROCESSES, JOBS, AT_ONCE = 10_000, 2_000, 12
MOST = 50
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
LAUNCHES = "kernel_launches_total"
Series = dict[tuple[str, str], float]
"""(job_id, when it was created) -> launches."""


class Look:
    """One scrape."""

    def __init__(self, page: str) -> None:
        self.gpus = 0.0
        self.series = 0  # of jobs
        self.jobs: Series = {}
        counts: dict[tuple[str, str], float] = {}
        created: dict[str, float] = {}
        for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]
            for sample in family.samples:
                job_id = sample.labels.get("job_id")
                self.series += job_id is not None
                if sample.name == f"gpubpf_gpu_{LAUNCHES}":
                    self.gpus += sample.value
                elif sample.name == f"gpubpf_job_{LAUNCHES}":
                    counts[job_id, sample.labels["uuid"]] = sample.value
                elif sample.name == "gpubpf_job_kernel_launches_created":
                    created[job_id] = sample.value
        for (job_id, _), count in counts.items():
            key = (job_id, str(created[job_id]))
            self.jobs[key] = self.jobs.get(key, 0) + count


def own_memory(pid: int) -> int:
    """Bytes of anonymous memory: what it maps of the simulated driver's state, which has a place
    for every process that ever was, isn't the agent's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise ValueError("no RssAnon")


def run_all(node: Node, program: Path) -> int:
    """Runs the processes, some at once; how often they launched."""
    environment = node.environment()
    running: deque[subprocess.Popen[bytes]] = deque()
    launched = 0

    def reap() -> None:
        process = running.popleft()
        assert process.wait(60) == 0

    for number in range(PROCESSES):
        if len(running) == AT_ONCE:
            reap()
        with (program / str(number % 7)).open("rb") as text:
            running.append(
                subprocess.Popen(
                    [node.program, str(node.library)],
                    env={**environment, "JOB": f"job-{number * JOBS // PROCESSES}"},
                    stdin=text,
                    stdout=subprocess.DEVNULL,
                )
            )
        launched += 1 + number % 7
    while running:
        reap()
    return launched


def test_ten_thousand_processes_of_two_thousand_jobs(
    serve: Callable[..., Agent], node: Node, tmp_path: Path
) -> None:
    """At every scrape: few series, no counter back, and what jobs and GPUs grew by is the same."""
    program = tmp_path / "programs"
    program.mkdir()
    for count in range(7):
        text = lines(f"{START}{1 + count} x 0 cuLaunchKernel 1 1\n0 sleep 40")
        (program / str(count)).write_text("".join(line + "\n" for line in text))
    agent = serve(
        *("--library", str(node.library), "--nvml-library", str(node.nvml_library)),
        *("--control-socket", "", "--jobs", "environ:JOB", "--max-jobs", str(MOST)),
        *("--job-retention", "2", "--interval", "1"),
        environment=node.environment(),
    )
    looks: list[Look] = []
    memory: list[int] = []
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            looks.append(Look(get(f"{agent.url}/metrics", OPENMETRICS)))
            memory.append(own_memory(agent.pid))
            time.sleep(1)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        launched = run_all(node, program)
    finally:
        over.set()
        scraper.join()
    last = eventually(
        lambda: Look(get(f"{agent.url}/metrics", OPENMETRICS)), lambda look: look.gpus == launched
    )
    assert last.gpus == launched
    grown = 0.0
    for before, after in zip(looks, [*looks[1:], last], strict=True):
        more = {key: count - before.jobs.get(key, 0.0) for key, count in after.jobs.items()}
        assert min(more.values(), default=0) >= 0
        assert len({job_id for job_id, _ in after.jobs}) <= MOST + 2
        assert after.series <= per_job(("launch", "memory")).series(2, MOST)
        grown += sum(more.values())
        assert sum(more.values()) == after.gpus - before.gpus
    assert grown == launched - looks[0].gpus
    metrics = agent.metrics()
    assert not [n for (name, _), n in metrics.items() if name == "gpubpf_agent_lost_total" and n]
    assert value(metrics, "gpubpf_agent_jobs_merged_total") > 0
    settled = memory[len(memory) // 3 :]
    # Caches and the allocator still fill up; with three times as many processes it is less.
    assert max(settled) - settled[0] < 8 << 20, settled
