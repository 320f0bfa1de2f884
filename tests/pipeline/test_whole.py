"""One expected end over several steps, and progress that moves with each image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import progress, tally
from pipeline.demo.config import DemoConfig
from pipeline.demo.plan import LABEL, RENDER, REPORT, SCORE, TRAIN, expected_steps
from pipeline.label.command import label
from pipeline.tally import Tally
from pipeline.whole import Whole, note
from tests.conftest import label_config
from tests.pipeline.label.test_growth import write_photos


class _Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_what_is_left_is_as_expected_at_first_and_then_as_the_pace_is():
    clock = _Time()
    whole = Whole("demo", {"a": 60.0, "b": 120.0}, clock=clock)
    assert note(0.5) == ""
    with whole.step("a"):
        assert note(0) == "demo 3 min left"
        clock.now_s += 10
        assert whole.left_s() == pytest.approx(170)  # nothing has been done yet: a start, not a pace
        clock.now_s += 50
        note(0.5)  # twice as long as expected
        assert 60 + 120 * 1.4 < whole.left_s() < 60 + 120 * 2
        clock.now_s += 60
    assert note(1) == ""
    with whole.step("b"):
        assert 120 * 1.5 < whole.left_s() < 120 * 2
        clock.now_s += 1000
        assert whole.left_s() == 0.0
        note(0.5)
        assert whole.left_s() == pytest.approx(1000)


def test_a_step_that_is_done_takes_nothing():
    whole = Whole("demo", {"a": 0.0, "b": 60.0}, clock=(clock := _Time()))
    with whole.step("a"):
        clock.now_s += 1
    assert whole.left_s() == pytest.approx(64)


def test_the_demo_counts_what_is_not_there_yet(tmp_path: Path):
    config = DemoConfig(output=tmp_path / "demo")
    new = expected_steps(config, 1.0)
    assert list(new.seconds) == [RENDER, LABEL, TRAIN, SCORE, REPORT]
    assert all(seconds > 0 for seconds in new.seconds.values())
    (config.output / "photos").mkdir(parents=True)
    (config.output / "photos/scenes-500000-48.tar").write_bytes(b"")
    begun = expected_steps(config, 1.0)
    assert begun.seconds[RENDER] == pytest.approx(new.seconds[RENDER] * 144 / 192)
    (config.output / "student").mkdir()
    for name in ("student/model.safetensors", "scores.json"):
        (config.output / name).write_bytes(b"")
    lines = expected_steps(config, 1.0).describe().splitlines()
    assert re.fullmatch(r"The demo takes about \d+ (s|min) on this machine \(\d+ cores\). Interrupted, it resumes.", lines[0])
    assert [line.split()[-1] for line in lines[3:5]] == ["done", "done"]


def test_images_are_shown_as_they_are_done_before_their_part_is_committed(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    photos = write_photos(tmp_path / "photos", range(4))
    config = label_config(tmp_path / "run", (str(photos),), checkpoints, part_size=2, batch_size=1)
    assert not label(config).failures
    lines = capsys.readouterr().err.splitlines()
    for column in ("images", "primary", "assistant"):
        shown = [int(line.split()[2].split("/")[0]) for line in lines if line.startswith(f"label {column}: ")]
        assert shown == sorted(set(shown))  # a line for what has changed alone
        assert {1, 2, 3, 4} <= set(shown)


def test_off_a_terminal_a_tally_says_a_line_now_and_then_and_one_at_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with Tally("train", 100, "img", initial=40) as one:
        for _ in range(60):
            one.done(loss="0.5")
    assert capsys.readouterr().err == "train: 100/100 img; loss=0.5\n"
    monkeypatch.setattr(tally, "LINE_EVERY_S", -1.0)
    with Whole("demo", {"a": 60.0, "b": 600.0}).step("a"), Tally("score", 2, "img") as one:
        one.done()
    assert re.fullmatch(r"score: 1/2 img, .* left; demo .* left\n", capsys.readouterr().err)
    with Tally("quiet", 2, "img", show=False) as one:
        one.done(2)
    assert capsys.readouterr().err == ""
