"""Slurm's jobs, by the cgroup that slurmd made, or else by SLURM_JOB_ID.

The cgroup wins. slurmd makes it as root, a process is in it whatever it does, and its user can't
leave it. The environment is only what somebody passed on: a daemon started in a job keeps that of a
job long gone, and anybody can write another's number. It decides only where no line of the cgroup
is Slurm's: on a node without `proctrack/cgroup`, in a container that was started from a job, or
under a slurmd that is itself in a container.

Layouts (Slurm's `cgroup_v1.c` and `cgroup_v2.c`), with HOST where several slurmd share a node, and
in version 2 in any slice of the system's:

    /slurm[_HOST]/uid_1000/job_123/step_0/task_0
    /system.slice/[HOST_]slurmstepd.scope/job_123/step_batch/user/task_0

The steps, numbered or not (batch, extern, interactive), are the job's. The id of a task of an array
is its own job's number, which is all that the cgroup has: sacct calls it JobIDRaw, and squeue,
scontrol and sacct take it. What they show, ARRAY_TASK, is the name where the job has no other.

The environment gives the names, if it agrees on the number: else they are another job's. A user can
make up the name of his job, but not, where there are cgroups, its number. Outside of them he can
say any number; the names are then those that a process in the job's cgroup has, if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from gpubpf.jobs.job import Sight, job
from gpubpf.jobs.paths import paths
from gpubpf.model import Job

IDS = r"[1-9][0-9]{0,9}"  # 32 bits
_SAID = -1  # rank of names that only an environment goes with
_JOB = re.compile(
    r"(?:/\.\.)*"
    r"(?:/slurm(?:_[^/]+)?/uid_[0-9]+|(?:/[^/]+\.slice)*/(?:[^/]+_)?slurmstepd\.scope)"
    rf"/job_({IDS})(?:/|$)"
)
_NUMBER = re.compile(IDS.encode())


def resolve(sight: Sight) -> Job | None:
    number = in_cgroup(sight.cgroup)
    environment = sight.environment or {}
    said = _in_environment(environment)
    if number and number != said:
        return job("slurm", number, user=sight.user)
    if not said:
        return None
    found = job(
        "slurm",
        said,
        namespace=environment.get(b"SLURM_CLUSTER_NAME", b""),
        name=environment.get(b"SLURM_JOB_NAME") or _in_array(environment),
        # In a container a job may run as root: only then the variable says more.
        user=sight.user if sight.user not in ("", "root") else _user(environment) or sight.user,
    )
    return found and replace(found, rank=0 if number else _SAID)


def _user(environment: Mapping[bytes, bytes]) -> bytes:
    return environment.get(b"SLURM_JOB_USER", b"")


def in_cgroup(cgroup: str) -> str:
    """The job's number; "" where the process is in no cgroup of Slurm's."""
    for path in paths(cgroup):
        if match := _JOB.match(path):
            return match[1]
    return ""


def _in_environment(environment: Mapping[bytes, bytes]) -> str:
    for name in (b"SLURM_JOB_ID", b"SLURM_JOBID"):  # the older name of it
        value = environment.get(name, b"")
        if _NUMBER.fullmatch(value):
            return value.decode("ascii")
    return ""


def _in_array(environment: Mapping[bytes, bytes]) -> str:
    parts = [environment.get(b"SLURM_ARRAY_" + name, b"") for name in (b"JOB_ID", b"TASK_ID")]
    array, task = (part.decode("ascii") if part.isdigit() else "" for part in parts)
    return f"{array}_{task}" if array and task else ""
