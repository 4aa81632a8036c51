"""gpubpf.join: what the kernel counted is what is shown, whatever happens between two looks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf import lanes
from gpubpf.join import Ledger, Readings, join
from gpubpf.model import (
    UNKNOWN_GPU,
    Activity,
    Calls,
    Device,
    DeviceInfo,
    DeviceProcess,
    Footprint,
    Owner,
    Part,
    Plane,
    Process,
    Reading,
    Snapshot,
)
from gpubpf.symbols import KINDS
from tests.unit.books import (
    CALLS,
    FUNCTIONS,
    GPUS,
    MEMORY,
    STEPS,
    Node,
    Step,
    lane,
    unpack,
    vector,
    whole,
)

LOOKS = st.lists(st.tuples(st.lists(STEPS, max_size=8), st.integers(0, 5)), max_size=12)


def rows(snapshot: Snapshot) -> dict[str, list[int]]:
    return {gpu: unpack(total) for gpu, total in snapshot.totals.items()}


@settings(max_examples=150, deadline=None)
@given(LOOKS)
def test_the_totals_are_what_the_kernel_counted(looks: list[tuple[list[Step], int]]) -> None:
    """Summed over the GPUs, lane by lane, and on each GPU what was done there; none goes back; an
    end is told once."""
    node = Node()
    before = node.look()
    ended: list[Owner] = []
    for steps, luck in looks:
        for step in steps:
            step(node)
        after = node.look(bpf=luck > 0)
        if luck:
            assert whole(after) == node.row()
            for gpu, row in rows(after).items():
                assert row == [node.by_gpu[gpu][n] for n in range(len(row))], gpu
            assert Counter(after.errors) == node.failed
            assert {view.owner for view in after.processes} == node.processes.keys()
        else:
            assert (after.totals, after.calls) == (before.totals, before.calls)
            assert after.errors == before.errors
            assert (after.processes, after.ended) == ((), ())
        for old, new in (
            *((total, after.totals[gpu]) for gpu, total in before.totals.items()),
            (before.calls, after.calls),
        ):
            assert all(b <= a for b, a in zip(unpack(old), unpack(new), strict=True))
        assert all(after.errors[key] >= count for key, count in before.errors.items())
        assert {s.name: s.up for s in after.sources} == {"bpf": luck > 0, "nvml": node.nvml_up}
        ended += [view.owner for view in after.ended]
        before = after
    ended += [view.owner for view in node.look().ended]
    assert ended == node.finished
    assert before.lost.get("refused", 0) == 0


def test_facts_and_calls_are_apart() -> None:
    node = Node()
    node.call(1, 1, 3)
    node.do(1, 0, 0, 5)
    node.without_room(CALLS, 7)
    node.without_room(1, 11)
    snapshot = node.look()
    assert all(not any(row[CALLS:]) for row in rows(snapshot).values())
    assert unpack(snapshot.calls) == [*[0] * CALLS, 7, 3]


@settings(max_examples=100, deadline=None)
@given(LOOKS)
def test_what_was_allocated_is_freed_or_live(looks: list[tuple[list[Step], int]]) -> None:
    """By kind, in number and bytes, at every look. What nobody keeps books of (the overflow) is
    what is left over."""

    def check(snapshot: Snapshot) -> None:
        total = whole(snapshot)
        for kind in range(len(KINDS) - 1):
            for facts, left in zip((MEMORY[0::2], MEMORY[1::2]), node.balance(kind), strict=True):
                made, freed, gone = (total[lane(fact, kind)] for fact in facts)
                assert made == freed + gone + left, (KINDS[kind], facts)

    node = Node()
    for steps, luck in looks:
        for step in steps:
            step(node)
        snapshot = node.look(bpf=luck > 0)
        if luck:
            check(snapshot)
    for owner in list(node.processes):
        node.end(owner.pid)
    snapshot = node.look()
    check(snapshot)
    assert snapshot.processes == ()


@settings(max_examples=80, deadline=None)
@given(LOOKS)
def test_gauges_are_of_living_processes_by_gpu(looks: list[tuple[list[Step], int]]) -> None:
    node = Node()
    for steps, _ in looks:
        for step in steps:
            step(node)
        snapshot = node.look()
        for view in snapshot.processes:
            on: dict[str, list[int]] = {}
            for ordinal, part in node.processes[view.owner].there.items():
                gpu = node.gpus.get((view.owner, ordinal), UNKNOWN_GPU)
                known = on.get(gpu, [0, 0])
                on[gpu] = [known[0] + part.live, known[1] + part.peak]
            assert {gpu: [part.live, part.peak] for gpu, part in view.on.items()} == on
            assert view.counters == node.processes[view.owner].activity().counters
            assert lanes.split(view.counters)[0] == sum(part.counters for part in view.on.values())


@settings(max_examples=50, deadline=None)
@given(LOOKS)
def test_the_past_is_not_kept_by_process(looks: list[tuple[list[Step], int]]) -> None:
    node = Node()
    for steps, luck in looks:
        for step in steps:
            step(node)
        node.look(bpf=luck > 0)
    for owner in list(node.processes):
        node.end(owner.pid)
    node.look()
    node.look()  # failures of those that were folded away are known to be the last only now
    assert node.ledger.seen.keys() == {(Owner(0, 0), None)}
    assert node.ledger.seen_calls.keys() == {Owner(0, 0)}
    assert not node.ledger.errors_seen


def shares(snapshot: Snapshot, lane: int = 0) -> dict[str, int]:
    return {gpu: row[lane] for gpu, row in rows(snapshot).items() if row[lane]}


def test_what_is_done_goes_to_the_gpu_that_the_device_is_known_to_be_at_the_time() -> None:
    node = Node()
    node.do(1, 0, 0, 5)
    assert shares(node.look()) == {UNKNOWN_GPU: 5}  # nothing told yet
    node.put_on(1, 0, "GPU-a")
    node.do(1, 0, 0, 7)
    assert shares(node.look()) == {UNKNOWN_GPU: 5, "GPU-a": 7}
    node.put_on(1, 0, "GPU-b")
    node.do(1, 0, 0, 11)
    assert shares(node.look()) == {UNKNOWN_GPU: 5, "GPU-a": 7, "GPU-b": 11}
    node.put_on(1, 0, UNKNOWN_GPU)
    node.do(1, 0, 0, 13)
    assert shares(node.look()) == {UNKNOWN_GPU: 18, "GPU-a": 7, "GPU-b": 11}


def test_each_of_several_devices_counts_on_its_own_gpu() -> None:
    node = Node()
    for ordinal, gpu in ((0, "GPU-b"), (1, "GPU-a")):
        node.put_on(1, ordinal, gpu)
    node.do(1, 0, 0, 5)
    node.do(1, 1, 0, 7)
    node.do(1, None, 0, 11)
    snapshot = node.look()
    assert shares(snapshot) == {"GPU-a": 7, "GPU-b": 5, UNKNOWN_GPU: 11}
    (view,) = snapshot.processes
    assert {gpu: part.counters for gpu, part in view.on.items()} == {
        "GPU-a": 7, "GPU-b": 5, UNKNOWN_GPU: 11,
    }  # fmt: skip
    node.put_on(1, 1, "GPU-b")  # two devices of one GPU: parts of a MIG board
    node.allocate(1, 0, 0, 100)
    node.allocate(1, 1, 0, 10)
    (view,) = node.look().processes
    assert (view.on["GPU-b"].live, view.on["GPU-b"].peak) == (110, 110)
    assert unpack(view.on["GPU-b"].counters)[0] == 12


def test_what_a_process_did_last_goes_to_the_gpu_that_its_device_was() -> None:
    """Also while NVML fails, and what it held goes there, too."""
    node = Node()
    node.put_on(1, 0, "GPU-c")
    node.do(1, 0, 0, 1)
    node.look()
    node.nvml(False)
    node.do(1, 0, 0, 2)
    assert shares(node.look()) == {"GPU-c": 3}
    node.nvml(True)
    node.allocate(1, 0, 0, 4096)
    node.do(1, 0, 0, 8)
    node.end(1)
    snapshot = node.look()
    assert shares(snapshot) == {"GPU-c": 11}
    assert shares(snapshot, lane("implicit_frees")) == {"GPU-c": 1}
    assert shares(snapshot, lane("implicitly_freed_bytes")) == {"GPU-c": 4096}
    assert [(view.owner.pid, unpack(view.counters)[0]) for view in snapshot.ended] == [(1, 11)]
    assert shares(node.look(), lane("implicit_frees")) == {"GPU-c": 1}  # once


def test_a_device_that_a_process_turned_to_at_its_end_is_counted() -> None:
    """It was never seen alive."""
    node = Node()
    node.do(1, 0, 0, 1)
    node.look()
    node.put_on(1, 1, "GPU-b")
    node.do(1, 1, 0, 2)
    node.allocate(1, 1, 2, 64)
    node.end(1)
    snapshot = node.look()
    assert shares(snapshot) == {UNKNOWN_GPU: 1, "GPU-b": 2}
    assert shares(snapshot, lane("implicit_frees", 2)) == {"GPU-b": 1}


def test_an_ended_process_is_not_given_the_gpu_of_the_next_with_its_pid() -> None:
    node = Node()
    node.do(1, 0, 0, 3)
    node.end(1)
    node.do(1, 0, 0, 5)  # another process, the same pid
    node.put_on(1, 0, "GPU-a")
    snapshot = node.look()
    assert shares(snapshot) == {UNKNOWN_GPU: 3, "GPU-a": 5}
    assert len({view.owner for view in (*snapshot.processes, *snapshot.ended)}) == 2


def test_nothing_is_counted_twice_when_the_map_of_ended_processes_is_full() -> None:
    """What it did at home is added to the overflow, whole, though most was counted as its own;
    what it did elsewhere comes as an ended process's that made no calls."""
    node = Node()
    node.put_on(1, 0, "GPU-a")
    node.put_on(1, 1, "GPU-b")
    node.call(1, 0, 1000)
    node.do(1, 0, 0, 100)
    node.do(1, 1, 0, 50)
    node.look()
    node.call(1, 0, 2)
    node.do(1, 0, 0, 10)
    node.do(1, 1, 0, 5)
    node.end_unseen(1)
    node.without_room(1, 1)
    snapshot = node.look()
    assert whole(snapshot) == node.row()
    assert shares(snapshot) == {"GPU-a": 100, "GPU-b": 55, UNKNOWN_GPU: 10}
    assert unpack(snapshot.calls)[CALLS] == 1002
    assert snapshot.lost["refused"] == 0
    assert not node.ledger.errors_seen
    assert node.look().totals == snapshot.totals


