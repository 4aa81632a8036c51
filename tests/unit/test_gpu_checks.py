"""tests/gpu, without a GPU: its judgement on constructed pages, its refusals, its report, and those
of its checks that need only the driver, end to end on the simulated node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, eventually
from tests.gpu import extras, options, report, runner
from tests.gpu.check_library import asked_versions
from tests.gpu.check_processes import elsewhere, orders, where
from tests.gpu.checks import CHECKS
from tests.gpu.here import refusal
from tests.gpu.model import (
    DIFFERS,
    FAILED,
    NOT_POSSIBLE,
    OK,
    Check,
    CheckError,
    Finding,
    NotPossibleError,
    Result,
    judged,
)
from tests.gpu.pages import Expect, Page, judge
from tests.gpu.rig import NEEDS, Rig

RUN = ROOT / "tests" / "gpu" / "run"
PYTHON = Path(sys.executable).name
PID = 4711
BEFORE = """\
gpubpf_process_kernel_launches_total{pid="4711",gpu="0",uuid="GPU-aa"} 5
gpubpf_process_kernel_launches_total{pid="4712",gpu="0",uuid="GPU-aa"} 1000
gpubpf_gpu_kernel_launches_total{gpu="0",uuid="GPU-aa"} 1005
"""
AFTER = """\
gpubpf_process_kernel_launches_total{pid="4711",gpu="0",uuid="GPU-aa"} 105
gpubpf_process_kernel_launches_total{pid="4711",gpu="1",uuid="GPU-bb"} 2
gpubpf_process_kernel_launches_total{pid="4712",gpu="0",uuid="GPU-aa"} 9000
gpubpf_gpu_kernel_launches_total{gpu="0",uuid="GPU-aa"} 9105
gpubpf_gpu_graph_launches_total{gpu="0",uuid="GPU-aa"} 0
gpubpf_process_live_bytes{pid="4711",gpu="0",uuid="GPU-aa",kind="device"} 64
gpubpf_gpu_info{gpu="0",uuid="GPU-aa",name="Simulated"} 1
"""


def only(expect: Expect) -> Finding:
    """What is found of a constructed process."""
    (finding,) = judge(PID, Page.parse(BEFORE), Page.parse(AFTER), [expect])
    return finding


# --- judgement ----------------------------------------------------------------------------------


def test_exact_by_difference_of_one_process() -> None:
    finding = only(Expect("kernel_launches", 102))
    assert (finding.ok, finding.seen, finding.absent) == (True, 102, "")


@pytest.mark.parametrize("number", [101, 103])
def test_off_by_one(number: int) -> None:
    finding = only(Expect("kernel_launches", number))
    assert (finding.ok, finding.seen) == (False, 102)


def test_at_least() -> None:
    assert only(Expect("kernel_launches", 101, least=True)).ok
    assert not only(Expect("kernel_launches", 103, least=True)).ok


def test_one_gpu() -> None:
    assert only(Expect("kernel_launches", 100, {"uuid": "GPU-aa"})).ok
    assert only(Expect("kernel_launches", 2, {"uuid": "GPU-bb"})).ok


def test_gauge() -> None:
    assert only(Expect("live_bytes", 64, {"kind": "device"}, gauge=True)).ok
    assert only(Expect("live_bytes", 0, {"kind": "pool"}, gauge=True)).ok


@pytest.mark.parametrize("number", [0, 7])
def test_metric_absent(number: int) -> None:
    """Differs even where nothing was to be counted: it would never be."""
    finding = only(Expect("captured_launches", number))
    assert (finding.ok, finding.seen) == (False, None)
    assert finding.absent == "absent: metric gpubpf_process_captured_launches_total"


def test_label_absent() -> None:
    finding = only(Expect("kernel_launches", 7, {"kind": "device"}))
    assert finding.absent == "absent: label kind of gpubpf_process_kernel_launches_total"


def test_nothing_done_and_nothing_counted() -> None:
    """A process has no series for what it never did; the node has one."""
    assert only(Expect("graph_launches", 0)).ok
    assert not only(Expect("graph_launches", 1)).ok


def test_sum_with_one_absent() -> None:
    finding = only(Expect("kernel_launches+captured_launches", 102))
    assert finding.ok
    assert "captured_launches" in finding.absent


def test_counted_for_the_gpus_only() -> None:
    """No process has a series for it: the node's, of the GPUs that NVML lists."""
    text = 'gpubpf_gpu_waits_total{{gpu="{}",uuid="{}"}} {}\n'.format
    before = Page.parse(BEFORE + text(0, "GPU-aa", 2) + text("unknown", "unknown", 5))
    after = Page.parse(AFTER + text(0, "GPU-aa", 6) + text("unknown", "unknown", 9))
    (finding,) = judge(PID, before, after, [Expect("waits", 4)])
    assert (finding.what, finding.seen, finding.ok) == ("waits, of the node", 4, True)
    assert only(Expect("waits", 4)).absent == "absent: metric gpubpf_process_waits_total"


