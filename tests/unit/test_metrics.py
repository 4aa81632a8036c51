"""gpubpf.metrics and gpubpf.view: the table's laws, and what its rows read from a Snapshot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf import cuda_errors, lanes
from gpubpf.device_view import INFO_LABELS
from gpubpf.metric import COUNTER, GAUGE, HISTOGRAM, INFO, Metric, Value
from gpubpf.metrics import LATE, METRICS, present
from gpubpf.model import (
    UNKNOWN_GPU,
    Attached,
    Device,
    DeviceInfo,
    DeviceProcess,
    Figures,
    Footprint,
    Job,
    JobAccount,
    JobKey,
    Jobs,
    Labels,
    Owner,
    Part,
    Plane,
    Process,
    ProcessView,
    Share,
    Snapshot,
    Usage,
)
from gpubpf.symbols import DIRECTIONS, GROUPS, KINDS, STATE, chosen
from gpubpf.view import Histogram, View
from tests.unit.snapshots import snapshots, vector

ALL = (*METRICS, *LATE)
FUNCTIONS = tuple(symbol.name for symbol in chosen(GROUPS))
UNITS = ("bytes", "seconds", "celsius", "watts", "joules", "ratio", "hertz")

each = pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)


def lane(name: str, variant: int = 0) -> int:
    """The lane of a function or of a fact's variant."""
    if name in FUNCTIONS:
        return lanes.FIRST["calls"] + FUNCTIONS.index(name)
    return lanes.FIRST[name] + variant


def snapshot(
    counters: Mapping[str, Mapping[int, int]] | None = None,
    *,
    functions: tuple[str, ...] = FUNCTIONS,
    devices: tuple[Device, ...] | None = None,
    processes: tuple[ProcessView, ...] = (),
    errors: Mapping[tuple[str, int], int] | None = None,
    indices: Mapping[str, int] | None = None,
    attached: tuple[Attached, ...] = (),
    calls: Mapping[int, int] | None = None,
    footprints: Mapping[str, Footprint] | None = None,
    attributions: Mapping[str, int] | None = None,
) -> Snapshot:
    totals = {gpu: vector(dict(row)) for gpu, row in (counters or {UNKNOWN_GPU: {}}).items()}
    return Snapshot(
        1.0, 2.0, functions, totals, vector(dict(calls or {})), errors or {},
        None if devices is None else Plane(devices), processes, indices or {}, attached=attached,
        footprints=footprints or {}, attributions=attributions or {},
    )  # fmt: skip


def process(pid: int, **on: Mapping[int, int]) -> ProcessView:
    """What it did, by GPU: a="…" is of GPU-a."""
    parts = {
        UNKNOWN_GPU if gpu == UNKNOWN_GPU else f"GPU-{gpu}": Part(vector(dict(row)), 0, 0)
        for gpu, row in on.items()
    }
    counters = sum(part.counters for part in parts.values())
    return ProcessView(Owner(pid, pid), None, counters, parts)


def everything(view: View) -> dict[str, dict[Labels, Value]]:
    return {row.name: dict(samples) for row, samples in present(view)}


def shown(view: View) -> dict[str, dict[Labels, float]]:
    """All but histograms."""
    page: dict[str, dict[Labels, float]] = {}
    for row, samples in present(view):
        if row.kind != HISTOGRAM:
            numbers = page[row.name] = {}
            for labels, value in samples:
                assert not isinstance(value, Histogram)
                numbers[labels] = value
    return page


def test_names_are_unique_also_with_their_suffixes() -> None:
    assert len({row.name for row in ALL}) == len(ALL)
    assert len({row.sample_name for row in ALL}) == len(ALL)
    assert set(LATE).isdisjoint(METRICS)


@each
def test_a_name_is_ours_and_without_its_types_suffix(row: Metric) -> None:
    assert re.fullmatch(r"gpubpf(_[a-z0-9]+)+", row.name)
    assert not row.name.endswith(("_total", "_info", "_created", "_count", "_sum", "_bucket"))
    ends = {COUNTER: "_total", INFO: "_info", GAUGE: "", HISTOGRAM: ""}
    assert row.sample_name == row.name + ends[row.kind]


