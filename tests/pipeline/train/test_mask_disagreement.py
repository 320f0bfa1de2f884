"""A training that leaves out what its teachers do not agree on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from tests.pipeline.train.trainings import metrics


def test_a_training_in_which_little_is_left_goes_on_with_finite_losses_and_says_what_share_is_masked(
    small: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(small, output=tmp_path / "out", steps=3, mask_disagreement=1e-7)
    train(config)
    for line in metrics(tmp_path / "out"):
        assert np.isfinite(line["total"])
        assert line["masked_share"] > 0.2


@pytest.mark.parametrize(("columns", "most"), [(("primary",), 1.0), (("primary", "assistant"), 0.0)])
def test_one_column_or_a_bound_of_0_is_refused(small: TrainConfig, columns: tuple[str, ...], most: float) -> None:
    (problem,) = dataclasses.replace(small, columns=columns, mask_disagreement=most).problems()
    assert problem.startswith("mask_disagreement: ")