def test_credited_elsewhere() -> None:
    page = Page.parse(AFTER)
    assert elsewhere(page, PID, "bb").seen == 105
    assert not elsewhere(page, PID, "aa").ok
    assert elsewhere(page, 4712, "aa").ok
    assert where(page, PID) == "GPU 0: 105, GPU 1: 2"
    unknown = 'gpubpf_process_kernel_launches_total{pid="1",gpu="unknown",uuid="unknown"} 3\n'
    assert elsewhere(Page.parse(unknown), 1, "aa").ok


def test_orders_of_devices() -> None:
    assert "backwards" not in orders(["a"])
    assert orders(["a", "b"])["by UUID"] == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"}
    assert "by UUID" not in orders(["a", "b"], given=True)


def test_versions_asked_for() -> None:
    assert asked_versions(11020) == [11000, 11010, 11020]
    assert asked_versions(12020)[-2:] == [12010, 12020]


def test_what_with_installs() -> None:
    assert extras.requirements(["cupy"], 13) == ["cupy-cuda13x"]
    assert extras.requirements(["cupti", "torch==2.8.0"], 12) == [
        "cupti-python>=12,<13",
        "torch==2.8.0",
    ]


# --- the runner -------------------------------------------------------------------------------


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def attempt(rig: Rig, check: Any, **more: Any) -> Result:
    return runner.run(Check("it", "claim", check, **more), rig, 30.0)


def test_results_and_times(rig: Rig) -> None:
    result = attempt(rig, lambda _: judged([Finding("f", 1, 1, True)]))
    assert result.status == OK
    assert result.seconds > 0
    assert attempt(rig, lambda _: judged([Finding("f", 1, 2, False)])).status == DIFFERS


def test_crash_is_told(rig: Rig) -> None:
    result = attempt(rig, lambda _: [][1])
    assert result.status == FAILED
    assert "IndexError" in result.why
    assert "test_gpu_checks.py:" in result.why


def test_what_is_not_possible(rig: Rig) -> None:
    def check(_: Rig) -> Result:
        raise NotPossibleError("there is none")

    assert attempt(rig, check).why == "there is none"
    rig._found["torch"] = False
    result = attempt(rig, check, needs=("torch",))
    assert (result.status, result.why) == (NOT_POSSIBLE, NEEDS["torch"][1])
    rig.simulated = True
    assert attempt(rig, check, simulated=False).why == runner.REFUSED


def test_time_is_over(rig: Rig) -> None:
    result = runner.run(CHECKS[0], rig, 0.0)
    assert result.status == FAILED
    assert "not reached" in result.why


def child(rig: Rig, code: str) -> Any:
    return rig.started([sys.executable, "-c", code])


def test_child_takes_too_long(rig: Rig) -> None:
    def check(rig: Rig) -> Result:
        return judged([Finding("f", 1, child(rig, "import time; time.sleep(60)").ask("x"), True)])

    begin = time.monotonic()
    result = attempt(rig, check, seconds=0.5)
    assert time.monotonic() - begin < 5
    assert result.status == FAILED
    assert "no answer to x" in result.why


