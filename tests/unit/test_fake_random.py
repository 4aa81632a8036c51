"""Random programs on the simulated driver alone: they are mostly valid, and the oracle's figures
agree with each other and with what the programs were told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from tests.bpf.random_programs import WHATEVER_COMES, Program, programs, settled
from tests.fakegpu.node import Node
from tests.fakegpu.nvml_control import BUILD
from tests.fakegpu.programs import run

LAUNCHES = ("cuLaunchKernel", "cuLaunchCooperativeKernel", "cuLaunchGrid", "cuLaunch")
SEVERAL = "cuLaunchCooperativeKernelMultiDevice"  # on two devices, in these programs


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(BUILD, tmp_path_factory.mktemp("random") / "state", devices=3) as made:
        yield made


def calls_of(program: Program, printed: tuple[str, ...], good: bool) -> Counter[str]:
    """How often each function was called, or succeeded, without _ptsz and _ptds."""
    names = (line.split()[1].partition("_pt")[0] for line in program.lines)
    told = zip(names, printed, strict=True)
    return Counter(
        n for n, code in told if n[:2] == "cu" and (code == "0" if good else code != "-1")
    )


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(least=30, most=120))
def test_the_oracle_agrees_with_itself(node: Node, program: Program) -> None:
    program = settled(node, program)
    result = run(node, program.lines, node.plain_library)
    counts = node.process(result.pid).counts
    called = calls_of(program, result.printed, good=False)
    good = calls_of(program, result.printed, good=True)
    counted = Counter[str]()
    for name, number in counts.calls.items():
        counted[name.partition("_pt")[0]] += number
    assert counted == called
    assert sum(counts.errors.values()) == (called - good).total()
    assert all(called[name] == good[name] for name in called if name.startswith(WHATEVER_COMES))

    launched = sum(good[n] for n in good if n.startswith(LAUNCHES)) - good["cuLaunchHostFunc"]
    activities = counts.activity.values()
    assert sum(a.launches + a.captured for a in activities) == launched + good[SEVERAL]
    assert sum(a.graph_launches for a in activities) <= good["cuGraphLaunch"]
    assert not any(a.failed_launches + a.failed_graph_launches for a in activities)
    for device, activity in counts.activity.items():
        kinds = {k: m for (d, k), m in counts.memory.items() if d == device and k != "host"}
        live = sum(m.live_bytes for m in kinds.values())
        assert 0 <= live == activity.live_bytes <= activity.peak_bytes
        assert sum(activity.allocation_sizes) == sum(m.allocations for m in kinds.values())
        assert activity.granule_bytes % (2 << 20) == 0
        in_granules = sum(m.live_bytes for k, m in kinds.items() if k != "managed")
        assert bool(activity.granule_bytes) == bool(in_granules)
        assert activity.granule_bytes >= kinds["virtual"].live_bytes if "virtual" in kinds else 1
    assert all(m.frees + m.releases <= m.allocations for m in counts.memory.values())


def test_programs_are_mostly_valid_and_do_everything(node: Node) -> None:
    """What the comparison with the probes needs is in them, often."""
    seen: Counter[str] = Counter()
    examples = 150

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs(least=60, most=120))
    def look(program: Program) -> None:
        result = run(node, program.lines, node.plain_library)
        counts = node.process(result.pid).counts
        activities = counts.activity.values()
        seen["programs"] += 1
        seen["lines"] += len(program.lines)
        seen["passed over"] += result.printed.count("-1")
        seen["failed"] += sum(counts.errors.values())
        seen["failed on entry"] += sum(a.failed_launches for a in activities)
        seen["captures on several devices"] += sum(a.captured > 0 for a in activities) > 1
        seen["graphs on several devices"] += sum(a.graph_kernels > 0 for a in activities) > 1
        seen["graph launches"] += sum(a.graph_launches for a in activities) > 1
        seen["implicit frees"] += any(m.releases for m in counts.memory.values())
        seen["captured copies"] += any(a.captured_copied_bytes for a in activities)
        for word in ("Child", "Clone", "ExecUpdate", "SetEnabled", "ToGraph", "GreenCtxStream"):
            seen[word] += any(word in line for line in program.lines)

    look()
    # Hypothesis tries programs of few steps too, and repeats parts.
    assert seen["lines"] > 40 * seen["programs"]
    assert seen["passed over"] < seen["lines"] / 50
    assert seen["failed"] < seen["lines"] / 10
    assert seen["failed on entry"] < seen["lines"] / 500
    often = [name for name in seen if seen[name] < seen["programs"] / 20]
    assert set(often) <= {"passed over", "failed", "failed on entry"}, seen