@each
def test_the_unit_is_the_end_of_the_name(row: Metric) -> None:
    if row.unit:
        assert row.unit in UNITS
        assert row.name.endswith(f"_{row.unit}")
    else:
        assert not row.name.endswith(tuple(f"_{unit}" for unit in UNITS))
    assert row.kind != INFO or not row.unit


@each
def test_a_help_is_a_sentence_or_two(row: Metric) -> None:
    assert re.fullmatch(r"[A-Z0-9][^.\n]*(\. [A-Z0-9][^.\n]*)?\.", row.help.replace("…", ""))
    assert row.help.isprintable()


@each
def test_labels_clash_with_nobodys(row: Metric) -> None:
    taken = {"job", "instance", "pod", "namespace", "container", "le", "quantile", "node"}
    if row.name == "gpubpf_job":  # a contract; where a target has a namespace, too, one of them
        taken.remove("namespace")  # becomes exported_namespace (see honor_labels in the README)
    assert not set(row.labels) & taken
    assert len(set(row.labels)) == len(row.labels)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in row.labels)
    assert ("pid" in row.labels) == row.name.startswith("gpubpf_process")
    assert ("gpu" in row.labels) == ("uuid" in row.labels)
    assert not row.name.startswith("gpubpf_gpu") or row.labels[:2] == ("gpu", "uuid")
    assert set(row.group.split()) <= {*GROUPS, STATE}


@settings(max_examples=50, deadline=None)
@given(snapshots(), st.integers(0, 3))
def test_what_is_read_has_the_rows_labels(seen: Snapshot, most: int) -> None:
    for per_process in (False, True):
        view = View(seen, process_metrics=per_process, max_processes=most)
        for row, samples in present(view):
            assert {len(labels) for labels, _ in samples} == {len(row.labels)}
            assert all(isinstance(label, str) for labels, _ in samples for label in labels)
            assert len({labels for labels, _ in samples}) == len(samples)
            assert row.kind != INFO or {value for _, value in samples} == {1}
            for _, value in samples:
                assert isinstance(value, Histogram) == (row.kind == HISTOGRAM)
            assert view.groups.issuperset(row.group.split())


@settings(max_examples=50, deadline=None)
@given(snapshots(), st.integers(0, 3))
def test_processes_have_series_only_when_asked_and_only_so_many(seen: Snapshot, most: int) -> None:
    without = shown(View(seen, max_processes=most))
    assert not any(name.startswith("gpubpf_process") for name in without)
    assert without["gpubpf_agent_processes_without_series"] == {(): 0}
    page = shown(View(seen, process_metrics=True, max_processes=most))
    pids = {
        labels[0]
        for name, samples in page.items()
        if name.startswith("gpubpf_process")
        for labels in samples
    }
    assert len(pids) <= most
    assert pids <= {str(view.owner.pid) for view in seen.processes}
    left = max(0, len(seen.processes) - most)
    assert page["gpubpf_agent_processes_without_series"] == {(): left}


def test_under_the_cap_are_the_longest_known() -> None:
    views = tuple(
        ProcessView(Owner(pid, 100 - pid), Process(pid, float(pid), f"p{pid}", "u"), 0)
        for pid in range(1, 8)
    )
    page = shown(View(snapshot(processes=views), process_metrics=True, max_processes=2))
    assert page["gpubpf_process"] == {("7", "p7", "u"): 1, ("6", "p6", "u"): 1}
    assert page["gpubpf_process_start_time_seconds"] == {("7",): 7.0, ("6",): 6.0}
    assert page["gpubpf_agent_processes_without_series"] == {(): 5}


def test_what_is_on_no_known_gpu_is_called_unknown() -> None:
    launch = lane("kernel_launches")
    seen = snapshot({"GPU-a": {launch: 3}, UNKNOWN_GPU: {launch: 4}}, indices={"GPU-a": 0})
    assert shown(View(seen))["gpubpf_gpu_kernel_launches"] == {
        ("0", "GPU-a"): 3,
        ("unknown", "unknown"): 4,
    }


def test_counters_are_in_base_units_and_by_variant() -> None:
    row = {
        lane("kernel_launches"): 111,
        lane("captured_launches"): 7,
        lane("graph_launches"): 5,
        lane("graph_kernels"): 50,
        lane("unknown_graph_launches"): 1,
        lane("host_functions"): 12,
        lane("waits"): 2,
        lane("wait_nanoseconds"): 1_500_000_000,
        lane("set_bytes"): 6,
        lane("captured_copied_bytes"): 8,
        lane("captured_set_bytes"): 9,
    }
    row |= {lane("frees", index): 10 + index for index in range(len(KINDS))}
    row |= {lane("allocated_bytes", index): 20 + index for index in range(len(KINDS) - 1)}
    row |= {lane("copied_bytes", index): 30 + index for index in range(len(DIRECTIONS))}
    row |= {lane("implicit_frees", index): 40 + index for index in range(len(KINDS) - 1)}
    row |= {lane("implicitly_freed_bytes", index): 50 + index for index in range(len(KINDS) - 1)}
    row |= {lane("allocations", index): 60 + index for index in range(len(KINDS) - 1)}
    row |= {lane("freed_bytes", index): 70 + index for index in range(len(KINDS) - 1)}
    page = shown(View(snapshot({"GPU-a": row}, indices={"GPU-a": 1})))
    gpu = ("1", "GPU-a")
    for name, value in (
        ("kernel_launches", 111), ("captured_launches", 7), ("graph_launches", 5),
        ("graph_kernels", 50), ("graph_launches_of_unknown_size", 1), ("host_functions", 12),
        ("waits", 2), ("wait_seconds", 1.5), ("set_bytes", 6), ("captured_copied_bytes", 8),
        ("captured_set_bytes", 9),
    ):  # fmt: skip
        assert page[f"gpubpf_gpu_{name}"] == {gpu: value}, name
    assert page["gpubpf_gpu_frees"] == {(*gpu, k): 10 + i for i, k in enumerate(KINDS)}
    for name, first in (
        ("allocated_bytes", 20), ("implicit_frees", 40), ("implicitly_freed_bytes", 50),
        ("allocations", 60), ("freed_bytes", 70),
    ):  # fmt: skip
        assert page[f"gpubpf_gpu_{name}"] == {
            (*gpu, kind): first + i for i, kind in enumerate(KINDS[:-1])
        }, name
    assert page["gpubpf_gpu_copied_bytes"] == {(*gpu, d): 30 + i for i, d in enumerate(DIRECTIONS)}


@settings(max_examples=50, deadline=None)
@given(snapshots())
def test_calls_on_the_node_are_those_of_every_function(seen: Snapshot) -> None:
    calls = shown(View(seen)).get("gpubpf_calls", {})
    for index, name in enumerate(seen.functions):
        shift = 64 * (lanes.FIRST["calls"] + index)
        assert calls[name,] == (seen.calls >> shift) % 2**64
    assert len(calls) == len(seen.functions)


@settings(max_examples=50, deadline=None)
@given(snapshots())
def test_no_series_of_a_group_that_is_off(seen: Snapshot) -> None:
    """Not even at 0: whatever the Snapshot holds of it."""
    off = {row.name for row in METRICS if row.group} - {
        row.name for row in METRICS if View(seen).groups.issuperset(row.group.split())
    }
    assert not off & everything(View(seen, process_metrics=True)).keys()


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_has_its_own_rows_and_no_other(group: str) -> None:
    """All that it counts, of a GPU and of a process, and of no other group."""
    functions = tuple(symbol.name for symbol in chosen((group,)))
    row = dict.fromkeys(range(lanes.FIRST["calls"]), 5)
    row |= dict.fromkeys(range(lane("allocations"), lane("frees")), 50)
    device = memory_device(0, "GPU-a", 10)
    part = Part(vector(row), 5, 6)
    seen = snapshot(
        {"GPU-a": row}, functions=functions, devices=(device,), indices={"GPU-a": 0},
        processes=(ProcessView(Owner(1, 1), None, vector(row), {"GPU-a": part}),),
        footprints={"GPU-a": Footprint(1, 2)},
    )  # fmt: skip
    job = Job(JobKey("slurm", "1"))
    account = JobAccount("1", job, 0.0, False, {"GPU-a": Usage(vector(row), 1, 1, 1, 1, 0.5)}, {})
    seen = replace(seen, jobs=Jobs((account,)))
    names = everything(View(seen, process_metrics=True)).keys()
    assert {row.name for row in METRICS if row.group and row.name in names} == {
        row.name for row in METRICS if group in row.group.split()
    }


