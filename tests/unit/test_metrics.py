"""gpubpf.metrics and gpubpf.view: the table's laws, and what its rows read from a Snapshot."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubpf import cuda_errors, lanes
from gpubpf.metrics import COUNTER, GAUGE, INFO, LATE, METRICS, Metric, present
from gpubpf.model import (
    UNKNOWN_GPU,
    Attached,
    Device,
    DeviceInfo,
    DeviceProcess,
    Owner,
    Process,
    ProcessView,
    Snapshot,
)
from gpubpf.symbols import DIRECTIONS, GROUPS, KINDS, chosen
from gpubpf.view import Labels, View
from tests.unit.snapshots import snapshots, vector

ALL = (*METRICS, *LATE)
FUNCTIONS = tuple(symbol.name for symbol in chosen(GROUPS))
UNITS = ("bytes", "seconds", "celsius", "watts", "joules", "ratio")

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
) -> Snapshot:
    totals = {gpu: vector(dict(row)) for gpu, row in (counters or {UNKNOWN_GPU: {}}).items()}
    return Snapshot(
        1.0, 2.0, functions, totals, errors or {}, devices, processes, indices or {},
        attached=attached,
    )  # fmt: skip


def shown(view: View) -> dict[str, dict[Labels, float]]:
    return {row.name: dict(samples) for row, samples in present(view)}


def test_names_are_unique_also_with_their_suffixes() -> None:
    assert len({row.name for row in ALL}) == len(ALL)
    assert len({row.sample_name for row in ALL}) == len(ALL)
    assert set(LATE).isdisjoint(METRICS)


@each
def test_a_name_is_ours_and_without_its_types_suffix(row: Metric) -> None:
    assert re.fullmatch(r"gpubpf(_[a-z0-9]+)+", row.name)
    assert not row.name.endswith(("_total", "_info", "_created", "_count", "_sum", "_bucket"))
    assert row.kind in (COUNTER, GAUGE, INFO)
    assert row.sample_name == row.name + {COUNTER: "_total", INFO: "_info", GAUGE: ""}[row.kind]


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
    assert not set(row.labels) & taken
    assert len(set(row.labels)) == len(row.labels)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in row.labels)
    assert ("pid" in row.labels) == row.name.startswith("gpubpf_process")
    assert ("gpu" in row.labels) == ("uuid" in row.labels)
    assert not row.name.startswith("gpubpf_gpu") or row.labels[:2] == ("gpu", "uuid")
    assert row.group in ("", *GROUPS)


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
    launch = lane("cuLaunchKernel")
    seen = snapshot({"GPU-a": {launch: 3}, UNKNOWN_GPU: {launch: 4}}, indices={"GPU-a": 0})
    assert shown(View(seen))["gpubpf_gpu_kernel_launches"] == {
        ("0", "GPU-a"): 3,
        ("unknown", "unknown"): 4,
    }


def test_counters_are_in_base_units_and_by_variant() -> None:
    row = {
        lane("cuLaunchKernel"): 1,
        lane("cuLaunchKernelEx_ptsz"): 10,
        lane("cuLaunchCooperativeKernelMultiDevice"): 1000,  # calls, of several kernels each
        lane("multi_device_launches"): 100,
        lane("cuGraphLaunch"): 5,
        lane("cuStreamSynchronize"): 2,
        lane("wait_nanoseconds"): 1_500_000_000,
        lane("set_bytes"): 6,
    }
    row |= {lane("frees", index): 10 + index for index in range(len(KINDS))}
    row |= {lane("allocated_bytes", index): 20 + index for index in range(len(KINDS) - 1)}
    row |= {lane("copied_bytes", index): 30 + index for index in range(len(DIRECTIONS))}
    page = shown(View(snapshot({"GPU-a": row}, indices={"GPU-a": 1})))
    gpu = ("1", "GPU-a")
    assert page["gpubpf_gpu_kernel_launches"][gpu] == 111
    assert page["gpubpf_gpu_graph_launches"][gpu] == 5
    assert page["gpubpf_gpu_waits"][gpu] == 2
    assert page["gpubpf_gpu_wait_seconds"][gpu] == 1.5
    assert page["gpubpf_gpu_set_bytes"][gpu] == 6
    assert page["gpubpf_gpu_frees"] == {(*gpu, k): 10 + i for i, k in enumerate(KINDS)}
    assert page["gpubpf_gpu_allocated_bytes"] == {
        (*gpu, kind): 20 + i for i, kind in enumerate(KINDS[:-1])
    }
    assert page["gpubpf_gpu_copied_bytes"] == {(*gpu, d): 30 + i for i, d in enumerate(DIRECTIONS)}


@settings(max_examples=50, deadline=None)
@given(snapshots())
def test_calls_on_the_node_are_the_sum_over_its_gpus(seen: Snapshot) -> None:
    calls = shown(View(seen)).get("gpubpf_calls", {})
    for index, name in enumerate(seen.functions):
        shift = 64 * (lanes.FIRST["calls"] + index)
        assert calls[name,] == sum((v >> shift) % 2**64 for v in seen.totals.values())
    assert len(calls) == len(seen.functions)


@given(st.dictionaries(st.integers(0, 2**32 - 1), st.integers(1, 2**40)))
def test_hostile_error_codes_make_no_new_label_values(codes: dict[int, int]) -> None:
    errors = {("cuMemAlloc_v2", code): count for code, count in codes.items()}
    found = shown(View(snapshot(errors=errors))).get("gpubpf_call_errors", {})
    assert {error for _, error in found} <= {*cuda_errors.NAMES.values(), "other"}
    assert sum(found.values()) == sum(codes.values())


def test_unknown_figures_are_absent_and_zero_is_not() -> None:
    info = DeviceInfo(3, "GPU-a", "Simulated", "535")
    device = Device(info, utilization=0.0, processes=(DeviceProcess(5, sm=0.0),))
    views = (ProcessView(Owner(5, 0), None, 0, {"GPU-a": DeviceProcess(5, sm=0.0)}),)
    seen = snapshot(devices=(device,), processes=views, indices={"GPU-a": 3})
    page = shown(View(seen, process_metrics=True))
    assert page["gpubpf_gpu"] == {("3", "GPU-a", "Simulated", "535", "", ""): 1}
    assert page["gpubpf_gpu_utilization_ratio"] == {("3", "GPU-a"): 0.0}
    assert page["gpubpf_process_sm_utilization_ratio"] == {("5", "3", "GPU-a"): 0.0}
    for name in ("gpu_power_watts", "gpu_energy_joules", "process_memory_used_bytes", "process"):
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
