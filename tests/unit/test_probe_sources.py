"""probes/: formatted, and compiled for both architectures with each one's argument registers.

The same source is compiled for x86-64 and arm64. The instructions must be the same but for the
loads from `struct pt_regs`, whose offsets tell which register is read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gpubpf.bpf.program import stubs
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
compiled = BPF(text=program.source(SYMBOLS, small, cookies=True, offsets=offsets))
names = [*(stub.name for stub in program.stubs(SYMBOLS, cookies=True)), *program.TRACEPOINTS]
print(json.dumps({name: compiled.dump_func(name.encode()).hex() for name in names}))
"""

# The registers of arguments 0 to 4, and of the result, as offsets into struct pt_regs: di, si, dx,
# cx, r8 (arch/x86/include/asm/ptrace.h) and x0 to x4 (arch/arm64/include/asm/ptrace.h).
X86_64 = (112, 104, 96, 88, 72)
ARM64 = (0, 8, 16, 24, 32)
RESULT = (80, 0)  # ax and x0

# Program -> the arguments that it looks at.
ARGUMENTS = {
    "count": (),
    "launch_multi": (1,),
    "alloc": (0, 1),
    "alloc_pitch": (0, 2, 3),
    "array_2d": (0, 1),
    "array_3d": (0, 1),
    "mipmap": (0, 1, 2),
    "free": (0,),
    "copy_2": (2,),
    "copy_3": (3,),
    "copy_4": (4,),
    "copy_2d": (0,),
    "copy_3d": (0,),
    "copy_batch": (2, 3),
    "set": (2,),
    "set_2d": (3, 4),
    "wait": (),
}

Programs = dict[str, bytes]


@pytest.fixture(scope="module")
def compiled() -> tuple[Programs, Programs]:
    """The instructions of every program, for x86-64 and for arm64."""

    def for_machine(name: str) -> Programs:
        child = subprocess.run(
            [sys.executable, "-c", CHILD, name], capture_output=True, text=True, cwd="/"
        )
        assert child.returncode == 0, child.stderr
        return {name: bytes.fromhex(code) for name, code in json.loads(child.stdout).items()}

    return for_machine("x86"), for_machine("arm64")


def differences(one: bytes, other: bytes) -> set[tuple[int, int]]:
    """The pairs of offsets that 64-bit loads differ in; the rest may differ in its order only."""
    assert len(one) == len(other)
    found: set[tuple[int, int]] = set()
    rest: tuple[Counter[bytes], Counter[bytes]] = (Counter(), Counter())
    for at in range(0, len(one), 8):
        a, b = one[at : at + 8], other[at : at + 8]
        if a[0] == b[0] == 0x18 and a[1] >> 4 == 1:  # the address of a map: a descriptor's number
            a, b = a[:4], b[:4]
        if a[:2] == b[:2] and a[0] == 0x79 and a[2:4] != b[2:4]:  # r = *(u64 *)(r + offset)
            found.add((int.from_bytes(a[2:4], "little"), int.from_bytes(b[2:4], "little")))
        elif a != b:
            rest[0][a] += 1
            rest[1][b] += 1
    assert rest[0] == rest[1]
    return found


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_read_where_the_calling_convention_has_them(
    compiled: tuple[Programs, Programs], name: str
) -> None:
    pairs = differences(*(programs[f"probe_{name}"] for programs in compiled))
    assert pairs == {(X86_64[n], ARM64[n]) for n in ARGUMENTS[name]}


@pytest.mark.parametrize("name", sorted({s.shape.back for s in SYMBOLS if s.shape.returns}))
def test_results_are_read_where_the_calling_convention_has_them(
    compiled: tuple[Programs, Programs], name: str
) -> None:
    assert differences(*(programs[f"probe_{name}"] for programs in compiled)) == {RESULT}


def test_the_end_of_a_process_is_seen_alike(compiled: tuple[Programs, Programs]) -> None:
    assert differences(*(programs["on_exit"] for programs in compiled)) == set()


def test_every_program_is_among_these(compiled: tuple[Programs, Programs]) -> None:
    backs = {symbol.shape.back for symbol in SYMBOLS if symbol.shape.returns}
    assert {stub.name for stub in stubs(SYMBOLS, cookies=True)} == {
        f"probe_{name}" for name in (*ARGUMENTS, *backs)
    }


def test_programs_are_small(compiled: tuple[Programs, Programs]) -> None:
    """The kernel's verifier walks every path; a launch's is what all launches run."""
    machine = compiled[0]
    assert max(len(code) // 8 for code in machine.values()) < 1000
    assert len(machine["probe_count"]) // 8 <= 100


@pytest.mark.parametrize("folder", ["probes", "tests/fakegpu"])
def test_sources_are_formatted(folder: str) -> None:
    files = sorted(path for path in (ROOT / folder).iterdir() if path.suffix in (".c", ".h"))
    assert files
    check = subprocess.run(
        ["clang-format", "--dry-run", "-Werror", *files], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr
