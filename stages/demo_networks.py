"""The demo's three small networks and the supervised training that made them.

Rendered scenes with exact depth in, small checkpoints in the hub's own formats out: a Depth Anything teacher and student
(`transformers`) and a one-step diffusion assistant in GenPercept's layout (`diffusers`). They take the same road through
the pipeline as the published checkpoints; nothing else in the project knows that they are small.

The target is min-max disparity of the crop: 1/depth, shifted and scaled so that the 2 % and 98 % quantiles are 0 and 1.
That is affine-invariant, bounded, and needs no per-crop statistics of the prediction, which explode on flat crops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from stages.models.diffusion_parts import EMPTY_TEXT

DEMO_INPUT_PX = 192
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FARTHEST_DISPARITY = 0.01  # 1/m; what is farther than this is sky
_FLATTEST_RANGE = 0.08  # of the crop's median disparity: a wall seen head-on is not blown up to a full-range ramp


def build_depth_anything(
    *, hidden: int, layers: int, heads: int, patch_px: int, fusion: int, image_px: int = DEMO_INPUT_PX
) -> DepthAnythingForDepthEstimation:
    """A Depth Anything network (DINOv2 backbone, DPT neck and head) with random weights, of any size.

    Two starting values matter for learning from few pictures: sinusoidal position embeddings, because most of what
    there is to learn first is where in the picture things are near; and a positive last bias, because the head ends
    in a ReLU that is otherwise dead from the first step for about half of all seeds.
    """
    backbone = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_ratio=4,
        patch_size=patch_px,
        image_size=image_px,
        layerscale_value=0.5,
        reshape_hidden_states=False,
    )
    backbone.out_indices = [layers * k // 4 for k in (1, 2, 3, 4)]
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=hidden,
        patch_size=patch_px,
        neck_hidden_sizes=[fusion // 2, fusion, 2 * fusion, 2 * fusion],
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=fusion,
        head_hidden_size=max(fusion // 2, 8),
    )
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        nn.init.constant_(model.head.get_parameter("conv3.bias"), 0.3)
        embeddings = model.backbone.embeddings
        embeddings.position_embeddings[0, 1:] = _sinusoidal_positions(image_px // patch_px, hidden)
    return model


def _sinusoidal_positions(side: int, width: int) -> Float[Tensor, "positions width"]:
    position = (torch.arange(side) + 0.5) / side
    frequency = torch.pi * 2 ** torch.linspace(0, 4, width // 4)
    wave = torch.cat([torch.sin(position[:, None] * frequency), torch.cos(position[:, None] * frequency)], 1)
    rows, cols = wave[:, None].expand(side, side, -1), wave[None].expand(side, side, -1)
    return 0.5 * torch.cat([rows, cols], 2).reshape(side * side, width)


def _untyped(value: Any) -> Any:
    """diffusers annotates tuples of any length as tuples of exactly one."""
    return value


class OneStepDiffusion(nn.Module):
    """The assistant while it is trained: GenPercept's forward pass with its three parts as one module."""

    def __init__(
        self, *, vae_channels: tuple[int, ...] = (24, 48, 64), unet_channels: tuple[int, ...] = (40, 72, 96), group: int = 8
    ) -> None:
        super().__init__()
        self.vae: Any = AutoencoderKL(
            down_block_types=_untyped(("DownEncoderBlock2D",) * len(vae_channels)),
            up_block_types=_untyped(("UpDecoderBlock2D",) * len(vae_channels)),
            block_out_channels=_untyped(vae_channels),
            layers_per_block=1,
            latent_channels=8,
            norm_num_groups=group,
            sample_size=DEMO_INPUT_PX,
            mid_block_add_attention=False,
        )
        self.unet: Any = UNet2DConditionModel(
            sample_size=DEMO_INPUT_PX // 4,
            in_channels=8,
            out_channels=8,
            block_out_channels=unet_channels,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=24,
            norm_num_groups=group,
        )
        self.empty_text = nn.Parameter(torch.randn(1, 2, 32) * 0.1, requires_grad=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """Images in [-1, 1] to disparity around [-1, 1], not yet clipped."""
        scale = self.vae.config.scaling_factor
        latent = self.vae.encode(images).latent_dist.mean * scale
        text = self.empty_text.expand(images.shape[0], -1, -1)
        output = self.unet(latent, torch.ones((), dtype=torch.long, device=images.device), text).sample
        return self.vae.decode(-output / scale).sample.mean(1)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `unet/`, `vae/` and `empty_text_embedding.safetensors`."""
        self.vae.to(dtype).save_pretrained(folder / "vae")
        self.unet.to(dtype).save_pretrained(folder / "unet")
        save_file({"empty_text_embedding": self.empty_text.detach().to(dtype)}, folder / EMPTY_TEXT)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a network of the same size with the weights of a checkpoint that this module wrote."""
    if isinstance(model, OneStepDiffusion):
        for name, part in (("vae", model.vae), ("unet", model.unet)):
            part.load_state_dict(load_file(folder / name / "diffusion_pytorch_model.safetensors"))
        model.empty_text.data.copy_(load_file(folder / EMPTY_TEXT)["empty_text_embedding"])
    else:
        # Through the library: the names on disk are the hub's, not those of the modules.
        saved = DepthAnythingForDepthEstimation.from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())


