"""gpubpf.attribution: what is remembered of processes' devices, and what it costs.

Which GPU an ordinal is, is for `tests/unit/test_ordinals.py`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf.attribution import Attribution
from gpubpf.model import (
    UNKNOWN_GPU,
    Activity,
    Asked,
    Calls,
    Device,
    DeviceInfo,
    DeviceProcess,
    Ordinal,
    Owner,
    Part,
    Place,
)
from gpubpf.ordinals import Source
from gpubpf.visible import Surroundings

HIDDEN = Surroundings(False)
LETTERS = "abcd"
A, B, C, D = (f"GPU-{uuid.UUID(letter * 32)}" for letter in LETTERS)
P, Q = Owner(100, 1), Owner(200, 2)


def node(*pids: Iterable[int]) -> tuple[Device, ...]:
    """Four GPUs, and on each the processes that NVML lists there."""
    on = [tuple(DeviceProcess(pid) for pid in listed) for listed in pids]
    return tuple(
        Device(
            DeviceInfo(n, name, "NVIDIA H100", "1", pci_bus_id=f"00000000:{n + 0x3B:02X}:00.0"),
            processes=on[n] if n < len(on) else (),
        )
        for n, name in enumerate((A, B, C, D))
    )


def told(letter: str) -> Asked:
    return Asked(uuid.UUID(letter * 32).bytes)


def parts(*ordinals: Ordinal) -> Activity:
    return Activity(0, dict.fromkeys(ordinals, Part(1, 0, 0)))


def calls(
    live: Mapping[Owner, Activity] | None = None,
    ended: Mapping[Owner, Activity] | None = None,
    asked: Mapping[Owner, Mapping[int, Asked]] | None = None,
) -> Calls:
    return Calls(live or {}, ended or {}, 0, {}, {}, {}, {}, asked or {})


class Proc:
    """The surroundings of processes, and who was asked for."""

    def __init__(self, **by_pid: Surroundings) -> None:
        self.found = {int(pid[1:]): surroundings for pid, surroundings in by_pid.items()}
        self.reads: Counter[int] = Counter()

    def read(self, pid: int) -> Surroundings:
        self.reads[pid] += 1
        return self.found.get(pid, HIDDEN)


@pytest.fixture
def proc() -> Proc:
    return Proc()


@pytest.fixture
def attribution(proc: Proc) -> Attribution:
    return Attribution(proc.read)


def sources(attribution: Attribution) -> dict[str, int]:
    return {source: count for source, count in attribution.told.items() if count}


# --- what told ------------------------------------------------------------------------------------


def test_every_source_is_there_from_the_start(attribution: Attribution) -> None:
    assert attribution.told == {source.value: 0 for source in Source}


def test_a_source_counts_once_a_place_however_often_it_is_looked_at(
    attribution: Attribution,
) -> None:
    seen = calls({P: parts(0, 1), Q: parts(None)}, asked={P: {0: told("c"), 1: told("d")}})
    for _ in range(5):
        found = attribution.look(seen, node((200,)))
        assert found == {(P, 0): C, (P, 1): D, (Q, None): A}
    assert sources(attribution) == {"uuid": 2, "nvml": 1}


def test_a_change_of_the_source_counts_again(attribution: Attribution) -> None:
    live = {P: parts(0)}
    assert attribution.look(calls(live), node()) == {(P, 0): UNKNOWN_GPU}
    assert attribution.look(calls(live), node()) == {(P, 0): UNKNOWN_GPU}
    assert sources(attribution) == {"unknown": 1}
    assert attribution.look(calls(live), node((), (100,))) == {(P, 0): B}
    assert sources(attribution) == {"unknown": 1, "nvml": 1}
    surer = calls(live, asked={P: {0: told("b")}})
    assert attribution.look(surer, node((), (100,))) == {(P, 0): B}
    assert attribution.look(surer, node((), (100,))) == {(P, 0): B}
    assert sources(attribution) == {"unknown": 1, "nvml": 1, "uuid": 1}


def test_a_new_device_of_a_process_is_looked_up_with_what_is_known_of_it(
    attribution: Attribution,
) -> None:
    attribution.look(calls({P: parts(0)}), node((100,)))
    both = attribution.look(
        calls({P: parts(0, 1)}, asked={P: {1: told("b")}}), node((100,), (100,))
    )
    assert both == {(P, 0): A, (P, 1): B}
    assert sources(attribution) == {"nvml": 1, "uuid": 1}


def test_surroundings_tell_where_nvml_confirms() -> None:
    proc = Proc(_100=Surroundings(True, f"{B}", None, None))
    attribution = Attribution(proc.read)
    assert attribution.look(calls({P: parts(0)}), node()) == {(P, 0): B}
    assert sources(attribution) == {"visible_devices": 1}


# --- NVML is silent -------------------------------------------------------------------------------


def test_while_nvml_says_nothing_what_was_known_stays(attribution: Attribution) -> None:
    live = {P: parts(0)}
    attribution.look(calls(live), node((), (100,)))
    for _ in range(3):
        assert attribution.look(calls(live), None) == {(P, 0): B}
    # Also for what is new meanwhile, which is resolved against the GPUs as they were.
    more = {P: parts(0), Q: parts(0)}
    asked = {Q: {0: told("d")}}
    assert attribution.look(calls(more, asked=asked), None) == {(P, 0): B, (Q, 0): D}
    assert attribution.look(calls(more, asked=asked), node((), (100,))) == {(P, 0): B, (Q, 0): D}
    assert sources(attribution) == {"nvml": 1, "uuid": 1}


def test_before_nvml_ever_spoke_nothing_is_known(attribution: Attribution) -> None:
    seen = calls({P: parts(0)}, asked={P: {0: told("b")}})
    assert attribution.look(seen, None) == {(P, 0): UNKNOWN_GPU}
    assert attribution.look(seen, node()) == {(P, 0): B}
    assert sources(attribution) == {"unknown": 1, "uuid": 1}


def test_a_process_that_nvml_lists_no_more_stays_where_it_was(attribution: Attribution) -> None:
    """It forgets a process before its last calls are read. An ordinal's GPU doesn't change while
    its process lives."""
    live = {P: parts(0)}
    attribution.look(calls(live), node((), (100,)))
    assert attribution.look(calls(live), node()) == {(P, 0): B}
    assert attribution.look(calls(ended=live), node()) == {(P, 0): B}
    assert sources(attribution) == {"nvml": 1}


def test_gpus_that_change_are_looked_up_anew(attribution: Attribution) -> None:
    """One is gone: no process is on it, whatever it was told."""
    seen = calls({P: parts(0), Q: parts(0)}, asked={P: {0: told("b")}, Q: {0: told("a")}})
    attribution.look(seen, node())
    without = tuple(device for device in node() if device.info.uuid != B)
    assert attribution.look(seen, without) == {(P, 0): UNKNOWN_GPU, (Q, 0): A}
    assert attribution.look(seen, None) == {(P, 0): UNKNOWN_GPU, (Q, 0): A}
    assert attribution.look(seen, node()) == {(P, 0): B, (Q, 0): A}


# --- ended processes ------------------------------------------------------------------------------


def test_an_ended_process_keeps_its_place(attribution: Attribution) -> None:
    """NVML lists it no more, or lists another one with its pid."""
    attribution.look(calls({P: parts(0)}), node((), (100,)))
    successor = Owner(P.pid, 9)
    found = attribution.look(
        calls({successor: parts(0)}, ended={P: parts(0)}), node((), (), (100,))
    )
    assert found == {(P, 0): B, (successor, 0): C}


def test_an_ended_process_that_was_never_seen_alive_is_not_looked_up(
    attribution: Attribution, proc: Proc
) -> None:
    """Its pid may be another's: neither /proc nor NVML's list is of it; what it asked is."""
    found = attribution.look(
        calls(ended={P: parts(0, None)}, asked={P: {0: told("d")}}), node((100,))
    )
    assert found == {(P, 0): D, (P, None): UNKNOWN_GPU}
    assert not proc.reads


def test_an_ended_process_is_resolved_with_its_own_surroundings() -> None:
    """Of a device that it turned to at the end."""
    proc = Proc(_100=Surroundings(True, f"{B},{C}", None, None))
    attribution = Attribution(proc.read)
    attribution.look(calls({P: parts(0)}), node((), (100,)))
    proc.found[100] = Surroundings(True, A, None, None)  # another's
    found = attribution.look(calls(ended={P: parts(0)}), node((100,)))
    assert found == {(P, 0): B}
    assert proc.reads == {100: 1}


# --- what it costs --------------------------------------------------------------------------------


def test_what_could_not_be_read_is_read_again_a_few_times(
    attribution: Attribution, proc: Proc
) -> None:
    """While the reader is stuck with one process, the others can't be seen either."""
    live = {Owner(100, 1): parts(0)}
    for _ in range(3):
        attribution.look(calls(live), node())
    assert proc.reads[100] == 3
    proc.found[100] = Surroundings(True)
    for _ in range(3):
        attribution.look(calls(live), node())
    assert proc.reads[100] == 4
    never = {Owner(200, 1): parts(0)}
    for _ in range(30):
        attribution.look(calls(never), node())
    assert proc.reads[200] == 10


class Counting(dict[int, Asked]):
    """What a process asked, which knows how often the resolver looked into it."""

    times = 0

    def __contains__(self, key: object) -> bool:
        type(self).times += 1
        return super().__contains__(key)


def test_nothing_new_costs_nothing(attribution: Attribution, proc: Proc) -> None:
    """Every process is looked up once, and resolved when something about it changes."""
    Counting.times = 0
    live = {Owner(pid, 1): parts(0, 1) for pid in range(1, 51)}
    asked = {owner: Counting({0: told("a")}) for owner in live}
    proc.found = {pid: Surroundings(True) for pid in range(1, 51)}
    attribution.look(calls(live, asked=asked), node())
    first = Counting.times
    assert first > 0
    for _ in range(10):
        attribution.look(calls(live, asked=asked), node())
    assert Counting.times == first
    assert set(proc.reads.values()) == {1}
    one = dict(asked)
    one[Owner(1, 1)] = Counting({0: told("a"), 1: told("b")})
    attribution.look(calls(live, asked=one), node())
    assert 0 < Counting.times - first < first / 10


def test_the_past_is_forgotten(attribution: Attribution, proc: Proc) -> None:
    """However many processes come and go. (What it keeps is looked at here, and only here.)"""
    for pid in range(1, 200):
        owner, before = Owner(pid, pid), Owner(pid - 1, pid - 1)
        attribution.look(
            calls({owner: parts(0)}, ended={before: parts(0, 1)}), node((pid, pid - 1))
        )
    attribution.look(calls(), node())
    kept = (attribution._surroundings, attribution._facts, attribution._answers)
    assert [len(memory) for memory in kept] == [0, 0, 0]
    # The same process anew is a new one.
    attribution.look(calls({P: parts(0)}), node((100,)))
    attribution.look(calls(), node())
    attribution.look(calls({P: parts(0)}), node((100,)))
    assert proc.reads[100] == 3  # as pid 100 of those above, and twice now


