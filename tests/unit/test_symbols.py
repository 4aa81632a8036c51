"""gpubpf.symbols: the table against the handlers in probes/ and against NVIDIA's own library."""

from __future__ import annotations

import re
import subprocess
from importlib import resources

import pytest

from gpubpf.bpf.program import cookie, stub_names, stubs
from gpubpf.symbols import DIRECTIONS, GROUPS, KINDS, SYMBOLS, Symbol, chosen

LIBRARY = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"  # Debian's libcuda1, see tests/run

FAMILIES = re.compile(
    r"cu(Launch|GraphLaunch|Memcpy|Memset|Mem(Host)?Alloc|Mem(Create|Release|Free)"
    r"|(Array|Array3D|MipmappedArray)(Create|Destroy)|[A-Z][a-z]+Synchronize).*"
)

BY_NAME = {symbol.name: symbol for symbol in SYMBOLS}

COPIES = {
    "HtoD": "host_to_device",
    "HtoA": "host_to_device",
    "DtoH": "device_to_host",
    "AtoH": "device_to_host",
    "DtoD": "device_to_device",
    "DtoA": "device_to_device",
    "AtoD": "device_to_device",
    "AtoA": "device_to_device",
}


@pytest.fixture(scope="module")
def exported() -> frozenset[str]:
    """Read by binutils, not by what is under test."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", LIBRARY], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in listing.splitlines()]
    names = frozenset(row[2].partition("@")[0] for row in rows if row[1] == "T")
    assert len(names) > 500
    return names


def handlers() -> set[str]:
    folder = resources.files("gpubpf.probes")
    text = "".join(f.read_text() for f in folder.iterdir() if f.name.endswith(".c"))
    return set(re.findall(r"\bint (on_\w+)\(struct pt_regs \*ctx, u64 call\)", text))


def test_a_name_is_there_once() -> None:
    assert len(BY_NAME) == len(SYMBOLS)


def test_every_shape_has_its_handlers_and_every_handler_its_shape() -> None:
    shapes = {symbol.shape for symbol in SYMBOLS}
    entries = {f"on_{shape.name}" for shape in shapes}
    backs = {f"on_{shape.back}" for shape in shapes if shape.returns}
    assert handlers() == entries | backs
    assert not entries & backs
    assert len({shape.name for shape in shapes}) == len(shapes)


def test_launches_alone_are_not_probed_on_return() -> None:
    """It is what keeps them cheap. The batches of 3D copies are only counted too."""
    for symbol in SYMBOLS:
        batch = symbol.name.startswith("cuMemcpy3DBatch")
        assert symbol.shape.returns == (symbol.group != "launch" and not batch)


def test_groups() -> None:
    assert {symbol.group for symbol in SYMBOLS} == set(GROUPS)
    assert chosen(GROUPS) == SYMBOLS
    assert chosen(()) == ()
    for group in GROUPS:
        assert {symbol.group for symbol in chosen((group,))} == {group}
    assert [s.name for s in chosen(("wait", "launch"))] == [
        s.name for s in SYMBOLS if s.group in ("launch", "wait")
    ]


def test_every_export_of_the_families_is_probed(exported: frozenset[str]) -> None:
    family = {name for name in exported if FAMILIES.fullmatch(name)}
    assert family <= BY_NAME.keys()
    assert len(family) > 130


def test_what_this_library_lacks_came_after_it(exported: frozenset[str]) -> None:
    """A misspelt name would be absent from every library and never be noticed."""
    later = {
        "cuCtxSynchronize_v2",  # 13.0
        "cuLaunchHostFunc_v2",  # 13.1
        "cuMemcpyBatchAsync",  # 12.8
        "cuMemcpyBatchAsync_v2",  # 13.0
        "cuMemcpy3DBatchAsync",
        "cuMemcpy3DBatchAsync_v2",
    }
    missing = BY_NAME.keys() - exported
    assert {name.removesuffix("_ptsz") for name in missing} == later


def test_narrow_are_the_forms_from_before_3_2(exported: frozenset[str]) -> None:
    """Those that have a `_v2` of another width; what is newer than 3.2 never had another."""
    for symbol in SYMBOLS:
        if symbol.name in exported:
            assert symbol.narrow == (f"{symbol.name}_v2" in exported), symbol.name
        else:
            assert not symbol.narrow


def test_a_narrow_form_is_as_its_v2() -> None:
    for symbol in SYMBOLS:
        if symbol.narrow:
            wide = BY_NAME[f"{symbol.name}_v2"]
            assert (symbol.group, symbol.shape, symbol.detail, symbol.fact) == (
                wide.group, wide.shape, wide.detail, wide.fact,
            )  # fmt: skip
            assert not wide.narrow


def test_a_stream_form_is_as_its_plain_one() -> None:
    for symbol in SYMBOLS:
        plain = re.sub(r"_pt[sd][sz]$", "", symbol.name)
        if plain != symbol.name:
            base = BY_NAME[plain]
            assert (symbol.shape, symbol.detail, symbol.fact, symbol.narrow) == (
                base.shape, base.detail, base.fact, base.narrow,
            )  # fmt: skip


def test_a_detail_is_one_of_its_shape() -> None:
    for symbol in SYMBOLS:
        shape = symbol.shape.name
        if symbol.group == "memory":
            assert KINDS[symbol.detail] != "unknown"
        elif shape in ("set", "set_2d"):
            bits = re.search(r"D(8|16|32)", symbol.name.replace("cuMemsetD2D", "cuMemsetD"))
            assert bits is not None
            assert symbol.detail * 8 == int(bits[1])
        elif shape in ("copy_2", "copy_3", "copy_4", "copy_batch"):
            way = re.search(r"[HDA]to[HDA]", symbol.name)
            direction = COPIES[way[0]] if way else ("peer" if "Peer" in symbol.name else "unknown")
            assert DIRECTIONS[symbol.detail] == direction, symbol.name


def cookie_parts(value: int) -> tuple[int, int, bool]:
    """As CALL_FUNCTION, CALL_DETAIL and CALL_NARROW in probes/count.h take it apart."""
    return value & 0xFFFF, value >> 16 & 0xFF, bool(value >> 24 & 1)


@pytest.mark.parametrize("symbols", [SYMBOLS, chosen(("copy",)), chosen(("wait", "memory"))])
def test_cookies_are_unique_and_fit_their_fields(symbols: tuple[Symbol, ...]) -> None:
    cookies = [cookie(symbol, index) for index, symbol in enumerate(symbols)]
    assert len(set(cookies)) == len(symbols)
    for index, (symbol, value) in enumerate(zip(symbols, cookies, strict=True)):
        assert cookie_parts(value) == (index, symbol.detail, symbol.narrow)
        assert 0 <= value < 1 << 25


@pytest.mark.parametrize("cookies", [True, False])
def test_every_function_has_its_stubs_once(cookies: bool) -> None:
    """One a handler with cookies, else one a function and direction."""
    made = {stub.name: stub for stub in stubs(SYMBOLS, cookies=cookies)}
    assert len(made) == len(stubs(SYMBOLS, cookies=cookies))
    used = set()
    for index, symbol in enumerate(SYMBOLS):
        entry, back = stub_names(symbol, cookies=cookies)
        assert made[entry].handler == f"on_{symbol.shape.name}"
        assert bool(back) == symbol.shape.returns
        if back:
            assert made[back].handler == f"on_{symbol.shape.back}"
        if not cookies:
            number = f"{cookie(symbol, index)}ULL"
            assert {made[name].call for name in (entry, back) if name} == {number}
        used |= {entry, back}
    assert used - {""} == made.keys()
    if cookies:
        assert len({stub.handler for stub in made.values()}) == len(made)
    else:
        assert len(made) == len(SYMBOLS) + sum(symbol.shape.returns for symbol in SYMBOLS)
