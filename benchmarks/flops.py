"""`python -m benchmarks.flops`: the arithmetic of a view and of a training sample, counted on networks of the full size.

Prints a Markdown table for docs/reproduce.md. Nothing is computed: the networks are on the meta device, so this needs no
memory. A multiplication with an addition counts as two operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.networks import build_unet, build_vae, build_vit
from benchmarks.gpu.sizes import FULL, Sizes

_LATENT = 8  # pixels to a latent's side


def teraflops(sizes: Sizes = FULL) -> dict[str, float]:
    """10^12 operations by what is computed: a view by each teacher, and a sample of a training by each student.

    A training's sample is a student's forward pass, twice that for the backward pass, and the frozen encoder's forward pass.
    """
    side, found = sizes.view_px, {}
    with torch.device("meta"), torch.no_grad():
        picture = torch.empty(1, 3, side, side)
        latent: Any = torch.empty(1, 4, side // _LATENT, side // _LATENT)
        for name, size in sizes.vits.items():
            network = build_vit(size).eval()
            view, encoder = _count(partial(network, pixel_values=picture)), _count(partial(network.backbone, picture))
            found |= {f"view, Depth Anything v2 {name}": view, f"training sample, {name}": 3 * view + encoder}
        vae, text = build_vae(sizes.diffusion).eval(), torch.empty(1, 2, sizes.diffusion.text_width)
        unet = build_unet(sizes.diffusion, lotus=False).eval()
        parts = (partial(vae.encode, picture), partial(unet, latent, torch.tensor(1), text), partial(vae.decode, latent))
        found["view, GenPercept or Lotus-D"] = sum(_count(part) for part in parts)
    return found


def _count(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def main() -> None:
    print("| what | TFLOP |\n|---|---|")
    print("\n".join(f"| {what} | {count:.2f} |" for what, count in teraflops().items()))


if __name__ == "__main__":
    main()
