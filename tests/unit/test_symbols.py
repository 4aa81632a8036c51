"""gpubpf.symbols: the table against the handlers in probes/, against NVIDIA's own library, and
against the signatures of the simulated driver."""

from __future__ import annotations

import re
import subprocess
from importlib import resources

import pytest

from gpubpf.bpf.program import TRACEPOINTS, cookie, stub_names, stubs
from gpubpf.symbols import (
    ANSWERS,
    DIRECTIONS,
    GROUPS,
    KINDS,
    MEASURES,
    STATE,
    SYMBOLS,
    Symbol,
    chosen,
)
from tests.fakegpu.generate import Function, functions

LIBRARY = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"  # Debian's libcuda1, see tests/run

FAMILIES = re.compile(
    r"cu(Launch|GraphLaunch|Memcpy|Memset|Mem(Host)?Alloc|Mem(Create|Release|Free)"
    r"|(Array|Array3D|MipmappedArray)(Create|Destroy)|[A-Z][a-z]+Synchronize).*"
)

BY_NAME = {symbol.name: symbol for symbol in SYMBOLS}
SIGNATURES = {function.name: function for function in functions()}
DRIVER = 12020  # the CUDA version of LIBRARY, as functions.list counts

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


def sources() -> str:
    folder = resources.files("gpubpf.probes")
    return "".join(f.read_text() for f in folder.iterdir() if f.name.endswith((".c", ".h")))


def handlers() -> set[str]:
    return set(re.findall(r"\bint (on_\w+)\(struct pt_regs \*ctx, u64 call\)", sources()))


def plain(name: str) -> str:
    return re.sub(r"_pt[sd][sz]$", "", name)


def test_a_name_is_there_once() -> None:
    assert len(BY_NAME) == len(SYMBOLS)


def test_every_shape_has_its_handlers_and_every_handler_its_shape() -> None:
    shapes = {symbol.shape for symbol in SYMBOLS}
    entries = {f"on_{shape.entry}" for shape in shapes}
    backs = {f"on_{shape.back}_return" for shape in shapes if shape.returns}
    assert handlers() == entries | backs
    assert not entries & backs
    assert not (entries | backs) & TRACEPOINTS.keys()
    assert {shape.measure for shape in shapes} <= set(MEASURES)
    assert set(MEASURES) == {s.shape.measure for s in SYMBOLS if s.shape.returns}


def test_what_is_counted_on_entry_alone() -> None:
    """Launches: it is what keeps them cheap. Batches of 3D copies and those
    with attributes are only counted too; cuInit
    tells that nothing came before; and events, often recorded, hardly ever fail."""
    for symbol in SYMBOLS:
        entry = symbol.name.startswith(
            (
                *("cuMemcpy3DBatch", "cuMemcpy3DWith", "cuInit"),
                *("cuEventRecord", "cuEventDestroy", "cuStreamWaitEvent"),
            )
        )
        assert symbol.shape.returns == (symbol.group != "launch" and not entry), symbol.name
        assert symbol.shape.returns or symbol.shape.entry != "enter"


def test_what_is_of_late_processes_alone_says_so() -> None:
    text = sources()
    for shape in {symbol.shape for symbol in SYMBOLS}:
        body = text.partition(f"int on_{shape.back}_return(")[2].partition("\n}\n")[0]
        early = body.partition("handle_of(process")[0]
        assert shape.late == ("process->late" in early), shape.back


def test_groups() -> None:
    assert {symbol.group for symbol in SYMBOLS} == {*GROUPS, STATE}
    assert STATE not in GROUPS
    assert chosen(GROUPS) == SYMBOLS
    assert chosen(()) == chosen((), attribution=False) == ()
    for group in GROUPS:
        assert {symbol.group for symbol in chosen((group,))} == {group, STATE}
        assert {symbol.group for symbol in chosen((group,), attribution=False)} == {group}
    assert [s.name for s in chosen(("wait", "launch"))] == [
        s.name for s in SYMBOLS if s.group in ("launch", "wait", STATE)
    ]


