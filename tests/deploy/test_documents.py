"""What the documents show can be used as it stands: their queries, and the links between them."""

from __future__ import annotations

import re
from pathlib import Path

import promql_parser
import pytest

from gpubpf.metrics import LATE, METRICS
from tests.conftest import ROOT

DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    if path.name != "CHANGELOG.md"
)
QUERIES = [
    pytest.param(query, id=f"{path.relative_to(ROOT)}: {query.splitlines()[0][:40]}")
    for path in DOCUMENTS
    for block in re.findall(r"```promql\n(.*?)```", path.read_text(), re.DOTALL)
    for query in re.sub(r"^#.*\n", "", block, flags=re.MULTILINE).strip().split("\n\n")
]
EXPORTED = {metric.sample_name: {*metric.labels} for metric in METRICS + LATE}
OF_TARGETS = {"instance", "job"}


def test_there_are_some() -> None:
    assert {"README.md", "RUNBOOK.md"} <= {path.name for path in DOCUMENTS}
    assert len(QUERIES) > 30


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_is_exported(query: str) -> None:
    promql_parser.parse(query)
    for name, selector in re.findall(r"\b(gpubpf_\w+)\b(?!:)(\{[^}]*\})?", query):
        if f":{name}" in query:  # made by a recording rule
            continue
        plain = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in EXPORTED or plain in EXPORTED, f"{name} is not exported"
        asked = {*re.findall(r"(\w+) *(?:=|!)", selector)}
        assert asked <= EXPORTED.get(name, EXPORTED.get(plain, set())) | OF_TARGETS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), f"{link}: no such file"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {_anchor(head) for head in heads}, f"{link}: no such heading"


def _anchor(head: str) -> str:
    """As the forges make it."""
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
