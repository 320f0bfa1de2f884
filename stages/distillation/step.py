"""What learns, and one optimisation step of it: loss and gradient of a batch, then the update.

A batch may be cut into micro-batches and over devices. Every term is a sum over its own maps divided by the number of maps in
the whole batch, so that the parts add up to the undivided batch exactly, and gradients are summed over devices once a step,
during its last backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stages.distillation.augmentation import color_jitter
from stages.distillation.batch import Batch
from stages.distillation.features import FeatureTarget
from stages.distillation.forward import forward_batch
from stages.distillation.gradient_sum import GradientSum
from stages.distillation.losses import (
    LossConfig,
    LossTerms,
    OutputScale,
    count_maps,
    cross_context_loss,
    output_scale,
)
from stages.distillation.student import Student

_SPARSE = 4


@dataclass(kw_only=True)
class Learner:
    """A student in training, with everything that the next step depends on besides its batch."""

    student: Student
    optimizer: torch.optim.Optimizer
    loss: LossConfig
    target: FeatureTarget | None = None
    """What L_feat holds the encoder to; None without L_feat."""
    anchor: OutputScale | None = None
    """The untrained student's level and spread; None without the anchor term."""
    ema_decay: float = 0.0
    average: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Exponential moving average of the student's parameters, by name; empty without one."""

    @cached_property
    def gradients(self) -> GradientSum:
        """Sums the gradients of what is trained over devices."""
        return GradientSum(self.trained())

    def trained(self) -> list[nn.Parameter]:
        """The student's parameters and those of the projection of L_feat, which is not part of the student."""
        projection = self.target.projection if self.target else None
        return [*self.student.network.parameters(), *(projection.parameters() if projection else ())]

    def update(self) -> None:
        """Apply the gradient that `gradient_step` has left, and forget it."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            parameters = dict(self.student.network.named_parameters())
            with torch.no_grad():
                get_ema_multi_avg_fn(self.ema_decay)(list(self.average.values()), [parameters[n] for n in self.average], 0)

    def state(self) -> dict[str, Any]:
        """Everything a resumed training needs, as tensors and plain values."""
        return {
            "network": self.student.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "projection": self.target.projection.state_dict() if self.target and self.target.projection else {},
            "anchor": dataclasses.asdict(self.anchor) if self.anchor else {},
            "average": self.average,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, for a learner that was built alike."""
        self.student.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.target and self.target.projection:
            self.target.projection.load_state_dict(state["projection"])
        device = next(self.student.network.parameters()).device
        if self.anchor:
            self.anchor = OutputScale(**{name: value.to(device) for name, value in state["anchor"].items()})
        self.average = {name: value.to(device) for name, value in state["average"].items()}


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """A step's loss terms, the norm of its gradient before clipping, and the student's map over valid pixels.

    Every normalised loss ignores the map's scale and shift: only `output_*` shows a student that drifts or dies. They are
    means over micro-batches of the median, of the mean absolute deviation from it, and of the share of exact zeros. So is
    `masked_share`: of the pixels of the contexts, those without a valid label.
    """

    total: float
    shared_context: float
    local_global: float
    feature: float
    gradient: float
    anchor: float
    gradient_norm: float
    output_median: float
    output_spread: float
    output_zero_share: float
    masked_share: float


def gradient_step(
    learner: Learner, batches: Sequence[Batch], *, max_gradient_norm: float, bf16: bool
) -> tuple[StepOutcome, Float[Tensor, "b c c"]]:
    """Leave the clipped gradient of the whole step in the learner's parameters; also the last micro-batch's disparity.

    batches: this device's micro-batches. The outcome is that of all devices, and alike on all.
    """
    counts = _summed(sum(count_maps(batch) for batch in batches))  # type: ignore[arg-type]
    terms: Tensor | float = 0.0
    outputs: Tensor | float = 0.0
    disparity = torch.empty(0)
    for number, batch in enumerate(batches, 1):
        loss, disparity = _forward(learner, batch, counts, bf16)
        if number < len(batches):
            loss.total.backward()
        else:
            learner.gradients.backward(loss.total)
        disparity = disparity.detach()
        terms = terms + torch.stack([value.detach().float() for value in vars(loss).values()])
        outputs = outputs + torch.stack(_output_statistics(disparity, batch)).float() / len(batches)
    shared = _summed(torch.cat([terms, outputs / _devices()]))  # type: ignore[list-item, operator]
    norm = torch.nn.utils.clip_grad_norm_(learner.trained(), max_gradient_norm)
    names = [field.name for field in dataclasses.fields(LossTerms)]
    values = torch.cat([shared, norm.float()[None]]).tolist()  # the step's one wait for the device
    output_names = ("output_median", "output_spread", "output_zero_share", "masked_share")
    named = dict(zip((*names, *output_names, "gradient_norm"), values, strict=True))
    return StepOutcome(**named), disparity


@torch.no_grad()
def measured_scale(student: Student, batches: Sequence[Batch]) -> OutputScale:
    """The student's level and spread as it is now, over all the batches together."""
    disparity = torch.cat([forward_batch(student, batch, batch.image)[0] for batch in batches])
    return output_scale(disparity, torch.cat([batch.valid for batch in batches]))


@torch.no_grad()
def not_finite(learner: Learner, batches: Sequence[Batch]) -> list[str]:
    """Keys of the samples whose own loss is not finite, on this device; slow, and only for an error's message."""
    samples = [batch.samples(i, i + 1) for batch in batches for i in range(len(batch.keys))]
    return [one.keys[0] for one in samples if not torch.isfinite(_forward(learner, one, None, False)[0].total)]


def _forward(
    learner: Learner, batch: Batch, counts: Float[Tensor, "3"] | None, bf16: bool
) -> tuple[LossTerms, Float[Tensor, "b c c"]]:
    """The loss of one forward pass, which serves all terms. Only the student sees the jittered colours."""
    images = color_jitter(batch.image, batch.color, batch.extent)
    disparity, tokens = forward_batch(learner.student, batch, images, learner.target, bf16=bf16)
    terms = cross_context_loss(disparity, batch, learner.loss, tokens=tokens, anchor=learner.anchor, counts=counts)
    return terms, disparity


def _output_statistics(disparity: Float[Tensor, "b c c"], batch: Batch) -> list[Tensor]:
    """Median, mean absolute deviation from it, and share of exact zeros, over the valid pixels of the batch; 0 without any.
    Last the share of all pixels that are not valid; the padding of the grid is none of them.

    The median is that of every fourth row and column; torch's own median would wait for the device.
    """
    valid, pixels = batch.valid, batch.valid.sum().clamp(min=1)
    sparse = valid[:, ::_SPARSE, ::_SPARSE].flatten()
    rising = torch.where(sparse, disparity[:, ::_SPARSE, ::_SPARSE].flatten(), torch.inf).sort().values
    median = rising.gather(0, ((sparse.sum() - 1) // 2).clamp(min=0)[None])[0]
    median = torch.where(sparse.any(), median, 0)
    spread, zero_share = ((disparity - median).abs() * valid).sum() / pixels, ((disparity == 0) & valid).sum() / pixels
    return [median, spread, zero_share, 1 - valid.sum() / sum(height * width for height, width in batch.sizes)]


# --- several devices ------------------------------------------------------------------------------------------------


def _devices() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _summed(values: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
