"""A batch's forward pass: pictures of one size together, each at its own aspect, without padding.

The paper's squares fill the context grid and go through the network as they are. Whole photographs do not; were they padded,
a third of what a student sees would be black, of which its teacher saw nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from stages.distillation.batch import Batch
from stages.distillation.features import FeatureTarget, token_mask
from stages.distillation.losses import TokenPair
from stages.distillation.student import Student


def forward_batch(
    student: Student, batch: Batch, images: UInt8[Tensor, "b 3 c c"], target: FeatureTarget | None = None, *, bf16: bool = False
) -> tuple[Float[Tensor, "b c c"], TokenPair | None]:
    """The student's maps on the context grid, 0 beyond each sample's extent, and with a target the tokens to compare.

    images: the batch's, as the student is to see them; the target sees the batch's own. Networks that take squares only are
    shown all pictures padded, and tokens of the padding are marked invalid.
    """
    side_px = images.shape[-1]
    if not student.takes_any_aspect or set(batch.sizes) == {(side_px, side_px)}:
        output = student.forward(images, bf16=bf16, with_tokens=target is not None)
        if target is None or output.tokens is None:
            return output.disparity, None
        frozen = target.tokens(batch.image, output.grid, bf16=bf16)
        valid = token_mask(batch.extent, side_px, output.grid)
        return output.disparity, TokenPair(student=target.project(output.tokens), frozen=frozen, valid=valid)
    maps: dict[int, Tensor] = {}
    tokens: dict[int, tuple[Tensor, Tensor]] = {}
    for height, width in dict.fromkeys(batch.sizes):
        members = [i for i, size in enumerate(batch.sizes) if size == (height, width)]
        output = student.forward(images[members, :, :height, :width], bf16=bf16, with_tokens=target is not None)
        padded = F.pad(output.disparity, (0, side_px - width, 0, side_px - height))
        maps |= zip(members, padded, strict=True)
        if target is not None and output.tokens is not None:
            frozen = target.tokens(batch.image[members, :, :height, :width], output.grid, bf16=bf16)
            tokens |= zip(members, zip(target.project(output.tokens), frozen, strict=True), strict=True)
    order = range(len(batch.sizes))
    return torch.stack([maps[i] for i in order]), _joined([tokens[i] for i in order]) if tokens else None


def _joined(pairs: Sequence[tuple[Float[Tensor, "_ d"], Float[Tensor, "_ d"]]]) -> TokenPair:
    """Samples with unlike numbers of tokens as one pair, filled up with invalid ones."""
    counts = [len(student) for student, _ in pairs]
    most = max(counts)
    student, frozen = (
        torch.stack([F.pad(tokens, (0, 0, 0, most - len(tokens))) for tokens in side]) for side in zip(*pairs, strict=True)
    )
    valid = torch.tensor([[i < count for i in range(most)] for count in counts]).to(student.device, non_blocking=True)
    return TokenPair(student=student, frozen=frozen, valid=valid)
