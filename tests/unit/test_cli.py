"""The command line's face, the table, and what `top` makes of Snapshots; no BPF here."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf import __version__, lanes
from gpubpf.cli import COMMANDS, Command, main, serve, table
from gpubpf.cli.activity import FACTS, Activity, Span
from gpubpf.cli.forms import JSON_HELP, as_json, as_text
from gpubpf.cli.table import Column
from gpubpf.config import OPTIONS, Options
from gpubpf.model import (
    UNKNOWN_GPU,
    Attached,
    Device,
    DeviceInfo,
    DeviceProcess,
    Figures,
    Owner,
    Part,
    Plane,
    Process,
    ProcessView,
    Share,
    Snapshot,
    Source,
)
from gpubpf.symbols import chosen

FUNCTIONS = tuple(symbol.name for symbol in chosen(("launch", "memory")))
PROBE = ("launch", "memory")
GPU0, GPU1 = "GPU-0", "GPU-1"


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse's own ending, for --help and --version
            code = int(str(end.code))
    return code, out.getvalue(), err.getvalue()


# --- the face -----------------------------------------------------------------------------------


def test_version() -> None:
    assert run("--version") == (0, f"gpubpf {__version__}\n", "")


@pytest.mark.parametrize("command", [[], *([c.NAME] for c in COMMANDS)], ids=str)
def test_help_fits_80_columns(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_help_has_every_option_of_the_command_and_no_other(command: Command) -> None:
    _, out, _ = run(command.NAME, "--help")
    listed = out.partition("options:")[2]
    for option in OPTIONS:
        assert (f"\n  --{option.name}" in listed) == (command.NAME in option.commands), option.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which command? One of serve, top, doctor, release, resume (see gpubpf --help)"),
        (["stop"], "invalid choice: 'stop'"),
        (["top", "--intervall", "1"], "no such option: --intervall 1 (see gpubpf top --help)"),
        (["top", "--interv", "1"], "no such option: --interv 1"),
        (["top", "--interval"], "argument --interval: expected one argument"),
        (["top", "--interval", "0"], "--interval 0: expected a number of seconds from 0.1 to 3600"),
        (["serve", "--format", "json"], "no such option: --format json"),
        (["serve", "--config", "/none"], "can't read the configuration /none"),
        (["serve", "--probe", "launch", "--probe", "x"], "--probe launch,x: expected"),
    ],
)
def test_bad_options_are_one_line_and_2(arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("gpubpf: ")
    assert said in err
    assert err.count("\n") == 1


def test_an_error_shows_no_escape_sequences() -> None:
    _, _, err = run("serve", "--listen", "\x1b[2J:x")
    assert "\x1b" not in err


def test_nobody_reads_the_output() -> None:
    script = (
        "import sys; from gpubpf.cli import main; sys.exit(main(['doctor', '--probe', 'none']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait() == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["--version"], ["doctor"]])
def test_output_that_cannot_be_written(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpubpf", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    said = "gpubpf: can't write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_an_error_that_is_not_of_the_output_is_not_called_so() -> None:
    def run_(_: Options) -> int:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpubpf.cli.doctor.run", run_)
        with pytest.raises(OSError, match="No space"):
            run("doctor")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    """As if they were /dev/null; the exit code is the command's."""
    for arguments, codes in (("--help", {0}), ("top --intervall 1", {2}), ("doctor", {0, 1})):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -m gpubpf {arguments} {closed}', sys.executable],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in codes
        assert "Traceback" not in done.stderr
        if ">&- 2" in closed:
            assert (done.stdout, done.stderr) == ("", "")


def test_a_taken_port_is_6_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "gpubpf", "serve", "--listen", listen],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 6
    assert done.stderr.startswith(f"gpubpf: can't listen on {listen}: ")
    assert done.stderr.count("\n") == 1


