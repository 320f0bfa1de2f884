"""One step: its gradient whole or in micro-batches, what it says of the student's output, and whose labels it blames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from stages.distillation.batch import Batch
from stages.distillation.dataset import LabelDataset
from stages.distillation.losses import LossConfig, OutputScale
from stages.distillation.order import SampleRequest
from stages.distillation.step import Learner, gradient_step, not_finite
from stages.distillation.student import Student, StudentOutput, load_student, prepare_images
from tests.training_run import CONTEXT_PX, write_run, write_student


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Three contexts, the second of which is narrower than the grid."""
    run = write_run(tmp_path_factory.mktemp("step") / "run", images=3, extents=((CONTEXT_PX, CONTEXT_PX), (CONTEXT_PX, 36)))
    dataset = LabelDataset(run, ("primary",))
    return dataset.collate([dataset[SampleRequest(i, 0, False)] for i in range(3)]).to("cpu")


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    student = load_student(str(write_student(tmp_path / "student")), CONTEXT_PX)
    optimizer = torch.optim.SGD(student.network.parameters(), lr=0.1)
    return Learner(student=student, optimizer=optimizer, loss=LossConfig(feature_weight=0.0))


def test_the_output_is_described_over_the_valid_pixels_alone(learner: Learner, batch: Batch) -> None:
    outcome, disparity = gradient_step(learner, [batch], max_gradient_norm=1.0, bf16=False)
    valid, values = batch.valid.numpy(), disparity.numpy().astype(np.float64)
    sparse = np.sort(values[:, ::4, ::4][valid[:, ::4, ::4]])
    assert outcome.output_median == pytest.approx(sparse[(len(sparse) - 1) // 2])
    assert outcome.output_spread == pytest.approx(np.abs(values[valid] - outcome.output_median).mean(), rel=1e-5)
    assert outcome.output_zero_share == 0
    assert outcome.masked_share == pytest.approx(3 / (48 * 48 + 48 * 36 + 48 * 48), rel=1e-3)  # one pixel of each context
    assert outcome.output_spread > 0


class _InFloat64(Student):
    """Where sums in another order differ by 1e-16 and turn no sign: what is left of a difference is a mistake."""

    def forward(self, images: UInt8[Tensor, "b 3 c c"], *, bf16: bool = False, with_tokens: bool = False) -> StudentOutput:
        disparity = self.network(pixel_values=prepare_images(images, self.mean, self.std).double()).predicted_depth
        return StudentOutput(disparity=disparity, tokens=None, grid=(0, 0))


@pytest.mark.parametrize("split", [(1, 1, 1, 1), (3, 1), (1, 2, 1)])
def test_micro_batches_leave_the_gradient_of_the_whole_batch(tmp_path: Path, split: tuple[int, ...]) -> None:
    """One context is narrow, one has no valid pixel, one no valid patch: the micro-batches are of unequal weight."""
    run = write_run(tmp_path / "run", images=4, extents=((CONTEXT_PX, CONTEXT_PX), (CONTEXT_PX, 36)))
    dataset = LabelDataset(run, ("primary",))
    whole = _without_some_labels(dataset.collate([dataset[SampleRequest(i, 0, False)] for i in range(4)]).to("cpu"))
    checkpoint = write_student(tmp_path / "student")
    gradients, outcomes = [], []
    for sizes in ((4,), split):
        learner = _learner_in_float64(checkpoint)
        outcome, _ = gradient_step(learner, _parts(whole, sizes), max_gradient_norm=torch.inf, bf16=False)
        gradients.append([p.grad for p in learner.trained() if p.grad is not None])
        outcomes.append(outcome)
    # The library interpolates the position embeddings of the narrow context in float32: 3e-8. All else agrees to 1e-10.
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-7)
    for term in ("total", "shared_context", "local_global", "gradient", "anchor", "gradient_norm"):
        one, other = (getattr(outcome, term) for outcome in outcomes)
        assert one == pytest.approx(other, rel=1e-6), term  # they are told in float32
        assert one > 0, term


def _learner_in_float64(checkpoint: Path) -> Learner:
    """Every term but L_feat, whose tokens are float32 by nature."""
    loaded = load_student(str(checkpoint), CONTEXT_PX)
    network = loaded.network.double()
    del network.head.forward  # type: ignore[union-attr]  # it casts to float32
    return Learner(
        student=_InFloat64(network=network, mean=loaded.mean, std=loaded.std, preprocessor="", patch_px=loaded.patch_px),
        optimizer=torch.optim.SGD(network.parameters()),
        loss=LossConfig(feature_weight=0.0, anchor_weight=0.1, trim_fraction=0.1),
        anchor=OutputScale(level=torch.tensor(0.2).double(), spread=torch.tensor(0.1).double()),
    )


def _without_some_labels(batch: Batch) -> Batch:
    valid = batch.valid.clone()
    valid[2] = False
    patches = tuple(
        dataclasses.replace(p, label=p.label.double(), valid=p.valid & (p.sample != 3)[:, None, None]) for p in batch.patches
    )
    return dataclasses.replace(batch, valid=valid, label=batch.label.double(), patches=patches)


def _parts(batch: Batch, sizes: tuple[int, ...]) -> list[Batch]:
    return [batch.samples(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]


def test_a_batch_without_a_valid_pixel_says_nothing_and_moves_nothing(learner: Learner, batch: Batch) -> None:
    patches = tuple(dataclasses.replace(group, valid=torch.zeros_like(group.valid)) for group in batch.patches)
    empty = dataclasses.replace(batch, valid=torch.zeros_like(batch.valid), patches=patches)
    outcome, _ = gradient_step(learner, [empty], max_gradient_norm=1.0, bf16=False)
    assert outcome.masked_share == 1
    assert set(dataclasses.astuple(dataclasses.replace(outcome, masked_share=0.0))) == {0.0}


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
