"""gpubpf.render against prometheus_client: the same bytes, for whatever a Snapshot may hold."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from gpubpf.metrics import LATE, METRICS, SERIES, SNAPSHOT_AGE
from gpubpf.model import Snapshot
from gpubpf.render import Page, Renderer, families
from gpubpf.symbols import GROUPS
from gpubpf.view import View
from tests.unit.snapshots import snapshots

VIEWS = st.builds(
    lambda snapshot, per_process, most: View(
        snapshot, process_metrics=per_process, max_processes=most
    ),
    snapshots(),
    st.booleans(),
    st.integers(0, 5),
)


class Reference(Collector):
    """The page's families, the late ones with the given values."""

    def __init__(self, view: View, late: tuple[float, ...]) -> None:
        self._view, self._late = view, late

    def collect(self) -> Iterator[Metric]:
        yield from families(self._view)
        for row, value in zip(LATE, self._late, strict=True):
            yield GaugeMetricFamily(row.name, row.help, value, unit=row.unit)


def reference(view: View, late: tuple[float, ...], *, openmetrics: bool) -> bytes:
    registry = CollectorRegistry()
    registry.register(Reference(view, late))
    if openmetrics:
        text: bytes = openmetrics_exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text
    return generate_latest(registry)


def page(view: View, renderer: Renderer, *, openmetrics: bool) -> tuple[Page, int]:
    body, series = renderer.page(view, openmetrics=openmetrics)
    return Page(body, series, taken_at=100.0, openmetrics=openmetrics), series


def series_on(text: bytes) -> int:
    return sum(bool(line) and not line.startswith(b"#") for line in text.split(b"\n"))


@settings(max_examples=120, deadline=None)
@given(view=VIEWS, openmetrics=st.booleans(), age=st.floats(0, 1e9))
def test_a_page_is_what_prometheus_client_makes_of_it(
    view: View, openmetrics: bool, age: float
) -> None:
    made, series = page(view, Renderer(), openmetrics=openmetrics)
    now = 100.0 + age
    text = made.plain(now)
    assert text == reference(view, (series + 2, now - 100.0), openmetrics=openmetrics)
    assert series_on(text) == series + 2


@settings(max_examples=60, deadline=None)
@given(view=VIEWS, openmetrics=st.booleans())
def test_a_page_parses_to_the_same_samples(view: View, openmetrics: bool) -> None:
    made, series = page(view, Renderer(), openmetrics=openmetrics)
    text = made.plain(100.0).decode()
    parse = (
        openmetrics_parser.text_string_to_metric_families
        if openmetrics
        else text_string_to_metric_families
    )
    parsed = list(parse(text))
    samples = [sample for family in parsed for sample in family.samples]
    assert len(samples) == series + 2
    keys = {(sample.name, frozenset(sample.labels.items())) for sample in samples}
    assert len(keys) == len(samples)
    expected = [sample for family in families(view) for sample in family.samples]
    assert keys >= {(sample.name, frozenset(sample.labels.items())) for sample in expected}
    if openmetrics:
        units = {row.name: row.unit for row in (*METRICS, *LATE)}
        assert {family.name: family.unit for family in parsed}.items() <= units.items()


@settings(max_examples=40, deadline=None)
@given(view=VIEWS, openmetrics=st.booleans(), ages=st.lists(st.floats(0, 1e6), min_size=1))
def test_gzip_is_the_same_page_in_one_member(
    view: View, openmetrics: bool, ages: list[float]
) -> None:
    made, _ = page(view, Renderer(), openmetrics=openmetrics)
    for age in ages:
        packed = made.gzipped(100.0 + age)
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        text = member.decompress(packed) + member.flush()
        assert member.eof
        assert not member.unused_data
        assert text == made.plain(100.0 + age) == gzip.decompress(packed)


@settings(max_examples=40, deadline=None)
@given(views=st.lists(VIEWS, min_size=2, max_size=4))
def test_what_a_renderer_remembers_does_not_show(views: list[View]) -> None:
    """Label sets of earlier pages, of both formats, and the same name with other labels."""
    renderer = Renderer()
    for view in views:
        for openmetrics in (False, True):
            assert renderer.page(view, openmetrics=openmetrics) == Renderer().page(
                view, openmetrics=openmetrics
            )


@settings(max_examples=40, deadline=None)
@given(snapshot=snapshots())
def test_absent_groups_give_no_families(snapshot: Snapshot) -> None:
    view = View(snapshot, process_metrics=True)
    shown = {family.name for family in families(view)}
    for group in GROUPS:
        rows = {row.name for row in METRICS if row.group == group}
        assert rows
        if group not in view.groups:
            assert not rows & shown
        else:
            assert {row for row in rows if row.startswith("gpubpf_gpu_")} <= shown


@settings(max_examples=40, deadline=None)
@given(snapshot=snapshots())
def test_a_family_is_there_once_and_never_without_samples(snapshot: Snapshot) -> None:
    found = list(families(View(snapshot, process_metrics=True)))
    assert len({family.name for family in found}) == len(found)
    assert all(family.samples for family in found)


def test_many_ask_for_gzip_at_once() -> None:
    """Of a page that nobody asked for before."""
    body = "".join(f"x{i % 977} {i}\n" for i in range(20_000))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            made = Page(body, 0, taken_at=100.0, openmetrics=False)
            barrier = Barrier(8)

            def take(made: Page = made, barrier: Barrier = barrier) -> bytes:
                barrier.wait()
                return made.gzipped(101.0)

            for future in [pool.submit(take) for _ in range(8)]:
                assert gzip.decompress(future.result()) == made.plain(101.0)


def test_the_age_is_never_below_zero() -> None:
    made = Page("", 0, taken_at=100.0, openmetrics=False)
    assert f"{SNAPSHOT_AGE.sample_name} 0.0\n".encode() in made.plain(99.0)
    assert f"{SNAPSHOT_AGE.sample_name} 1.5\n".encode() in made.plain(101.5)
    assert f"{SERIES.sample_name} 2.0\n".encode() in made.plain(99.0)