def test_the_heavy_modules_are_loaded_only_when_needed() -> None:
    script = (
        "import sys, gpubpf.cli; "
        "print(*{'bcc', 'tomllib', 'json', 'pynvml', 'prometheus_client', 'psutil', 'subprocess',"
        " 'gpubpf.checks', 'gpubpf.cli.forms'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (0.0, "0"), (0.004, "<.01"), (0.25, "0.25"), (0.999, "1"),
        (1, "1"), (3.24, "3.2"), (99.94, "99.9"), (100.4, "100"), (999, "999"), (1000, "1k"),
        (12345, "12.3k"), (999_999, "1M"), (2**62, "4.6E"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert table.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0"), (512, "512"), (1536, "1.5K"), (80 << 30, "80G")]
)
def test_sizes(value: int | None, text: str) -> None:
    assert table.size(value) == text


@given(st.floats(0, 1e19) | st.integers(0, 2**63))
def test_short_numbers_are_short(value: float) -> None:
    assert len(table.number(value)) <= 5
    assert len(table.size(value)) <= 5


def test_a_share_that_is_not_0_is_not_shown_as_0() -> None:
    assert [table.percent(x) for x in (None, 0.0, 0.001, 0.5, 1.0)] == ["-", "0", "<1", "50", "100"]


_CELL = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)


@given(st.lists(st.tuples(_CELL, _CELL, _CELL), max_size=5), st.integers(40, 120))
def test_a_table_fits(rows: list[tuple[str, str, str]], limit: int) -> None:
    columns = [Column("", "A"), Column("B", "/s", worth=1), Column("", "C", left=True)]
    for line in table.fit(columns, rows, limit):
        assert len(line) <= limit


def test_the_least_worthy_column_goes_first() -> None:
    columns = [Column("", "WIDE" * 5, worth=2), Column("", "LESS" * 5, worth=1), Column("", "END")]
    assert table.fit(columns, [], 40) == ["WIDEWIDEWIDEWIDEWIDE                 END"]


# --- what happened ------------------------------------------------------------------------------


def vector(calls: Mapping[str, int], facts: Mapping[str, int] | None = None) -> int:
    row = [0] * lanes.count(len(FUNCTIONS))
    for name, count in calls.items():
        row[lanes.FIRST["calls"] + FUNCTIONS.index(name)] = count
    for name, count in (facts or {}).items():
        row[lanes.FIRST[name]] = count
    return sum(count << (lanes.LANE_BITS * lane) for lane, count in enumerate(row))


def launches(n: int) -> int:
    return vector({"cuLaunchKernel": n}, {"kernel_launches": n})


def process(pid: int, name: str = "train", command: str = "/opt/bin/train --lr 1") -> Process:
    return Process(pid, 1000.0 + pid, name, "ada", command)


def on(pid: int, memory: int, sm: float | None) -> DeviceProcess:
    return DeviceProcess(pid, memory, share=None if sm is None else Share(sm, 0.0, 0.0, 0.0))


def device(index: int, uuid: str, *pids: int, sm: float | None = 0.5) -> Device:
    info = DeviceInfo(index, uuid, f"Simulated {index}", "1.0")
    figures: Figures = {
        "utilization_ratio": {(): 0.5},
        "memory_used_bytes": {(): 1 << 30},
        "memory_size_bytes": {(): 80 << 30},
    }
    return Device(info, figures, tuple(on(pid, 1 << 30, sm) for pid in pids))


def snapshot(at: float, counted: Mapping[str, int] | None = None, **changes: object) -> Snapshot:
    """`counted`: what all processes did, by GPU."""
    parts = {gpu: lanes.split(row) for gpu, row in (counted or {UNKNOWN_GPU: 0}).items()}
    fields: dict[str, object] = {
        "functions": FUNCTIONS,
        "totals": {gpu: facts for gpu, (facts, _) in parts.items()},
        "calls": sum(calls for _, calls in parts.values()),
        "errors": {},
        "plane": Plane((device(0, GPU0), device(1, GPU1))),
        "processes": (),
        "attached": (Attached("/lib/libcuda.so.1", "cuLaunchKernel", "stub+10"),),
        "sources": (Source("bpf", True, None, 0.0), Source("nvml", True, None, 0.0)),
        "indices": {GPU0: 0, GPU1: 1},
    }
    return Snapshot(at=at, time=5000 + at, **{**fields, **changes})  # type: ignore[arg-type]


def view(pid: int, counters: int, *gpus: str, born: int = 7, sm: float | None = 0.5) -> ProcessView:
    listed = {gpu: on(pid, 1 << 30, sm) for gpu in gpus}
    parts = {next(iter(gpus), UNKNOWN_GPU): Part(lanes.split(counters)[0], 0, 0)} if born else {}
    return ProcessView(Owner(pid, born), process(pid), counters, parts, listed)


