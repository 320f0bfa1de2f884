"""One optimisation step, without the update: the loss, its gradients, and what the student's raw output looks like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.distillation.dataset import Batch
from stages.distillation.losses import LossConfig, cross_context_loss
from stages.distillation.student import Student


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """A step's loss terms, the norm of its gradient before clipping, and the student's map over valid pixels.

    Every normalised loss ignores the map's scale and shift: only these numbers show a student that drifts or dies.
    """

    total: float
    shared_context: float
    local_global: float
    gradient: float
    gradient_norm: float
    output_median: float
    output_spread: float
    output_zero_share: float


def backward_step(student: Student, batch: Batch, loss: LossConfig, *, max_gradient_norm: float, bf16: bool) -> StepOutcome:
    """Compute the loss of a batch and leave its gradient, clipped, in the student's parameters."""
    disparity = student.disparity(batch.image, bf16=bf16)
    terms = cross_context_loss(disparity, batch.label, batch.valid, batch.patch_label, batch.patch_valid, batch.patch_box, loss)
    terms.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.network.parameters(), max_gradient_norm)
    losses = (terms.total, terms.shared_context, terms.local_global, terms.gradient)
    values = torch.stack([x.detach().float() for x in (*losses, norm, *_output_statistics(disparity.detach(), batch))])
    return StepOutcome(**dict(zip(StepOutcome.__dataclass_fields__, values.tolist(), strict=True)))  # one wait for the device


def _output_statistics(disparity: Float[Tensor, "b c c"], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Median, mean absolute deviation from it, and share of exact zeros, over the valid pixels of the batch."""
    shown = torch.where(batch.valid, disparity, torch.nan)
    median = shown.nanmedian()
    return median, (shown - median).abs().nanmean(), (shown == 0).sum() / batch.valid.sum()
