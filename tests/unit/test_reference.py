"""The README's tables are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubpf import reference
from gpubpf.config import OPTIONS
from gpubpf.metrics import LATE, METRICS
from gpubpf.symbols import SYMBOLS

README = Path(__file__).parent.parent.parent / "README.md"
BEFORE = "# Before\n\n<!-- metrics:begin -->\nold\n<!-- metrics:end -->\n\nafter\n"


def test_the_readme_is_up_to_date() -> None:
    text = README.read_text()
    assert "<!-- metrics:begin -->" in text
    assert "<!-- options:begin -->" in text
    assert reference.updated(text) == text


def test_every_row_is_there() -> None:
    table = reference.metrics()
    for metric in METRICS + LATE:
        assert f"| `{metric.sample_name}` | {metric.kind} | {metric.unit} |" in table
        assert metric.help in table
    assert table.count("\n") == len(METRICS + LATE) + 2
    for option in OPTIONS:
        assert f"| `{option.variable}` |" in reference.options()
    assert reference.options().count("\n") == len(OPTIONS) + 2


def test_needs() -> None:
    rows = dict(line[3:].split("`", 1) for line in reference.metrics().splitlines()[2:])
    assert "`--probe launch`, `--process-metrics`" in rows["gpubpf_process_kernel_launches_total"]
    assert "| `--probe copy` |" in rows["gpubpf_gpu_copied_bytes_total"]
    assert "--p" not in rows["gpubpf_gpu_power_watts"]


def test_functions_name_no_form_but_cover_all() -> None:
    words = reference.functions().replace("`", "").split()
    assert "cuMemAlloc" in words
    assert "cuMemAlloc_v2" not in words[words.index("launch") :]
    for symbol in SYMBOLS:
        assert any(symbol.name.startswith(word) for word in words if word.startswith("cu"))


def test_only_what_is_between_the_markers_changes() -> None:
    text = reference.updated(BEFORE)
    assert text.startswith("# Before\n\n<!-- metrics:begin -->\n| name | type |")
    assert text.endswith("|\n<!-- metrics:end -->\n\nafter\n")
    assert "old" not in text.splitlines()
    assert reference.updated(text) == text
    assert reference.updated("nothing marked\n") == "nothing marked\n"
    with pytest.raises(ValueError, match=r"metrics:begin.*without.*metrics:end"):
        reference.updated("<!-- metrics:begin -->\n")


def test_a_cell_can_not_break_the_table() -> None:
    assert reference._cell("a|b\nc") == r"a\|b c"


def test_check_and_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "README.md"
    file.write_text(BEFORE)
    assert reference.main(["--check", str(file)]) == 1
    assert "-old\n" in capsys.readouterr().out
    assert file.read_text() == BEFORE
    assert reference.main(["--write", str(file)]) == 0
    assert reference.main(["--check", str(file)]) == 0
    assert capsys.readouterr().out == ""
