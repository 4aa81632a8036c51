"""Jobs from the process to the page: real cgroups, real processes, the real agent; exact counts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.conftest import Agent, Metrics, eventually, get, value
from tests.fakegpu.node import Node
from tests.fakegpu.programs import Interpreter
from tests.fakegpu.small_programs import START, lines

LAUNCHES = "gpubpf_job_kernel_launches_total"
UID = "4f1d5cd6-21ab-4c09-9a4e-2a04c2f1d9aa"
CONTAINER = "c0ffee" + "7" * 58
POD = (
    "kubepods.slice/kubepods-burstable.slice/"
    f"kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope"
)


def launching(count: int) -> list[str]:
    """It lives a little, as everybody's does: cuInit alone takes longer on a GPU."""
    return lines(f"{START}{count} x 0 cuLaunchKernel 1 1\n0 sleep 200")


def run_as(node: Node, count: int, environment: dict[str, str]) -> None:
    """A process that launches so often and ends at once."""
    subprocess.run(
        [node.program, str(node.library)],
        env={**node.environment(), **environment},
        input="".join(line + "\n" for line in launching(count)),
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=60,
    )


def by_job(metrics: Metrics, name: str = LAUNCHES) -> dict[str, float]:
    """Sums over the GPUs, of those that aren't 0."""
    sums: dict[str, float] = {}
    for (sample, labels), number in metrics.items():
        if sample == name and number:
            job_id = dict(labels)["job_id"]
            sums[job_id] = sums.get(job_id, 0) + number
    return sums


def on_gpus(metrics: Metrics) -> float:
    return sum(n for (name, _), n in metrics.items() if name == "gpubpf_gpu_kernel_launches_total")


def test_without_jobs_there_is_nothing(watch: Callable[..., Agent], node: Node) -> None:
    agent = watch()
    run_as(node, 7, {"JOB": "a"})
    eventually(agent.metrics, lambda metrics: on_gpus(metrics) == 7)
    assert "job" not in get(f"{agent.url}/metrics").replace("gpubpf_agent_jobs", "")


def test_short_processes_are_named(watch: Callable[..., Agent], node: Node) -> None:
    """They end long before the next look: the kernel tells of their first call."""
    agent = watch("--jobs", "environ:JOB", "--interval", "3")
    for number in range(5):
        run_as(node, 100 + number, {"JOB": f"job-{number}"})
    run_as(node, 7, {})
    metrics = eventually(agent.metrics, lambda metrics: on_gpus(metrics) == 517)
    expected = {f"job-{number}": 100.0 + number for number in range(5)}
    assert by_job(metrics) == {**expected, "none": 7}


def test_many_at_once(watch: Callable[..., Agent], node: Node) -> None:
    """More jobs than have room: what the jobs did is what the GPUs did, in each moment."""
    agent = watch("--jobs", "environ:JOB", "--max-jobs", "3", "--job-retention", "1")
    total = 0
    for number in range(24):
        run_as(node, 1 + number, {"JOB": f"job-{number % 12}"})
        total += 1 + number
        metrics = agent.metrics()
        assert len(by_job(metrics)) <= 3 + 2
        time.sleep(0.1)
    assert eventually(agent.metrics, lambda m: on_gpus(m) == total) is not None
    assert value(agent.metrics(), "gpubpf_agent_jobs_merged_total") > 0
    gone = eventually(agent.metrics, lambda m: not {*by_job(m)} - {"other"}, 5)
    assert {*by_job(gone)} == {"other"}
    assert value(gone, "gpubpf_agent_jobs_dropped_total") >= 3


def test_promtool_reads_a_page_with_jobs(watch: Callable[..., Agent], node: Node) -> None:
    """With everything on, and names that need escaping."""
    agent = watch("--jobs", "environ:JOB", "--probe", "all", "--thresholds", "window_seconds=0.5")
    with Interpreter(node) as inside:
        program = lines(f"{START}0 cuMemAlloc 8 1048576\n0 cuLaunchKernel 1 1")
        inside.tell(program)
        inside.hear(len(program))
        run_as(node, 3, {"JOB": 'a "quoted" \\ job'})
        eventually(agent.metrics, lambda metrics: len(by_job(metrics)) == 2)
        page = get(f"{agent.url}/metrics")
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert 'gpubpf_job_info{job_id="a \\"quoted\\" \\\\ job"' in page


def test_created_is_before_what_it_counts(watch: Callable[..., Agent], node: Node) -> None:
    agent = watch("--jobs", "environ:JOB")
    before = time.time()
    run_as(node, 11, {"JOB": "a"})
    eventually(agent.metrics, lambda metrics: by_job(metrics) == {"a": 11})
    page = get(f"{agent.url}/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.labels.get("job_id") == "a"
        and sample.labels.get("gpu") == "unknown"  # of a process that asks for no UUID
        and family.name == LAUNCHES.removesuffix("_total")
    }
    assert samples[LAUNCHES] == 11
    created = samples[LAUNCHES.replace("_total", "_created")]
    assert before - 2 < created <= before + 1