def test_every_export_of_the_families_is_probed(exported: frozenset[str]) -> None:
    family = {name for name in exported if FAMILIES.fullmatch(name)}
    assert family <= BY_NAME.keys()
    assert len(family) > 130


def test_what_this_library_lacks_came_after_it(exported: frozenset[str]) -> None:
    """A misspelt name would be absent from every library and never be noticed."""
    later = {
        "cuCtxCreate_v4",  # 12.5
        "cuCtxFromGreenCtx",  # 12.4
        "cuCtxGetDevice_v2",  # 13.0
        "cuCtxSynchronize_v2",  # 13.0
        "cuGraphAddNode_v2",  # 12.3
        "cuGreenCtxCreate",  # 12.4
        "cuGreenCtxDestroy",
        "cuGreenCtxStreamCreate",  # 12.5
        "cuLaunchHostFunc_v2",  # 13.1
        "cuMemGetDefaultMemPool",  # 13.0
        "cuMemGetMemPool",
        "cuMemcpyBatchAsync",  # 12.8
        "cuMemcpyBatchAsync_v2",  # 13.0
        "cuMemcpy3DBatchAsync",
        "cuMemcpy3DBatchAsync_v2",
        "cuMemcpyWithAttributesAsync",  # 13.2
        "cuMemcpy3DWithAttributesAsync",
        "cuStreamBeginCaptureToGraph",  # 12.3
        "cuStreamGetCtx_v2",  # 12.5
        "cuStreamGetDevice",  # 12.8
    }
    missing = BY_NAME.keys() - exported
    assert {plain(name) for name in missing} == later
    for name in BY_NAME.keys() & SIGNATURES.keys():
        assert (name in missing) == (SIGNATURES[name].since > DRIVER), name


def test_narrow_are_the_forms_from_before_3_2(exported: frozenset[str]) -> None:
    """Those that have a `_v2` of another width; what is newer than 3.2 never had another."""
    for symbol in SYMBOLS:
        if symbol.group == STATE:
            assert not symbol.narrow
        elif symbol.name in exported:
            assert symbol.narrow == (f"{symbol.name}_v2" in exported), symbol.name
        else:
            assert not symbol.narrow


def row(symbol: Symbol) -> tuple[object, ...]:
    return symbol.group, symbol.shape, symbol.detail, symbol.stream


def test_a_narrow_form_is_as_its_v2() -> None:
    for symbol in SYMBOLS:
        if symbol.narrow:
            wide = BY_NAME[f"{symbol.name}_v2"]
            assert row(symbol) == row(wide), symbol.name
            assert not wide.narrow


def test_a_stream_form_is_as_its_plain_one(exported: frozenset[str]) -> None:
    """And every function that has one has it here: in the real library and in the simulated."""
    for symbol in SYMBOLS:
        base = BY_NAME[plain(symbol.name)]
        assert (*row(symbol), symbol.narrow) == (*row(base), base.narrow), symbol.name
        assert symbol.per_thread == (base is not symbol)
    for name in (*exported, *SIGNATURES):
        if plain(name) != name:
            assert (name in BY_NAME) == (plain(name) in BY_NAME), name


def test_a_detail_is_one_of_its_shape() -> None:
    for symbol in SYMBOLS:
        measure = symbol.shape.measure
        assert 0 <= symbol.detail < 256
        if symbol.shape.back in ("alloc", "free", "release_memory"):
            assert KINDS[symbol.detail] != "unknown"
        elif measure in ("set", "set_2d"):
            bits = re.search(r"D(8|16|32)", symbol.name.replace("cuMemsetD2D", "cuMemsetD"))
            assert bits is not None
            assert symbol.detail * 8 == int(bits[1])
        elif measure in ("copy_2", "copy_3", "copy_4", "copy_3d", "batch"):
            way = re.search(r"[HDA]to[HDA]", symbol.name)
            direction = COPIES[way[0]] if way else ("peer" if "Peer" in symbol.name else "unknown")
            assert DIRECTIONS[symbol.detail] == direction, symbol.name


# --- the signatures -------------------------------------------------------------------------------