def save_depth_anything(model: nn.Module, folder: Path, dtype: torch.dtype, side_px: int) -> None:
    """Write a folder that `AutoModelForDepthEstimation` and `transformers.pipeline` load."""
    network: Any = model.to(dtype)
    network.save_pretrained(folder)
    processor = DPTImageProcessor(
        do_resize=True,
        size={"height": side_px, "width": side_px},
        keep_aspect_ratio=True,
        ensure_multiple_of=network.config.patch_size,
        resample=3,
        do_rescale=True,
        do_normalize=True,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )
    processor.save_pretrained(folder)


def draw_crops(
    rgb: UInt8[np.ndarray, "n s s 3"], disparity: Float[np.ndarray, "n s s"], rng: np.random.Generator, batch: int, side_px: int
) -> tuple[Float[Tensor, "b 3 side side"], Float[Tensor, "b side side"], Float[Tensor, "b side side"]]:
    """A training batch from random squares of random scenes: pictures in [0, 1], min-max disparity, and far weights.

    A third of the squares are the whole scene; the rest have a side between `side_px` and the scene's, so that the
    teachers learn both views they will be asked to label. Flip, brightness, contrast and colour vary.
    """
    pictures, targets, weights = [], [], []
    full = rgb.shape[1]
    for index in rng.integers(len(rgb), size=batch):
        side = full if rng.random() < 0.35 else int(rng.integers(min(side_px, full), full + 1))
        top, left = rng.integers(full - side + 1, size=2)
        window = np.s_[index, top : top + side, left : left + side]
        picture = torch.from_numpy(rgb[window].copy()).permute(2, 0, 1)[None].float() / 255
        target = torch.from_numpy(np.ascontiguousarray(disparity[window]).astype(np.float32))[None, None]
        picture, target = (_area_resize(x, side_px)[0] for x in (picture, target))
        if rng.random() < 0.5:
            picture, target = picture.flip(-1), target.flip(-1)
        gain = torch.from_numpy(rng.uniform(0.7, 1.35) * rng.uniform(0.88, 1.12, (3, 1, 1))).float()
        pictures.append((picture * gain + rng.uniform(-0.06, 0.06)).clamp(0, 1) ** rng.uniform(0.8, 1.25))
        low, span = disparity_range(target[0])
        targets.append(((target[0] - low) / span).clamp(0, 1.5))
        weights.append(torch.where(target[0] > _FARTHEST_DISPARITY, span / target[0].clamp(min=_FARTHEST_DISPARITY), 0))
    return torch.stack(pictures), torch.stack(targets), torch.stack(weights)


def _area_resize(x: Float[Tensor, "b c h w"], side_px: int) -> Float[Tensor, "b c side side"]:
    return F.interpolate(x, (side_px, side_px), mode="bilinear", antialias=True, align_corners=False)


def disparity_range(disparity: Float[Tensor, "h w"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The 2 % quantile, and the span from there to the 98 % quantile, which is never below a share of the median."""
    low, middle, high = torch.quantile(disparity, torch.tensor([0.02, 0.5, 0.98]))
    flattest = torch.clamp(_FLATTEST_RANGE * middle, min=1e-3)  # a crop of nothing but sky is 0 everywhere
    return low, torch.maximum(high - low, flattest)


def supervised_loss(
    prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"], far_weight: Float[Tensor, "b h w"] | None = None
) -> Float[Tensor, ""]:
    """L1 plus L1 of the forward differences at four strides: level and edges.

    far_weight (the crop's disparity span over the disparity) adds the error relative to the disparity itself, which is what
    AbsRel measures: without it, a far wall is free to be a third too near.
    """
    residual = prediction.float() - target
    loss = residual.abs().mean()
    if far_weight is not None:
        loss = loss + 0.3 * (residual.abs() * far_weight).mean()
    for scale in range(4):
        r = residual[:, :: 2**scale, :: 2**scale]
        loss = loss + 0.5 * ((r[:, 1:] - r[:, :-1]).abs().mean() + (r[:, :, 1:] - r[:, :, :-1]).abs().mean())
    return loss