def activity_of(*snapshots: Snapshot) -> Activity:
    span = Span(snapshots[0])
    for one in snapshots[1:]:
        span.add(one)
    return span.activity()


def test_differences_of_old_new_and_ended_processes() -> None:
    old, more = launches(100), launches(107)
    new = vector(
        {"cuGraphLaunch": 3, "cuMemAlloc_v2": 2},
        {"graph_launches": 3, "graph_kernels": 30, "unknown_graph_launches": 1,
         "allocations": 2, "allocated_bytes": 9},
    )  # fmt: skip
    brief = vector({"cuLaunchKernelEx": 5, "cuLaunchCooperativeKernelMultiDevice": 1},
                   {"kernel_launches": 9, "captured_launches": 4})  # fmt: skip
    last = old + more + new + brief
    activity = activity_of(
        snapshot(10, processes=(view(1, old, GPU0),), counted={GPU0: old}),
        snapshot(12, processes=(view(1, more, GPU0), view(2, new)), counted={GPU0: old}),
        snapshot(
            14,
            processes=(view(1, more, GPU0), view(2, new)),
            ended=(view(3, brief),),
            counted={GPU0: more, UNKNOWN_GPU: last - old - more},
        ),
    )
    assert activity.seconds == 4
    rows = {row.pid: row for row in activity.rows}
    assert rows[1].counts["kernel_launches"] == 7
    assert rows[1].calls == {"cuLaunchKernel": 7}
    assert rows[2].counts["graph_launches"] == 3
    assert (rows[2].counts["graph_kernels"], rows[2].counts["kernels"]) == (30, 30)
    assert rows[2].counts["graph_launches_of_unknown_size"] == 1
    assert (rows[2].counts["allocations"], rows[2].counts["allocated_bytes"]) == (2, 9)
    assert rows[3].counts["kernel_launches"] == 9
    assert rows[3].counts["captured_launches"] == 4
    assert [rows[pid].ended for pid in (1, 2, 3)] == [False, False, True]
    assert rows[1].counts["copied_bytes"] is None  # its group is not probed
    assert None not in rows  # all add up: nobody is left over
    assert activity.node.counts["kernel_launches"] == 16
    assert activity.node.counts["kernels"] == 46
    assert [row.pid for row in activity.rows] == [2, 3, 1]  # those that ran the most first


def test_what_did_not_fit_into_the_map_is_shown_together() -> None:
    seen, rest = launches(5), launches(3)
    activity = activity_of(
        snapshot(0), snapshot(1, processes=(view(1, seen),), counted={UNKNOWN_GPU: seen + rest})
    )
    assert [(row.pid, row.counts["kernel_launches"]) for row in activity.rows] == [
        (1, 5),
        (None, 3),
    ]
    others = json.loads(as_json(activity, PROBE, []))["others"]
    assert others["kernel_launches"] == 3


def test_memory_that_went_with_its_process_is_nobody_elses_doing() -> None:
    """It is freed in the totals, but by no call of any process: no `others` for it."""
    made = vector({"cuMemAlloc_v2": 2}, {"allocations": 2, "allocated_bytes": 9})
    gone = lanes.held(made)
    assert gone
    activity = activity_of(
        snapshot(0), snapshot(1, ended=(view(1, made),), counted={UNKNOWN_GPU: made + gone})
    )
    assert [row.pid for row in activity.rows] == [1]
    assert json.loads(as_json(activity, PROBE, []))["others"] is None
    # Calls alone are somebody's.
    call = vector({"cuInit": 1})
    activity = activity_of(snapshot(0), snapshot(1, counted={UNKNOWN_GPU: call}))
    assert [(row.pid, row.calls) for row in activity.rows] == [(None, {"cuInit": 1})]


