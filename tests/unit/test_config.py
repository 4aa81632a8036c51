"""Options: precedence, parsing, and one-line errors that say where a bad value came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf.config import OPTIONS, Option, Options, load, without_effect
from gpubpf.errors import UsageError
from gpubpf.jobs.sources import Spec
from gpubpf.parse import DEFAULT_PORT, address
from gpubpf.symbols import GROUPS


def _file(folder: Path, text: str) -> str:
    path = folder / "gpubpf.toml"
    path.write_text(text)
    return str(path)


def test_defaults() -> None:
    options = load({}, {})
    assert options == Options()
    assert options.listen == ("", DEFAULT_PORT)
    assert options.probe == ("launch", "memory")
    assert options.nvml
    assert not options.process_metrics


def test_the_default_port_is_not_of_the_neighbours() -> None:
    """9400 is dcgm-exporter's, 9835 nvidia_gpu_exporter's, 9100 to 9999 are all given away, as is
    10001 to 10026; 10250 to 10259 are the kubelet's; from 30000 on Kubernetes hands out itself."""
    assert 10027 <= DEFAULT_PORT < 30000
    assert DEFAULT_PORT not in range(10248, 10260)
    taken = (10080, 10100, 10101, 10200, 10201, 10998, 11111, 11112, 12345, 15692, 15693, 16995)
    assert DEFAULT_PORT not in taken


def test_every_default_is_what_its_own_parser_makes() -> None:
    for option in OPTIONS:
        if option.default is not None:
            raw = option.default
            if option.name == "listen":
                raw = f":{DEFAULT_PORT}"
            elif isinstance(raw, tuple):
                raw = ",".join(raw)
            assert option.parse(raw) == option.default, option.name


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_read_from_each_place(option: Option, tmp_path: Path) -> None:
    text, toml, expected = {
        "listen": ("[::1]:1", '"[::1]:1"', ("::1", 1)),
        "interval": ("2.5", "2.5", 2.5),
        "attribution": ("false", "false", False),
        "web-config": ("/web.yml", '"/web.yml"', "/web.yml"),
        "open-health": ("yes", "true", True),
        "kubelet-socket": ("/k.sock", '"/k.sock"', "/k.sock"),
        "kubernetes-api": ("yes", "true", True),
        "kubernetes-labels": ("team,a.b/c", '["team", "a.b/c"]', ("team", "a.b/c")),
        "kubernetes-account": ("/account", '"/account"', "/account"),
        "compat": ("dcgm,nvidia-smi", '["dcgm", "nvidia-smi"]', ("dcgm", "nvidia-smi")),
        "probe": ("wait,launch", '["wait", "launch"]', ("launch", "wait")),
        "nvml": ("false", "false", False),
        "nvml-library": ("/n.so", '"/n.so"', "/n.so"),
        "library": ("/a,/b", '["/a", "/b"]', ("/a", "/b")),
        "process-metrics": ("yes", "true", True),
        "max-processes": ("7", "7", 7),
        "jobs": (
            "slurm,environ:JOB",
            '["slurm", "environ:JOB"]',
            (Spec("slurm"), Spec("environ", "JOB")),
        ),
        "max-jobs": ("8", "8", 8),
        "job-retention": ("60", "60", 60.0),
        "state": ("/s", '"/s"', "/s"),
        "thresholds": (
            "idle_seconds=9,near_full_ratio=0.5",
            '["idle_seconds=9", "near_full_ratio=0.5"]',
            (("idle_seconds", 9.0), ("near_full_ratio", 0.5)),
        ),
        "discovery-interval": ("9", "9", 9.0),
        "compute-interval": ("0.1", "0.1", 0.1),
        "memory-interval": ("30", "30", 30.0),
        "link-interval": ("31", "31", 31.0),
        "heat-interval": ("32.5", "32.5", 32.5),
        "node-interval": ("33", "33", 33.0),
        "nvml-timeout": ("2", "2", 2.0),
        "control-socket": ("/c.sock", '"/c.sock"', "/c.sock"),
        "resume-after": ("0", "0", 0.0),
        "proc-root": (str(tmp_path), f'"{tmp_path}"', str(tmp_path)),
        "host-root": (str(tmp_path), f'"{tmp_path}"', str(tmp_path)),
        "once": ("1", "true", True),
        "duration": ("0.5", "0.5", 0.5),
        "format": ("json", '"json"', "json"),
        "strict": ("on", "true", True),
    }[option.name]
    path = _file(tmp_path, f"{option.name} = {toml}\n")
    from_file = load({}, {}, path)
    from_variable = load({}, {option.variable: text})
    from_line = load({option.attribute: text}, {})
    assert [getattr(o, option.attribute) for o in (from_file, from_variable, from_line)] == [
        expected
    ] * 3


