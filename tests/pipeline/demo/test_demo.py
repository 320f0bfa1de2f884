"""The demo, small: all of the road with the shipped checkpoints, and again without doing anything twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import manifests
from pipeline.demo.command import FIRST_PHOTO_SEED, DemoConfig
from pipeline.label.config import DEMO_CHECKPOINTS
from stages.evaluation.rendered import HELD_OUT_SEED

_SMALL = ["--scenes", "10", "--steps", "4", "--held-out", "3", "--examples", "1", "--workers", "1"]


def _demo(output: Path) -> str:
    command = [sys.executable, "-m", "pipeline.demo", "--output", str(output), *_SMALL]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.campaign
def test_the_demo_walks_the_whole_road_and_a_second_time_only_looks(tmp_path: Path):
    table = _demo(tmp_path / "demo")
    for row in ("primary teacher", "assistant teacher", "student before", "student after"):
        assert row in table
    assert manifests.verify(tmp_path / "demo/run") == []
    assert [column.labelled for column in manifests.summarize(tmp_path / "demo/run").columns] == [10, 10, 10]
    scores = json.loads((tmp_path / "demo/scores.json").read_text())["results"]
    assert [result["seed"] for result in scores["student after"]] == [HELD_OUT_SEED + i for i in range(3)]
    assert (tmp_path / "demo/report.html").stat().st_size > 100_000
    made = [path for path in (tmp_path / "demo").rglob("*") if path.is_file() and path.name != "report.html"]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert _demo(tmp_path / "demo").splitlines()[-8:-2] == table.splitlines()[-8:-2]
    assert {path: path.stat().st_mtime_ns for path in made} == before


def test_photographs_teachers_scenes_and_held_out_scenes_share_no_seed():
    last_of_the_teachers = max(json.loads(path.read_text())["scenes"] for path in DEMO_CHECKPOINTS.glob("*/training.json"))
    assert last_of_the_teachers <= FIRST_PHOTO_SEED
    assert FIRST_PHOTO_SEED + DemoConfig().scenes <= HELD_OUT_SEED


def test_the_shipped_checkpoints_stay_small():
    assert sum(path.stat().st_size for path in DEMO_CHECKPOINTS.rglob("*") if path.is_file()) <= 16_000_000


@pytest.mark.parametrize("name", ["primary", "assistant", "student"])
def test_every_checkpoint_says_how_it_was_made(name: str):
    record = json.loads((DEMO_CHECKPOINTS / name / "training.json").read_text())
    assert {"which", "seed", "scenes", "steps", "minutes"} <= set(record)
    assert record["which"] == name
