"""gpubpf.jobs: what each source makes of what processes look like, honest and hostile ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf.jobs import kubernetes, slurm, systemd, user
from gpubpf.jobs.cgroup import expression
from gpubpf.jobs.command import patterns
from gpubpf.jobs.environ import variable
from gpubpf.jobs.job import LONGEST
from gpubpf.jobs.paths import LARGEST, lines, paths
from gpubpf.jobs.sources import SOURCES, Spec, parse, resolvers
from gpubpf.model import Job, JobKey
from tests.unit.jobs.cases import BURSTABLE, C1, CASES, OTHER_UID, STEPD, UID, Case, v2

ALL = "slurm,kubernetes,systemd,environ:X,cgroup:/(?P<job>[^/]+)$,command:a|b=c,user"

SOME_OF = (
    "a comma-separated list of slurm, kubernetes, systemd, environ:VARIABLE, cgroup:REGEX, "
    "command:PATTERN[|PATTERN…], user; or none"
)


@dataclass
class Seen:
    cgroup: str = ""
    environment: Mapping[bytes, bytes] | None = None
    command: str = ""
    name: str = ""
    user: str = "owner"
    pid: int = 7
    late: bool = field(default=False)


def said(job: Job | None) -> tuple[str, str, str, str] | None:
    return None if job is None else (job.key.id, job.namespace, job.name, job.user)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.what))
def test_schedulers(case: Case) -> None:
    seen = Seen(case.cgroup, case.environment, user="root")
    assert said(slurm.resolve(seen)) == case.slurm
    pod = kubernetes.pod_of(case.cgroup)
    assert (pod and tuple(pod)) == case.pod
    assert systemd.unit_of(case.cgroup) == case.unit


def test_keys() -> None:
    pod = v2(f"{BURSTABLE}/crio-{C1}.scope")
    assert kubernetes.resolve(Seen(pod)) == Job(JobKey("kubernetes", UID))
    assert systemd.resolve(Seen(v2("/system.slice/a.service"))) == Job(
        JobKey("systemd", "a.service"), user="owner"
    )
    assert user.resolve(Seen()) == Job(JobKey("user", "owner"), user="owner")
    assert user.resolve(Seen(user="")) is None
    found = slurm.resolve(Seen(v2(f"{STEPD}/job_5")))
    assert found is not None
    assert found.key == JobKey("slurm", "5")


@pytest.mark.parametrize(
    ("value", "id_"),
    [
        (b"42", "42"),
        (b"", None),
        (b"  ", None),
        (None, None),
        (b"other", "other"),
        (b"none", "none"),
        (b"a=b\nc", "a=b?c…62f653ec63aab030"),
        (b"\xff\xfe", "\ufffd\ufffd…018e00dc45790e15"),
        ("é\u202e".encode(), "é?…15a39ca8cfe22475"),
        ("é".encode(), "é"),
        (b" a? ", "a?"),
    ],
)
def test_environ(value: bytes | None, id_: str | None) -> None:
    environment = {b"JOB": value} if value is not None else {}
    found = variable("JOB")(Seen(environment=environment))
    assert found == (id_ and Job(JobKey("environ", id_), user="owner"))
    assert variable("JOB")(Seen()) is None  # can't be read


def test_long_values_stay_two() -> None:
    ids = {
        found.key.id
        for tail in (b"1", b"2")
        if (found := variable("JOB")(Seen(environment={b"JOB": b"x" * 10_000_000 + tail})))
    }
    assert len(ids) == 2
    assert all(len(id_) <= LONGEST for id_ in ids)


def test_cgroup() -> None:
    resolve = expression(r"^/batch/(?P<user>[^/]+)/(?P<job>[^/,]{1,9})(?:,(?P<name>[^/]+))?(/|$)")
    path = "9:cpu:/\n0::/batch/bob/77"
    assert said(resolve(Seen(path))) == ("77", "", "", "bob")
    assert said(resolve(Seen(path + ",fit/x\n"))) == ("77", "", "fit", "bob")
    assert resolve(Seen("0::/x/batch/bob/77")) is None
    assert resolve(Seen("")) is None
    assert said(expression(r"(?P<namespace>n)?(?P<job>\d+)?")(Seen("0::/a"))) is None
    assert said(expression(r"(?P<namespace>.)/(?P<job>\d+)")(Seen("0::/a/5\n0::/b/6"))) == (
        "5",
        "a",
        "",
        "owner",
    )


@pytest.mark.parametrize(
    ("text", "name", "command", "id_"),
    [
        ("vllm serve", "python3", "/usr/bin/python3 /bin/vllm serve llama", "vllm serve"),
        ("vllm serve", "python3", "vllm  serve", None),
        ("VLLM", "vllm", "vllm", None),
        ("train.py|infer", "infer", "x", "infer"),
        ("b|a", "", "a b", "b"),
        ("chat=vllm serve", "", "vllm serve", "chat"),
        ("chat=vllm|chat=sglang", "", "python -m sglang", "chat"),
        ("--model=llama", "", "x --model=llama", "--model=llama"),
        ("lr=lr=0.1", "", "lr=0.1", "lr"),
        ("other=x|y", "", "x", "other"),
        (".*", "", "anything", None),
        (" a b ", "", "xa bx", "a b"),
    ],
)
def test_command(text: str, name: str, command: str, id_: str | None) -> None:
    found = patterns(text)(Seen(name=name, command=command))
    assert found == (id_ and Job(JobKey("command", id_), user="owner"))


# --- hostile -------------------------------------------------------------------------------------


def test_a_line_that_was_cut_is_no_line() -> None:
    for cut in range(1, 40):
        text = "9:x:/" + "a" * 3000 + "\n"
        text = text * 5 + "8:y:/" + "b" * (LARGEST - 5 * len(text) - 6 - cut) + "\n"
        text += v2(f"{STEPD}/job_1234567")
        assert slurm.in_cgroup(text) == ("1234567" if len(text) <= LARGEST else "")


@pytest.mark.parametrize(
    "text",
    [
        "0::/" + "a" * 10_000_000,
        "0::" + "/a.slice" * 1_000_000,
        "0::/" + "kubepods-" * 1_000_000,
        "0::" + "/.." * 1_000_000,
        "0::/slurm" + "_" * 10_000_000,
        "0::/" + ":" * 10_000_000,
        "\n" * 10_000_000,
        "::/\n" * 1_000_000,
        "0::/\0" + "user@" * 800 + ".servic",
        "0::/" + "kubepods-" * 450 + "pod",
        "0::" + "/a.slice" * 500,
        "0::/" + "a_slurmstepd.scop" * 240,
        "0::/" + "@" * 4000 + ".servic",
    ],
    ids=lambda text: text[:16],
)
def test_huge_texts_take_no_time(text: str) -> None:
    seen = Seen(text, {b"X": b"1", b"SLURM_JOB_ID": b"9" * 10_000_000}, text, text, "")
    asked = resolvers(parse(ALL))
    began = time.perf_counter()
    for resolve in asked:
        resolve(seen)
    assert time.perf_counter() - began < 0.5


def test_others_names() -> None:
    """What stands below one's own cgroup, or in one's environment, makes nobody another's pod."""
    for below in (
        f"/kubepods-pod{OTHER_UID}.slice",
        f"/kubepods/burstable/pod{OTHER_UID}/{C1}",
        f"/{BURSTABLE}",
        f"{STEPD}/job_999",
        "/slurm/uid_0/job_999",
    ):
        text = v2(f"{BURSTABLE}/crio-{C1}.scope{below}")
        assert kubernetes.pod_of(text) == (UID, C1)
        assert slurm.resolve(Seen(text)) is None
        text = v2(f"{STEPD}/job_1/step_0{below}")
        assert said(slurm.resolve(Seen(text, {b"SLURM_JOB_ID": b"999"}))) == ("1", "", "", "owner")