def test_child_ends(rig: Rig) -> None:
    def check(rig: Rig) -> Result:
        child(rig, "import sys; sys.exit('it is broken')").ask("x")
        raise AssertionError

    result = attempt(rig, check)
    assert (result.status, result.why) == (FAILED, f"{PYTHON} ended with 1: it is broken")


def test_what_children_answer(rig: Rig) -> None:
    code = (
        "from tests.gpu.programs import talk\n"
        "def good(x): print('noise'); return x + 1\n"
        "def bad(): raise ValueError('no')\n"
        "def none(): raise talk.NotHereError('too old')\n"
        "def lacking(): import no_such_module\n"
        "talk.serve(dict(good=good, bad=bad, none=none, lacking=lacking))\n"
    )
    process = child(rig, code)
    assert process.ask("good", x=1) == 2
    with pytest.raises(CheckError, match="bad: ValueError: no"):
        process.ask("bad")
    with pytest.raises(NotPossibleError, match="too old"):
        process.ask("none")
    with pytest.raises(NotPossibleError, match="no_such_module"):
        process.ask("lacking")


def test_agent_does_not_start(rig: Rig) -> None:
    rig.agent_options = ("--nvml-library", "/no/such/library")
    result = attempt(rig, lambda rig: judged([Finding("f", 1, len(rig.page().samples), True)]))
    assert result.status == FAILED
    assert "/no/such/library" in result.why


def test_agent_dies(rig: Rig) -> None:
    """The check says so, and the next has another agent."""
    rig.agent_options = ("--no-nvml",)

    def check(rig: Rig) -> Result:
        os.kill(rig.agent.pid, 9)
        rig.agent._process.wait()
        rig.page()
        raise AssertionError

    result = attempt(rig, check)
    assert (result.status, result.why) == (FAILED, "the agent ended with -9")
    assert attempt(rig, lambda rig: judged([Finding("f", 1, rig.agent.pid, True)])).status == OK


# --- the report ---------------------------------------------------------------------------------

LONG = "GPU-15b43b12-7d2b-55d1-8b25-2e34fcbf3e49"
CHECK = Check("which-gpu", "calls are credited to the GPU that they are made on", lambda _: BAD)
BAD: Result = judged(
    [
        Finding("launches", 101.0, 100.0, False),
        Finding("graph kernels", 35.0, None, False, "absent: metric gpubpf_process_x_total"),
        Finding("graph launches", 5.0, None, False, "absent: metric gpubpf_process_x_total"),
        Finding("frees", 3.0, 3.0, True),
    ],
    {f"on {LONG}, which is {LONG}": 0.123456, "not there": None, "/a" * 60: "x"},
)


def test_text() -> None:
    text = report.as_text(CHECK, BAD)
    assert max(map(len, text.splitlines())) <= report.WIDTH
    assert text.startswith("differs       which-gpu       calls are credited")
    assert "! launches: expected 101, seen 100\n" in text
    assert text.count("gpubpf_process_x_total") == 1
    assert "(2" in text
    assert "frees" not in text
    assert "frees: expected 3, seen 3" in report.as_text(CHECK, BAD, every=True)
    assert "not there" not in text


def test_text_says_what_is_simulated() -> None:
    heading = report.heading({"GPU 0": f"a GPU, {LONG}, {LONG}"}, simulated=True)
    assert heading.startswith("SIMULATED: no GPU was used.")
    assert max(map(len, heading.splitlines())) <= report.WIDTH
    assert report.summary([BAD], simulated=True).endswith("(SIMULATED)")
    assert "SIMULATED" not in report.heading({}, simulated=False)


def test_summary_and_exit_code() -> None:
    good, never = Result(OK), Result(NOT_POSSIBLE)
    text = report.summary([good, never, never], simulated=False)
    assert text == "3 checks: 1 ok, 0 differs, 0 failed, 2 not possible"
    assert not report.failed([good, never])
    assert report.failed([good, BAD])
    assert report.failed([good, Result(FAILED)])
    assert report.failed([never])