def test_a_process_is_shown_with_its_own_errors() -> None:
    node = Node()
    for pid, times in ((1, 2), (2, 3)):
        for _ in range(times):
            node.fail(pid, "cuMemAlloc_v2", 2)
    node.end(2)
    snapshot = node.look()
    (live,), (ended,) = snapshot.processes, snapshot.ended
    assert (live.owner.pid, live.errors) == (1, {("cuMemAlloc_v2", 2): 2})
    assert (ended.owner.pid, ended.errors) == (2, {("cuMemAlloc_v2", 2): 3})
    assert snapshot.errors == {("cuMemAlloc_v2", 2): 5}
    assert node.look().errors == {("cuMemAlloc_v2", 2): 5}


def test_absurd_counts_of_one_process_do_not_carry_into_others() -> None:
    node = Node()
    for pid in (1, 2):
        node.do(pid, 0, 3, 2**62)
    node.do(3, 0, 4, 9)
    snapshot = node.look()
    assert 2**62 <= shares(snapshot, 3)[UNKNOWN_GPU] < 2**63
    assert shares(snapshot, 4) == {UNKNOWN_GPU: 9}
    assert snapshot.lost["refused"] == 1


def test_absurd_counts_of_some_do_not_stop_the_count_of_others() -> None:
    node = Node()
    node.do(1, 0, 3, 2**62)
    node.do(2, 0, 3, 2**62 - 1)
    node.look()
    node.do(3, 0, 0, 1000)  # launches
    node.do(3, 0, 3, 4096)  # and more of the same
    assert shares(node.look(), 0) == {UNKNOWN_GPU: 1000}


