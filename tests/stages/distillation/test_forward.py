"""A batch's forward pass: each picture at its own aspect, nothing of the padding seen, all samples in their order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from stages.distillation.batch import Batch
from stages.distillation.dataset import LabelDataset
from stages.distillation.features import feature_target_of
from stages.distillation.forward import forward_batch
from stages.distillation.order import SampleRequest
from stages.distillation.student import Student, load_student
from tests.stages.distillation.loss_references import patch_groups
from tests.stages.distillation.tiny_students import CONTEXT_PX as SIDES
from tests.stages.distillation.tiny_students import save_network
from tests.training_run import CONTEXT_PX, write_run

_EXTENTS = ((CONTEXT_PX, CONTEXT_PX), (CONTEXT_PX, 36), (30, CONTEXT_PX), (CONTEXT_PX, 36))


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """A square, two of one narrow shape, and one whose height the patches do not tile."""
    run = write_run(tmp_path_factory.mktemp("forward") / "run", images=4, extents=_EXTENTS)
    dataset = LabelDataset(run, ("primary",))
    return dataset.collate([dataset[SampleRequest(i, 0, False)] for i in range(4)]).to("cpu")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    torch.manual_seed(2)
    return load_student(str(save_network("depth_anything", tmp_path_factory.mktemp("student") / "s")), CONTEXT_PX)


@torch.no_grad()
def test_each_picture_is_seen_at_its_own_aspect_and_in_its_place(student: Student, batch: Batch) -> None:
    disparity, tokens = forward_batch(student, batch, batch.image, feature_target_of(student))
    assert tokens is not None
    assert tokens.valid is not None
    for i, (height, width) in enumerate(_EXTENTS):
        alone = student.forward(batch.image[i : i + 1, :, :height, :width], with_tokens=True)
        torch.testing.assert_close(disparity[i, :height, :width], alone.disparity[0])
        assert (disparity[i, height:] == 0).all()
        assert (disparity[i, :, width:] == 0).all()
        assert alone.tokens is not None
        assert tokens.valid[i].sum() == alone.tokens.shape[1]
        torch.testing.assert_close(tokens.student[i][tokens.valid[i]], alone.tokens[0])
        torch.testing.assert_close(tokens.frozen[i][tokens.valid[i]], alone.tokens[0])


@torch.no_grad()
def test_what_lies_beyond_a_picture_is_not_seen(student: Student, batch: Batch) -> None:
    noisy = batch.image.clone()
    for i, (height, width) in enumerate(_EXTENTS):
        noisy[i, :, height:], noisy[i, :, :, width:] = 200, 100
    assert not torch.equal(noisy, batch.image)
    assert torch.equal(forward_batch(student, batch, noisy)[0], forward_batch(student, batch, batch.image)[0])


@torch.no_grad()
def test_squares_go_through_the_network_together(student: Student, batch: Batch) -> None:
    square = (CONTEXT_PX, CONTEXT_PX)
    squares = dataclasses.replace(batch, sizes=(square,) * 4, extent=torch.tensor([square] * 4))
    assert torch.equal(forward_batch(student, squares, batch.image)[0], student.forward(batch.image).disparity)


def _narrow(side: int) -> Batch:
    """One picture that fills the left half of the grid."""
    grid = (1, side, side)
    return Batch(
        image=torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)),
        extent=torch.tensor([[side, side // 2]]),
        sizes=((side, side // 2),),
        label=torch.zeros(grid),
        valid=torch.zeros(grid, dtype=torch.bool),
        patches=patch_groups(torch.zeros(1, 0, 1, 1), torch.zeros(1, 0, 1, 1, dtype=torch.bool), torch.zeros(1, 0, 4)),
        keys=("a",),
        teacher="primary",
        color=torch.ones(1, 4),
    )


@pytest.mark.parametrize(
    ("family", "any_aspect"),
    [("dpt", False), ("dpt_dinov2", True), ("dpt_beit", False), ("dpt_swinv2", False), ("dpt_hybrid", False)],
)
@torch.no_grad()
def test_networks_that_are_not_known_to_take_any_aspect_are_shown_squares(
    tmp_path: Path, family: str, any_aspect: bool
) -> None:
    student = load_student(str(save_network(family, tmp_path / family)), SIDES[family])
    batch = _narrow(SIDES[family])
    assert student.takes_any_aspect is any_aspect
    disparity, _ = forward_batch(student, batch, batch.image)
    assert disparity.shape == batch.label.shape
    assert torch.equal(disparity, student.forward(batch.image).disparity) is not any_aspect
