"""One step: what it says of the student's output, and whose labels it blames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.distillation.dataset import Batch, LabelDataset
from stages.distillation.losses import LossConfig
from stages.distillation.order import SampleRequest
from stages.distillation.step import Learner, gradient_step, not_finite
from stages.distillation.student import load_student
from tests.training_run import CONTEXT_PX, write_run, write_student


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Three contexts, the second of which is narrower than the grid."""
    run = write_run(tmp_path_factory.mktemp("step") / "run", images=3, extents=((CONTEXT_PX, CONTEXT_PX), (CONTEXT_PX, 36)))
    dataset = LabelDataset(run, ("primary",))
    return dataset.collate([dataset[SampleRequest(i, 0, False)] for i in range(3)])


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    student = load_student(str(write_student(tmp_path / "student")), CONTEXT_PX, start="fresh-head")
    optimizer = torch.optim.SGD(student.network.parameters(), lr=0.1)
    return Learner(student=student, optimizer=optimizer, loss=LossConfig(feature_weight=0.0))


def test_the_output_is_described_over_the_valid_pixels_alone(learner: Learner, batch: Batch) -> None:
    outcome, disparity = gradient_step(learner, [batch], max_gradient_norm=1.0, bf16=False)
    valid, values = batch.valid.numpy(), disparity.numpy().astype(np.float64)
    sparse = np.sort(values[:, ::4, ::4][valid[:, ::4, ::4]])
    assert outcome.output_median == pytest.approx(sparse[(len(sparse) - 1) // 2])
    assert outcome.output_spread == pytest.approx(np.abs(values[valid] - outcome.output_median).mean(), rel=1e-5)
    assert outcome.output_zero_share == 0
    assert outcome.output_spread > 0


def test_a_batch_without_a_valid_pixel_says_nothing_and_moves_nothing(learner: Learner, batch: Batch) -> None:
    masks = {"valid": torch.zeros_like(batch.valid), "patch_valid": torch.zeros_like(batch.patch_valid)}
    outcome, _ = gradient_step(learner, [dataclasses.replace(batch, **masks)], max_gradient_norm=1.0, bf16=False)
    assert set(dataclasses.astuple(outcome)) == {0.0}


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told(learner: Learner, batch: Batch) -> None:
    outcome, _ = gradient_step(learner, [batch], max_gradient_norm=0.01, bf16=False)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in learner.trained() if p.grad is not None]))
    assert outcome.gradient_norm > 0.1
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_only_the_samples_whose_own_loss_is_not_finite_are_blamed(learner: Learner, batch: Batch) -> None:
    label = batch.label.clone()
    label[1, 5, 5] = torch.inf  # a valid pixel
    raw = dataclasses.replace(learner, loss=LossConfig(normalization_shared="none", feature_weight=0.0, gradient_weight=0.0))
    assert not_finite(raw, [dataclasses.replace(batch, label=label)]) == [batch.keys[1]]
    assert not_finite(raw, [batch]) == []