PIDS = st.integers(1, 4)
ORDINALS = st.sets(st.sampled_from((0, 1, 2, None)), min_size=1)
LISTED = st.lists(st.frozensets(PIDS), min_size=4, max_size=4)
LOOK = st.tuples(
    st.dictionaries(PIDS, ORDINALS),
    st.dictionaries(PIDS, ORDINALS),
    st.dictionaries(PIDS, st.dictionaries(st.integers(0, 2), st.sampled_from(LETTERS).map(told))),
    st.none() | LISTED,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(LOOK, max_size=6))
def test_every_place_has_an_answer_and_no_other_does(
    looks: list[
        tuple[
            dict[int, set[int | None]],
            dict[int, set[int | None]],
            dict[int, dict[int, Asked]],
            list[frozenset[int]] | None,
        ]
    ],
) -> None:
    """And what is remembered of before changes no answer that the process was given."""
    proc = Proc()
    attribution = Attribution(proc.read)
    spoken = False
    for live_, ended_, asked_, listed in looks:
        live = {Owner(pid, 7): parts(*ordinals) for pid, ordinals in live_.items()}
        ended = {Owner(pid, 3): parts(*ordinals) for pid, ordinals in ended_.items()}
        asked = {Owner(pid, 7): said for pid, said in asked_.items()}
        spoken |= listed is not None
        found = attribution.look(
            calls(live, ended, asked), None if listed is None else node(*listed)
        )
        places: set[Place] = {
            (owner, ordinal)
            for owners in (live, ended)
            for owner, activity in owners.items()
            for ordinal in activity.parts
        }
        assert found.keys() == places
        assert set(found.values()) <= {A, B, C, D, UNKNOWN_GPU}
        for (owner, ordinal), gpu in found.items():
            said = asked.get(owner, {}).get(ordinal) if ordinal is not None else None
            if said is not None and said.uuid is not None and spoken:
                assert gpu == f"GPU-{uuid.UUID(bytes=said.uuid)}"
    assert sum(attribution.told.values()) <= sum(
        len(ordinals)
        for live_, ended_, _, _ in looks
        for ordinals in (*live_.values(), *ended_.values())
    )
