"""The whole page of each generation of boards, from the simulated NVML to the exposition.

Every figure of a board is a prime of its own, so that a unit, a label or a source that is mixed up
shows. `tests/run tests/unit/test_boards.py --update-golden` writes the pages anew; what changed in
them is to be read.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from gpubpf.device_metrics import DEVICE_METRICS, DEVICE_PROCESS_METRICS
from gpubpf.join import Ledger, Readings, join
from gpubpf.model import CLASSES, Calls, Device, Owner, Plane, Process, Reading
from gpubpf.nvml import Nvml, NvmlError
from gpubpf.nvml.ask import Part
from gpubpf.nvml.facts import FACTS
from gpubpf.render import Renderer
from gpubpf.view import View
from tests.fakegpu.nvml_control import StagedNode, build_nvml

PAGES = Path(__file__).parent / "boards"
BOARDS = ("turing", "ampere", "ampere_mig", "hopper", "hopper_mig", "blackwell", "consumer")
PID = 4242
MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


class Board:
    """A node of two such boards, and what has been said of them."""

    def __init__(self, folder: Path, name: str, devices: int = 2) -> None:
        newer = name == "blackwell"
        self.node = StagedNode(folder / "state", devices=devices, board=name)
        if newer:
            self.node.state.driver_branch = b"570.1.2"
        library = folder / "libnvidia-ml.so.1"
        shutil.copyfile(build_nvml(newer=newer), library)
        self.clock = Clock()
        self.nvml = Nvml(str(library), clock=self.clock, monotonic=self.clock)

    def look(self, wait: float = 0.11) -> tuple[Device, ...]:
        """`wait`: seconds; GPM wants as many between two samples."""
        time.sleep(wait)
        self.clock.seconds += 1
        return self.nvml.read()

    def plane(self) -> Plane:
        return self.nvml.plane()

    def page(self) -> str:
        at = self.clock.seconds
        owner = Owner(PID, 0)
        snapshot = join(
            Readings(
                at=at,
                time=at,
                calls=Reading("bpf", at, 0.0, Calls({}, {}, 0, {}, {}, {}, {})),
                plane=Reading("nvml", at, 0.0, self.plane()),
                processes={owner: Process(PID, at - 60, "train", "ada", "train.py")},
                gpus={},
                attached=(),
                discovery=None,
            ),
            Ledger(()),
        )
        view = View(snapshot, process_metrics=True)
        page, _ = Renderer().page(view, openmetrics=False)
        return page

    def close(self) -> None:
        self.nvml.close()
        self.node.stop()


@pytest.fixture
def board(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Board]:
    monkeypatch.setenv("FAKEGPU_STATE", str(tmp_path / "state"))
    board = Board(tmp_path, getattr(request, "param", "hopper"))
    yield board
    board.close()


every_board = pytest.mark.parametrize("board", BOARDS, indirect=True)


def used(board: Board, name: str) -> None:
    """A process on the first device, events on both."""
    place = (2, 0) if name.endswith("_mig") else ()
    board.node.processes(0, (PID, "compute", 101 * MIB, *place))
    if not place:
        board.node.samples(0, (PID, 41, 23, 7, 5, 0, 3, 2))
    board.node.event(0, "xid", 79)
    board.node.event(0, "xid", 79)
    board.node.event(1, "xid", 13)


@every_board
def test_the_page(board: Board, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["board"]
    board.look()
    used(board, name)
    board.node.figures(0, energy_mj=300_000_000_003)
    board.look()
    page = board.page()
    kept = PAGES / f"{name}.prom"
    if request.config.getoption("--update-golden"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(page)
    assert page == kept.read_text()
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_every_metric_is_on_some_page() -> None:
    pages = "".join((PAGES / f"{name}.prom").read_text() for name in BOARDS)
    told = set(re.findall(r"^(\w+)[{ ]", pages, re.M))
    metrics = {metric.sample_name for metric in DEVICE_METRICS + DEVICE_PROCESS_METRICS}
    # A board that doesn't answer has no page; another test has it.
    assert metrics - told == {"gpubpf_gpu_down_reason"}


@every_board
def test_what_is_absent_has_a_reason(board: Board) -> None:
    board.look()
    for device in board.look():
        without = [fact for fact in FACTS if fact.name not in device.figures]
        derived = [fact for fact in without if fact.derived is not None]
        assert sum(device.missing.values()) == len(without) - len(derived)
        assert device.missing.keys() <= {"unsupported"}


@every_board
def test_idle_is_zero(board: Board) -> None:
    board.node.figures(0, utilization=0, memory_utilization=0, power_mw=0)
    device = board.look()[0]
    assert device.get("power_watts") == 0
    divided = bool(device.mig)
    assert device.get("utilization_ratio") == (None if divided else 0)
    assert device.process_utilization is (not divided)


@pytest.mark.parametrize("error", [3, 4, 6, 15, 16, 999])
def test_any_call_may_fail(board: Board, error: int) -> None:
    """Each function of a round, one after the other: its figures are absent, the rest stays."""
    word = {3: "unsupported", 4: "no_permission", 6: "not_found"}.get(error, "failed")
    board.look()
    whole = board.look()[0]
    functions = {
        re.sub(r"_v\d$", "", way.query.function): fact.name
        for fact in FACTS
        for (way, *others) in fact.asks.values()
        if isinstance(way, Part)
        and not others
        and fact.name in whole.figures
        and fact.name != "ecc_location_errors"  # those of the other locations stay
    }
    assert len(functions) > 20
    for function, fact in functions.items():
        board.node.fault(function, error, device=0)
        first, second = board.look(wait=0)
        if error in (15, 16):
            assert first.reason == ("lost" if error == 15 else "needs_reset"), function
            assert not first.figures
        else:
            assert first.reason is None
            assert fact not in first.figures, function
            assert len(first.figures) > len(whole.figures) - 12, function
            assert first.missing[word] >= 1
        assert second.reason is None
        if error not in (15, 16):  # else NVML was initialised again, and GPM needs two samples
            assert second.figures.keys() >= whole.figures.keys()
        board.node.clear_faults()
        board.clock.seconds += 61 if error in (15, 16) else 1
        board.look(wait=0)


def test_one_field_may_fail(board: Board) -> None:
    board.look()
    board.node.field(0, 82, error=999)
    device = board.look()[0]
    assert device.get("memory_temperature_celsius") is None
    assert device.missing["failed"] == 1
    assert device.get("power_average_watts") is not None


def test_one_metric_of_gpm_may_fail(board: Board) -> None:
    board.look()
    board.node.gpm(0, 2, error=999)
    device = board.look()[0]
    assert device.get("sm_utilization_ratio") is None
    assert device.get("sm_occupancy_ratio") is not None
    assert device.missing["failed"] == 1


def test_gpm_needs_two_samples(board: Board) -> None:
    first = board.look()[0]
    assert first.get("sm_utilization_ratio") is None
    assert first.missing["not_yet"] > 5
    board.node.gpm(0, 2, 41.25)
    assert board.look()[0].get("sm_utilization_ratio") == 0.4125


def test_what_can_not_be_true_is_dropped_and_counted(board: Board) -> None:
    board.look()
    board.node.gpm(0, 2, 100.5)
    board.node.gpm(0, 3, float("nan"))
    board.node.figures(0, utilization=101)
    before = board.plane().garbage
    device = board.look()[0]
    for fact in ("sm_utilization_ratio", "sm_occupancy_ratio", "utilization_ratio"):
        assert device.get(fact) is None
    assert device.missing["garbage"] == 3
    assert board.plane().garbage - before == 3


# --- what is worked out -------------------------------------------------------------------------


def test_links_as_a_share_of_what_they_can(board: Board) -> None:
    board.node.figures(0, pcie_generation=4, pcie_width=16)
    board.node.gpm(0, 20, 1000.0)  # MiB/s
    board.node.gpm(0, 61, 2000.0)
    board.look()
    device = board.look()[0]
    assert device.get("pcie_utilization_ratio", "transmit") == pytest.approx(
        1000 * MIB / (16 * 16e9 * 128 / 130 / 8)
    )
    links = device.figures["nvlink_link_bandwidth_bytes_per_second"]
    assert device.get("nvlink_utilization_ratio", "transmit") == pytest.approx(
        2000 * MIB / sum(links.values())
    )


def test_a_link_that_comes_up_tells_more(board: Board) -> None:
    board.node.link(0, 5, active=0)
    board.look()
    device = board.look()[0]
    assert device.get("nvlink_link_up", "5") == 0
    assert device.get("nvlink_link_bytes", "5", "transmit") is None
    board.node.link(0, 5, active=None)
    board.look()
    device = board.look()[0]
    assert device.get("nvlink_link_up", "5") == 1
    assert device.get("nvlink_link_bytes", "5", "transmit") is not None


def test_energy_per_second_of_sm_work(board: Board) -> None:
    board.node.gpm(0, 2, 50.0)
    board.node.figures(0, energy_mj=1_000_000)
    board.look()
    board.look()
    before = board.look()[0].get("sm_busy_seconds")
    board.node.figures(0, energy_mj=1_300_000)
    device = board.look()[0]
    assert before is not None
    assert device.get("sm_busy_seconds") == pytest.approx(before + 0.5)
    assert device.get("energy_per_sm_second_joules") == pytest.approx(300 / 0.5)


def test_counters_go_on_after_a_reload(board: Board) -> None:
    board.node.figures(0, energy_mj=1_000_000, pcie_replays=17)
    board.look()
    board.node.figures(0, energy_mj=2_000, pcie_replays=3)
    device = board.look()[0]
    assert device.get("energy_joules") == 1002
    assert device.get("pcie_replays") == 20


def test_xids_are_counted_by_code_with_the_last_one_s_time(board: Board) -> None:
    board.look()
    board.node.event(1, "xid", 79)
    board.node.event(1, "xid", 13)
    board.node.event(1, "xid", 79)
    uuid = board.look()[1].info.uuid
    first = board.clock.seconds
    board.node.event(1, "xid", 13)
    board.look()
    xids = board.plane().xids
    assert {key: xid.count for key, xid in xids.items()} == {(uuid, 79): 2, (uuid, 13): 2}
    assert xids[uuid, 79].last == first
    assert xids[uuid, 13].last == board.clock.seconds


def test_an_ecc_event_is_looked_at_at_once(board: Board) -> None:
    board.look()
    board.node.figures(1, ecc_uncorrected=50_021)
    board.node.event(1, "double_bit_ecc")
    board.clock.seconds += 1
    board.nvml.sample(())
    assert board.nvml.plane().devices[1].get("ecc_errors", "uncorrected", "volatile") == 50_021


# --- MIG ----------------------------------------------------------------------------------------


def test_mig_is_set_up_and_taken_away_under_us(board: Board) -> None:
    assert board.look()[0].mig == ()
    board.node.mig(0, [("3g.40gb", 2, 0, 40 << 30), None, ("1g.10gb", 7, 0, 10 << 30)])
    device = board.look()[0]
    assert [mig.info.profile for mig in device.mig] == ["3g.40gb", "1g.10gb"]
    assert [mig.figures["memory_size_bytes"][()] for mig in device.mig] == [40 << 30, 10 << 30]
    assert device.info.children == tuple(mig.info.uuid for mig in device.mig)
    assert all(uuid.startswith("MIG-") for uuid in device.info.children)
    assert device.get("utilization_ratio") is None
    board.node.processes(0, (PID, "compute", 5 * MIB, 7, 0))
    device = board.look()[0]
    assert [(p.pid, p.mig, p.share) for p in device.processes or ()] == [
        (PID, device.mig[1].info.uuid, None)
    ]
    assert device.process_utilization is False
    board.node.mig(0, None)
    device = board.look()[0]
    assert (device.mig, device.info.children) == ((), ())
    assert device.get("utilization_ratio") is not None


@pytest.mark.parametrize("board", ["hopper_mig"], indirect=True)
def test_gpm_of_each_instance(board: Board) -> None:
    board.node.gpm(0, 2, 71.5, instance=7)
    board.look()
    told = {mig.info.gpu_instance: mig.figures for mig in board.look()[0].mig}
    assert told[7]["sm_utilization_ratio"][()] == 0.715
    assert told[2]["sm_utilization_ratio"][()] != 0.715


def test_all_classes_are_there() -> None:
    assert {fact.sampled for fact in FACTS} == set(CLASSES) - {"processes"}


# --- what a hostile reading found ---------------------------------------------------------------


def test_a_counter_that_is_a_little_lower_waits(board: Board) -> None:
    for energy, wanted in ((10**11, 10**8), (10**11 - 1, 10**8), (10**11 + 5_000, 10**8 + 5)):
        board.node.figures(0, energy_mj=energy)
        assert board.look()[0].get("energy_joules") == wanted


@pytest.mark.parametrize("value", [2**32 - 1, 2**64 - 1, 2**32 - 2, 2**63 + 7])
def test_what_stands_for_no_figure_is_none(board: Board, value: int) -> None:
    board.look()
    before = board.look()[0].get("pcie_bytes", "transmit")
    garbage = board.plane().garbage
    board.node.field(0, 197, value)
    board.node.figures(0, temperature=value % 2**32)
    device = board.look()[0]
    assert device.get("pcie_bytes", "transmit") is None
    if value % 2**32 > 7:
        assert device.get("temperature_celsius") is None
    assert (board.plane().garbage > garbage) is (value not in (2**32 - 1, 2**64 - 1))
    board.node.field(0, 197)
    assert board.look()[0].get("pcie_bytes", "transmit") == before


def test_a_process_in_one_list_twice_is_one(board: Board) -> None:
    board.look()
    board.node.processes(0, (PID, "compute", 5 * MIB), (PID, "compute", 5 * MIB))
    (process,) = board.look()[0].processes or ()
    assert (process.kinds, process.memory_used) == (("compute",), 5 * MIB)


@pytest.mark.parametrize("board", ["hopper_mig"], indirect=True)
def test_a_process_on_two_instances_is_on_both(board: Board) -> None:
    board.node.processes(0, (PID, "compute", 5 * MIB, 7, 0), (PID, "compute", 3 * MIB, 9, 0))
    board.look()
    device = board.look()[0]
    rows = {process.mig: process.memory_used for process in device.processes or ()}
    places = {mig.info.gpu_instance: mig.info.uuid for mig in device.mig}
    assert rows == {places[7]: 5 * MIB, places[9]: 3 * MIB}
    lines = [line for line in board.page().splitlines() if not line.startswith("#")]
    series = [line.rpartition(" ")[0] for line in lines]
    assert len(series) == len(set(series))


def test_a_gpu_that_is_gone_after_a_reload_is_told_of(board: Board) -> None:
    gone = board.look()[1].info.uuid
    board.node.state.device_count = 1
    board.node.reload_driver()
    with pytest.raises(NvmlError):
        board.look()
    devices = board.look()
    assert [(device.info.uuid == gone, device.reason) for device in devices] == [
        (False, None),
        (True, "not_found"),
    ]


def test_instances_of_another_shape_with_the_same_uuids(board: Board) -> None:
    uuid = bytes(range(16))
    board.node.mig(0, [("1g.10gb", 7, 0, 10 << 30, uuid)])
    board.look()
    board.node.mig(0, [("3g.40gb", 7, 0, 40 << 30, uuid)])
    (mig,) = board.look()[0].mig
    assert (mig.info.profile, mig.figures["memory_size_bytes"][()]) == ("3g.40gb", 40 << 30)


def test_gpm_after_an_error_starts_anew(board: Board) -> None:
    board.node.gpm(0, 2, 11.0)
    board.look()
    assert board.look()[0].get("sm_utilization_ratio") == 0.11
    board.node.fault("nvmlGpmSampleGet", 999, device=0, times=1)
    board.node.gpm(0, 2, 77.0)
    assert board.look()[0].get("sm_utilization_ratio") is None
    assert board.look()[0].get("sm_utilization_ratio") is None
    assert board.look()[0].get("sm_utilization_ratio") == 0.77


def test_a_gpu_that_may_not_be_read_costs_the_others_nothing(board: Board) -> None:
    board.look()
    board.node.fault("*", pynvml.NVML_ERROR_NO_PERMISSION, device=1)
    board.look()
    inits = board.node.node.inits
    for _ in range(20):
        board.clock.seconds += 60
        board.look(wait=0)
    assert board.node.node.inits == inits


def test_work_is_not_lost_while_another_gpu_is(board: Board) -> None:
    """NVML is initialised again and again for the one that is lost."""
    board.node.figures(0, utilization=50)
    for metric in range(1, 14):
        board.node.gpm(0, metric, error=3)
    board.look(wait=0)
    board.node.lose(1)
    for _ in range(300):
        board.look(wait=0)
    assert board.node.node.inits < 15
    assert board.look(wait=0)[0].get("sm_busy_seconds") == pytest.approx(0.5 * 301)


def test_an_answer_that_is_no_text(board: Board) -> None:
    board.look()
    board.nvml.close()
    board.node.state.driver_branch = b"\xff\xfe"
    assert [device.reason for device in board.look()] == [None, None]
