"""Each diagnosis, from the process to the page: on in its scene, in no other, and off again."""

from __future__ import annotations

import time
from pathlib import Path

from gpubpf.diagnosis import DIAGNOSES, INPUTS
from tests.conftest import Metrics, eventually
from tests.fakegpu.scenes import SCENES, WELL, Player, diagnosed, expected, on, played

BOTH = ("gpubpf_job_diagnosis", "gpubpf_gpu_diagnosis")


def test_each_diagnosis_has_a_scene() -> None:
    assert SCENES.keys() - {WELL} == DIAGNOSES.keys()


def test_each_in_its_scene_and_in_no_other_and_off_again(tmp_path: Path) -> None:
    def all_are(metrics: Metrics, wanted: dict[str, set[str]]) -> bool:
        return all(on(metrics, name) == wanted for name in BOTH)

    with played(tmp_path) as (agent, players):
        seen = eventually(agent.metrics, lambda metrics: all_are(metrics, expected()), 40)
        assert {name: on(seen, name) for name in BOTH} == dict.fromkeys(BOTH, expected())
        for name in BOTH:  # each is answered everywhere
            answered = {job: {*row} for job, row in diagnosed(seen, name).items()}
            assert answered == {job: {*DIAGNOSES} for job in SCENES}
        for name in ("gpubpf_job_diagnosis_input", "gpubpf_gpu_diagnosis_input"):
            given = [dict(labels)["input"] for sample, labels in seen if sample == name]
            assert given.count("utilization_ratio") == len(SCENES)
            assert {*given} == {*INPUTS}
        for _ in range(10):
            time.sleep(0.2)
            assert on(agent.metrics()) == expected()

        for player in players.values():
            player.recover()
        well = {job: set[str]() for job in SCENES}
        seen = eventually(agent.metrics, lambda metrics: all_are(metrics, well), 40)
        assert {name: on(seen, name) for name in BOTH} == dict.fromkeys(BOTH, well)
    assert all(isinstance(player, Player) and not player.is_alive() for player in players.values())
