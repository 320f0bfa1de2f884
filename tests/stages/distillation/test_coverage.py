"""Every image of a run is counted once: in use, or left out for a reason that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests import FailureRecord, Reason, failure_path, to_json
from stages.distillation.dataset import LabelDataset
from tests.training_run import write_run

TEACHERS = ("primary", "assistant")


def _fail(run: Path, column: str, number: int) -> None:
    reason = Reason(kind="out_of_memory", message="for the test")
    record = FailureRecord(column=column, part=f"scenes.{number:05d}", attempts=3, problem=reason, images=3)
    failure_path(run, column, record.part).write_bytes(to_json(record))


def test_a_finished_run_is_finished_though_images_were_rejected(tmp_path: Path) -> None:
    rejected = {"images": [2], "primary": [2], "assistant": [2, 7]}
    dataset = LabelDataset(write_run(tmp_path / "run", rejected=rejected), TEACHERS)
    assert not dataset.coverage.unfinished
    assert str(dataset.coverage) == (
        "10 of 12 images are in use; left out: 1 rejected in 'images' (1 damaged), 1 rejected in 'assistant' (1 damaged)"
    )
    sound = LabelDataset(write_run(tmp_path / "sound", contexts_per_image=2), TEACHERS)
    assert str(sound.coverage) == "12 of 12 images are in use"


def test_what_is_failed_or_not_yet_labelled_is_counted_by_the_column_that_lacks_it(tmp_path: Path) -> None:
    without = [("images", 3), ("primary", 3), ("assistant", 3), ("assistant", 2), ("primary", 1)]
    run = write_run(tmp_path / "run", images=12, part_size=3, without=without, rejected={"primary": [1]})
    _fail(run, "assistant", 2)
    _fail(run, "assistant", 0)  # of an attempt before the one that succeeded
    coverage = LabelDataset(run, TEACHERS).coverage
    assert coverage.unfinished
    assert str(coverage) == (
        "2 of 12 images are in use; left out: 1 rejected in 'primary' (1 damaged), 3 failed in 'assistant', "
        "3 not yet labelled in 'primary', 3 not yet labelled in 'images'"
    )
    assert LabelDataset(run, ("assistant",)).coverage.pending == {"images": 3}


def test_parts_beyond_those_asked_for_are_newer_and_do_not_make_a_run_unfinished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    coverage = LabelDataset(run, TEACHERS, only_parts=["scenes.00000"]).coverage
    assert (coverage.used, coverage.newer, coverage.unfinished) == (5, 7, False)
    assert str(coverage) == "5 of 12 images are in use; left out: 7 in parts labelled since the training began"


def test_where_nothing_can_be_used_the_reasons_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=3, rejected={"assistant": [0, 1, 2]})
    with pytest.raises(ValueError, match=r"no image .* all columns: 0 of 3 .*: 3 rejected in 'assistant' \(3 damaged\)$"):
        LabelDataset(run, TEACHERS)