def test_what_a_process_does_on_several_gpus_is_one_row() -> None:
    parts = {
        GPU1: Part(vector({}, {"kernel_launches": 3}), 0, 0),
        GPU0: Part(vector({}, {"kernel_launches": 4}), 0, 0),
        UNKNOWN_GPU: Part(vector({}, {"kernel_launches": 5}), 0, 0),
    }
    counters = vector({"cuLaunchKernel": 12}, {"kernel_launches": 12})
    both = ProcessView(Owner(1, 7), process(1), counters, parts, {GPU1: on(1, 1 << 20, 0.25)})
    counted = {gpu: part.counters for gpu, part in parts.items()}
    counted[UNKNOWN_GPU] += vector({"cuLaunchKernel": 12})
    activity = activity_of(snapshot(0), snapshot(2, counted, processes=(both,)))
    (row,) = activity.rows
    assert row.counts["kernel_launches"] == 12
    assert activity.node.counts["kernel_launches"] == 12
    text = as_text(activity, PROBE, [], 80)
    at = text.index(next(line for line in text if "train" in line))
    assert text[at].split()[:6] == ["1", "ada", "0", "-", "-", "6"]
    assert text[at + 1].split() == ["1", "25", "1M"]


def test_a_process_is_on_the_gpu_that_it_calls_where_nvml_lists_no_processes() -> None:
    calls = launches(4)
    on = {GPU1: Part(lanes.split(calls)[0], 0, 0), UNKNOWN_GPU: Part(0, 0, 0)}
    seen = ProcessView(Owner(1, 7), process(1), calls, on)
    activity = activity_of(snapshot(0), snapshot(1, {GPU1: calls}, processes=(seen,)))
    (row,) = activity.rows
    assert [(gpu.index, gpu.uuid, gpu.sm, gpu.memory_used) for gpu in row.gpus] == [
        (1, GPU1, None, None)
    ]


def test_a_process_that_only_nvml_lists_has_0_and_then_its_calls() -> None:
    listed = view(1, 0, GPU0, born=0)
    calls = launches(5)
    only = activity_of(snapshot(0), snapshot(1, processes=(listed,)))
    assert [(r.pid, r.counts["kernel_launches"], r.gpus[0].index) for r in only.rows] == [(1, 0, 0)]
    both = activity_of(
        snapshot(0, processes=(listed,)),
        snapshot(1, processes=(view(1, calls),), counted={UNKNOWN_GPU: calls}),
    )
    assert [(r.pid, r.counts["kernel_launches"], r.gpus[0].index) for r in both.rows] == [(1, 5, 0)]
    gone = activity_of(snapshot(0, processes=(listed,)), snapshot(1))
    assert [row.ended for row in gone.rows] == [True]


def test_without_bpf_calls_are_not_known() -> None:
    down = (Source("bpf", False, "gone", 0.0), Source("nvml", True, None, 0.0))
    listed = view(1, 0, GPU0, born=0)
    activity = activity_of(snapshot(0), snapshot(1, processes=(listed,), sources=down))
    assert activity.rows[0].counts["kernel_launches"] is None
    assert activity.node.counts["kernel_launches"] is None
    text = as_text(activity, PROBE, [], 80)
    assert any(line.split()[:6] == ["1", "ada", "0", "50", "1G", "-"] for line in text)
    assert "bpf is down: gone" in text


def test_sm_is_the_mean_of_what_was_known() -> None:
    looks = [view(1, 0, GPU0, sm=sm) for sm in (0.2, None, 0.6)]
    activity = activity_of(*(snapshot(at, processes=(v,)) for at, v in enumerate(looks)))
    assert activity.rows[0].gpus[0].sm == pytest.approx(0.4)
    unknown = activity_of(snapshot(0), snapshot(1, processes=(view(1, 0, GPU0, sm=None),)))
    assert unknown.rows[0].gpus[0].sm is None


def test_text() -> None:
    calls = vector(
        {"cuLaunchKernel": 20_000},
        {"kernel_launches": 17_000, "graph_kernels": 3_000, "captured_launches": 9_999,
         "allocated_bytes": 4 << 30, "allocations": 2},
    )  # fmt: skip
    graph = vector({"cuGraphLaunch": 1}, {"graph_launches": 1})
    last = snapshot(
        2,
        processes=(view(123456, calls, GPU0, GPU1),),
        ended=(view(7, graph),),
        counted={UNKNOWN_GPU: calls + graph},
        errors={("cuMemAlloc_v2", 2): 3},
        lost={"failures": 1},
    )
    text = as_text(activity_of(snapshot(0), last), PROBE, ["a note"], 80)
    assert text == [
        "gpubpf top: 2.0 s, probing launch, memory in 1 libcuda file",
        "GPU 0: Simulated 0: 50 % busy, 1G of 80G",
        "GPU 1: Simulated 1: 50 % busy, 1G of 80G",
        "",
        "                 SM GPU kernels graphs allocs alloc",
        "   PID  USER GPU  % mem      /s     /s     /s   B/s COMMAND",
        "123456  ada    0 50  1G     10k      0      1    2G train --lr 1",
        "               1 50  1G",
        "     7* ada    -  -   -       0   0.50      0     0 train --lr 1",
        " total                      10k   0.50      1    2G",
        "* ended during the span",
        "failed calls, 3 on the node: cuMemAlloc_v2 3x CUDA_ERROR_OUT_OF_MEMORY (2)",
        "lost (could not be kept; calls are still counted): failures 1",
        "a note",
    ]


