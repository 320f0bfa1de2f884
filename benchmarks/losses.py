"""`python -m benchmarks.losses`: what the loss costs beside a straightforward loop, as ratios taken in one run on one machine.

Prints a Markdown table for docs/benchmarks.md. Both sides compute the hybrid loss of a batch and its gradient, in turns;
medians are reported, in CPU time of one thread, which other work has little influence on. The loop goes over images and the
seven contexts of each, and works on the pixels of a context alone. Its median is the lower of the two middle values, which is
a little cheaper.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from stages.distillation.losses import distillation_loss

SHAPES = ((8, 560, 560), (32, 280, 280), (8, 64, 64))
"""The paper's batch, its patches, and the contexts of a small trial; b, h, w."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each side of a ratio gets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| hybrid loss, forward and backward | loop | ours | loop / ours |\n|---|---|---|---|")
    for shape in SHAPES:
        maps = noisy_maps(*shape)
        agreed = [loss(*maps).item() for loss in (looped_loss, distillation_loss)]
        if abs(agreed[0] - agreed[1]) > 1e-3 * agreed[1]:
            raise RuntimeError(f"{shape}: the loop gives {agreed[0]}, ours {agreed[1]}, expected the same to 0.1 %")
        seconds = [[_seconds(loss, maps) for loss in (looped_loss, distillation_loss)] for _ in range(arguments.rounds)]
        loop_ms, our_ms = (1000 * statistics.median(side) for side in zip(*seconds, strict=True))
        ratio = statistics.median(loop / ours for loop, ours in seconds)
        print(f"| {' x '.join(map(str, shape))} | {loop_ms:.1f} ms | {our_ms:.1f} ms | {ratio:.2f} |")


def looped_loss(prediction: Float[Tensor, "b h w"], label: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]) -> Tensor:
    """Equations 3 and 4 as one would write them down."""
    losses = []
    for ours, theirs, shown in zip(prediction, label, valid, strict=True):
        total = torch.zeros_like(ours)
        low, high = theirs[shown].min(), theirs[shown].max()
        for count in (1, 2, 4):
            for s in range(count):
                start, end = (low + (high - low) * edge / count for edge in (s, s + 1))
                context = shown & (theirs >= start) & ((theirs < end) if s < count - 1 else shown)
                if context.any():
                    total[context] += (_normalized(ours[context]) - _normalized(theirs[context])).abs() / 3
        losses.append(total[shown].mean())
    return torch.stack(losses).mean()


def _normalized(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    centred = values - values.median()
    return centred / centred.abs().mean().clamp(min=1e-6)


def noisy_maps(batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth labels with some noise, a prediction that resembles them, and a mask with a tenth of holes."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 1, height // 8, width // 8, generator=rng)
    label = F.interpolate(coarse, (height, width), mode="bilinear")[:, 0] + 0.02 * torch.rand(
        batch, height, width, generator=rng
    )
    prediction = 2 * label + 0.2 * torch.rand(label.shape, generator=rng)
    return prediction.requires_grad_(), label, torch.rand(label.shape, generator=rng) > 0.1


def loss_and_gradient(loss: Loss, maps: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward."""
    torch.autograd.grad(loss(*maps), maps[0])


def _seconds(loss: Loss, maps: tuple[Tensor, Tensor, Tensor]) -> float:
    started = time.process_time()
    loss_and_gradient(loss, maps)
    return time.process_time() - started


if __name__ == "__main__":
    main()