def test_a_process_that_only_nvml_lists_is_shown_once() -> None:
    """With no calls; and not again once it calls."""
    devices = (
        Device(DeviceInfo(0, GPUS[0], "Simulated", "1"), processes=(DeviceProcess(7, 42),)),
        Device(DeviceInfo(1, GPUS[1], "Simulated", "1"), processes=None),
    )
    known = {Owner(7, 0): Process(7, 1.0, "a"), Owner(8, 0): Process(8, 1.0, "gone")}
    calling = {Owner(7, 99): Activity(vector({CALLS: 2}), {0: Part(3, 0, 0)})}
    for live in ({}, calling):
        calls = Calls(live, {}, 0, {}, {}, {}, {})
        plane = Reading("nvml", 0, 0, Plane(devices))
        readings = Readings(1, 2, Reading("bpf", 0, 0, calls), plane, known, {}, (), None)
        (view,) = join(readings, Ledger(FUNCTIONS)).processes
        assert view.owner == next(iter(live), Owner(7, 0))
        assert view.gpus == {GPUS[0]: DeviceProcess(7, 42)}
        assert view.counters == sum(activity.counters for activity in live.values())
        assert view.on == ({UNKNOWN_GPU: Part(3, 0, 0)} if live else {})


def test_gpus_keep_their_index_while_nvml_fails() -> None:
    node = Node()
    node.look()
    node.nvml(False)
    snapshot = node.look()
    assert snapshot.devices is None
    assert snapshot.indices == {uuid: index for index, uuid in enumerate(GPUS)}
    assert set(snapshot.totals) == {*GPUS, UNKNOWN_GPU}


def test_footprints_are_added_up_by_gpu_and_stay_until_the_next() -> None:
    """A GPU whose processes hold nothing has one of 0; what is on no known GPU is `unknown`."""
    places = [(Owner(1, 5), 0), (Owner(2, 6), 1), (Owner(2, 6), None), (Owner(3, 7), 0)]
    gpus = dict(zip(places, ("GPU-a", "GPU-a", UNKNOWN_GPU, "GPU-b"), strict=True))
    found = {
        places[0]: Footprint(1, 10), places[1]: Footprint(2, 20), places[2]: Footprint(4, 40),
        (Owner(9, 9), 0): Footprint(8, 80),
    }  # fmt: skip
    ledger = Ledger(FUNCTIONS)
    empty = Reading("bpf", 0, 0, Calls({}, {}, 0, {}, {}, {}, {}))
    readings = Readings(1, 2, empty, None, {}, gpus, (), None, footprints=found)
    expected = {
        "GPU-a": Footprint(3, 30), UNKNOWN_GPU: Footprint(12, 120), "GPU-b": Footprint(0, 0),
    }  # fmt: skip
    assert join(readings, ledger).footprints == expected
    kept = join(replace(readings, footprints=None, gpus={}), ledger)
    assert kept.footprints == expected
    assert join(replace(readings, footprints={}, gpus={}), ledger).footprints == {}


def test_what_the_sources_told_is_passed_on() -> None:
    readings = Readings(
        1, 2, Reading("bpf", 0, 0, Calls({}, {}, 0, {}, {}, {}, {})), None, {}, {}, (), None,
        attributions={"uuid": 3},
    )  # fmt: skip
    assert join(readings, Ledger(FUNCTIONS)).attributions == {"uuid": 3}