def test_the_command_line_wins_then_the_variable_then_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "interval = 30\nmax-processes = 3\nduration = 8")
    environment = {"GPUBPF_INTERVAL": "20", "GPUBPF_MAX_PROCESSES": "2", "GPUBPF_CONFIG": path}
    options = load({"interval": "10"}, environment)
    assert (options.interval, options.max_processes, options.duration) == (10, 2, 8)


def test_a_command_has_its_own_options_alone(tmp_path: Path) -> None:
    """`gpubpf top` beside a service, with its file: the state is the service's."""
    path = _file(tmp_path, 'jobs = ["kubernetes"]\nstate = "/s.json"\ninterval = 30\n')
    top = load({}, {"GPUBPF_MAX_JOBS": "7"}, path, "top")
    assert (top.jobs, top.state, top.max_jobs, top.interval) == ((), None, 100, 30)
    serve = load({}, {"GPUBPF_MAX_JOBS": "7"}, path, "serve")
    assert (len(serve.jobs), serve.state, serve.max_jobs, serve.interval) == (1, "/s.json", 7, 30)
    with pytest.raises(UsageError, match="max-jobs"):  # a bad file is bad for all of them
        load({}, {}, _file(tmp_path, "max-jobs = 'few'"), "top")


def test_config_of_the_command_line_wins_over_the_variable(tmp_path: Path) -> None:
    path = _file(tmp_path, "interval = 30")
    assert load({}, {"GPUBPF_CONFIG": "/nowhere"}, path).interval == 30


def test_a_false_on_the_command_line_is_not_nothing(tmp_path: Path) -> None:
    path = _file(tmp_path, "process-metrics = true")
    assert not load({"process_metrics": False}, {}, path).process_metrics


def test_empty_and_foreign_variables_are_left_alone() -> None:
    foreign = {"GPUBPF_PORT": "tcp://10.0.0.1:1", "GPUBPF_SERVICE_HOST": "x", "GPUBPF_LISTEN": ""}
    assert load({}, foreign) == Options()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (":9", ("", 9)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("node-7.example:65535", ("node-7.example", 65535)),
        ("[::]:80", ("::", 80)),
    ],
)
def test_addresses(raw: str, expected: tuple[str, int]) -> None:
    assert address(raw) == expected


@pytest.mark.parametrize(
    "raw",
    ["", "80", "host", "host:", ":65536", ":-1", "::1:80", "[::1]", "[host]:1", "http://h:1",
     "a b:1", ":८०", "h:1:2"],
)  # fmt: skip
def test_bad_addresses(raw: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        load({"listen": raw}, {})


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("all", GROUPS), ("none", ()), ("copy", ("copy",)), (" wait , launch ", ("launch", "wait"))],
)
def test_probe_groups(raw: str, expected: tuple[str, ...]) -> None:
    assert load({"probe": raw}, {}).probe == expected


@pytest.mark.parametrize("raw", ["", "lunch", "launch,none", "all,launch", ","])
def test_bad_probe_groups(raw: str) -> None:
    with pytest.raises(UsageError, match=r"--probe .*launch, memory, copy, wait"):
        load({"probe": raw}, {})