# --- memory ---------------------------------------------------------------------------------------

DEVICE, HOST = KINDS.index("device"), KINDS.index("host")


def held(kind: int, number: int, size: int, freed: int = 0, gone: int = 0) -> dict[int, int]:
    return {
        lane("allocations", kind): number + 2,
        lane("frees", kind): 1,
        lane("implicit_frees", kind): 1,
        lane("allocated_bytes", kind): size + freed + gone,
        lane("freed_bytes", kind): freed,
        lane("implicitly_freed_bytes", kind): gone,
    }


def test_live_memory_is_what_living_processes_hold_by_kind() -> None:
    """Not what ended ones did, which is in the totals; where nobody holds anything, it is 0."""
    views = (
        process(1, a=held(DEVICE, 2, 1000, 30, 4), b=held(HOST, 1, 7)),
        process(2, a=held(DEVICE, 3, 500, 1, 1), unknown=held(DEVICE, 1, 9)),
    )
    ended = {lane("allocated_bytes", DEVICE): 2**40, lane("allocations", DEVICE): 99}
    seen = snapshot(
        {"GPU-a": ended, "GPU-b": ended, "GPU-c": ended, UNKNOWN_GPU: ended},
        processes=views,
        indices={"GPU-a": 0, "GPU-b": 1, "GPU-c": 2},
    )
    page = shown(View(seen, process_metrics=True))
    a, b, unknown = ("0", "GPU-a"), ("1", "GPU-b"), ("unknown", "unknown")
    for name, values in (
        ("live_bytes", (1500, 7, 9, 1000, 500)),
        ("live_allocations", (5, 1, 1, 2, 3)),
    ):
        live = page[f"gpubpf_gpu_{name}"]
        assert len(live) == 4 * (len(KINDS) - 1)
        assert {labels: value for labels, value in live.items() if value} == {
            (*a, "device"): values[0], (*b, "host"): values[1], (*unknown, "device"): values[2],
        }  # fmt: skip
        assert page[f"gpubpf_process_{name}"] == {
            ("1", *a, "device"): values[3], ("1", *b, "host"): values[1],
            ("2", *a, "device"): values[4], ("2", *unknown, "device"): values[2],
        }  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(snapshots())
def test_live_memory_of_gpus_is_the_sum_over_processes(seen: Snapshot) -> None:
    page = shown(View(seen, process_metrics=True))
    for name in ("live_bytes", "live_allocations"):
        together: Counter[Labels] = Counter()
        gpus = page.get(f"gpubpf_gpu_{name}", {})
        for labels, value in page.get(f"gpubpf_process_{name}", {}).items():
            assert value >= 0
            together[labels[1:]] += int(value)
        # What one has freed too much is not taken from what another holds too little.
        assert all(0 <= value <= together[labels] for labels, value in gpus.items())


def test_more_frees_than_allocations_are_not_live_below_zero() -> None:
    """Memory that another process allocated, or from before."""
    row = {lane("frees", DEVICE): 3, lane("freed_bytes", DEVICE): 100}
    page = shown(View(snapshot(processes=(process(1, unknown=row),)), process_metrics=True))
    assert set(page["gpubpf_gpu_live_bytes"].values()) == {0}
    assert set(page["gpubpf_gpu_live_allocations"].values()) == {0}
    assert "gpubpf_process_live_bytes" not in page


