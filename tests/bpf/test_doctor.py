"""`gpubpf doctor` as a person runs it: this kernel, the real libcuda and the simulated node."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from gpubpf.bpf import elf
from gpubpf.checks import CHECKS
from gpubpf.pointers import look_up
from gpubpf.symbols import GROUPS, SYMBOLS
from tests.conftest import BUILD, GPUBPF
from tests.fakegpu.node import Node

REAL = Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1")
NAMES = {symbol.name for symbol in SYMBOLS}


def doctor(
    *options: str, before: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, GPUBPF, "doctor", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def checks(
    *options: str, before: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    done = doctor(*options, "--format", "json", before=before, environment=environment)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    failed = any(check["status"] == "fail" for check in document["checks"])
    assert done.returncode == (0 if document["ok"] else 1)
    assert document["ok"] == (not failed) or document["strict"]
    return {check["name"]: check for check in document["checks"]}


def test_text_on_a_good_node(node: Node) -> None:
    done = doctor("--strict", "--nvml-library", str(node.nvml_library),
                  environment=node.environment())  # fmt: skip
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert max(map(len, lines)) <= 80
    made = len(CHECKS) - 1  # that of pods is only for --jobs kubernetes
    assert lines[-1] == f"{made} checks: all is well."
    assert sum(line.startswith(("ok ", "info ")) for line in lines) == made
    assert any("2 x Simulated GPU" in line for line in lines)


def test_every_probe_and_its_point(node: Node) -> None:
    found = checks("--no-nvml", "--probe", "all", "--library", str(node.plain_library),
                   environment=node.environment())  # fmt: skip
    at = {(p["library"], p["function"]): p["at"] for p in found["probes"]["details"]["probes"]}
    assert at[str(REAL), "cuLaunchKernel"] == "stub+10"
    assert at[str(REAL), "cuLaunchHostFunc_v2"] == "absent"  # newer than driver 535
    assert at[str(node.library), "cuLaunchKernel"] == "stub+10"
    assert at[str(node.plain_library), "cuLaunchKernel"] == "entry"
    for library in (REAL, node.library, node.plain_library):
        assert {function for name, function in at if name == str(library)} == NAMES
    loaded = found["programs"]["details"]
    assert loaded["loader_peak_bytes"] > 20 << 20
    assert loaded["load_seconds"] > 0
    assert "on_exit" in loaded["programs"]


def test_pointers_of_the_real_libcuda_are_its_exports() -> None:
    fd = os.open(REAL, os.O_RDONLY)
    try:
        given = {(p.name, p.stream): p.export for p in look_up(fd, NAMES)}
    finally:
        os.close(fd)
    assert given["cuLaunchKernel", "legacy"] == "cuLaunchKernel"
    assert given["cuLaunchKernel", "per-thread"] == "cuLaunchKernel_ptsz"
    assert given["cuMemAlloc", "legacy"] == "cuMemAlloc_v2"
    assert given["cuMemcpyHtoD", "per-thread"] == "cuMemcpyHtoD_v2_ptds"
    assert None not in given.values()


def _library(folder: Path, source: str) -> Path:
    path = folder / "libcuda.so.1"
    (folder / "library.c").write_text(textwrap.dedent(source))
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(path), str(folder / "library.c")], check=True
    )
    return path


def test_pointers_to_other_code_are_reported(tmp_path: Path) -> None:
    library = _library(
        tmp_path,
        """
        static int hidden(void) { return 1; }
        int cuMemFree_v2(void) { return 2; }
        int cuCtxSynchronize(void) { return 3; }
        int cuDriverGetVersion(int *version) { *version = 12020; return 0; }
        int cuGetProcAddress(const char *name, void **out, int version, unsigned long long flags) {
            if (name[2] == 'C') return 500;
            *out = flags == 2 ? (void *)hidden : (void *)cuMemFree_v2;
            return 0;
        }
        """,
    )
    fd = os.open(library, os.O_RDONLY)
    try:
        given = [(p.name, p.stream, p.export) for p in look_up(fd, NAMES)]
    finally:
        os.close(fd)
    assert given == [("cuMemFree", "legacy", "cuMemFree_v2"), ("cuMemFree", "per-thread", None)]
    check = checks("--no-nvml", "--library", str(library))["pointers"]
    assert check["status"] == "fail"
    assert "cuMemFree (per-thread stream)" in check["what"]


def test_a_library_that_kills_its_child_is_an_error(tmp_path: Path) -> None:
    library = _library(
        tmp_path,
        """
        #include <stdlib.h>
        int cuMemFree_v2(void) { return 2; }
        __attribute__((constructor)) static void die(void) { abort(); }
        """,
    )
    fd = os.open(library, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="asking the library failed: exit code -6"):
            look_up(fd, NAMES)
    finally:
        os.close(fd)
    assert checks("--no-nvml", "--library", str(library))["pointers"]["status"] == "warn"


def test_what_a_process_maps_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    library = _library(
        tmp_path,
        f"""
        #include <fcntl.h>
        int cuMemFree_v2(void) {{ return 2; }}
        __attribute__((constructor)) static void tell(void) {{ creat("{mark}", 0600); }}
        """,
    )
    with library.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    try:
        found = checks("--no-nvml")
    finally:
        mapped.close()
    assert {"path": str(library), "mapped_by": os.getpid()} in found["libcuda"]["details"]["copies"]
    assert str(library) not in found["pointers"]["details"]
    probes = {p["library"]: p for p in found["probes"]["details"]["probes"] if p["at"] == "entry"}
    assert probes[str(library)]["function"] == "cuMemFree_v2"  # probed it is
    assert not mark.exists()


def test_strict_fails_on_a_warning(tmp_path: Path) -> None:
    with Node(BUILD, tmp_path / "state", devices=0) as empty:
        options = ("--nvml-library", str(empty.nvml_library))
        lenient = doctor(*options, environment=empty.environment())
        strict = doctor(*options, "--strict", environment=empty.environment())
    assert "the driver knows no GPU" in lenient.stdout
    assert (lenient.returncode, strict.returncode) == (0, 1)
    assert lenient.stdout.splitlines()[-1].endswith("nothing failed, 1 to look at.")
    assert "--strict" in strict.stdout.splitlines()[-1]


def test_without_capabilities() -> None:
    bare = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    found = checks("--no-nvml", before=bare)
    assert found["privileges"]["status"] == "fail"
    assert "root" in found["privileges"]["do"]
    assert found["bpf"]["status"] == "fail"
    assert found["programs"]["status"] == "fail"
    assert found["probes"]["status"] == "info"
    off = checks("--no-nvml", "--probe", "none", before=bare)
    assert off["privileges"]["status"] == "info"
    assert off["bpf"]["status"] == "info"
    serve = subprocess.run(
        [*bare, GPUBPF, "serve", "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert serve.returncode == 3
    assert serve.stderr.startswith("gpubpf: ")
    assert serve.stderr.count("\n") == 1


def test_in_another_pid_namespace() -> None:
    found = checks("--no-nvml", before=("unshare", "--pid", "--fork", "--mount-proc"))
    assert found["pid namespace"]["status"] == "fail"
    assert "hostPID" in found["pid namespace"]["do"]


def test_files_that_are_not_there_or_not_libraries(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    found = checks("--no-nvml", "--library", f"{text},/none/libcuda.so")
    assert found["libcuda"]["status"] == "fail"
    assert "/none/libcuda.so" in found["libcuda"]["what"]
    assert found["probes"]["status"] == "warn"
    assert str(text) in found["probes"]["what"]


def test_an_nvml_that_was_asked_for_and_is_not_there() -> None:
    assert checks("--nvml-library", "/none/libnvidia-ml.so.1")["nvml"]["status"] == "fail"
    assert checks("--no-nvml")["nvml"]["status"] == "info"


def test_nothing_is_probed_on_request() -> None:
    found = checks("--no-nvml", "--probe", "none")
    assert {found[name]["status"] for name in ("programs", "probes")} == {"info"}


def test_no_file_is_mistaken_for_a_library(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"\x7fELF")
    with path.open("rb") as file, pytest.raises(elf.NotALibraryError):
        look_up(file.fileno(), NAMES)


def test_the_groups_of_the_options_are_those_of_the_symbols() -> None:
    found = checks("--no-nvml", "--probe", ",".join(GROUPS))
    assert {p["function"] for p in found["probes"]["details"]["probes"]} == NAMES


def test_what_root_runs_is_not_decided_by_the_directory(tmp_path: Path) -> None:
    """A hostile module in the working directory is not imported, by no child either."""
    for name in ("bcc", "ctypes", "json", "gpubpf", "psutil"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    subprocess.run([GPUBPF, "doctor"], cwd=tmp_path, capture_output=True, check=False)
    assert not (tmp_path / "ran").exists()


def test_what_jobs_are_understood_as_and_whom_they_know(node: Node) -> None:
    mark = {**node.environment(), "OF_THIS_TEST": "a"}
    one = subprocess.Popen(["sleep", "60"], env=mark)
    try:
        found = checks(
            *("--probe", "none", "--nvml-library", str(node.nvml_library)),
            *("--jobs", "environ:OF_THIS_TEST,command:no such,usr,kubernetes"),
            *("--kubelet-socket", ""),
            environment=node.environment(),
        )
    finally:
        one.kill()
        one.wait()
    known = found["jobs"]["details"]["known"]
    assert known == {"environ:OF_THIS_TEST": 1, "command:no such,usr": 0, "kubernetes": 0}
    assert "pods" in found
    assert "for 2 GPUs" in found["series"]["what"]
