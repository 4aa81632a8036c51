"""gpubpf.ordinals: which GPU an ordinal is, and that no answer is a guess."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubpf.ordinals import UNKNOWN, VIEWS, Answer, Asked, GpuIdentity, Node, Source, resolve
from gpubpf.visible import Surroundings

LETTERS = "abcdefgh"


def digits(letter: str) -> str:
    return str(uuid.UUID(letter * 32))


def gpu(index: int, name: str = "NVIDIA H100", **more: object) -> GpuIdentity:
    letter = LETTERS[index] if index < 6 else str(index)
    facts = {"pci_bus_id": f"00000000:{index + 0x3B:02X}:00.0", "minor": index, **more}
    return GpuIdentity(index, f"GPU-{digits(letter)}", name, **facts)  # type: ignore[arg-type]


def mig(letter: str) -> str:
    return f"MIG-{digits(letter)}"


NODE = tuple(gpu(index) for index in range(4))
A, B, C, D = (device.uuid for device in NODE)
MIXED = (gpu(0, "NVIDIA T400"), gpu(1), gpu(2))
MIGS = (gpu(0, children=(mig("1"), mig("2"))), gpu(1), gpu(2, mig_mode=True))
ALL = frozenset(range(4))


def asked(**answers: str) -> dict[int, Asked]:
    """o1="a": the driver said that ordinal 1 has this UUID."""
    return {
        int(ordinal[1:]): Asked(uuid.UUID(letter * 32).bytes) for ordinal, letter in answers.items()
    }


def env(
    visible: str | None = None, order: str | None = None, minors: Collection[int] | None = None
) -> Surroundings:
    return Surroundings(True, visible, order, None if minors is None else frozenset(minors))


HIDDEN = Surroundings(False)
UUID, PCI, VISIBLE, NVML = (
    Source.UUID,
    Source.PCI_BUS_ID,
    Source.VISIBLE_DEVICES,
    Source.NVML,
)


@dataclass(frozen=True)
class Case:
    why: str
    expected: Answer
    ordinal: int | None = 0
    asked: Mapping[int, Asked] = ()  # type: ignore[assignment]
    env: Surroundings | None = None
    devices: tuple[GpuIdentity, ...] = NODE
    listed: Collection[str] = ()
    used: Collection[int] = ()


def yes(uuid_: str, source: Source) -> Answer:
    return Answer(uuid_, source)


CASES = (
    # --- asked
    Case("the driver said so", yes(C, UUID), 1, asked(o1="c")),
    Case("… whatever else is said", yes(C, UUID), 0, asked(o0="c"), env("0"), listed=(A,)),
    Case("by PCI id", yes(B, PCI), 0, {0: Asked(None, "0000:3c:00.0")}),
    Case("by PCI id, long and capital", yes(B, PCI), 0, {0: Asked(None, "00000000:3C:00.0\0\0")}),
    Case("both", yes(B, UUID), 0, {0: Asked(uuid.UUID("b" * 32).bytes, "0000:3c:00.0")}),
    Case("both, but different", UNKNOWN, 0, {0: Asked(uuid.UUID("b" * 32).bytes, "0000:3b:00.0")}),
    Case("another domain", UNKNOWN, 0, {0: Asked(None, "0001:3c:00.0")}, listed=(A,)),
    Case(
        "a PCI id cut short is none",
        yes(A, NVML),
        0,
        {0: Asked(None, "0000:3c:0")},
        None,
        NODE,
        (A,),
    ),
    Case("a GPU of nobody", UNKNOWN, 0, asked(o0="9"), env(A), listed=(A,)),
    Case("zeros are no answer", yes(A, NVML), 0, {0: Asked(bytes(16))}, listed=(A,)),
    Case("15 bytes are no answer", yes(A, NVML), 0, {0: Asked(b"x" * 15)}, listed=(A,)),
    Case("a MIG device", yes(mig("2"), UUID), 0, asked(o0="2"), devices=MIGS),
    Case("a MIG board, by the older function", yes(A, UUID), 0, asked(o0="a"), devices=MIGS),
    Case("a MIG device that isn't listed", UNKNOWN, 0, asked(o0="7"), devices=MIGS),
    Case(
        "… its board is known by its PCI id",
        yes(C, PCI),
        0,
        {0: Asked(uuid.UUID("7" * 32).bytes, "0000:3d:00.0")},
        devices=MIGS,
    ),
    Case("NVML is off", UNKNOWN, 0, asked(o0="a"), env(A), ()),
    # --- named
    Case("by UUID", yes(C, VISIBLE), 1, env=env(f"{A},{C}")),
    Case("by prefix", yes(C, VISIBLE), 0, env=env("GPU-c")),
    Case("confirmed", yes(C, VISIBLE), 1, env=env(f"{A},{C}"), listed=(A, C), used=(0, 1)),
    Case("named, NVML says another", yes(D, NVML), 0, env=env(C), listed=(D,)),
    Case("… and another two", UNKNOWN, 0, env=env(C), listed=(A, D)),
    Case("more ordinals than names", UNKNOWN, 0, env=env(C), used=(0, 1)),
    Case("changed to b,c", UNKNOWN, 1, env=env(f"{A},{B},{C}"), listed=(B, C), used=(0, 1)),
    Case("it was told otherwise", UNKNOWN, 1, asked(o0="b"), env(f"{A},{B}")),
    Case("told the same", yes(B, VISIBLE), 1, asked(o0="a"), env(f"{A},{B}")),
    Case("a prefix may be of a hidden board", UNKNOWN, 0, env=env("GPU-c", minors=(0, 9))),
    Case("a whole UUID isn't", yes(C, VISIBLE), 0, env=env(C, minors=(0, 9))),
    # --- places
    Case("not set, and nobody confirms", UNKNOWN, 0, env=env(), used=(0,)),
    Case("an index that nobody confirms", UNKNOWN, 0, env=env("2"), used=(0,)),
    Case("index, confirmed", yes(C, VISIBLE), 0, env=env("2"), listed=(C,), used=(0,)),
    Case("not set, confirmed", yes(B, VISIBLE), 1, env=env(), listed=(A, B), used=(0, 1)),
    Case("set later", yes(D, NVML), 0, env=env(), listed=(D,), used=(0,)),
    Case("set later to b,c", UNKNOWN, 1, env=env(), listed=(B, C), used=(0, 1)),
    Case("… seen by the other's context", UNKNOWN, 1, env=env(), listed=(B, C), used=(1,)),
    Case("cgroup of b,c", UNKNOWN, 1, env=env("0,1"), listed=(B, C), used=(0, 1)),
    Case("cgroup of d", yes(D, NVML), 0, env=env("0"), listed=(D,), used=(0,)),
    Case("environment unreadable", UNKNOWN, 0, env=HIDDEN, listed=(A, B), used=(0, 1)),
    Case("never read", UNKNOWN, 0, env=None, listed=(A, B), used=(0, 1)),
    Case("no device visible, it said", yes(A, NVML), 0, env=env(""), listed=(A,), used=(0,)),
    Case("of two models", UNKNOWN, 1, env=env(), devices=MIXED, listed=(A, B), used=(0, 1)),
    Case(
        "of two models, in PCI order",
        yes(B, VISIBLE),
        1,
        env=env(order="PCI_BUS_ID"),
        devices=MIXED,
        listed=(A, B),
        used=(0, 1),
    ),
    Case(
        "the two in /dev are of one model",
        yes(C, VISIBLE),
        1,
        env=env(minors=(1, 2)),
        devices=MIXED,
        listed=(B, C),
        used=(0, 1),
    ),
    Case(
        "a container of b and d",
        yes(D, VISIBLE),
        1,
        env=env(minors=(1, 3)),
        listed=(B, D),
        used=(0, 1),
    ),
    Case("a MIG board may shift them", UNKNOWN, 1, {}, env(), MIGS, (A, B), (0, 1)),
    # --- one board alone
    Case("alone in /dev", yes(C, VISIBLE), 0, env=env(minors=(2,))),
    Case("… device not known", yes(C, VISIBLE), None, env=env(minors=(2,))),
    Case(
        "… environment unreadable",
        yes(C, VISIBLE),
        0,
        env=Surroundings(False, minors=frozenset({2})),
    ),
    Case("… there is no second", UNKNOWN, 1, env=env(minors=(2,))),
    Case("… but it was told of a second", UNKNOWN, 0, asked(o1="d"), env(minors=(2,))),
    Case("… NVML says another", yes(A, NVML), 0, env=env(minors=(2,)), listed=(A,)),
    Case("alone, with MIG", yes(A, VISIBLE), 1, env=env(minors=(0,)), devices=MIGS),
    Case("alone to NVML, not in /dev", UNKNOWN, 0, env=env(minors=(0, 1)), devices=NODE[:1]),
    Case("alone to NVML, /dev not seen", UNKNOWN, 0, env=env(), devices=NODE[:1]),
    Case("no device files at all", UNKNOWN, 0, env=env(minors=())),
    # --- NVML
    Case("one choice", yes(B, NVML), 3, listed=(B,)),
    Case("two", UNKNOWN, 3, listed=(A, B)),
    Case("none", UNKNOWN, 3),
    Case("one that isn't ours", UNKNOWN, 0, listed=(B, "GPU-x")),
    Case("the other is known", yes(B, NVML), 1, asked(o0="a"), listed=(A, B), used=(0, 1)),
    Case("the only one is the other's", UNKNOWN, 1, asked(o0="a"), listed=(A,), used=(0, 1)),
    Case("the other isn't listed", UNKNOWN, 1, asked(o0="a"), listed=(B,), used=(0, 1)),
    Case("two ordinals, one GPU: it lags", UNKNOWN, 1, listed=(A,), used=(0, 1)),
    Case("device not known, one GPU", yes(A, NVML), None, listed=(A,), used=(0,)),
    Case("device not known, it lags", UNKNOWN, None, listed=(A,), used=(0, 1)),
    Case("device not known, told otherwise", UNKNOWN, None, asked(o0="b"), listed=(A,), used=(0,)),
    Case("device not known, two GPUs", UNKNOWN, None, asked(o0="a"), listed=(A, B), used=(0,)),
    Case("a MIG device", yes(mig("1"), NVML), 0, devices=MIGS, listed=(A, mig("1"))),
    Case("two of a board", yes(A, NVML), 0, devices=MIGS, listed=(mig("2"), mig("1"))),
    Case("… and known", UNKNOWN, 1, asked(o0="1"), devices=MIGS, listed=(A,), used=(0, 1)),
    Case("MIG, and others in use", UNKNOWN, 0, devices=MIGS, listed=(A,), used=(0, 1)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_which_gpu_it_is(case: Case) -> None:
    answer = resolve(case.ordinal, dict(case.asked), case.env, case.devices, case.listed, case.used)
    assert answer == case.expected


def test_a_node_keeps_processes_apart() -> None:
    node = Node(NODE)
    for number in range(VIEWS + 10):
        index = number % 4
        text = " " * (number // 4) + NODE[index].uuid
        for _ in range(2):
            assert node.resolve(0, {}, env(text), ()) == yes(NODE[index].uuid, VISIBLE)
    assert len(node._views) <= VIEWS


# --- whatever comes ------------------------------------------------------------------------------

TOKENS = st.sampled_from(
    [
        *[
            "0",
            "1",
            "3",
            "9",
            "-1",
            "+1",
            "01",
            " 2",
            "1x",
            "",
            "GPU-",
            "GPU-a",
            "MIG-1",
            "MIG-GPU-",
            "é",
            "�",
            "\x00",
        ],
        *(A, B, A.upper(), mig("1"), mig("2"), f"MIG-{A}/1/0", "9" * 500),
    ]
)
texts = st.none() | st.text() | st.lists(TOKENS, max_size=6).map(",".join)
pci_ids = st.none() | st.text() | st.sampled_from([d.pci_bus_id for d in NODE] + ["0000:3b:00.0"])
answers = st.builds(
    Asked,
    st.none()
    | st.binary(max_size=17)
    | st.sampled_from("abcd12").map(lambda c: bytes.fromhex(c * 32)),
    pci_ids,
)
ordinals = st.none() | st.integers(-2, 6) | st.integers()
numbers = st.sets(st.integers(-1, 6), max_size=4)
nodes = st.lists(
    st.sampled_from([*NODE, *MIGS, *MIXED, gpu(3, pci_bus_id=None), gpu(2, minor=None)]),
    max_size=5,
    unique_by=lambda device: device.uuid,
)
hostile = st.builds(
    Surroundings,
    st.booleans(),
    texts,
    st.none() | st.text() | st.just("PCI_BUS_ID"),
    st.none() | st.frozensets(st.integers(0, 5)),
)
lists = st.lists(st.sampled_from([A, B, C, D, mig("1"), mig("2"), "GPU-x"]), max_size=4)


@given(
    ordinals,
    st.dictionaries(st.integers(-1, 6), answers, max_size=4),
    st.none() | hostile,
    nodes,
    lists,
    numbers,
    st.randoms(),
)
def test_never_raises_nor_invents_and_order_does_not_matter(
    ordinal: int | None,
    asked_: dict[int, Asked],
    surroundings: Surroundings | None,
    devices: list[GpuIdentity],
    listed: list[str],
    used: set[int],
    shuffle: random.Random,
) -> None:
    answer = resolve(ordinal, asked_, surroundings, devices, listed, used)
    known = {uuid_ for device in devices for uuid_ in (device.uuid, *device.children)}
    assert (answer.uuid is None) == (answer.source is Source.UNKNOWN)
    assert answer.uuid is None or answer.uuid in known
    pairs = shuffle.sample(list(asked_.items()), len(asked_))
    devices = shuffle.sample(devices, len(devices))
    listed = shuffle.sample(listed, len(listed))
    again = resolve(ordinal, dict(pairs), surroundings, devices, listed, sorted(used))
    assert again == answer


@st.composite
def processes(
    draw: st.DrawFn,
) -> tuple[list[str], Surroundings, dict[int, Asked], set[str], set[int]]:
    """A process on a node of one model as CUDA would have it: the truth, and what is seen of it."""
    allowed = sorted(draw(st.sets(st.integers(0, 3), min_size=1)))  # by the device cgroup
    count = len(allowed)
    named = draw(st.booleans())
    names = [NODE[board].uuid for board in allowed] if named else [str(i) for i in range(count)]
    start = draw(
        st.none()
        | st.permutations(names).flatmap(
            lambda order: st.integers(1, count).map(lambda length: order[:length])
        )
    )
    order = names if start is None else start
    # set later by the program itself: some of them, in the same order
    chosen = [name for name in order if draw(st.booleans())] or order
    truth = [name if named else NODE[allowed[int(name)]].uuid for name in chosen]
    contexts = draw(st.sets(st.integers(0, len(truth) - 1), min_size=1))
    used = draw(st.sets(st.sampled_from(sorted(contexts)), min_size=1))
    listed = {truth[ordinal] for ordinal in contexts}
    if used == contexts and (chosen == order or not named):  # NVML's list may lag behind
        listed = draw(st.sets(st.sampled_from(sorted(listed))))
    told = draw(st.sets(st.integers(0, len(truth) - 1)))
    answers = {o: Asked(uuid.UUID(truth[o].removeprefix("GPU-")).bytes) for o in told}
    minors = draw(st.sampled_from([None, ALL, frozenset(allowed)]))
    variable = None if start is None else ",".join(start)
    return truth, Surroundings(draw(st.booleans()), variable, None, minors), answers, listed, used


@given(processes())
def test_what_is_told_is_true(
    process: tuple[list[str], Surroundings, dict[int, Asked], set[str], set[int]],
) -> None:
    truth, surroundings, asked_, listed, used = process
    node = Node(NODE)
    for ordinal in used:
        answer = node.resolve(ordinal, asked_, surroundings, listed, used)
        assert answer.uuid in (None, truth[ordinal]), (ordinal, answer)
    if len(used) == 1:  # calls of which the device isn't known
        answer = node.resolve(None, asked_, surroundings, listed, used)
        assert answer.uuid in (None, truth[min(used)])


def test_it_is_cheap() -> None:
    """16 ordinals of 64 processes are resolved at every look."""
    node = Node(tuple(gpu(index) for index in range(8)))
    said = asked(**{f"o{index}": LETTERS[index] for index in range(6)})
    seen = env("0,1,2,3", minors=range(8))
    began = time.perf_counter()
    for _ in range(200):
        node.resolve(0, said, seen, (A,), (0,))
        node.resolve(7, said, seen, (A, B), (0, 1, 7))
    assert (time.perf_counter() - began) / 400 < 300e-6
