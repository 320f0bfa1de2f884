"""DINOv3 (ViT) and DINOv2 with registers under the necks of transformers' Depth Anything and DPT, which cut off a first token.

DINOv2 hands on its class token and then its patches. DINOv3 hands on patches alone, and the class token beside them where it is
asked to; DINOv2 with registers puts these between the two. Here both hand on what DINOv2 does. The library alone cannot run
such a network: its necks cut off a patch, or keep registers, and then fail on the grid. Seen in transformers 5.23.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from manifests.errors import RefusedError

BARE_ENCODERS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Published alone, without neck and head."""
ADAPTED = ("dinov2_with_registers", "dinov3_vit")
"""Those of them that the library's necks cannot take as they are."""
_DEPTH_NETWORKS = ("depth_anything", "dpt")


def needs_adapting(config: Any) -> bool:
    """Whether a depth network of this configuration runs here alone, and not in the library."""
    return config.model_type in _DEPTH_NETWORKS and _backbone_type(config) in ADAPTED


def adapt_config(config: Any, folder: Path) -> None:
    """Asks the backbone of a configuration for what the neck needs, before a network is made of it.

    DINOv3's random positions of training are turned off: what is learned would depend on how a batch is cut into micro-batches.
    Raises RefusedError for DINOv3's ConvNeXt, which has no class token.
    """
    if config.model_type in _DEPTH_NETWORKS and _backbone_type(config) == "dinov3_convnext":
        raise RefusedError(
            f"{folder}/config.json: backbone_config.model_type is dinov3_convnext, which has no class token, and the neck of "
            f"transformers' {config.model_type} cuts off the first token of each map, so that the library cannot run this "
            "network; expected another backbone, such as dinov2 or dinov3_vit"
        )
    if needs_adapting(config):
        backbone = config.backbone_config
        backbone.reshape_hidden_states, backbone.return_class_token = False, True
        if backbone.model_type == "dinov3_vit":
            backbone.pos_embed_shift = backbone.pos_embed_jitter = backbone.pos_embed_rescale = None


def adapt_network(network: Any) -> Any:
    """The network, whose backbone now hands on a class token and the patches; made of a configuration that was adapted."""
    if needs_adapting(network.config):
        network.backbone.register_forward_hook(_hand_on_class_token)
    return network


def depth_config_of(encoder: Any) -> Any:
    """The configuration of a Depth Anything network on this encoder, with a neck and head of the sizes in Depth Anything v2.

    encoder: the configuration of one of BARE_ENCODERS; the neck takes its maps after each quarter of its layers.
    """
    from transformers import DepthAnythingConfig

    width, layers = encoder.hidden_size, encoder.num_hidden_layers
    encoder.out_indices = [layers * quarter // 4 for quarter in (1, 2, 3, 4)]
    encoder.reshape_hidden_states = False
    is_large = width >= 1024
    return DepthAnythingConfig(
        backbone_config=encoder,
        patch_size=encoder.patch_size,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[256, 512, 1024, 1024] if is_large else [width // 8, width // 4, width // 2, width],
        fusion_hidden_size=256 if is_large else width // 6,
    )


def _backbone_type(config: Any) -> str | None:
    return getattr(getattr(config, "backbone_config", None), "model_type", None)


def _hand_on_class_token(backbone: Any, _: Any, output: Any) -> None:
    """A hook on the backbone: maps (b, n, d) of patches, or with registers, become (b, 1 + n, d)."""
    maps = output.feature_maps
    if backbone.config.model_type == "dinov3_vit":
        maps = [torch.cat([token[:, None], patches], 1) for token, patches in zip(output.cls_tokens, maps, strict=True)]
    else:
        first_patch = 1 + backbone.config.num_register_tokens
        maps = [torch.cat([tokens[:, :1], tokens[:, first_patch:]], 1) for tokens in maps]
    output.feature_maps = tuple(maps)
