"""What the loss costs on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Figure, figure
from benchmarks.losses import looped_loss, loss_and_gradient, noisy_maps
from benchmarks.timing import in_turns
from stages.distillation.losses import distillation_loss


def loss_times(bench: Bench) -> Iterator[Figure]:
    """L_Dis with hybrid normalisation, forward and backward, and beside it the loop of `benchmarks.losses`."""
    for shape in bench.sizes.loss_shapes:
        prediction, label, valid = noisy_maps(*shape)
        maps = (prediction.detach().to(bench.device).requires_grad_(), label.to(bench.device), valid.to(bench.device))
        sides = {
            "ours": partial(loss_and_gradient, distillation_loss, maps),
            "loop": partial(loss_and_gradient, looped_loss, maps),
        }
        taken = in_turns(sides, rounds=bench.sizes.rounds, device=bench.device, until=bench.until, warm_up=bench.sizes.warm_up)
        name = " x ".join(map(str, shape))
        name, ms = " x ".join(map(str, shape)), {side: [1000 * s for s in seconds] for side, seconds in taken.items()}
        yield figure(name, "ms", ms["ours"])
        yield figure(f"{name}, a loop over images and contexts", "ms", ms["loop"], of="ours", base=ms["ours"])
