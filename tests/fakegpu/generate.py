"""Makes the C sources that follow from functions.list.

``python3 generate.py DIRECTORY`` writes there:

* ``functions.h``: the functions' numbers, which are also the places of their counters;
* ``wrappers.c``: for each export the entry that counts the call, checks what it needs
  and calls the code;
* ``wrappers.h``: the declarations of that code, so that the compiler compares them with it;
* ``stubs.inc``: one stub an export, for stubs.S;
* ``symbols.inc``: the rows of cuGetProcAddress's table.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("functions.list")
NEEDS = {"N": "FG_NEEDS_NOTHING", "I": "FG_NEEDS_INIT", "C": "FG_NEEDS_CONTEXT"}
PER_THREAD_SINCE = 7000


@dataclass(frozen=True, slots=True)
class Function:
    """One exported function."""

    name: str
    base: str  # what cuGetProcAddress calls it
    code: str  # the row whose code it runs
    since: int
    needs: str
    per_thread: bool
    parameters: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(_parameter_name(parameter) for parameter in self.parameters)

    @property
    def widens(self) -> str:
        """Which register the stub widens before it jumps on, as the real one does."""
        for position, parameter in enumerate(self.parameters):
            for size, kind in ((8, "unsigned char "), (16, "unsigned short ")):
                if parameter.startswith(kind):
                    return f"widen{size}_{position + 1}"
        return "widen_none"


def _parameter_name(parameter: str) -> str:
    pointer_to_function = re.search(r"\(\*(\w+)\)", parameter)
    if pointer_to_function:
        return pointer_to_function[1]
    return str(re.findall(r"\w+", parameter)[-1])


def _split(parameters: str) -> tuple[str, ...]:
    """The parameters of a row: split at the commas that are in no parentheses."""
    parts: list[str] = []
    depth = 0
    start = 0
    for place, character in enumerate(parameters):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(parameters[start:place].strip())
            start = place + 1
    last = parameters[start:].strip()
    return (*parts, last) if last else tuple(parts)


def functions(path: Path = LIST) -> tuple[Function, ...]:
    """Every exported function, in the order of the counters."""
    rows = [
        line.split(None, 4)
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    by_name = {row[0]: row[4] if len(row) > 4 else "" for row in rows}
    found: list[Function] = []
    for name, since_text, needs, per_thread, *_ in rows:
        text = by_name[name]
        code = text[1:] if text.startswith("=") else name
        parameters = _split(by_name[code])
        base = re.sub(r"_v\d+$", "", name)
        since = int(since_text)
        found.append(Function(name, base, code, since, needs, False, parameters))
        if per_thread != "-":
            second = f"{name}_{per_thread}"
            later = max(since, PER_THREAD_SINCE)
            found.append(Function(second, base, code, later, needs, True, parameters))
    return tuple(found)


def _wrapper(function: Function) -> str:
    parameters = ", ".join(function.parameters) or "void"
    arguments = ", ".join(("&this_call", *function.arguments))
    per_thread = int(function.per_thread)
    return (
        f"CUresult FG_ENTRY({function.name})({parameters}) {{\n"
        f"    struct fg_call this_call = {{FN_{function.name}, {per_thread}, NULL}};\n"
        f"    CUresult returned = fg_enter(&this_call, {NEEDS[function.needs]});\n"
        f"    if (returned == CUDA_SUCCESS)\n"
        f"        returned = do_{function.code}({arguments});\n"
        f"    return returned == CUDA_SUCCESS ? returned : fg_failed(&this_call, returned);\n"
        f"}}\n"
    )


def generate(directory: Path) -> None:
    """Writes the generated sources into directory."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = functions()
    written: dict[str, list[str]] = {
        "functions.h": ["enum fg_function {"]
        + [f"    FN_{row.name}," for row in rows]
        + ["    FN_COUNT", "};"],
        "wrappers.h": [
            f"CUresult do_{row.name}({', '.join(('struct fg_call *c', *row.parameters))});"
            for row in rows
            if row.code == row.name
        ],
        "wrappers.c": ['#include "internal.h"', "", *(_wrapper(row) for row in rows)],
        "stubs.inc": [f"STUB {row.name} {place} {row.widens}" for place, row in enumerate(rows)]
        + ['.section .data.rel.ro,"aw"', ".p2align 3", "fg_table:"]
        + [f"    .quad fg_{row.name}" for row in rows],
        "symbols.inc": [
            f"SYMBOL({row.name}, {row.base}, {row.since}, {int(row.per_thread)})" for row in rows
        ],
    }
    for name, lines in written.items():
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
