"""gpubpf.join: what the kernel counted is what is shown, whatever happens between two looks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf.join import Ledger, Readings, join
from gpubpf.model import (
    UNKNOWN_GPU,
    Calls,
    Device,
    DeviceInfo,
    DeviceProcess,
    Owner,
    Process,
    Reading,
    Snapshot,
)
from tests.unit.books import FUNCTIONS, GPUS, STEPS, Node, Step, unpack, whole

LOOKS = st.lists(st.tuples(st.lists(STEPS, max_size=8), st.integers(0, 5)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(LOOKS)
def test_the_totals_are_what_the_kernel_counted(looks: list[tuple[list[Step], int]]) -> None:
    """Summed over the GPUs, lane by lane; none goes back; an end is told once."""
    node = Node()
    before = node.look()
    ended: list[Owner] = []
    for steps, luck in looks:
        for step in steps:
            step(node)
        after = node.look(bpf=luck > 0)
        if luck:
            assert whole(after) == node.row()
            assert Counter(after.errors) == node.failed
        else:
            assert (after.totals, after.errors) == (before.totals, before.errors)
            assert (after.processes, after.ended) == ((), ())
        for gpu, total in before.totals.items():
            assert all(
                b <= a for b, a in zip(unpack(total), unpack(after.totals[gpu]), strict=True)
            )
        assert all(after.errors[key] >= count for key, count in before.errors.items())
        assert {s.name: s.up for s in after.sources} == {"bpf": luck > 0, "nvml": node.nvml_up}
        ended += [view.owner for view in after.ended]
        before = after
    ended += [view.owner for view in node.look().ended]
    assert ended == node.finished


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
    assert node.ledger.seen.keys() == {Owner(0, 0)}
    assert not node.ledger.gpus
    assert not node.ledger.errors_seen


def shares(snapshot: Snapshot, lane: int = 0) -> dict[str, int]:
    rows = {gpu: unpack(total)[lane] for gpu, total in snapshot.totals.items()}
    return {gpu: count for gpu, count in rows.items() if count}


def test_calls_go_to_the_gpu_that_the_process_is_on_at_the_time() -> None:
    node = Node()
    node.call(1, 0, 5)
    assert shares(node.look()) == {UNKNOWN_GPU: 5}  # NVML doesn't list it yet
    node.list_on(1, frozenset({0}))
    node.call(1, 0, 7)
    assert shares(node.look()) == {UNKNOWN_GPU: 5, "GPU-a": 7}
    node.list_on(1, frozenset({1}))
    node.call(1, 0, 11)
    assert shares(node.look()) == {UNKNOWN_GPU: 5, "GPU-a": 7, "GPU-b": 11}
    node.list_on(1, frozenset({0, 1}))  # on both: whose they are isn't known
    node.call(1, 0, 13)
    assert shares(node.look()) == {UNKNOWN_GPU: 18, "GPU-a": 7, "GPU-b": 11}


def test_what_a_process_did_last_goes_to_the_gpu_that_it_was_on() -> None:
    """NVML forgets a process before its last calls are read, or fails meanwhile."""
    node = Node()
    node.list_on(1, frozenset({2}))
    node.call(1, 0, 1)
    node.look()
    node.nvml(False)
    node.call(1, 0, 2)
    assert shares(node.look()) == {"GPU-c": 3}
    node.nvml(True)
    node.on.clear()
    node.call(1, 0, 4)
    assert shares(node.look()) == {"GPU-c": 7}
    node.call(1, 0, 8)
    node.end(1)
    snapshot = node.look()
    assert shares(snapshot) == {"GPU-c": 15}
    assert [(view.owner.pid, unpack(view.counters)[0]) for view in snapshot.ended] == [(1, 15)]


def test_an_ended_process_is_not_given_the_gpu_of_the_next_with_its_pid() -> None:
    node = Node()
    node.call(1, 0, 3)
    node.end(1)
    node.call(1, 0, 5)  # another process, the same pid
    node.list_on(1, frozenset({0}))
    snapshot = node.look()
    assert shares(snapshot) == {UNKNOWN_GPU: 3, "GPU-a": 5}
    assert len({view.owner for view in (*snapshot.processes, *snapshot.ended)}) == 2


def test_nothing_is_counted_twice_when_the_map_of_ended_processes_is_full() -> None:
    """Its counters are added to the overflow, whole, though most were counted as its own."""
    node = Node()
    node.call(1, 0, 100)
    node.look()
    node.call(1, 0, 10)
    node.end_unseen(1)
    node.without_room(1, 1)
    snapshot = node.look()
    assert whole(snapshot) == node.row()
    assert not node.ledger.errors_seen


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
        node.call(pid, 3, 2**62)
    node.call(3, 4, 9)
    snapshot = node.look()
    assert 2**62 <= shares(snapshot, 3)[UNKNOWN_GPU] < 2**63
    assert shares(snapshot, 4) == {UNKNOWN_GPU: 9}
    assert snapshot.lost["refused"] == 1


def test_absurd_counts_of_some_do_not_stop_the_count_of_others() -> None:
    """Two that reported absurd sizes; then an honest process on the same GPU."""
    node = Node()
    node.call(1, 3, 2**62)
    node.call(2, 3, 2**62 - 1)
    node.look()
    node.call(3, 0, 1000)  # launches
    node.call(3, 3, 4096)  # and one allocation's bytes
    assert shares(node.look(), 0) == {UNKNOWN_GPU: 1000}


def test_a_process_that_only_nvml_lists_is_shown_once() -> None:
    """With no calls; and not again once it calls."""
    devices = (
        Device(DeviceInfo(0, GPUS[0], "Simulated", "1"), processes=(DeviceProcess(7, 42),)),
        Device(DeviceInfo(1, GPUS[1], "Simulated", "1"), processes=None),
    )
    known = {Owner(7, 0): Process(7, 1.0, "a"), Owner(8, 0): Process(8, 1.0, "gone")}
    for live in ({}, {Owner(7, 99): 3}):
        calls = Calls(live, {}, 0, {}, {}, {}, {})
        readings = Readings(
            1, 2, Reading("bpf", 0, 0, calls), Reading("nvml", 0, 0, devices), known, (), None
        )
        (view,) = join(readings, Ledger(FUNCTIONS)).processes
        assert view.owner == next(iter(live), Owner(7, 0))
        assert view.gpus == {GPUS[0]: DeviceProcess(7, 42)}
        assert view.counters == sum(live.values())


def test_gpus_keep_their_index_while_nvml_fails() -> None:
    node = Node()
    node.look()
    node.nvml(False)
    snapshot = node.look()
    assert snapshot.devices is None
    assert snapshot.indices == {uuid: index for index, uuid in enumerate(GPUS)}
    assert set(snapshot.totals) == {*GPUS, UNKNOWN_GPU}