@given(
    cgroup=st.binary(max_size=300) | st.from_regex(rb"(0::(/[a-z.@_-]{0,9}){0,5}\n)*"),
    environment=st.none()
    | st.dictionaries(st.sampled_from([b"X", b"SLURM_JOB_ID", b"SLURM_JOB_NAME"]), st.binary()),
    command=st.binary(max_size=60),
)
def test_any_bytes(cgroup: bytes, environment: dict[bytes, bytes] | None, command: bytes) -> None:
    text, line = (part.decode("utf-8", "replace") for part in (cgroup, command))
    seen = Seen(text, environment, line, line[:15], line[:9])
    for spec, resolve in zip(parse(ALL), resolvers(parse(ALL)), strict=True):
        job = resolve(seen)
        if job is not None:
            assert job.key.scheduler == spec.source
            assert job.key.id
            for value in (job.key.id, job.namespace, job.name, job.user):
                assert value.isprintable()
                assert len(value) <= LONGEST


@given(st.text())
def test_any_text_as_paths(text: str) -> None:
    assert all(path.startswith("/") for path in paths(text))
    assert len(paths(text)) <= len(lines(text))
    kubernetes.pod_of(text)
    slurm.in_cgroup(text)
    systemd.unit_of(text)


# --- the option ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "specs"),
    [
        ("", []),
        ("none", []),
        ("slurm", [Spec("slurm")]),
        (" slurm , kubernetes,user ", [Spec("slurm"), Spec("kubernetes"), Spec("user")]),
        ("slurm,slurm", [Spec("slurm")]),
        ("environ:A,environ:B", [Spec("environ", "A"), Spec("environ", "B")]),
        (
            r"cgroup:^/x{1,3}/(?P<job>[a,b:]+),slurm,command:a,b|c=d:e,user",
            [
                Spec("cgroup", r"^/x{1,3}/(?P<job>[a,b:]+)"),
                Spec("slurm"),
                Spec("command", "a,b|c=d:e"),
                Spec("user"),
            ],
        ),
        (["slurm", "cgroup:(?P<job>a),user"], [Spec("slurm"), Spec("cgroup", "(?P<job>a),user")]),
        (["environ:A"], [Spec("environ", "A")]),
        ("command:a,username,user", [Spec("command", "a,username"), Spec("user")]),
        ([], []),
    ],
)
def test_option(raw: object, specs: list[Spec]) -> None:
    assert parse(raw) == tuple(specs)
    assert len(resolvers(parse(raw))) == len(specs)
    assert hash(parse(raw)) == hash(tuple(specs))
    assert parse([str(spec) for spec in specs]) == tuple(specs)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (7, "a comma-separated string, or a list of strings"),
        (["slurm", 7], "a comma-separated string, or a list of strings"),
        (True, "a comma-separated string, or a list of strings"),
        ("slrum", "a comma-separated list of slurm, kubernetes, systemd, environ:VARIABLE, "),
        ("slurm,slrum", f"{SOME_OF}; not slrum"),
        ("slurm,,user", f"{SOME_OF}; not nothing"),
        ("none,slurm", f"{SOME_OF}; not none"),
        ("a" * 100, f"{SOME_OF}; not {'a' * 59}…"),
        ("slurm:x", "slurm, not slurm:x"),
        ("slurm:", "slurm, not slurm:"),
        ("environ", "environ:VARIABLE, not environ"),
        ("environ:", "environ:VARIABLE, not environ:"),
        (
            "slurm,environ:A-B",
            "environ:VARIABLE with the name of an environment variable; not environ:A-B",
        ),
        ("environ:É", "environ:VARIABLE with the name of an environment variable"),
        ("command:a||b", "command:PATTERN[|PATTERN…] with patterns separated by |, none of them"),
        ("command:a=", "command:PATTERN[|PATTERN…] with patterns separated by |, none of them"),
        ("cgroup:job", "cgroup:REGEX with a regular expression with a group (?P<job>…)"),
        (
            "cgroup:(?P<job>a)(b",
            "cgroup:REGEX with a regular expression with a group (?P<job>…); this one has "
            "'missing ), unterminated subpattern' at character 11; not cgroup:(?P<job>a)(b",
        ),
        ("cgroup:" + "(" * 100_000, "cgroup:REGEX with a regular expression"),
        ("cgroup:(?P<job>a){99999999999}", "cgroup:REGEX with a regular expression"),
        ("user,slurm", "user as the last source"),
    ],
)
def test_option_refused(raw: object, expected: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(raw)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@given(st.text() | st.lists(st.text()))
def test_any_option(raw: object) -> None:
    with contextlib.suppress(ValueError):
        resolvers(parse(raw))


def test_sources_are_files() -> None:
    for name in SOURCES:
        __import__(f"gpubpf.jobs.{name}")
