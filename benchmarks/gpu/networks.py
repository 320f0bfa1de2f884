"""Networks of the published sizes with random weights, saved in the published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from benchmarks.gpu.sizes import DiffusionSize, VitSize
from stages.demo_networks import save_depth_anything
from stages.models.diffusion_parts import EMPTY_TEXT

PATCH_PX = 14
_IMAGE_PX = 518
_ALIVE = 0.3  # first value of the maps: the head ends in a ReLU
_TASK = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}


def build_vit(size: VitSize) -> DepthAnythingForDepthEstimation:
    """Depth Anything v2, as its authors configure it."""
    backbone = Dinov2Config(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        patch_size=PATCH_PX,
        image_size=_IMAGE_PX,
        reshape_hidden_states=False,
    )
    backbone.out_indices = list(size.out_indices)
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH_PX,
        reassemble_hidden_size=size.hidden,
        neck_hidden_sizes=list(size.neck),
        fusion_hidden_size=size.fusion,
        head_hidden_size=32,
    )
    network = DepthAnythingForDepthEstimation(config)
    nn.init.constant_(network.head.get_parameter("conv3.bias"), _ALIVE)
    return network


def build_unet(size: DiffusionSize, *, lotus: bool) -> UNet2DConditionModel:
    """That of Stable Diffusion 2; Lotus' also takes a task."""
    settings: dict[str, Any] = _TASK if lotus else {}
    return UNet2DConditionModel(
        sample_size=96,
        block_out_channels=_untyped(size.unet_channels),
        attention_head_dim=_untyped(size.unet_heads),
        cross_attention_dim=size.text_width,
        layers_per_block=size.layers,
        norm_num_groups=size.groups,
        use_linear_projection=True,
        **settings,
    )


def build_vae(size: DiffusionSize) -> AutoencoderKL:
    """That of Stable Diffusion 2."""
    return AutoencoderKL(
        down_block_types=_untyped(("DownEncoderBlock2D",) * len(size.vae_channels)),
        up_block_types=_untyped(("UpDecoderBlock2D",) * len(size.vae_channels)),
        block_out_channels=_untyped(size.vae_channels),
        layers_per_block=size.layers,
        latent_channels=4,
        norm_num_groups=size.groups,
        sample_size=768,
    )


def save_vit(size: VitSize, folder: Path, device: str) -> None:
    """A folder as `Depth-Anything-V2-...-hf`; in float32, because that is what students start from.

    device: where the random numbers are drawn; a CPU takes a minute for the largest networks.
    """
    torch.manual_seed(0)
    with torch.device(device):
        network = build_vit(size)
    save_depth_anything(network, folder, torch.float32, _IMAGE_PX)


def save_diffusion(size: DiffusionSize, folder: Path, device: str, *, lotus: bool) -> None:
    """`unet/`, `vae/` and the embedding of the empty text, in place of the encoder that would give it; in float16."""
    torch.manual_seed(0)
    with torch.device(device):
        networks = {"unet": build_unet(size, lotus=lotus), "vae": build_vae(size)}
    for name, network in networks.items():
        network.half().save_pretrained(folder / name)
    save_file({"empty_text_embedding": torch.randn(1, 2, size.text_width).half()}, folder / EMPTY_TEXT)


def _untyped(value: Any) -> Any:
    """diffusers annotates tuples of any length as tuples of exactly one."""
    return value
