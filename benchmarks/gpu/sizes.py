"""How large everything is: as it is published and used, or so small that a CPU goes through all of it in a minute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VitSize:
    """A Depth Anything v2 network: its DINOv2 encoder, and its DPT neck and head."""

    hidden: int
    layers: int
    heads: int
    out_indices: tuple[int, ...]
    neck: tuple[int, ...]
    fusion: int


@dataclass(frozen=True, kw_only=True)
class DiffusionSize:
    """A UNet and a VAE of four levels, as Stable Diffusion 2 has them."""

    unet_channels: tuple[int, ...]
    unet_heads: tuple[int, ...]
    text_width: int
    vae_channels: tuple[int, ...]
    layers: int
    groups: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """All that differs between the full size and the miniature."""

    vits: Mapping[str, VitSize]
    """By S, B and L."""
    diffusion: DiffusionSize
    view_px: int
    """Side of contexts and patches."""
    min_square_px: int
    """Shortest side of a context in the photograph."""
    photograph_px: tuple[int, int]
    """Width and height."""
    unit_images: tuple[int, int]
    """Photographs in the unit that workers are timed on: with Depth Anything, and with a diffusion teacher."""
    run_images: int
    """Photographs in the run that students learn from."""
    batch_size: int
    rounds: int
    """Turns that each side of a comparison gets, where the time allows."""
    warm_up: int
    """Calls of each side before the first turn."""
    turn_s: float
    """Least seconds of a turn."""
    steps: int
    """Steps that are timed of a student, after `first_steps` that are not: more than loader processes read ahead."""
    first_steps: int
    loader_workers: int
    decode_threads: tuple[int, ...]
    """Threads that decode ahead of a teacher: what workers have by themselves, and more."""
    worker_processes: tuple[int, ...]
    """How many workers share the card."""
    loss_shapes: tuple[tuple[int, int, int], ...]
    """Batch, height and width."""
    compiles: bool
    """Compile what is to be compiled; off, the same calls run without the compiler."""
    time_share: float
    """What the sections' seconds are multiplied by."""

    @property
    def plan_changes(self) -> Mapping[str, Any]:
        """What the paper's plan of views becomes."""
        return {"context_px": self.view_px, "patch_px": self.view_px, "min_square_px": self.min_square_px}


FULL = Sizes(
    vits={
        "S": VitSize(hidden=384, layers=12, heads=6, out_indices=(3, 6, 9, 12), neck=(48, 96, 192, 384), fusion=64),
        "B": VitSize(hidden=768, layers=12, heads=12, out_indices=(3, 6, 9, 12), neck=(96, 192, 384, 768), fusion=128),
        "L": VitSize(hidden=1024, layers=24, heads=16, out_indices=(5, 12, 18, 24), neck=(256, 512, 1024, 1024), fusion=256),
    },
    diffusion=DiffusionSize(
        unet_channels=(320, 640, 1280, 1280),
        unet_heads=(5, 10, 20, 20),
        text_width=1024,
        vae_channels=(128, 256, 512, 512),
        layers=2,
        groups=32,
    ),
    view_px=560,
    min_square_px=644,
    photograph_px=(1600, 1200),
    unit_images=(48, 12),
    run_images=16,
    batch_size=8,
    rounds=5,
    warm_up=1,
    turn_s=0.5,
    steps=40,
    first_steps=10,
    loader_workers=4,
    decode_threads=(2, 4, 8),
    worker_processes=(2, 3),
    loss_shapes=((8, 560, 560), (32, 280, 280)),
    compiles=True,
    time_share=1.0,
)

_TINY_VIT = VitSize(hidden=24, layers=4, heads=2, out_indices=(1, 2, 3, 4), neck=(8, 8, 16, 16), fusion=16)
MINIATURE = Sizes(
    vits=dict.fromkeys("SBL", _TINY_VIT),
    diffusion=DiffusionSize(
        unet_channels=(8, 8, 16, 16), unet_heads=(1, 1, 2, 2), text_width=16, vae_channels=(4, 4, 8, 8), layers=1, groups=4
    ),
    view_px=56,
    min_square_px=64,
    photograph_px=(128, 96),
    unit_images=(2, 2),
    run_images=2,
    batch_size=2,
    rounds=1,
    warm_up=0,
    turn_s=0.0,
    steps=2,
    first_steps=1,
    loader_workers=0,
    decode_threads=(1, 2),
    worker_processes=(1,),
    loss_shapes=((2, 56, 56),),
    compiles=False,
    time_share=0.001,
)
