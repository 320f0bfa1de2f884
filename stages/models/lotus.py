"""Lotus-D: a diffusion network trained to answer in one step, without noise and so without a seed.

Read from the authors' pipeline (EnVision-Research/Lotus): one UNet call at t = 999 on the picture's latent, the embedding of
the empty text (begin and end, 2 tokens) and the task as a class embedding; its output, decoded and mapped to [0, 1] in each of
the three channels, is averaged over them. The one departure: they sample the latent, which is its mean and noise that is small;
we take the mean, so that a picture has one label. Layout: that of diffusers. The numbers are disparity or depth, as it was
trained; nothing in its folder says which.
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
from stages.models.genpercept import is_diffusion
from stages.models.pixels import network_size, out_of_memory, resize_maps, resize_pictures, to_tensor
from stages.models.precision import in_memory_format
from stages.models.spec import ModelSpec

_TIMESTEP = 999
_TASK = torch.tensor([1.0, 0.0])
"""Predict depth; (0, 1), used in training alone, asks for the picture itself."""
_TASK_EMBEDDING = torch.cat([_TASK.sin(), _TASK.cos()])


class LotusModel(PredictsOnDevice):
    """Lotus-D's forward pass on a checkpoint's UNet, VAE and text encoder; the latter is used once and not kept."""

    @out_of_memory()
    def __init__(self, spec: ModelSpec, folder: Path, device: str) -> None:
        self.spec, self._dtype, self._device = spec, getattr(torch, spec.weights_dtype), device
        _refuse_other_networks(folder)
        self._vae, unet, self._text = load_parts(folder, self._dtype, device)
        in_memory_format(spec, self._vae, unet)
        self._task = _TASK_EMBEDDING.to(device, self._dtype)
        self._unet = torch.compile(unet) if spec.compile else unet

    @out_of_memory()
    @torch.inference_mode()
    def predict_on_device(
        self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None
    ) -> Float32[Tensor, "b h w"]:
        """See `DepthModel.predict`. There is no noise: seeds are ignored."""
        count, height, width = images.shape[:3]
        size = network_size(height, width, multiple=8, input_px=self.spec.long_side_px)
        pixels = (resize_pictures(to_tensor(images, self._device), size) * 2 - 1).to(self._dtype)
        scale = self._vae.config.scaling_factor
        latent = self._vae.encode(pixels).latent_dist.mean * scale
        step = torch.tensor(_TIMESTEP, device=self._device)
        text, task = self._text.expand(count, -1, -1), self._task.expand(count, 4)
        output = self._unet(latent, step, text, class_labels=task).sample
        decoded = self._vae.decode(output / scale).sample.float()
        return resize_maps((decoded / 2 + 0.5).clamp(0, 1).mean(1), height, width)


def is_lotus(folder: Path) -> bool:
    """Lotus' UNet alone takes a task: four numbers, projected into the embedding of the time."""
    config = read_json(folder / "unet" / "config.json") if is_diffusion(folder) else {}
    task = (config.get("class_embed_type"), config.get("projection_class_embeddings_input_dim"))
    return task == ("projection", len(_TASK_EMBEDDING))


def _refuse_other_networks(folder: Path) -> None:
    """Raises RefusedError for a folder of another family, and for Lotus-G, whose UNet also takes noise."""
    if not is_lotus(folder):
        raise RefusedError(f"{folder}/unet/config.json: takes no task (class_embed_type, projection of 4), so this is no Lotus")
    if (channels := read_json(folder / "unet" / "config.json").get("in_channels")) != 4:
        raise RefusedError(
            f"{folder}/unet/config.json: in_channels is {channels}, expected 4: this is Lotus-G, which starts from noise; take "
            "Lotus-D (lotus-depth-d-...)"
        )


FAMILY = Family(
    recognises=is_lotus,
    states=lambda folder: FamilyStatements(input_px=training_size(folder)),
    load=LotusModel,
    problems=no_noise,
)