# measure -> what the arguments are that the bytes are found by
SIZES = {
    "bytes": {1: "SIZE bytes"},
    "pitch": {2: "SIZE width", 3: "SIZE height"},
    "pool": {1: "SIZE bytes", 2: "CUmemoryPool pool"},
    "physical": {1: "SIZE bytes", 2: "const struct fg_allocation_properties *properties"},
    "array_2d": {1: "const struct fg_array_descriptorN *descriptor"},
    "array_3d": {1: "const struct fg_array3d_descriptorN *descriptor"},
    "mipmap": {1: "const struct fg_array3d_descriptorN *descriptor", 2: "unsigned levels"},
    "copy_2": {2: "SIZE bytes"},
    "copy_3": {3: "SIZE bytes"},
    "copy_4": {4: "SIZE bytes"},
    "copy_2d": {0: "const struct fg_copy2dN *copy"},
    "copy_3d": {0: "const struct fg_copy3dN *copy"},
    "batch": {2: "size_t *bytes", 3: "size_t count"},
    "set": {2: "SIZE count"},
    "set_2d": {3: "SIZE width", 4: "SIZE height"},
}
ELEMENTS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned"}

NODE = {0: "CUgraphNode *", 1: "CUgraph"}
# handler, and its detail where that matters -> the types of the arguments that it looks at
ARGUMENTS: dict[tuple[str, int | None], dict[int, str]] = {
    ("retain_primary", None): {0: "CUcontext *", 1: "CUdevice"},
    ("release_primary", 0): {0: "CUdevice"},
    ("release_primary", 1): {0: "CUdevice"},
    ("release_primary", 2): {0: "CUgreenCtx"},
    ("destroy_context", None): {0: "CUcontext"},
    ("attach_context", None): {0: "CUcontext *"},
    ("set_current", None): {0: "CUcontext"},
    ("pop_current", None): {},
    ("get_current", None): {0: "CUcontext *"},
    ("get_device", 0): {0: "CUdevice *"},
    ("get_device", 1): {0: "CUdevice *", 1: "CUcontext"},
    ("ask", ANSWERS.index("uuid")): {0: "CUuuid *", 1: "CUdevice"},
    ("ask", ANSWERS.index("uuid_v2")): {0: "CUuuid *", 1: "CUdevice"},
    ("ask", ANSWERS.index("pci_bus_id")): {0: "char *", 1: "int", 2: "CUdevice"},
    ("create_green", None): {0: "CUgreenCtx *", 2: "CUdevice"},
    ("create_of", 0): {0: "CUcontext *", 1: "CUgreenCtx"},
    ("create_of", 1): {0: "CUstream *", 1: "CUgreenCtx"},
    ("create_of", 2): {0: "CUfunction *", 1: "CUmodule"},
    ("create_here", 0): {0: "CUstream *"},
    ("create_here", 1): {0: "CUmodule *"},
    ("create_here", 2): {0: "CUfunction *"},
    ("destroy_stream", None): {0: "CUstream"},
    ("ask_stream", 0): {0: "CUstream", 1: "CUcontext *"},
    ("ask_stream", 1): {0: "CUstream", 1: "CUdevice *"},
    ("begin_capture", 0): {0: "CUstream"},
    ("begin_capture", 1): {0: "CUstream", 1: "CUgraph"},
    ("end_capture", None): {0: "CUstream", 1: "CUgraph *"},
    ("record_event", 0): {0: "CUevent", 1: "CUstream"},
    ("record_event", 1): {0: "CUevent", 1: "CUstream", 2: "unsigned"},
    ("record_event", 2): {0: "CUevent"},
    ("wait_event", None): {0: "CUstream", 1: "CUevent", 2: "unsigned"},
    ("create_graph", None): {0: "CUgraph *"},
    ("copy_graph", 0): {0: "CUgraph *", 1: "CUgraph"},
    ("copy_graph", 1): {0: "CUgraphExec *", 1: "CUgraph"},
    ("update_instance", None): {0: "CUgraphExec", 1: "CUgraph"},
    ("destroy_graph", 0): {0: "CUgraph"},
    ("destroy_graph", 1): {0: "CUgraphExec"},
    ("add_node", 1): {**NODE, 4: "const struct fg_kernel_params *"},
    ("add_node", 2): {**NODE, 4: "const struct fg_kernel_params_v2 *"},
    ("add_node", 3): {**NODE, 4: "CUgraph"},
    ("add_node", 4): {**NODE, 4: "struct fg_node_params *"},
    ("add_node", 5): {**NODE, 5: "struct fg_node_params *"},
    ("add_node", 6): NODE,
    ("set_node", 1): {0: "CUgraphNode", 1: "const struct fg_kernel_params *"},
    ("set_node", 2): {0: "CUgraphNode", 1: "const struct fg_kernel_params_v2 *"},
    ("set_node", 4): {0: "CUgraphNode", 1: "struct fg_node_params *"},
    ("destroy_node", None): {0: "CUgraphNode"},
    ("get_child", None): {0: "CUgraphNode", 1: "CUgraph *"},
    ("enable_node", None): {0: "CUgraphExec", 1: "CUgraphNode", 2: "unsigned"},
    ("launch_graph", None): {0: "CUgraphExec", 1: "CUstream"},
    ("launch_multi", None): {0: "struct fg_multi_launch *", 1: "unsigned"},
    ("launch", 2): {0: "const struct fg_launch_config *"},
    ("release_memory", None): {0: "CUmemGenericAllocationHandle"},
    ("retain_memory", None): {0: "CUmemGenericAllocationHandle *"},
    ("map", None): {0: "CUdeviceptr", 1: "size_t", 3: "CUmemGenericAllocationHandle"},
    ("unmap", None): {0: "CUdeviceptr", 1: "size_t"},
    ("get_pool", 0): {0: "CUmemoryPool *", 1: "CUdevice"},
    ("get_pool", 1): {0: "CUmemoryPool *", 1: "const struct fg_pool_properties *"},
    ("get_pool", 2): {0: "CUmemoryPool *", 1: "struct fg_location *"},
    ("wait", 1): {0: "CUcontext"},
    ("wait", 2): {0: "CUevent"},
}

signed = pytest.mark.parametrize(
    "symbol", [s for s in SYMBOLS if s.name in SIGNATURES], ids=lambda symbol: symbol.name
)


def types(function: Function) -> list[str]:
    """`CUstream *stream` is a `CUstream *`."""
    return [
        re.sub(rf"\b{name}$", "", parameter).strip()
        for name, parameter in zip(function.arguments, function.parameters, strict=True)
    ]


@signed
def test_the_stream_is_where_the_signature_has_it(symbol: Symbol) -> None:
    """Of state functions the handler looks at the arguments itself, see ARGUMENTS."""
    found = types(SIGNATURES[symbol.name])
    if symbol.group != STATE:
        assert symbol.stream == (found.index("CUstream") if "CUstream" in found else None)
        assert found.count("CUstream") <= 1
    else:
        assert symbol.stream is None
        handler = symbol.shape.back or symbol.shape.entry
        looked = ARGUMENTS.get((handler, None)) or ARGUMENTS.get((handler, symbol.detail)) or {}
        streams = {n for n, kind in enumerate(found) if kind == "CUstream"}
        assert streams == {n for n, kind in looked.items() if kind == "CUstream"}


@signed
def test_the_bytes_are_where_the_signature_has_them(symbol: Symbol) -> None:
    if symbol.shape.back not in ("alloc", "transfer"):
        return
    parameters = SIGNATURES[symbol.name].parameters
    for place, text in SIZES[symbol.shape.measure].items():
        text = text.replace("SIZE", "unsigned" if symbol.narrow else "size_t")
        assert parameters[place] == text.replace("N ", "32 " if symbol.narrow else " ")
    if symbol.shape.measure in ("set", "set_2d"):
        assert f"{ELEMENTS[symbol.detail]} value" in parameters
    if symbol.shape.back == "alloc":
        assert types(SIGNATURES[symbol.name])[0].endswith("*")
        device = {"device", "managed", "pool"} >= {KINDS[symbol.detail]}
        assert not device or parameters[0].startswith(
            "CUdeviceptr32 *" if symbol.narrow else "CUdeviceptr *"
        )


