"""GenPercept: a diffusion network used as a one-step estimator, without noise and so without a seed.

One UNet call at t = 1 on the mean latent of the picture and the embedding of the empty text; minus its output, decoded, mean
of the three channels, clipped to [-1, 1], mapped to [0, 1]. The same for the depth and the disparity checkpoint: only the spec
tells which it is. Sides that are multiples of 8 are not resized. Layout: `unet/`, `vae/` of diffusers, and the embedding (see
`empty_text_embedding`): v1's is `empty_text_embed.npy`, of 77 tokens, v2's that of a text encoder, of 2. What is published are
UNets alone, which `assembled` puts together with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from manifests.errors import RefusedError
from stages.models.checkpoints import read_json
from stages.models.diffusion_parts import load_parts
from stages.models.family import Family, FamilyStatements, PredictsOnDevice, no_noise, training_size
from stages.models.pixels import network_size, out_of_memory, resize_maps, resize_pictures, to_tensor
from stages.models.precision import in_memory_format
from stages.models.spec import ModelSpec


class GenPerceptModel(PredictsOnDevice):
    """GenPercept's forward pass on a checkpoint's UNet, VAE and empty text."""

    @out_of_memory()
    def __init__(self, spec: ModelSpec, folder: Path, device: str) -> None:
        self.spec, self._dtype, self._device = spec, getattr(torch, spec.weights_dtype), device
        _refuse_other_networks(folder)
        self._vae, unet, self._text = load_parts(folder, self._dtype, device)
        in_memory_format(spec, self._vae, unet)
        self._unet = torch.compile(unet) if spec.compile else unet

    @out_of_memory()
    @torch.inference_mode()
    def predict_on_device(
        self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None
    ) -> Float32[Tensor, "b h w"]:
        """See `DepthModel.predict`. There is no noise: seeds are ignored."""
        height, width = images.shape[1:3]
        size = network_size(height, width, multiple=8, input_px=self.spec.long_side_px)
        pixels = (resize_pictures(to_tensor(images, self._device), size) * 2 - 1).to(self._dtype)
        scale = self._vae.config.scaling_factor
        latent = self._vae.encode(pixels).latent_dist.mean * scale
        step = torch.ones((), dtype=torch.long, device=self._device)
        output = self._unet(latent, step, self._text.expand(len(pixels), -1, -1)).sample
        decoded = self._vae.decode(-output / scale).sample.float().mean(1)
        return resize_maps((decoded.clamp(-1, 1) + 1) / 2, height, width)


def is_diffusion(folder: Path) -> bool:
    """Whether a folder has a UNet and a VAE in the layout of diffusers."""
    return (folder / "unet").is_dir() and (folder / "vae").is_dir()


def is_marigold(folder: Path) -> bool:
    """Marigold's pipeline says so in its index; GenPercept has `unet/` and `vae/` alone."""
    return is_diffusion(folder) and "Marigold" in str(read_json(folder / "model_index.json").get("_class_name", ""))


def _refuse_other_networks(folder: Path) -> None:
    """Raises RefusedError for a UNet that wants more than the picture's latent."""
    config = read_json(folder / "unet" / "config.json")
    if kind := config.get("class_embed_type"):
        raise RefusedError(f"{folder}/unet/config.json: takes a task (class_embed_type {kind}), as those of Lotus do")
    channels, expected = config.get("in_channels", 4), read_json(folder / "vae" / "config.json").get("latent_channels", 4)
    if isinstance(expected, int) and channels == 2 * expected:
        what = "it takes noise, as those of Marigold do"
        raise RefusedError(f"{folder}/unet/config.json: in_channels is {channels}, expected {expected}: {what}")


FAMILY = Family(
    recognises=lambda folder: is_diffusion(folder) and not is_marigold(folder),  # nor Lotus', which is asked first
    states=lambda folder: FamilyStatements(input_px=training_size(folder)),
    load=GenPerceptModel,
    problems=no_noise,
)
