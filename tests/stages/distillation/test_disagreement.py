"""Pixels in which the teachers contradict each other have no label, whatever scale and shift each has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.distillation.dataset import LabelDataset
from stages.distillation.disagreement import agreeing_pixels
from stages.distillation.order import SampleRequest
from stages.label_store import Label
from tests.training_run import write_run


def _label(values: np.ndarray, valid: np.ndarray | None = None) -> Label:
    return Label(values=values.astype(np.float32), valid=np.ones(values.shape, bool) if valid is None else valid)


def _maps() -> tuple[np.ndarray, np.ndarray]:
    """One scene by two teachers of other scales and shifts, who contradict each other in a square."""
    first = np.add.outer(np.arange(24.0), np.arange(32.0))
    second = 5 * first - 40
    second[4:8, 10:16] += 5 * 60
    return first, second


def test_exactly_the_square_in_which_they_contradict_each_other_is_left_out() -> None:
    first, second = _maps()
    expected = np.ones(first.shape, bool)
    expected[4:8, 10:16] = False
    np.testing.assert_array_equal(agreeing_pixels([_label(first), _label(second)], 1.5), expected)
    np.testing.assert_array_equal(agreeing_pixels([_label(-3 * first + 2), _label(-3 * second)], 1.5), expected)
    assert agreeing_pixels([_label(first), _label(second)], 100).all()


def test_pixels_without_a_label_in_one_of_them_are_not_compared() -> None:
    first, second = _maps()
    unknown = np.zeros(first.shape, bool)
    unknown[4:8, 10:16] = True
    second[unknown] = np.nan
    assert agreeing_pixels([_label(first), _label(second, ~unknown)], 0.01).all()


def test_a_dataset_leaves_them_out_of_contexts_and_patches_of_every_teacher(tmp_path: Path) -> None:
    """The run's teachers differ in scale and shift alone: nothing is left out, but for a bound below rounding."""
    run = write_run(tmp_path / "run", images=4)
    teachers = ("primary", "assistant")
    every = LabelDataset(run, teachers)
    some, none = (LabelDataset(run, teachers, mask_disagreement=most) for most in (1.0, 1e-7))
    for teacher in (0, 1, -1):
        samples = [dataset[SampleRequest(1, teacher, False)] for dataset in (every, some, none)]
        for view in range(1 + len(samples[0].patches)):
            whole, same, less = ([sample.context, *sample.patches][view] for sample in samples)
            np.testing.assert_array_equal(whole.values, same.values)
            np.testing.assert_array_equal(whole.valid, same.valid)
            assert less.valid.sum() < whole.valid.sum()
