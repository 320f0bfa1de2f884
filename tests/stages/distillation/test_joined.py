"""Several runs as one dataset: every sample of each once, told apart in locks and messages, and only runs that fit; or a part
of their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.distillation.dataset import LabelDataset
from stages.distillation.joined import JoinedLabels
from stages.distillation.order import SampleRequest
from tests.training_run import write_run

TEACHERS = ("primary", "assistant")


def test_the_samples_of_one_run_follow_those_of_the_other(tmp_path: Path) -> None:
    runs = [LabelDataset(write_run(tmp_path / name, images=n), TEACHERS) for name, n in (("a", 7), ("b", 4))]
    joined = JoinedLabels(runs)
    assert (len(joined), joined.places) == (11, (5, 2, 4))
    for index in range(11):
        run, within = (runs[0], index) if index < 7 else (runs[1], index - 7)
        ours, theirs = joined[SampleRequest(index, 1, True)], run[SampleRequest(within, 1, True)]
        assert ours.key == joined.key_of(index) == f"{run.run_dir.name}/{theirs.key}"
        assert np.array_equal(ours.image, theirs.image)
        assert np.array_equal(ours.context.values, theirs.context.values)
    assert set(joined.lock()) == {f"{i}/{name}" for i, run in enumerate(runs) for name in run.lock()}
    assert joined.digest() != JoinedLabels(runs[::-1]).digest()


def test_one_run_alone_is_what_it_is(tmp_path: Path) -> None:
    run = LabelDataset(write_run(tmp_path / "a", images=3), TEACHERS)
    joined = JoinedLabels([run])
    assert (joined.lock(), joined.digest(), joined.key_of(2)) == (run.lock(), run.digest(), run.key_of(2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contexts_per_image": 2}, r"their plans differ: contexts_per_image: found 2, expected 1"),
        (
            {"fingerprints": {"assistant": {"weights_sha256": "b"}}},
            r"column 'assistant' is not of the same teacher: weights_sha",
        ),
        (
            {"spaces": dict.fromkeys(TEACHERS, "depth_affine_invariant")},
            r"column 'primary' is not of the same teacher: depth_space: found .depth_affine.*, expected .dispar",
        ),
    ],
)
def test_runs_that_do_not_fit_are_refused_naming_the_field(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    one = LabelDataset(write_run(tmp_path / "a", images=3), TEACHERS)
    other = LabelDataset(write_run(tmp_path / "b", images=3, **changes), TEACHERS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"a and .*b cannot be trained on together: {words}"):
        JoinedLabels([one, other])


# --- a part of the images -------------------------------------------------------------------------------------------


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
    assert [len(_keys([run], images)) for images in (12, 13)] == [11, 12]  # it is among the first twelve
    assert six == [key for key in every if key in six]
    assert three == [key for key in six if key in three]
    assert _keys([run], 13) == every
    assert _keys([write_run(tmp_path / "sound", images=13)], 3) == three  # which they are is known before they are labelled
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
    with pytest.raises(ValueError, match=r"images is 9, but the parts that all columns of the runs have hold 8; label more"):
        _keys([run], 9)
