"""probes/: formatted, and compiled for both architectures with each one's argument registers.

The same source is compiled for x86-64 and arm64. The offsets of loads from `struct pt_regs` tell
which register is read: each program must look at the same arguments in the same order on both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gpubpf.bpf.program import TRACEPOINTS, stubs
from gpubpf.symbols import SYMBOLS

ROOT = Path(__file__).parents[2]

CHILD = """
import json, os, sys
from gpubpf.bpf import program
from gpubpf.symbols import SYMBOLS
os.environ["ARCH"] = sys.argv[1]  # bcc: the kernel's name of the machine to compile for
os.environ["BCC_KERNEL_SOURCE"] = str(program.probes_folder() / "headers")
from bcc import BPF
small = program.Sizes(processes=1, pending=1, allocations=1, failures=1)
offsets = {"TASK_SIGNAL": 8, "SIGNAL_LIVE": 16}
births = len(sys.argv) > 2
compiled = BPF(text=program.source(SYMBOLS, small, cookies=True, offsets=offsets, births=births))
names = [*(stub.name for stub in program.stubs(SYMBOLS, cookies=True)), *program.TRACEPOINTS]
print(json.dumps({name: compiled.dump_func(name.encode()).hex() for name in names}))
"""

# Offsets into struct pt_regs: the registers of arguments, of the stack pointer and of the result
# (arch/x86/include/asm/ptrace.h, arch/arm64/include/asm/ptrace.h).
STACK, RESULT = "stack", "result"
X86_64 = {112: 0, 104: 1, 96: 2, 88: 3, 72: 4, 64: 5, 152: STACK, 80: RESULT}  # di si dx cx r8 r9
ARM64 = {8 * n: n for n in range(8)} | {248: STACK}  # x0 to x7

# Entry program -> the arguments that it looks at. Those that keep them for the return, and those
# that look for a stream, whose place is known at run time, look at all.
EVERY = {0, 1, 2, 3, 4, 5, STACK}
ARGUMENTS: dict[str, set[object]] = {
    "count": set(),
    "enter": EVERY,
    "launch": EVERY,
    "launch_multi": {0, 1},
    "launch_graph": EVERY,
    "free": EVERY,
    "release_memory": {0},
    "init": set(),
    "record_event": {0, 1, 2},
    "wait_event": {0, 1, 2},
}
RETURNS = sorted({f"{s.shape.back}_return" for s in SYMBOLS if s.shape.returns})

Programs = dict[str, bytes]


def compile_for(*arguments: str) -> Programs:
    """For a machine; a second argument: with what tells of births."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, cwd="/"
    )
    assert child.returncode == 0, child.stderr
    return {name: bytes.fromhex(code) for name, code in json.loads(child.stdout).items()}


@pytest.fixture(scope="module")
def compiled() -> tuple[Programs, Programs]:
    """The instructions of every program, for x86-64 and for arm64."""

    return compile_for("x86"), compile_for("arm64")


def looked_at(code: bytes) -> list[int]:
    """Where in struct pt_regs a program's loads look, in their order.

    Registers, and slots of the stack, that hold the pointer to it are followed instruction by
    instruction: it is in one of them from the beginning, and never changes.
    """
    holding, slots, found = {1}, set[int](), []
    for at in range(0, len(code), 8):
        op, to, of = code[at], code[at + 1] & 15, code[at + 1] >> 4
        offset = int.from_bytes(code[at + 2 : at + 4], "little", signed=True)
        holds = False
        if op & 7 == 1 and of in holding:  # BPF_LDX
            assert op == 0x79, "the context is read in words of 64 bits"
            found.append(offset)
        elif op == 0x79 and of == 10:  # r = *(u64 *)(r10 + offset)
            holds = offset in slots
        elif op == 0xBF:  # r = r
            holds = of in holding
        elif op == 0x7B and to == 10:  # *(u64 *)(r10 + offset) = r
            (slots.add if of in holding else slots.discard)(offset)
        if op == 0x85:  # a call takes the first six
            holding -= set(range(6))
        elif op & 7 in (0, 1, 4, 7):  # these have a register as their result
            (holding.add if holds else holding.discard)(to)
    return found


def helpers(code: bytes) -> set[int]:
    return {
        int.from_bytes(code[at + 4 : at + 8], "little")
        for at in range(0, len(code), 8)
        if code[at] == 0x85
    }


def arguments(compiled: tuple[Programs, Programs], name: str) -> list[object]:
    """What a program looks at, in order: the same on both machines."""
    here, there = (looked_at(programs[f"probe_{name}"]) for programs in compiled)
    # A machine with more registers for arguments looks at these, too.
    extra = {6, 7} if len(set(there)) > 6 else set()
    on_x86 = [X86_64[offset] for offset in here]
    on_arm = [ARM64[offset] for offset in there if ARM64[offset] not in extra]
    if RESULT in on_x86:
        on_arm = [RESULT if argument == 0 else argument for argument in on_arm]
    assert on_x86 == on_arm
    return on_x86


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_read_where_the_calling_convention_has_them(
    compiled: tuple[Programs, Programs], name: str
) -> None:
    assert set(arguments(compiled, name)) == ARGUMENTS[name]


@pytest.mark.parametrize("name", RETURNS)
def test_results_are_read_where_the_calling_convention_has_them(
    compiled: tuple[Programs, Programs], name: str
) -> None:
    """And nothing else is: at a return the registers of arguments hold anything."""
    assert set(arguments(compiled, name)) == {RESULT}


def test_both_machines_run_the_same(compiled: tuple[Programs, Programs]) -> None:
    """In other instructions, for they have other numbers of registers for arguments."""
    here, there = compiled
    assert here.keys() == there.keys()
    for name, code in here.items():
        assert helpers(code) == helpers(there[name]), name
        assert abs(len(code) - len(there[name])) < 0.15 * len(code), name


@pytest.mark.parametrize("name", TRACEPOINTS)
def test_the_end_of_a_process_is_seen_alike(compiled: tuple[Programs, Programs], name: str) -> None:
    """Its arguments are no registers: the same code."""
    here, there = (programs[name] for programs in compiled)
    assert looked_at(here) == looked_at(there)
    assert len(here) == len(there)
    rest = [
        Counter(code[at : at + 8] for at in range(0, len(code), 8) if code[at] not in (0x18, 0))
        for code in (here, there)
    ]  # but for the descriptors of maps
    assert rest[0] == rest[1]


def test_every_program_is_among_these() -> None:
    assert {stub.name for stub in stubs(SYMBOLS, cookies=True)} == {
        f"probe_{name}" for name in (*ARGUMENTS, *RETURNS)
    }


def test_programs_are_small(compiled: tuple[Programs, Programs]) -> None:
    """The kernel's verifier walks every path; a launch's is what all launches run."""
    machine = compiled[0]
    assert max(len(code) // 8 for code in machine.values()) < 1100
    assert len(machine["probe_count"]) // 8 <= 110


@pytest.mark.parametrize("machine", ["x86", "arm64"])
def test_programs_that_tell_of_births_are_small(machine: str) -> None:
    """Only with --jobs; what is added runs once per process."""
    programs = compile_for(machine, "births")
    assert max(len(code) // 8 for code in programs.values()) < 1100
    assert len(programs["probe_count"]) // 8 <= 130


@pytest.mark.parametrize("folder", ["probes", "tests/fakegpu"])
def test_sources_are_formatted(folder: str) -> None:
    files = sorted(path for path in (ROOT / folder).iterdir() if path.suffix in (".c", ".h"))
    assert files
    check = subprocess.run(
        ["clang-format", "--dry-run", "-Werror", *files], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr
