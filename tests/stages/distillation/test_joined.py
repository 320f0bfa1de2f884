"""A part of the images of one run or several: which they are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.distillation.dataset import LabelDataset
from stages.distillation.joined import JoinedLabels
from stages.distillation.order import SampleRequest
from tests.training_run import write_run

TEACHERS = ("primary", "assistant")


def _keys(runs: list[Path], images: int | None) -> list[str]:
    dataset = JoinedLabels([LabelDataset(run, TEACHERS) for run in runs], images)
    assert [dataset[SampleRequest(i, 0, False)].key for i in range(len(dataset))] == [
        dataset.key_of(i) for i in range(len(dataset))
    ]
    return [dataset.key_of(i) for i in range(len(dataset))]


def test_fewer_images_are_a_part_of_more_and_keep_their_order(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=13, rejected={"primary": [3]})
    every, six, three = (_keys([run], images) for images in (None, 6, 3))
    assert (len(every), len(six), len(three)) == (12, 6, 3)
    assert six == [key for key in every if key in six]
    assert three == [key for key in six if key in three]
    assert _keys([run], 12) == every
    dataset = JoinedLabels([LabelDataset(run, TEACHERS)], 6)
    assert str(dataset.runs[0].coverage) == (
        "6 of 13 images are in use; left out: 1 rejected in 'primary' (1 damaged), 6 are more than was asked for"
    )


def test_all_contexts_of_a_chosen_image_are_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=8, contexts_per_image=2)
    keys = _keys([run], 3)
    images = {key.partition("#")[0] for key in keys}
    assert (len(keys), len(images)) == (6, 3)


def test_of_several_runs_the_images_are_chosen_together(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, images=8) for name in ("one", "other")]
    assert len(_keys(runs, 5)) == 5
    assert set(_keys(runs, 5)) < set(_keys(runs, 9))


def test_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=8)
    with pytest.raises(ValueError, match=r"images is 9, but 8 are labelled in all columns of the runs; label more, or ask for"):
        _keys([run], 9)
