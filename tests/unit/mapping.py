"""Processes that map files as a library is mapped, and a /proc that shows them alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Maps the file that each line names, as code, and says so.
_MAPPER = """
import mmap, sys
kept = []
for line in sys.stdin.buffer:
    with open(bytes.fromhex(line.decode()), "rb") as file:
        kept.append(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | {exec}))
    print(flush=True)
"""

Path_ = Path | bytes


class Mapper:
    def __init__(self, root: Path, *inside: str, code: bool = True) -> None:
        """`inside`: a command that execs its arguments, say in a mount namespace of their own."""
        script = _MAPPER.replace("{exec}", "mmap.PROT_EXEC" if code else "0")
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-S", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.pid = self.process.pid
        root.mkdir(exist_ok=True)
        (root / str(self.pid)).symlink_to(f"/proc/{self.pid}")

    def map(self, path: Path_) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(os.fsencode(path).hex().encode() + b"\n")
        assert self.process.stdout.readline() == b"\n", "it could not be mapped"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Mapper]


@contextmanager
def mappers(root: Path) -> Iterator[Start]:
    """Starts processes that map files; `root` shows them as a /proc."""
    started: list[Mapper] = []

    def start(path: Path_ | None = None, *inside: str, code: bool = True) -> Mapper:
        started.append(Mapper(root, *inside, code=code))
        if path is not None:
            started[-1].map(path)
        return started[-1]

    try:
        yield start
    finally:
        for mapper in started:
            mapper.end()


def fake(root: Path, pid: int, *paths: str, size: int = 1000) -> Path:
    """A process in a /proc of files: it maps these paths, which are under its root."""
    folder = root / str(pid)
    (folder / "root").mkdir(parents=True, exist_ok=True)
    (folder / "statm").write_text(f"{size} 1 1 1 0 1 0\n")
    lines = [
        f"{0x7F0000000000 + 4096 * i:x}-{0x7F0000001000 + 4096 * i:x} r-xp 00000000 08:01 {i}"
        f"                         {path}\n"
        for i, path in enumerate(paths)
    ]
    (folder / "maps").write_text("".join(lines))
    return folder


def put(folder: Path, path: str, content: bytes = b"library") -> Path:
    """A file in the root of a process of `fake`."""
    file = folder / "root" / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