@given(st.integers(40, 200), st.text(max_size=200))
def test_text_fits_and_is_harmless(width: int, command: str) -> None:
    nasty = ProcessView(Owner(4194304, 1), process(1, command, command), vector({}))
    last = snapshot(1, processes=(nasty,), lost={"failures": 12})
    for line in as_text(activity_of(snapshot(0), last), PROBE, ["x" * 30], width):
        assert line.isprintable()
        assert len(line) <= width


def test_nobody_did_anything() -> None:
    text = as_text(activity_of(snapshot(0), snapshot(1, plane=None)), (), [], 80)
    assert text[0] == "gpubpf top: 1.0 s, probing nothing"
    assert text[-1] == "No process called the driver or was listed by NVML."


def test_json() -> None:
    calls = launches(20_001)
    last = snapshot(
        2,
        processes=(view(5, calls, GPU1),),
        counted={GPU1: calls},
        errors={("cuMemAlloc_v2", 2): 3},
    )
    document = json.loads(as_json(activity_of(snapshot(0), last), PROBE, ["a note"]))
    (row,) = document["processes"]
    assert (row["pid"], row["name"], row["user"], row["ended"]) == (5, "train", "ada", False)
    assert row["start_time_seconds"] == 1005.0
    assert row["kernel_launches"] == 20_001
    assert row["kernel_launches_per_second"] == 20_001 / 2
    assert row["copied_bytes"] is None
    assert row["gpus"] == [
        {"gpu": 1, "uuid": GPU1, "sm_utilization_ratio": 0.5, "memory_used_bytes": 1 << 30}
    ]
    assert document["node"]["calls"] == {"cuLaunchKernel": 20_001}
    assert document["errors"] == [
        {
            "function": "cuMemAlloc_v2",
            "error": 2,
            "name": "CUDA_ERROR_OUT_OF_MEMORY",
            "count": 3,
        }
    ]
    assert (document["time_seconds"], document["span_seconds"]) == (5000.0, 2.0)


def test_every_key_of_the_json_is_in_its_help() -> None:
    last = snapshot(1, processes=(view(1, 0, GPU0),))
    document = json.loads(as_json(activity_of(snapshot(0), last), PROBE, []))
    rows = [*document["processes"], document["node"]]
    keys = {*document, *(key for row in rows for key in row), *document["processes"][0]["gpus"][0]}
    rates = {f"{fact.key}_per_second" for fact in FACTS}
    words = set(JSON_HELP.replace("[]", " ").replace("{}", " ").split())
    assert rates <= keys
    assert keys - rates <= words


# --- serve's ready line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "options", "devices", "notes", "line"),
    [
        (
            ("::", 10440), Options(), (device(0, GPU0),), [],
            "ready: http://localhost:10440/metrics; probing launch, memory in 1 libcuda file; "
            "1 GPU",
        ),
        (
            ("fe80::1", 1), Options(probe=(), nvml=True), (), ["x\x1b[2J"],
            "ready: http://[fe80::1]:1/metrics; probing nothing; 0 GPUs; x?[2J",
        ),
        (
            ("10.0.0.1", 1), Options(probe=("copy",), nvml=False), None, [],
            "ready: http://10.0.0.1:1/metrics; probing copy in 1 libcuda file; NVML is off",
        ),
    ],
)  # fmt: skip
def test_ready_line(
    address: tuple[str, int],
    options: Options,
    devices: tuple[Device, ...] | None,
    notes: list[str],
    line: str,
) -> None:
    plane = None if devices is None else Plane(devices)
    assert serve.ready(address, options, snapshot(1, plane=plane), notes) == line