def test_a_child_has_its_parents_job(watch: Callable[..., Agent], node: Node) -> None:
    """A launcher that starts workers with an environment of their own."""
    agent = watch("--jobs", "environ:JOB", "--interval", "1")
    script = (
        "import os, subprocess, sys; env = {k: v for k, v in os.environ.items() if k != 'JOB'};"
        "subprocess.run(sys.argv[1:], env=env, stdout=subprocess.DEVNULL, check=True)"
    )
    subprocess.run(
        [sys.executable, "-c", script, node.program, str(node.library)],
        env={**node.environment(), "JOB": "launcher"},
        input="".join(line + "\n" for line in launching(13)),
        text=True,
        check=True,
    )
    metrics = eventually(agent.metrics, lambda metrics: on_gpus(metrics) == 13)
    assert by_job(metrics) == {"launcher": 13}


def test_totals_outlive_the_agent(watch: Callable[..., Agent], node: Node, tmp_path: Path) -> None:
    """Stopped, then killed: what was served is never more than what the next agent begins with."""
    options = ("--jobs", "environ:JOB", "--state", str(tmp_path / "jobs.json"))
    first = watch(*options)
    run_as(node, 11, {"JOB": "a"})
    served = eventually(first.metrics, lambda metrics: by_job(metrics) == {"a": 11})
    assert first.stop() == 0

    second = watch(*options)
    kept = second.metrics()
    assert (by_job(kept), on_gpus(kept)) == ({"a": 11}, 11)
    held = "gpubpf_job_held_seconds_total"
    assert by_job(kept, held).get("a", 0) >= by_job(served, held).get("a", 0)
    run_as(node, 5, {"JOB": "a"})
    run_as(node, 3, {"JOB": "b"})
    eventually(second.metrics, lambda metrics: by_job(metrics) == {"a": 16, "b": 3})
    second.process.kill()
    second.process.wait()

    third = watch(*options).metrics()
    assert (by_job(third), on_gpus(third)) == ({"a": 16, "b": 3}, 19)
    assert value(third, "gpubpf_agent_source_up", source="state") == 1


def test_a_damaged_state_is_set_aside(
    watch: Callable[..., Agent], node: Node, tmp_path: Path
) -> None:
    state = tmp_path / "jobs.json"
    state.write_text('{"version": 1, "accounts": [')
    agent = watch("--jobs", "environ:JOB", "--state", str(state))
    assert f"set aside as {state}.damaged" in agent.ready
    assert state.with_name("jobs.json.damaged").exists()


def test_who_holds_a_gpu_idle(watch: Callable[..., Agent], node: Node) -> None:
    """On within a moment of the time that is set, and off with the next launch."""
    thresholds = "idle_seconds=1,window_seconds=1"
    agent = watch("--jobs", "user", "--thresholds", thresholds)
    uuid = node.uuid(0)

    def idle() -> tuple[set[float], set[float]]:
        found: dict[str, set[float]] = {
            "gpubpf_gpu_diagnosis": set(),
            "gpubpf_job_diagnosis": set(),
        }
        for (name, labels), number in agent.metrics().items():
            of = dict(labels)
            if name in found and (of["uuid"], of["diagnosis"]) == (uuid, "idle_holder"):
                found[name].add(number)
        return found["gpubpf_gpu_diagnosis"], found["gpubpf_job_diagnosis"]

    with Interpreter(node) as inside:
        program = lines(f"{START}0 cuMemAlloc 8 1048576\n0 cuLaunchKernel 1 1")
        inside.tell(program)
        inside.hear(len(program))
        assert eventually(idle, lambda seen: seen == ({1.0}, {1.0})) == ({1.0}, {1.0})

        def launching() -> tuple[set[float], set[float]]:
            inside.do("0 cuLaunchKernel 1 1")
            return idle()

        assert eventually(launching, lambda seen: seen == ({0.0}, {0.0})) == ({0.0}, {0.0})


# --- real cgroups -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "path", "job_id"),
    [
        ("kubernetes", POD, UID),
        ("slurm", "system.slice/slurmstepd.scope/job_4711/step_0/user/task_0", "4711"),
        ("systemd", "system.slice/gpubpf-test-trainer.service", "gpubpf-test-trainer.service"),
        (r"cgroup:/lab/(?P<job>\w+)", "lab/x7", "x7"),
    ],
)
def test_real_cgroups(
    watch: Callable[..., Agent],
    node: Node,
    cgroup: Callable[[str, str], Path],
    source: str,
    path: str,
    job_id: str,
) -> None:
    agent = watch("--jobs", source)
    with Interpreter(node) as inside:
        (cgroup(source, path) / "cgroup.procs").write_text(str(inside.pid))
        program = launching(19)
        inside.tell(program)
        inside.hear(len(program))
        metrics = eventually(agent.metrics, lambda metrics: on_gpus(metrics) == 19)
        assert by_job(metrics)[job_id] == 19
        infos = [dict(labels) for (name, labels) in metrics if name == "gpubpf_job_info"]
        assert job_id in {info["job_id"] for info in infos}
        assert value(metrics, "gpubpf_job_processes", job_id=job_id) == 1
