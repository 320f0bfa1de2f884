"""A run that grows and is killed at random ends as one that was made at once."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

import manifests
from tests.faults.processes import Zygote, differences
from tests.faults.steps import Fault, Step
from tests.pipeline.label.test_growth import arguments, write_photos

_KILLS = [4, 3, 3]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(1, 8))])
def test_three_teachers_and_two_folders_added_one_by_one_with_ten_kills(
    tmp_path: Path, checkpoints: Path, zygote: Zygote, seed: int
):
    first, second = write_photos(tmp_path / "first", range(2)), write_photos(tmp_path / "second", range(2, 4))
    run, chance = tmp_path / "run", random.Random(seed)
    all_names = ["primary", "assistant", "third"]
    growth = [((first,), all_names[:1]), ((first, second), all_names[:2]), ((), all_names)]
    for kills, (sources, names) in zip(_KILLS, growth, strict=True):
        command = arguments(run, checkpoints, *sources, names=names)
        for _ in range(kills):
            ended = zygote.run(command, Fault(Step("*", f"{run}/"), "kill", nth=chance.randrange(1, 60)))
            assert ended.status == -signal.SIGKILL, ended.output
            if (run / "run.json").exists():
                assert manifests.verify(run, deep=True) == []
        ended = zygote.run(command)
        assert ended.status == 0, ended.output
    at_once = tmp_path / "at once"
    assert zygote.run(arguments(at_once, checkpoints, first, second, names=all_names)).status == 0
    assert differences(run, at_once) == []
