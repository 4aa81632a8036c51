"""A real Slurm: munge, slurmctld and slurmd of Debian as services of a systemd that runs, a cluster
of one node with two GPUs that are simulated, and jobs by srun and sbatch. Nothing of gpubpf is in a
prolog or epilog; every count is the driver's own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest import BUILD, eventually
from tests.deploy.machine import CLIENT, Machine
from tests.deploy.test_jobs import by_job, launching, on_gpus
from tests.fakegpu.node import Node

SETTINGS = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
StateSaveLocation=/var/lib/slurm/controller
SlurmdSpoolDir=/var/lib/slurm/node
ProctrackType=proctrack/{tracking}
TaskPlugin={task}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu,shard
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:2,shard:8 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES OverSubscribe=FORCE State=UP
"""
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\nName=shard Count=8\n"
SERVICES = ("munge", "slurmctld", "slurmd")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(BUILD, tmp_path_factory.mktemp("node") / "state", devices=2) as node:
        yield node


@pytest.fixture(scope="module")
def machine(own: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(tmp_path_factory.mktemp("machine") / "work", own) as machine:
        # Slurm finds no address by a name where there are none but the loopback's.
        machine.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        machine.write("/etc/slurm/gres.conf", GPUS)
        machine.write("/etc/slurm/cgroup.conf", "ConstrainDevices=no\n")
        machine.run("mkdir", "-p", "/var/lib/slurm/controller", "/var/lib/slurm/node")
        machine.run("systemctl", "unmask", *SERVICES)
        machine.serve_checkout()
        yield machine


@pytest.fixture(scope="module", params=["cgroup", "linuxproc"])
def cluster(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Machine]:
    """By the cgroups that slurmd makes, and without them."""
    tracking = str(request.param)
    task = "task/cgroup" if tracking == "cgroup" else "task/none"
    settings = SETTINGS.format(host=machine.run("uname", "-n"), tracking=tracking, task=task)
    machine.write("/etc/slurm/slurm.conf", settings)
    machine.run("systemctl", "start", *SERVICES)
    look = ("sinfo", "--noheader", "--format=%t")
    assert eventually(lambda: machine.run(*look), "idle".__eq__, 30) == "idle"
    yield machine
    machine.run("systemctl", "stop", *SERVICES)


def infos(cluster: Machine) -> dict[str, dict[str, str]]:
    found = [dict(labels) for name, labels in cluster.metrics() if name == "gpubpf_job_info"]
    return {info["job_id"]: info for info in found}


def new(cluster: Machine, before: dict[str, float], launches: int) -> dict[str, float]:
    """Of the jobs since then, when they have so many launches."""

    def since() -> dict[str, float]:
        now = by_job(cluster.metrics())
        return {job: n - before.get(job, 0) for job, n in now.items() if n != before.get(job, 0)}

    return eventually(since, lambda seen: sum(seen.values()) >= launches, 20)


def jobs(cluster: Machine) -> list[str]:
    """Slurm's own numbers, the newest last."""
    shown = cluster.run("scontrol", "show", "job", "--oneliner")
    return sorted(re.findall(r"^JobId=(\d+)", shown, re.M), key=int)


def client(count: int | str) -> str:
    """A line of a script that launches so often."""
    begin = " ".join(f'"{line}"' for line in launching(1)[:-2])
    lines = (
        f'printf "%s\\n" {begin}; yes "0 cuLaunchKernel 1 1" | head -n {count}; echo "0 sleep 50"'
    )
    return f"{{ {lines}; }} | {' '.join(CLIENT)} >/dev/null"


def step(count: int, *options: str) -> str:
    return f"srun {' '.join(options)} bash -c '{client(count)}'"


def batch(cluster: Machine, lines: str, *options: str) -> str:
    """Submits a script and waits for its end; its number."""
    submit = ("sbatch", "--parsable", "--output=/dev/null", *options)
    job = cluster.run(*submit, given=f"#!/bin/bash\n{lines}\n")
    look = ("squeue", "--noheader", "--jobs", job)
    assert eventually(lambda: cluster.run(*look), lambda queued: not queued, 30) == ""
    return job


def test_a_step_of_srun(cluster: Machine) -> None:
    before = by_job(cluster.metrics())
    cluster.launch(19, "srun", "--gres=gpu:1", "--job-name=fit", "--uid=nobody")
    job = jobs(cluster)[-1]
    assert new(cluster, before, 19) == {job: 19}
    info = infos(cluster)[job]
    assert {key: info[key] for key in ("scheduler", "name", "user", "namespace")} == {
        "scheduler": "slurm", "name": "fit", "user": "nobody", "namespace": "lab",
    }  # fmt: skip
    assert f"JobId={job} JobName=fit " in cluster.run("scontrol", "show", "job", "-o", job)


def test_a_batch_of_steps_is_one_job(cluster: Machine) -> None:
    """What its script calls, and two steps at once."""
    before = by_job(cluster.metrics())
    lines = f"{client(3)}\n{step(5, '--overlap')} &\n{step(7, '--overlap')} &\nwait"
    job = batch(cluster, lines, "--job-name=steps", "--gres=gpu:2")
    assert new(cluster, before, 15) == {job: 15}
    assert infos(cluster)[job]["name"] == "steps"


def test_tasks_of_an_array_are_jobs_of_their_own(cluster: Machine) -> None:
    """Each with the number that sacct calls JobIDRaw."""
    before = by_job(cluster.metrics())
    lines = client("$((10 + SLURM_ARRAY_TASK_ID))")
    array = batch(cluster, lines, "--array=1-3", "--job-name=sweep")
    shown = cluster.run("scontrol", "show", "job", "--oneliner", array)
    tasks = {task: job for job, task in re.findall(r"JobId=(\d+) .*?ArrayTaskId=(\d+) ", shown)}
    assert set(tasks) == {"1", "2", "3"}
    assert new(cluster, before, 36) == {tasks[task]: 10 + int(task) for task in tasks}
    assert {infos(cluster)[job]["name"] for job in tasks.values()} == {"sweep"}


def test_jobs_that_share_a_gpu(cluster: Machine) -> None:
    before = by_job(cluster.metrics())
    shard = "--gres=shard:1"
    cluster.run(
        "bash", "-c", f"{step(31, shard, '-J', 'one')} & {step(37, shard, '-J', 'two')}; wait"
    )
    pair = jobs(cluster)[-2:]
    seen = new(cluster, before, 68)
    assert {infos(cluster)[job]["name"]: seen.get(job) for job in pair} == {"one": 31, "two": 37}


def test_a_user_can_t_take_another_s_number(cluster: Machine) -> None:
    """Where slurmd makes cgroups; else the environment is all that there is."""
    before = by_job(cluster.metrics())
    cluster.launch(11, "srun", "env", "SLURM_JOB_ID=4711", "SLURM_JOBID=4711")
    tracked = "proctrack/cgroup" in cluster.run("cat", "/etc/slurm/slurm.conf")
    assert new(cluster, before, 11) == {jobs(cluster)[-1] if tracked else "4711": 11}


def test_all_of_it_is_what_the_driver_counted(cluster: Machine, own: Node) -> None:
    metrics = cluster.metrics()
    assert "none" not in by_job(metrics)
    assert sum(by_job(metrics).values()) == on_gpus(metrics)
    assert on_gpus(metrics) == own.counts().calls["cuLaunchKernel"] > 0
