"""Which tests of the whole suite may run at the same time (`--numprocesses`).

Most count the whole node: an agent sees what any other test does. These run one after the other.
BESIDE them run those that nothing can see. OWN ones would be seen, but see only themselves: when
no test counts the node any more, they run beside each other, each file on one worker.
"""

from __future__ import annotations

import re
from typing import Any

from xdist.scheduler import LoadScopeScheduling

NODE = "node"
# These need no agent, and run nothing that maps a libcuda. (Of Alertmanager's one has an agent, and
# one looks at the time between two notifications.)
BESIDE = re.compile(
    r"tests/unit/test_(?!fake|gpu_checks|libraries|nvml|cli|symbols|elf)"
    r"|tests/deploy/test_(rules|descriptions|chart|documents)\.py"
    r"|tests/deploy/test_alertmanager\.py::(?!test_from_the_process|test_what_comes_and_goes)"
)
# These probe a library of their own, or none; but they run what maps one. (Two make as many
# processes as the machine can.)
OWN = re.compile(
    r"tests/bpf/test_(exact|late|lifecycle|limits|random_\w+|without_attribution)\.py::"
    r"(?!test_ten_thousand|test_a_burst)"
    r"|tests/(clients|unit)/test_(fake|exact_clients|nvml_)\w*\.py::"
)


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Not --dist=loadgroup: xdist 3.8 writes the group where pytest 9.2 doesn't read it.

    A worker runs a test only when it has the next, too, or when none will come."""

    def _split_scope(self, nodeid: str) -> str:
        """Tests with the same answer run one after the other on one worker."""
        if BESIDE.match(nodeid):
            return nodeid
        return nodeid.partition("::")[0] if OWN.match(nodeid) else NODE

    def _assign_work_unit(self, node: Any) -> None:
        """OWN ones come last, and to other workers than that of NODE after its last test. Files of
        few tests come first: theirs take long."""
        own = [scope for scope in self.workqueue if OWN.match(f"{scope}::")]
        for scope in sorted(own, key=lambda scope: len(self.workqueue[scope])):
            self.workqueue.move_to_end(scope)
        if len(own) < len(self.workqueue) or not self._counts_the_node(node):
            super()._assign_work_unit(node)

    def _counts_the_node(self, but: Any) -> bool:
        """Whether another worker than this does."""
        return any(
            not all(units.get(NODE, {}).values())
            for worker, units in self.assigned_work.items()
            if worker is not but
        )

    def _reschedule(self, node: Any) -> None:
        """Until it has enough: one test alone would never be run."""
        left = None
        while node in self.registered_collections and left != len(self.workqueue):
            left = len(self.workqueue)
            super()._reschedule(node)

    def remove_node(self, node: Any) -> str | None:
        """A worker died: the rest of its tests is others'. xdist's own gives them what was done,
        too, of which they would never say that it is."""
        rest = {
            scope: {test: False for test, done in unit.items() if not done}
            for scope, unit in self.assigned_work.pop(node).items()
        }
        crashed = next((test for unit in rest.values() for test in unit), None)
        for scope, unit in rest.items():
            unit.pop(crashed or "", None)
            if unit:
                self.workqueue.setdefault(scope, {}).update(unit)
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        counting = self.assigned_work[node].get(NODE)
        if counting and all(counting.values()):
            for other in self.nodes:  # who waits for it
                self._reschedule(other)
