"""Several runs as one dataset: every sample of each once, told apart in locks and messages, and only runs that fit."""

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
    assert (len(joined), joined.part_sizes) == (11, (5, 2, 4))
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
