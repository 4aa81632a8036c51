"""/proc/PID/cgroup and the environment as schedulers and runtimes leave them, and what they mean.

The layouts are those of the programs named; the ids are made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
UNDER = UID.replace("-", "_")
STATIC = "c1d2e3f4a5b6978800112233445566ff"
OTHER_UID = "ffffffff-0000-1111-2222-333333333333"
C1, C2 = "ab" * 32, "9c" * 32
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice"
V1 = (
    "12:pids:{0}\n11:hugetlb:{0}\n10:net_prio,net_cls:{0}\n9:rdma:/\n8:cpuset:{0}\n7:freezer:{0}\n"
    "6:perf_event:{0}\n5:devices:{0}\n4:memory:{0}\n3:cpuacct,cpu:{0}\n2:blkio:{0}\n"
    "1:name=systemd:{0}\n0::/\n"
)
SLURM_V1 = (
    "11:memory:/slurm{0}/uid_1000/job_123/step_{1}/task_0\n10:pids:/system.slice/slurmd.service\n"
    "9:blkio:/system.slice/slurmd.service\n8:devices:/slurm{0}/uid_1000/job_123/step_{1}\n"
    "7:cpuset:/slurm{0}/uid_1000/job_123/step_{1}\n"
    "6:freezer:/slurm{0}/uid_1000/job_123/step_{1}\n1:name=systemd:/system.slice/slurmd.service\n"
)
USERS = "/user.slice/user-1000.slice/user@1000.service"
JOB = MappingProxyType(
    {
        b"SLURM_JOB_ID": b"123",
        b"SLURM_JOBID": b"123",
        b"SLURM_JOB_NAME": b"train",
        b"SLURM_JOB_USER": b"alice",
        b"SLURM_CLUSTER_NAME": b"hopper",
    }
)
ARRAY = MappingProxyType(
    {b"SLURM_JOB_ID": b"123", b"SLURM_ARRAY_JOB_ID": b"119", b"SLURM_ARRAY_TASK_ID": b"4"}
)


@dataclass(frozen=True)
class Case:
    what: str
    cgroup: str
    environment: Mapping[bytes, bytes] | None = field(default_factory=dict)
    slurm: tuple[str, str, str, str] | None = None  # id, cluster, name, user
    pod: tuple[str, str] | None = None  # UID, container
    unit: str = ""


def v2(path: str) -> str:
    return f"0::{path}\n"


BARE = ("123", "", "", "root")
FULL = ("123", "hopper", "train", "alice")
STEPD = "/system.slice/slurmstepd.scope"
SLURMD, SCOPE = "slurmd.service", "slurmstepd.scope"
POD = (UID, C1)
DOCKER = f"docker-{C2}.scope"

SLURM = [
    *(
        Case(f"v1, {step}", SLURM_V1.format(host, step), environment, want, None, SLURMD)
        for host, step, environment, want in (
            ("", "0", JOB, FULL),
            ("", "batch", JOB, FULL),
            ("_node7", "extern", {}, BARE),
            ("_node7", "interactive", None, BARE),
        )
    ),
    *(
        Case(f"v2, {path}", v2(path), environment, want, None, unit)
        for path, environment, want, unit in (
            (f"{STEPD}/job_123/step_0/user/task_0", JOB, FULL, SCOPE),
            (f"{STEPD}/job_123/step_batch/user/task_0", {}, BARE, SCOPE),
            (f"{STEPD}/job_123/step_extern/user/task_special", None, BARE, SCOPE),
            (f"{STEPD}/job_123/step_interactive/user/task_0", {}, BARE, SCOPE),
            (f"{STEPD}/job_123", {}, BARE, SCOPE),
            (f"{STEPD}/job_123 (deleted)", {}, BARE, SCOPE),
            ("/system.slice/n-1.a_slurmstepd.scope/job_123/step_0", {}, BARE, f"n-1.a_{SCOPE}"),
            ("/slurm.slice/slurm-a.slice/slurmstepd.scope/job_123/step_0", {}, BARE, SCOPE),
            ("/../../system.slice/slurmstepd.scope/job_123/step_0/user", {}, BARE, SCOPE),
            ("/../slurmstepd.scope/job_123/step_0/user", {}, BARE, SCOPE),
            (f"{STEPD}/system", {}, None, SCOPE),  # slurmstepd's own
        )
    ),
    Case("no cgroups of Slurm's", v2("/system.slice/slurmd.service"), JOB, FULL, None, SLURMD),
    Case("its cgroup can't be read", "", JOB, FULL),
    Case("old", "", {b"SLURM_JOBID": b"123"}, BARE),
    Case(
        "a task of an array",
        v2(f"{STEPD}/job_123/step_0"),
        ARRAY,
        ("123", "", "119_4", "root"),
        None,
        SCOPE,
    ),
    Case("an array with a name", "", {**JOB, **ARRAY}, FULL),
    Case("a container from a job", v2(f"/system.slice/{DOCKER}"), JOB, FULL, None, DOCKER),
    Case(
        "slurmd in a pod",
        v2(f"{BURSTABLE}/cri-containerd-{C1}.scope{STEPD}/job_123/step_0"),
        JOB,
        FULL,
        POD,
        f"cri-containerd-{C1}.scope",
    ),
    # the environment is another job's: only the number of the cgroup's is known
    Case(
        "stale", v2(f"{STEPD}/job_123/step_0"), {**JOB, b"SLURM_JOB_ID": b"77"}, BARE, None, SCOPE
    ),
    Case("half stale", v2(f"{STEPD}/job_9/step_0"), JOB, ("9", "", "", "root"), None, SCOPE),
    # what a user can make
    Case(
        "a job below a job",
        v2(f"{STEPD}/job_123/step_0/user/job_999{STEPD}/job_999/step_0"),
        {},
        BARE,
        None,
        SCOPE,
    ),
    Case(
        "a job below a user",
        v2(f"{USERS}{STEPD}/job_999/step_0"),
        {},
        None,
        None,
        "user@1000.service/slurmstepd.scope",
    ),
    Case(
        "a job below a user, v1",
        V1.format(f"{USERS}/slurm/uid_0/job_999"),
        {},
        None,
        None,
        "user@1000.service",
    ),
    Case("no number", v2(f"{STEPD}/job_12x3/step_0"), {b"SLURM_JOB_ID": b"12x"}, None, None, SCOPE),
    Case("0", v2(f"{STEPD}/job_0"), {b"SLURM_JOB_ID": b"0"}, None, None, SCOPE),
    Case("large", v2(f"{STEPD}/job_{'9' * 11}"), {b"SLURM_JOB_ID": b"9" * 11}, None, None, SCOPE),
    Case("lines", "", {b"SLURM_JOB_ID": b"1\n0::/system.slice/slurmstepd.scope/job_2"}),
    Case("odd digits", "", {b"SLURM_JOB_ID": "١٢".encode()}),
    Case(
        "names of ours",
        "",
        {**JOB, b"SLURM_JOB_NAME": b"a\nb\xff", b"SLURM_JOB_USER": b"none"},
        ("123", "hopper", "a?b\ufffd", "none"),
    ),
]

KUBERNETES = [
    *(
        Case(f"systemd, {name}", v2(f"{BURSTABLE}/{name}{below}"), {}, None, want, name)
        for name, below, want in (
            (f"cri-containerd-{C1}.scope", "", POD),
            (f"crio-{C1}.scope", "", POD),
            (f"crio-{C1}.scope", "/container", POD),
            (f"crio-conmon-{C1}.scope", "", (UID, "")),
            (f"docker-{C1}.scope", "", POD),
            (f"cri-containerd-{C1}.scope", " (deleted)", POD),
            # below the container's: docker, systemd, kind in a pod
            (f"cri-containerd-{C1}.scope", f"/docker/{C2}", POD),
            (f"cri-containerd-{C1}.scope", "/system.slice/nginx.service", POD),
            (f"cri-containerd-{C1}.scope", f"/kubelet/kubepods/pod{OTHER_UID}/{C2}", POD),
            (f"cri-containerd-{C1}.scope", f"/kubepods-pod{OTHER_UID}.slice/crio-{C2}.scope", POD),
        )
    ),
    *(
        Case(path, v2(path), {}, None, want, unit)
        for path, want, unit in (
            (f"/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{C1}.scope", POD, f"crio-{C1}.scope"),
            (BURSTABLE, (UID, ""), ""),
            (f"/kubepods/burstable/pod{UID}/{C1}", POD, ""),
            (f"/kubepods/besteffort/pod{UID}/crio-{C1}", POD, ""),
            (f"/kubepods/besteffort/pod{UID}/crio-conmon-{C1}", (UID, ""), ""),
            (f"/kubepods/pod{UID}/{C1}", POD, ""),
            (f"/kubepods/pod{UID}", (UID, ""), ""),
            (f"/kubepods/pod{STATIC}/{C1}", (STATIC, C1), ""),
            (f"/kubepods/pod{UID}/{C1}/docker/{C2}", POD, ""),
            # kind's: seen in the node, and on the host, where the node is a container
            (f"/kubelet/kubepods/burstable/pod{UID}/{C1}", POD, ""),
            (f"/docker/{C2}/kubelet/kubepods/besteffort/pod{UID}/{C1}", POD, ""),
            (f"/system.slice/{DOCKER}/kubelet/kubepods/pod{UID}/{C1}", POD, DOCKER),
            (f"/system.slice/{DOCKER}{BURSTABLE}/cri-containerd-{C1}.scope", POD, DOCKER),
            # containerd without SystemdCgroup
            (
                f"/system.slice/containerd.service/kubepods-burstable-pod{UNDER}.slice"
                f":cri-containerd:{C1}",
                POD,
                "containerd.service",
            ),
            (f"/kubepods-besteffort-pod{UNDER}.slice:cri-containerd:{C1}", POD, ""),
            # an agent in a cgroup namespace of its own
            (f"/../../pod{UID}/{C1}", POD, ""),
            (f"/../../../burstable/pod{UID}/{C1}", POD, ""),
            (f"/../../../..{BURSTABLE}/crio-{C1}.scope", POD, f"crio-{C1}.scope"),
            (
                f"/../../kubepods-burstable-pod{UNDER}.slice/cri-containerd-{C1}.scope",
                POD,
                f"cri-containerd-{C1}.scope",
            ),
            (f"/../cri-containerd-{C1}.scope", None, f"cri-containerd-{C1}.scope"),
            # not kubelet's
            (f"{USERS}/kubepods/burstable/pod{UID}/{C1}", None, "user@1000.service"),
            (
                f"{USERS}/app.slice{BURSTABLE}/crio-{C1}.scope",
                None,
                f"user@1000.service/crio-{C1}.scope",
            ),
            (f"/../user@1000.service/kubepods-pod{UNDER}.slice", None, "user@1000.service"),
            (f"/pod{UID}/{C1}", None, ""),
            (f"/x/kubepods/y/pod{UID}/{C1}", None, ""),
            (f"/kubepods/burstable/pod{UID}x/{C1}", None, ""),
            (f"/kubepods/burstable/pod{UID.upper()}/{C1}", None, ""),
            ("/kubepods/burstable/pod../x", None, ""),
            ("/kubepods/burstable", None, ""),
            (f"/docker/{C1}", None, ""),
            ("/", None, ""),
        )
    ),
    Case(
        "systemd, kind",
        v2(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
            f"kubelet-kubepods-besteffort-pod{UNDER}.slice/cri-containerd-{C1}.scope"
        ),
        {},
        None,
        POD,
        f"cri-containerd-{C1}.scope",
    ),
    Case(
        "a static pod, systemd",
        v2(
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice"
            f"/crio-{C1}.scope"
        ),
        {},
        None,
        (STATIC, C1),
        f"crio-{C1}.scope",
    ),
    Case(
        "v1, systemd",
        V1.format(f"{BURSTABLE}/docker-{C1}.scope"),
        {},
        None,
        POD,
        f"docker-{C1}.scope",
    ),
    Case("v1, cgroupfs", V1.format(f"/kubepods/burstable/pod{UID}/{C1}"), {}, None, POD),
    Case(
        "v1, some controllers only",
        f"3:rdma:/\n2:memory:/kubepods/pod{UID}/{C1}\n1:name=systemd:/\n",
        {},
        None,
        POD,
    ),
]

SYSTEMD = [
    Case(path, v2(path), {}, None, None, unit)
    for path, unit in (
        ("/system.slice/ollama.service", "ollama.service"),
        ("/system.slice/ollama.service/below/x.service", "ollama.service"),
        ("/system.slice/system-vllm.slice/vllm@a\\x2db.service", "vllm@a\\x2db.service"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/system.slice/x@.service", ""),
        ("/system.slice/a b.service", ""),
        ("/system.slice/dev-hugepages.mount", ""),
        ("/system.slice", ""),
        ("/init.scope", "init.scope"),
        ("/x/y.service", ""),
        ("/../ollama.service", "ollama.service"),
        ("/machine.slice/libpod-1.scope/container", "libpod-1.scope"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/user.slice/user-1000.slice/session-c1.scope/x.service", "session-c1.scope"),
        (f"{USERS}/app.slice/train.service", "user@1000.service/train.service"),
        (f"{USERS}/app.slice/app-a.slice/run-u5.scope", "user@1000.service/run-u5.scope"),
        (f"{USERS}/init.scope", "user@1000.service/init.scope"),
        (f"{USERS}/nginx.service", "user@1000.service/nginx.service"),
        (f"{USERS}/system.slice/nginx.service", "user@1000.service/nginx.service"),
        (f"{USERS}/user@1001.service/a.service", "user@1000.service/user@1001.service"),
        (f"{USERS}/made/nginx.service", "user@1000.service"),
        (USERS, "user@1000.service"),
    )
] + [
    Case("v1", V1.format("/system.slice/a.service"), {}, None, None, "a.service"),
    Case(
        "hybrid",
        "1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n",
        {},
        None,
        None,
        "a.service",
    ),
    Case("not systemd's hierarchy", "2:cpu:/x.service\n1:name=systemd:/\n0::/y.service\n"),
    Case("no colons", "/system.slice/a.service\n0:/system.slice/a.service\n::/x.service\n"),
    Case("no path", "0::system.slice/a.service\n0::\n"),
    Case("long", v2("/a.service/" + "x" * 4096)),
    Case("a colon", v2("/system.slice/a:b.service"), {}, None, None, "a:b.service"),
]

CASES = SLURM + KUBERNETES + SYSTEMD