def test_absurd_sizes_of_some_do_not_carry_into_others() -> None:
    """Each claims as much as the kernel adds up: together more than a lane holds."""
    absurd = [process(pid, a={lane("allocated_bytes", DEVICE): 2**62}) for pid in range(1, 10)]
    honest = process(20, a={lane("allocated_bytes", DEVICE + 1): 7})
    seen = snapshot(processes=(*absurd, honest), indices={"GPU-a": 0})
    live = shown(View(seen))["gpubpf_gpu_live_bytes"]
    assert live["0", "GPU-a", KINDS[DEVICE]] == 2**63 - 1
    assert live["0", "GPU-a", KINDS[DEVICE + 1]] == 7
    assert sum(live.values()) == 2**63 + 6


def test_peaks() -> None:
    on = {"GPU-a": Part(0, 5, 70), "GPU-b": Part(0, 0, 0), UNKNOWN_GPU: Part(0, 0, 3)}
    views = (ProcessView(Owner(4, 1), None, 0, on),)
    seen = snapshot(processes=views, indices={"GPU-a": 0, "GPU-b": 1})
    page = shown(View(seen, process_metrics=True))
    assert page["gpubpf_process_peak_live_bytes"] == {
        ("4", "0", "GPU-a"): 70,
        ("4", "unknown", "unknown"): 3,
    }


def test_allocation_sizes() -> None:
    """Cumulative, the last is all of them; the sum is of all kinds but host memory."""
    classes = len(lanes.SIZE_BOUNDS) + 1
    row = {lane("allocation_sizes", n): 10**n for n in range(classes)}
    row |= {lane("allocated_bytes", kind): 2**kind for kind in range(len(KINDS) - 1)}
    page = everything(View(snapshot({"GPU-a": row}, indices={"GPU-a": 1})))
    assert page["gpubpf_gpu_allocation_size_bytes"].keys() == {("1", "GPU-a")}
    histogram = page["gpubpf_gpu_allocation_size_bytes"]["1", "GPU-a"]
    assert isinstance(histogram, Histogram)
    assert [count for _, count in histogram.buckets] == [int("1" * (n + 1)) for n in range(classes)]
    bounds = [bound for bound, _ in histogram.buckets]
    assert [float(bound) for bound in bounds] == [*lanes.SIZE_BOUNDS, float("inf")]
    assert bounds[-1] == "+Inf"
    assert histogram.sum == 2 ** (len(KINDS) - 1) - 1 - 2**HOST


def memory_device(index: int, uuid: str, used: int | None) -> Device:
    figures: Figures = {} if used is None else {"memory_used_bytes": {(): used}}
    return Device(DeviceInfo(index, uuid, "Simulated", "1"), figures)


def test_fragmentation_and_what_nobody_asked_for() -> None:
    """Of a GPU on which nothing is live, the first isn't known, and all is unattributed."""
    seen = snapshot(
        devices=(
            memory_device(0, "GPU-a", 100), memory_device(1, "GPU-b", 50),
            memory_device(2, "GPU-c", None), memory_device(3, "GPU-d", 7),
        ),
        indices={"GPU-a": 0, "GPU-b": 1, "GPU-c": 2, "GPU-d": 3},
        footprints={
            "GPU-a": Footprint(30, 40), "GPU-b": Footprint(0, 0), "GPU-c": Footprint(2, 2),
            UNKNOWN_GPU: Footprint(1, 4),
        },
    )  # fmt: skip
    page = shown(View(seen))
    assert page["gpubpf_gpu_memory_fragmentation_ratio"] == {
        ("0", "GPU-a"): 0.25, ("2", "GPU-c"): 0.0, ("unknown", "unknown"): 0.75,
    }  # fmt: skip
    assert page["gpubpf_gpu_memory_unattributed_bytes"] == {
        ("0", "GPU-a"): 60, ("1", "GPU-b"): 50, ("3", "GPU-d"): 7,
    }  # fmt: skip


def test_without_nvml_and_live_memory_neither_is_there() -> None:
    page = shown(View(snapshot(footprints={UNKNOWN_GPU: Footprint(0, 0)})))
    assert "gpubpf_gpu_memory_fragmentation_ratio" not in page
    assert "gpubpf_gpu_memory_unattributed_bytes" not in page


