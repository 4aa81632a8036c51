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

from gpubpf import lanes
from gpubpf.metric import HISTOGRAM
from gpubpf.metrics import LATE, METRICS, SERIES, SNAPSHOT_AGE
from gpubpf.model import UNKNOWN_GPU, Snapshot
from gpubpf.render import Page, Renderer, families
from gpubpf.symbols import GROUPS, STATE, chosen
from gpubpf.view import View
from tests.unit.snapshots import COUNTS, TEXT, snapshots, vector

VIEWS = st.builds(
    lambda snapshot, per_process, most: View(
        snapshot, process_metrics=per_process, max_processes=most
    ),
    snapshots(),
    st.booleans(),
    st.integers(0, 5),
)

NOT_ALWAYS_KNOWN = {
    "gpubpf_gpu_memory_fragmentation_ratio",  # without live allocations
    "gpubpf_gpu_memory_unattributed_bytes",  # without NVML
}


class Reference(Collector):
    """The page's families, the late ones with the given values."""

    def __init__(self, view: View, late: tuple[float, ...], created: bool) -> None:
        self._view, self._late, self._created = view, late, created

    def collect(self) -> Iterator[Metric]:
        yield from families(self._view, created=self._created)
        for row, value in zip(LATE, self._late, strict=True):
            yield GaugeMetricFamily(row.name, row.help, value, unit=row.unit)


def reference(view: View, late: tuple[float, ...], *, openmetrics: bool) -> bytes:
    registry = CollectorRegistry()
    registry.register(Reference(view, late, openmetrics))
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


SIZES = lanes.FIRST["allocation_sizes"]
SIZE_CLASSES = len(lanes.SIZE_BOUNDS) + 1


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(COUNTS, min_size=SIZE_CLASSES, max_size=SIZE_CLASSES),
    sum_=COUNTS,
    uuids=st.lists(TEXT, unique=True, max_size=3),
    openmetrics=st.booleans(),
)
def test_a_histogram_is_what_prometheus_client_makes_of_it(
    counts: list[int], sum_: int, uuids: list[str], openmetrics: bool
) -> None:
    """With whatever labels; it is on every page where memory is probed."""
    row = {SIZES + n: count for n, count in enumerate(counts)}
    facts = vector(row | {lanes.FIRST["allocated_bytes"]: sum_})
    functions = tuple(symbol.name for symbol in chosen(("memory",)))
    uuids = [uuid for uuid in uuids if uuid != UNKNOWN_GPU]
    seen = Snapshot(
        1.0, 2.0, functions, dict.fromkeys((UNKNOWN_GPU, *uuids), facts), 0, {}, None, (),
        indices={uuid: n for n, uuid in enumerate(uuids)},
    )  # fmt: skip
    made, series = page(View(seen), Renderer(), openmetrics=openmetrics)
    text = made.plain(100.0)
    assert text == reference(View(seen), (series + 2, 0.0), openmetrics=openmetrics)
    (name,) = (row.name for row in METRICS if row.kind == HISTOGRAM)
    lines = [line for line in text.decode().split("\n") if line.startswith(f"{name}_")]
    assert len(lines) == (SIZE_CLASSES + 2) * (1 + len(uuids))
    assert series_on(text) == series + 2


def test_a_histogram_as_it_stands_on_the_page() -> None:
    facts = vector({SIZES: 3, SIZES + 1: 4, SIZES + 7: 5, lanes.FIRST["allocated_bytes"]: 1234567})
    seen = Snapshot(
        1.0, 2.0, ("cuMemAlloc_v2",), {'a"b\\c\nd': facts}, 0, {}, None, (),
        indices={'a"b\\c\nd': 7},
    )  # fmt: skip
    body, _ = Renderer().page(View(seen), openmetrics=True)
    (found,) = (
        part for part in body.split("# HELP ") if part.startswith("gpubpf_gpu_allocation_size_b")
    )
    bounds = ("4096.0", "65536.0", "1.048576e+06", "2.097152e+06", "1.6777216e+07",
              "1.34217728e+08", "1.073741824e+09", "+Inf")  # fmt: skip
    name, uuid = "gpubpf_gpu_allocation_size_bytes", r"a\"b\\c\nd"
    assert found.split("\n")[1:] == [
        f"# TYPE {name} histogram",
        f"# UNIT {name} bytes",
        *(
            f'{name}_bucket{{gpu="7",le="{bound}",uuid="{uuid}"}} {count}.0'
            for bound, count in zip(bounds, (3, 7, 7, 7, 7, 7, 7, 12), strict=True)
        ),
        f'{name}_count{{gpu="7",uuid="{uuid}"}} 12.0',
        f'{name}_sum{{gpu="7",uuid="{uuid}"}} 1.234567e+06',
        "",
    ]


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
        rows = {row.name for row in METRICS if group in row.group.split()}
        assert rows
        if group not in view.groups:
            assert not rows & shown
        elif STATE in view.groups:
            known = {row for row in rows if row.startswith("gpubpf_gpu_")} - NOT_ALWAYS_KNOWN
            assert known <= shown


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
