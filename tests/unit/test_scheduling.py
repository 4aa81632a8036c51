"""tests.scheduling: whatever runs at the same time may, everything runs, and no worker stays."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from tests.scheduling import BESIDE, NODE, OWN, Lanes

COUNTING = "tests/deploy/test_serve.py::test_{}"
SEEN_BY_NONE = "tests/unit/test_owners.py::test_{}"
FILES = ("tests/bpf/test_late.py::test_{}", "tests/unit/test_fakegpu.py::test_{}")


class Worker:
    """As xdist's: it runs a test only when it has the next, too, or when none will come."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.queue: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def runs(self) -> bool:
        return len(self.queue) > (not self.shutting_down)


def test_what_each_is() -> None:
    for name in (COUNTING, *FILES):
        assert not BESIDE.match(name)
    assert BESIDE.match(SEEN_BY_NONE)
    assert all(map(OWN.match, FILES))
    assert not OWN.match(SEEN_BY_NONE)
    assert not OWN.match(COUNTING)
    assert not OWN.match("tests/bpf/test_lifecycle.py::test_a_burst_of_short_processes")


@given(
    sizes=st.tuples(*[st.integers(0, 6)] * 4).filter(any),
    workers=st.integers(1, 3),
    crashes=st.integers(0, 3),
    data=st.data(),
)
def test_any_suite(sizes: tuple[int, ...], workers: int, crashes: int, data: st.DataObject) -> None:
    """Where a worker dies another comes, which collects before it is given tests."""
    names = (COUNTING, SEEN_BY_NONE, *FILES)
    tests = [name.format(i) for name, size in zip(names, sizes, strict=True) for i in range(size)]
    options = SimpleNamespace(tx=["popen"] * workers, loadscopereorder=True)
    config = SimpleNamespace(option=options, getvalue=options.__dict__.__getitem__)
    lanes = Lanes(config)
    nodes = [Worker(f"gw{i}") for i in range(workers)]
    for node in nodes:
        lanes.add_node(node)
        lanes.add_node_collection(node, tests)
    lanes.schedule()
    done: list[str] = []
    coming: list[Worker] = []
    while (running := [node for node in nodes if node.runs]) or coming:
        now = {lanes._split_scope(tests[node.queue[0]]) for node in running}
        kinds = [lanes._split_scope(tests[node.queue[0]]) for node in running]
        assert kinds.count(NODE) <= 1
        assert NODE not in now or not any(OWN.match(f"{scope}::") for scope in now)
        node = data.draw(st.sampled_from(running + coming))
        if node in coming:
            coming.remove(node)
            nodes.append(node)
            lanes.add_node_collection(node, tests)
            lanes.schedule()
            continue
        index = node.queue.pop(0)
        done.append(tests[index])
        if crashes and data.draw(st.booleans(), label="crashes"):
            crashes -= 1
            nodes.remove(node)
            assert lanes.remove_node(node) == tests[index]
            coming.append(Worker(f"gw{workers + crashes}"))
            lanes.add_node(coming[-1])
        else:
            lanes.mark_test_complete(node, index)
    assert sorted(done) == sorted(tests)
    assert all(node.shutting_down for node in nodes)
    assert lanes.tests_finished
