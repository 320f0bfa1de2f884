"""The student network: from a checkpoint, through pictures of the dataset, back to a checkpoint others can load.

Any `AutoModelForDepthEstimation` of the transformers library. What is saved is loaded by `transformers.pipeline` like the
checkpoint that training began with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import AutoModelForDepthEstimation, PreTrainedModel

from stages.checkpoints import checkpoint_folder, read_image_statistics

PREPROCESSOR, WEIGHTS, TRAINING = "preprocessor_config.json", "model.safetensors", "training.json"
_ENCODERS = ("backbone.", "dpt.")  # Depth Anything and DPT with a backbone; DPT without


@dataclass(frozen=True, kw_only=True)
class Student:
    """A network in float32 with what belongs to it: its input's statistics per channel, and its image processor's file."""

    network: PreTrainedModel
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessor: str

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the encoder and those of the decoder."""
        named = list(self.network.named_parameters())
        return tuple([p for name, p in named if name.startswith(_ENCODERS) is encoder] for encoder in (True, False))  # type: ignore

    def disparity(self, images: UInt8[Tensor, "b 3 c c"], *, bf16: bool = False) -> Float[Tensor, "b c c"]:
        """The student's map of each picture, in its labels' space up to scale and shift; float32.

        bf16 speeds up all but the head: eight bits of mantissa in the output would be steps in every slope.
        """
        with torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = self.network(pixel_values=prepare_images(images, self.mean, self.std)).predicted_depth
        if output.shape[-2:] != images.shape[-2:]:
            size = (images.shape[-2], images.shape[-1])
            output = F.interpolate(output[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
        return output.float()


def load_student(checkpoint: str, context_px: int, *, device: str = "cpu") -> Student:
    """A folder or a hub id, in float32 whatever precision it is stored in.

    Raises FileNotFoundError without a checkpoint, and ValueError where its patches do not tile the context grid.
    """
    folder = checkpoint_folder(checkpoint)
    mean, std = read_image_statistics(folder)
    network = AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32).to(device)
    patch_px = getattr(network.config, "patch_size", None)
    if patch_px and context_px % patch_px:
        raise ValueError(
            f"{checkpoint}: patches of {patch_px} px do not tile a context of {context_px} px; label with a context_px that "
            f"is a multiple, such as {max(round(context_px / patch_px), 1) * patch_px}"
        )
    _keep_head_in_float32(network)
    return Student(network=network, mean=tuple(mean), std=tuple(std), preprocessor=(folder / PREPROCESSOR).read_text("utf-8"))


def prepare_images(
    images: UInt8[Tensor, "b 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b 3 h w"]:
    """(value / 255 - mean) / std for each channel."""
    shift, spread = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - shift) / spread


def save_student(student: Student, folder: Path, training: Mapping[str, Any]) -> None:
    """Write config.json, preprocessor_config.json, training.json and, as the last step, model.safetensors to the folder.

    Weights that are there are complete, and everything beside them is theirs.
    """
    aside = folder / ".saving"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    student.network.save_pretrained(aside, max_shard_size="1TB")
    (aside / PREPROCESSOR).write_text(student.preprocessor, "utf-8")
    (aside / TRAINING).write_text(json.dumps(training, sort_keys=True, indent=2) + "\n", "utf-8")
    for path in sorted(aside.iterdir(), key=lambda path: path.name == WEIGHTS):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(folder / path.name)
    aside.rmdir()


def _keep_head_in_float32(network: nn.Module) -> None:
    """Autocast stops at the head; does nothing to a network without one of that name, or outside autocast."""
    head = getattr(network, "head", None)
    if head is None:
        return
    forward = head.forward

    def forward_in_float32(features: list[Tensor], *sizes: int) -> Tensor:
        with torch.autocast(features[0].device.type, enabled=False):
            return forward([feature.float() for feature in features], *sizes)

    head.forward = forward_in_float32