@settings(max_examples=60, deadline=None)
@given(snapshots())
def test_fragmentation_is_a_ratio(seen: Snapshot) -> None:
    page = shown(View(seen))
    assert all(
        0 <= value <= 1 for value in page.get("gpubpf_gpu_memory_fragmentation_ratio", {}).values()
    )


def test_attributions_by_what_told() -> None:
    page = shown(View(snapshot(attributions={"uuid": 3, "nvml": 0})))
    assert page["gpubpf_agent_attributions"] == {("uuid",): 3, ("nvml",): 0}
    assert "gpubpf_agent_attributions" not in shown(View(snapshot()))


def test_a_process_is_on_each_of_its_gpus() -> None:
    row = {lane("kernel_launches"): 3, lane("copied_bytes", 1): 4}
    views = (process(9, b=row, a={lane("graph_kernels"): 2}, unknown={lane("waits"): 1}),)
    page = shown(
        View(snapshot(processes=views, indices={"GPU-a": 0, "GPU-b": 1}), process_metrics=True)
    )
    a, b, unknown = ("9", "0", "GPU-a"), ("9", "1", "GPU-b"), ("9", "unknown", "unknown")
    assert page["gpubpf_process_kernel_launches"] == {a: 0, b: 3, unknown: 0}
    assert page["gpubpf_process_graph_kernels"] == {a: 2, b: 0, unknown: 0}
    assert page["gpubpf_process_copied_bytes"] == {(*b, DIRECTIONS[1]): 4}


@given(st.dictionaries(st.integers(0, 2**32 - 1), st.integers(1, 2**40)))
def test_hostile_error_codes_make_no_new_label_values(codes: dict[int, int]) -> None:
    errors = {("cuMemAlloc_v2", code): count for code, count in codes.items()}
    found = shown(View(snapshot(errors=errors))).get("gpubpf_call_errors", {})
    assert {error for _, error in found} <= {*cuda_errors.NAMES.values(), "other"}
    assert sum(found.values()) == sum(codes.values())


def test_unknown_figures_are_absent_and_zero_is_not() -> None:
    info = DeviceInfo(3, "GPU-a", "Simulated", "535")
    on = DeviceProcess(5, share=Share(0.0, 0.0, 0.0, 0.0))
    device = Device(info, {"utilization_ratio": {(): 0.0}}, processes=(on,))
    views = (ProcessView(Owner(5, 0), None, 0, {}, {"GPU-a": on}),)
    seen = snapshot(devices=(device,), processes=views, indices={"GPU-a": 3})
    page = shown(View(seen, process_metrics=True))
    labels = ("3", "GPU-a", "Simulated", "535", *[""] * (len(INFO_LABELS) - 2))
    assert page["gpubpf_gpu"] == {labels: 1}
    assert page["gpubpf_gpu_utilization_ratio"] == {("3", "GPU-a"): 0.0}
    assert page["gpubpf_process_sm_utilization_ratio"] == {("5", "3", "GPU-a"): 0.0}
    assert page["gpubpf_process_decoder_utilization_ratio"] == {("5", "3", "GPU-a"): 0.0}
    for name in (
        *("gpu_power_watts", "gpu_energy_joules", "gpu_ecc_errors"),
        *("process", "process_memory_used_bytes", "process_jpeg_utilization_ratio"),
    ):
        assert f"gpubpf_{name}" not in page
    # It made no call that was seen: it has no counters, not counters at 0.
    assert "gpubpf_process_kernel_launches" not in page


def test_attached_probes_are_counted_by_function_and_place() -> None:
    places = ("stub+10", "stub+10", "entry", "absent", "alias")
    probes = tuple(Attached(f"/lib{i}", "cuInit", at) for i, at in enumerate(places))
    assert shown(View(snapshot(attached=probes)))["gpubpf_agent_probe_attached"] == {
        ("cuInit", "stub+10"): 2,
        ("cuInit", "entry"): 1,
    }
