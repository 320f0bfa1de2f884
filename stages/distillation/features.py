"""What L_feat holds the student's encoder to: the tokens of a frozen encoder, and a trained projection where widths differ.

The frozen encoder is a copy of the student's at its start, or that of any DINOv2, DINOv3 or depth checkpoint. It gets no
gradient, never changes and always runs in eval mode. The projection is drawn once; whoever trains it saves `projection` with
the training's state. Neither is part of the student that is exported.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from manifests.errors import RefusedError
from stages.distillation.student import (
    FAMILIES,
    Student,
    encoder_of,
    final_map,
    load_network,
    patch_px_of,
    patch_tokens,
    pinned_folder,
    prepare_images,
    tiled,
)
from stages.models.checkpoints import (
    read_image_statistics,
    read_json,
    refuse_foreign,
)
from stages.models.dino_backbone import BARE_ENCODERS
from stages.models.loading import load_transformers, read_config


@dataclass(frozen=True, kw_only=True)
class FeatureTarget:
    """A frozen encoder in float32, its input's statistics per channel, and the student's way into its space."""

    encoder: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_px: int
    projection: nn.Linear | None = None
    """From the student's width to the frozen encoder's, and trained; None where they are the same."""

    @torch.no_grad()
    def tokens(self, images: UInt8[Tensor, "b 3 h w"], grid: tuple[int, int], *, bf16: bool = False) -> Float[Tensor, "b n d"]:
        """The frozen encoder's tokens on the student's grid of (rows, columns), row by row; float32.

        Where its own patches are larger, it is shown the picture enlarged, so that it has a token for each of the student's:
        a student with patches of 14 px has 40 x 40 of a picture of 560 px, and DINOv3, with 16 px, is shown 640 px. Where they
        are smaller, its map is resized: a picture made smaller would hide details. Pictures that its patches do not tile are
        resized too. All bilinearly.
        """
        pixels = prepare_images(images, self.mean, self.std)
        pixels, (rows, columns) = tiled(pixels, self.patch_px, at_least=grid)
        with torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = self.encoder(pixel_values=pixels)
        tokens, own_grid = patch_tokens(final_map(output), rows, columns)
        if own_grid != grid:
            own_map = tokens.transpose(1, 2).unflatten(2, own_grid)
            tokens = F.interpolate(own_map, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        return tokens

    def project(self, student_tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d2"]:
        """The student's tokens as they are compared with the frozen ones."""
        return student_tokens if self.projection is None else self.projection(student_tokens)


def feature_target_of(student: Student) -> FeatureTarget:
    """A frozen copy of the student's encoder as it is now: call it before anything is trained or restored."""
    encoder = copy.deepcopy(student.encoder)
    encoder._forward_hooks.clear()  # the student's own, which would keep a map of every pass
    return FeatureTarget(encoder=_frozen(encoder), mean=student.mean, std=student.std, patch_px=student.patch_px)


def load_feature_target(
    checkpoint: str, student: Student, *, revision: str | None = None, seed: int = 0, device: str = "cpu"
) -> FeatureTarget:
    """The frozen encoder of a folder or hub id: DINOv2 with or without registers, DINOv3 (ViT), or the encoder of a depth
    checkpoint.

    seed: of the projection. Raises FileNotFoundError without a checkpoint, and ValueError for one of another kind.
    """
    folder = pinned_folder(checkpoint, revision)
    encoder = _load_encoder(folder)
    mean, std = read_image_statistics(folder)
    widths = student.encoder.config.hidden_size, encoder.config.hidden_size
    projection = None
    if widths[0] != widths[1]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            projection = nn.Linear(*widths).to(device)
    return FeatureTarget(
        encoder=_frozen(encoder.to(device)),
        mean=tuple(mean),
        std=tuple(std),
        patch_px=patch_px_of(encoder.config),
        projection=projection,
    )


def token_mask(extent: Int[Tensor, "b 2"], context_px: int, grid: tuple[int, int]) -> Bool[Tensor, "b n"]:
    """The tokens of which at least half lies inside the sample's extent (height, width, in pixels of the context grid).

    The rest of a sample that is narrower than the context is padding.
    """
    inside = []
    for axis, cells in enumerate(grid):
        edge = extent[:, axis, None] * cells / context_px  # in cells
        inside.append((edge - torch.arange(cells, device=extent.device)).clamp(0, 1))
    return (inside[0][:, :, None] * inside[1][:, None] >= 0.5).flatten(1)


def _load_encoder(folder: Path) -> Any:
    refuse_foreign(read_json(folder / "config.json"), f"{folder}/config.json")
    kind = read_config(folder)
    if kind.model_type in FAMILIES and not getattr(kind, "is_hybrid", False):
        return encoder_of(load_network(folder, start="fresh-head"))
    if kind.model_type not in BARE_ENCODERS:
        found = "a hybrid dpt" if kind.model_type in FAMILIES else repr(kind.model_type)
        raise RefusedError(
            f"{folder}/config.json: model_type is {found}, expected one of {', '.join((*BARE_ENCODERS, *FAMILIES))} "
            "(not hybrid); others are not supported as the frozen encoder"
        )
    return load_transformers("AutoModel", folder, torch.float32)


def _frozen(encoder: Any) -> Any:
    return encoder.eval().requires_grad_(False)
