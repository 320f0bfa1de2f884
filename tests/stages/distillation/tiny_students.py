"""Small random networks of every family of students, as checkpoints; the contexts they take, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForDepthEstimation,
    BeitConfig,
    DepthAnythingConfig,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    Swinv2Config,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from tests.stages.models.tiny_teachers import save_depth_anything, save_dpt, start_alive

CONTEXT_PX = {"depth_anything": 48, "dpt": 64, "dpt_dinov2": 56, "dpt_beit": 64, "dpt_swinv2": 96, "dpt_hybrid": 64}
_STAGES: dict[str, Any] = {"out_indices": [1, 2, 3, 4]}


def save_network(family: str, folder: Path) -> Path:
    """A checkpoint of the family; its weights depend on torch's seed."""
    if family == "depth_anything":
        save_depth_anything(folder)
    elif family == "dpt":
        save_dpt(folder)
    else:
        DPTForDepthEstimation(_dpt_config(family)).save_pretrained(folder)
        side = CONTEXT_PX[family]
        DPTImageProcessorPil(size={"height": side, "width": side}, resample=2).save_pretrained(folder)
    return folder


def save_adapted(network: str, backbone: str, folder: Path) -> Path:
    """Depth Anything or DPT (`depth_anything`, `dpt`) on a backbone that the library's necks cannot take, patches of 16 px."""
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "num_register_tokens": 4}
    sizes |= {"patch_size": 16, "image_size": 64, **_STAGES}
    if backbone == "dinov3_convnext":
        sizes = {"hidden_sizes": [24] * 4, "depths": [1] * 4, **_STAGES}
    decoder: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}
    kind = DepthAnythingConfig if network == "depth_anything" else DPTConfig
    decoder |= {"reassemble_hidden_size": 24, "patch_size": 16} if network == "depth_anything" else {}
    config = kind(backbone_config=AutoConfig.for_model(backbone, **sizes), **decoder)
    model = AutoModelForDepthEstimation.from_config(config)
    start_alive(model)
    model.save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 64, "width": 64}, ensure_multiple_of=16, resample=2).save_pretrained(folder)
    return folder


def pictures(side_px: int, count: int = 2) -> UInt8[Tensor, "b 3 side side"]:
    """Noise, the same each time."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, side_px, side_px), dtype=torch.uint8, generator=generator)


def _dpt_config(family: str) -> DPTConfig:
    vit: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    neck = [8, 8, 16, 16]
    if family == "dpt_dinov2":
        dinov2 = Dinov2Config(**vit, mlp_ratio=2, patch_size=14, image_size=56, reshape_hidden_states=False, **_STAGES)
        return DPTConfig(backbone_config=dinov2, neck_hidden_sizes=neck, fusion_hidden_size=16)
    if family == "dpt_beit":
        settings: dict[str, Any] = {"intermediate_size": 48, "image_size": 32, "use_relative_position_bias": True}
        beit = BeitConfig(**vit, **settings, reshape_hidden_states=False, **_STAGES, drop_path_rate=0.5)
        return DPTConfig(backbone_config=beit, neck_hidden_sizes=neck, fusion_hidden_size=16)
    if family == "dpt_swinv2":
        heads = [1, 1, 2, 2]
        swin = Swinv2Config(image_size=64, embed_dim=8, depths=[1] * 4, num_heads=heads, window_size=4, **_STAGES)
        return DPTConfig(backbone_config=swin, neck_hidden_sizes=[8, 16, 32, 64], fusion_hidden_size=16)
    assert family == "dpt_hybrid"
    bit = {"model_type": "bit", "layer_type": "bottleneck", "global_padding": "same", "embedding_dynamic_padding": True}
    bit |= {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1] * 3, "num_groups": 2}
    return DPTConfig(
        is_hybrid=True,
        backbone_config=bit | {"out_features": ["stage1", "stage2", "stage3"]},
        backbone_featmap_shape=[1, 32, 4, 4],
        backbone_out_indices=[0, 1, 2, 3],
        **vit,
        intermediate_size=48,
        image_size=64,
        neck_hidden_sizes=[8, 16, 16, 16],
        fusion_hidden_size=16,
    )