@signed
def test_arguments_are_what_their_handler_takes_them_for(symbol: Symbol) -> None:
    found = types(SIGNATURES[symbol.name])
    shape = symbol.shape
    if shape.back == "create_context":
        assert (found[0], found[symbol.detail]) == ("CUcontext *", "CUdevice")
        assert symbol.detail < 6  # what `enter` keeps
        return
    expected: dict[int, str] = {}
    for handler in (shape.entry, shape.back):
        expected |= ARGUMENTS.get((handler, None), {})
        expected |= ARGUMENTS.get((handler, symbol.detail), {})
    assert {place: found[place] for place in expected} == expected
    if symbol.group == STATE and shape.entry != "init":
        assert {(shape.back or shape.entry, None), (shape.back or shape.entry, symbol.detail)} & (
            ARGUMENTS.keys()
        )
    if symbol.narrow and shape.back == "free":
        assert found[0] == "CUdeviceptr32"


def test_most_signatures_are_known() -> None:
    """Those that aren't: graph nodes without kernels, imports, other libraries' contexts, and the
    newest forms."""
    unknown = {plain(symbol.name) for symbol in SYMBOLS} - SIGNATURES.keys()
    assert unknown == {
        "cuMemImportFromShareableHandle", "cuLaunchHostFunc_v2", "cuMemcpy3DBatchAsync",
        "cuMemcpy3DBatchAsync_v2", "cuGraphAddBatchMemOpNode", "cuGraphNodeSetParams",
        "cuGraphAddExternalSemaphoresSignalNode", "cuGraphAddExternalSemaphoresWaitNode",
        "cuMemcpyWithAttributesAsync", "cuMemcpy3DWithAttributesAsync", "cuMulticastCreate",
        "cuGLCtxCreate", "cuGLCtxCreate_v2", "cuVDPAUCtxCreate", "cuVDPAUCtxCreate_v2",
    }  # fmt: skip


def cookie_parts(value: int) -> tuple[int, int, bool, int | None, bool, str]:
    """As the CALL_… macros in probes/count.h take it apart."""
    stream = value >> 25 & 0x1F
    return (
        value & 0xFFFF,
        value >> 16 & 0xFF,
        bool(value >> 24 & 1),
        stream - 1 if stream else None,
        bool(value >> 30 & 1),
        MEASURES[value >> 32 & 0xFF],
    )


@pytest.mark.parametrize("symbols", [SYMBOLS, chosen(("copy",)), chosen(("wait", "memory"))])
def test_cookies_are_unique_and_fit_their_fields(symbols: tuple[Symbol, ...]) -> None:
    cookies = [cookie(symbol, index) for index, symbol in enumerate(symbols)]
    assert len(set(cookies)) == len(symbols)
    for index, (symbol, value) in enumerate(zip(symbols, cookies, strict=True)):
        assert cookie_parts(value) == (
            index, symbol.detail, symbol.narrow, symbol.stream, symbol.per_thread,
            symbol.shape.measure,
        )  # fmt: skip
        assert 0 <= value < 1 << 40
        assert not value >> 31 & 1


@pytest.mark.parametrize("cookies", [True, False])
def test_every_function_has_its_stubs_once(cookies: bool) -> None:
    """One a handler with cookies, else one a function and direction."""
    made = {stub.name: stub for stub in stubs(SYMBOLS, cookies=cookies)}
    assert len(made) == len(stubs(SYMBOLS, cookies=cookies))
    used = set()
    for index, symbol in enumerate(SYMBOLS):
        entry, back = stub_names(symbol, cookies=cookies)
        assert made[entry].handler == f"on_{symbol.shape.entry}"
        assert bool(back) == symbol.shape.returns
        if back:
            assert made[back].handler == f"on_{symbol.shape.back}_return"
        if not cookies:
            number = f"{cookie(symbol, index)}ULL"
            assert {made[name].call for name in (entry, back) if name} == {number}
        used |= {entry, back}
    assert used - {""} == made.keys()
    if cookies:
        assert len({stub.handler for stub in made.values()}) == len(made)
    else:
        assert len(made) == len(SYMBOLS) + sum(symbol.shape.returns for symbol in SYMBOLS)