def test_json() -> None:
    whole = json.loads(report.as_json([(CHECK, BAD)], {"Linux": "6"}, simulated=True))
    assert (whole["simulated"], whole["ok"], whole["machine"]) == (True, False, {"Linux": "6"})
    (row,) = whole["checks"]
    assert (row["name"], row["status"]) == ("which-gpu", DIFFERS)
    assert row["findings"][0]["seen"] == 100.0


def test_table_of_checks() -> None:
    text = report.table(CHECKS)
    assert max(map(len, text.splitlines())) <= report.WIDTH
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(len(check.name) < report.NAME for check in CHECKS)
    assert {need for check in CHECKS for need in check.needs} <= set(NEEDS)


# --- the real script ----------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RUN, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not refusal(), reason="this machine has an NVIDIA driver")
def test_refuses_without_a_gpu() -> None:
    before = {path.name for path in (ROOT / ".build").glob("gpu-venv*")}
    done = run("--with", "torch")
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr.startswith("tests/gpu/run: this needs a machine with an NVIDIA GPU: ")
    assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in (ROOT / ".build").glob("gpu-venv*")} == before


def test_no_driver(tmp_path: Path) -> None:
    assert "is not there" in refusal("no-such-libcuda.so.1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nonsense"], "there is no check nonsense"),
        (["--time", "0"], "--time must be more than 0"),
        (["--format", "xml"], "invalid choice"),
        (["--onl", "stubs"], "unrecognized arguments"),
    ],
)
def test_bad_options(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_help_and_list_need_nothing() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "exit code: 0" in done.stdout
    assert "simulated" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= report.WIDTH
    done = run("--list")
    assert done.returncode == 0
    assert done.stdout.startswith("stubs ")


def test_not_root() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", RUN],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "must run as root" in done.stderr


def test_options() -> None:
    wanted = options.parse(["--only", "late,fork", "--skip", "fork", "--with", "torch,cupti"])
    assert [check.name for check in wanted.checks] == ["late"]
    assert wanted.packages == ("torch", "cupti")


# --- all of it, on the simulated node -----------------------------------------------------------


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--simulated", "--format", "json", "--time", "300"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    whole: dict[str, Any] = json.loads(done.stdout)
    return whole


def test_simulated_says_so(simulated: dict[str, Any]) -> None:
    assert simulated["simulated"] is True
    assert "Simulated" in simulated["machine"]["GPU 0"]


@pytest.mark.parametrize("check", [c for c in CHECKS if c.simulated], ids=lambda c: c.name)
def test_simulated_check(simulated: dict[str, Any], check: Check) -> None:
    (row,) = (row for row in simulated["checks"] if row["name"] == check.name)
    assert row["status"] in ((OK, DIFFERS) if check.name in JUDGES_THE_MACHINE else (OK,)), row


JUDGES_THE_MACHINE = {"doctor", "agent-cost", "nvml-timing"}  # which may be a busy one


def test_what_the_simulated_node_refuses(simulated: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in simulated["checks"]}
    for check in CHECKS:
        if not check.simulated:
            assert rows[check.name]["status"] == NOT_POSSIBLE
            assert rows[check.name]["why"] == runner.REFUSED


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays(tmp_path: Path, how: signal.Signals) -> None:
    """However it ends, neither the agent nor a client outlives it."""
    command = [sys.executable, "-m", "tests.gpu", "--simulated", "--only", "exports,which-gpu"]
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=place, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if " exports " in line:  # it is done: the next is under way
                break
        running = eventually(lambda: psutil.Process(run.pid).children(recursive=True), len)
        assert running
        run.send_signal(how)
        left = run.stdout.read()
        run.wait(30)
    if how != signal.SIGKILL:
        assert run.returncode == 130
        assert left.endswith("(SIMULATED)\n")
        assert not list(tmp_path.iterdir())
    assert not psutil.wait_procs(running, timeout=30)[1]


def test_text_on_the_simulated_node() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--simulated", "--only", "exports,pointers,features"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("SIMULATED: no GPU was used.")
    assert lines[-1] == "3 checks: 3 ok, 0 differs, 0 failed, 0 not possible (SIMULATED)"
    assert max(map(len, lines)) <= report.WIDTH