@pytest.mark.parametrize(
    ("variable", "raw"),
    [
        ("GPUBPF_INTERVAL", "0.05"),
        ("GPUBPF_INTERVAL", "nan"),
        ("GPUBPF_INTERVAL", "inf"),
        ("GPUBPF_INTERVAL", "1s"),
        ("GPUBPF_INTERVAL", "3601"),
        ("GPUBPF_MAX_PROCESSES", "-1"),
        ("GPUBPF_MAX_PROCESSES", "1.5"),
        ("GPUBPF_NVML", "maybe"),
        ("GPUBPF_PROC_ROOT", "/no/such/directory"),
        ("GPUBPF_FORMAT", "yaml"),
    ],
)
def test_a_bad_variable_is_named(variable: str, raw: str) -> None:
    with pytest.raises(UsageError, match=rf"^{variable}={raw} in the environment: expected "):
        load({}, {variable: raw})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\ninterval = true", r"line 2: interval = true: expected a number of seconds"),
        ('interval = "soon"', r'line 1: interval = "soon": expected'),
        ("# one\nnvml = 3", r"line 2: nvml = 3: expected true or false"),
        ("library = [1]", r"line 1: library = \[1\]: expected a comma-separated string, or a list"),
        ("[probe]\nx = 1", r"line 1: probe = .*: expected"),
        ("max-processes = 1.5", r"line 1: max-processes = 1.5: expected a whole number"),
        ("nvml-library = 1", r"line 1: nvml-library = 1: expected a string"),
        ("a = 1\n", r"line 1: a is no option: there are attribution, compat, "),
        ("max_processes = 1", r"line 1: max_processes is no option: did you mean max-processes\?"),
        ("lisen = 1", r"line 1: lisen is no option: did you mean listen\?"),
        ("interval = 1\ninterval", r"is not a TOML file: "),
    ],
)
def test_a_bad_file_is_named_with_the_line(text: str, said: str, tmp_path: Path) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(UsageError, match=said) as caught:
        load({"interval": "1"}, {}, path)  # what wins doesn't hide what is wrong
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_list_in_the_file_may_hold_commas(tmp_path: Path) -> None:
    assert load({}, {}, _file(tmp_path, 'library = ["/a,b"]')).library == ("/a,b",)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"can't read the configuration .*: No such file"):
        load({}, {}, str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match=r"can't read the configuration .*: Is a directory"):
        load({}, {"GPUBPF_CONFIG": str(tmp_path)})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not a TOML file"):
        load({}, {}, str(binary))


@given(st.dictionaries(st.sampled_from([o.variable for o in OPTIONS]), st.text(max_size=30)))
def test_whatever_the_environment_holds_is_options_or_one_line(environment: dict[str, str]) -> None:
    said = ""
    try:
        load({}, environment)
    except UsageError as error:
        said = str(error)
    assert said.isprintable()


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ({}, []),
        ({"state": "/x"}, ["--state does nothing without --jobs"]),
        ({"state": "/x", "jobs": "user"}, []),
        ({"kubernetes_api": True}, ["--kubernetes-api does nothing without --jobs kubernetes"]),
        (
            {"kubernetes_labels": "team", "jobs": "kubernetes"},
            ["--kubernetes-labels does nothing without --kubernetes-api"],
        ),
        ({"kubernetes_labels": "team", "kubernetes_api": True, "jobs": "kubernetes"}, []),
        ({"kubelet_socket": "/x"}, ["--kubelet-socket does nothing without --jobs kubernetes"]),
        ({"kubelet_socket": ""}, []),
        ({"open_health": True}, ["--open-health does nothing without --web-config"]),
    ],
)
def test_what_has_no_effect_is_said(values: dict[str, str | bool], notes: list[str]) -> None:
    assert without_effect(load(values, {})) == notes


@pytest.mark.parametrize("raw", ["a b", "/x", "x/", "-x", "a,b,c,d,e,f,g,h,i", "a/b/c", "ä"])
def test_bad_keys_of_labels(raw: str) -> None:
    with pytest.raises(UsageError, match="keys of Kubernetes labels"):
        load({"kubernetes_labels": raw}, {})
