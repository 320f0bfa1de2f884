"""Depth teachers: uint8 pictures in, float32 depth in the teacher's own space out, at the pictures' size.

Two loaders. `transformers` takes any `AutoModelForDepthEstimation` checkpoint (Depth Anything v2, Distill Any Depth, DPT,
...). `genpercept` takes a one-step diffusion estimator as a UNet and a VAE in the layout of diffusers. A checkpoint is a
folder or a hub id; what the numbers mean (`depth_space`) is always stated, because nothing in a checkpoint says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import snapshot_download
from jaxtyping import Float, Float32, UInt8
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForDepthEstimation

from stages.depth_space import DEPTH_SPACES, DepthSpace

_WEIGHT_SUFFIXES = (".safetensors", ".json")
EMPTY_TEXT = "empty_text_embedding.safetensors"


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher's column: its name, how it is loaded, and what its numbers mean."""

    name: str
    loader: Literal["transformers", "genpercept"]
    checkpoint: str
    """A folder, or a hub id."""
    depth_space: DepthSpace
    revision: str | None = None
    """Commit of the hub id; pin it, a branch moves."""
    licence: str | None = None
    """Licence of the weights; recorded with every label."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        if self.depth_space not in DEPTH_SPACES:
            return [f"teacher {self.name}: depth_space is {self.depth_space!r}, expected one of {', '.join(DEPTH_SPACES)}"]
        return []


@runtime_checkable
class Teacher(Protocol):
    """A loaded teacher."""

    spec: TeacherSpec

    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b h w"]:
        """Depth of each picture in `spec.depth_space`. The result does not depend on what else is in the batch."""
        ...


def load_teacher(spec: TeacherSpec, *, device: str = "cpu") -> Teacher:
    """Load the checkpoint on a device. Raises ValueError for a bad spec and OSError for a checkpoint that is not there."""
    if problems := spec.problems():
        raise ValueError("; ".join(problems))
    folder = checkpoint_folder(spec.checkpoint, spec.revision)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[spec.dtype]
    loaders: dict[str, Callable[[TeacherSpec, Path, torch.dtype, str], Teacher]]
    loaders = {"transformers": _TransformersTeacher, "genpercept": GenPerceptTeacher}
    return loaders[spec.loader](spec, folder, dtype, device)


def checkpoint_folder(checkpoint: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: itself, or the hub's snapshot of safetensors and JSON files (no pickles)."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint.startswith((".", "/")) or checkpoint.count("/") != 1:
        raise FileNotFoundError(f"checkpoint {checkpoint!r}: no such folder, and not a hub id of the form owner/name")
    return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=[f"*{suffix}" for suffix in _WEIGHT_SUFFIXES]))


def checkpoint_sha256(folder: Path) -> str:
    """One digest over the names and contents of all that decides a checkpoint's output: weights and configurations."""
    digest = hashlib.sha256()
    deciding = (".safetensors", "config.json", ".index.json")
    for path in sorted(path for path in folder.rglob("*") if path.name.endswith(deciding) and path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def nearest_multiple(length: int, multiple: int) -> int:
    """The multiple (at least one) that is nearest to a length."""
    return max(round(length / multiple), 1) * multiple


class _TransformersTeacher:
    """Any `AutoModelForDepthEstimation` checkpoint, on sides rounded to the multiple that its configuration names."""

    def __init__(self, spec: TeacherSpec, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.spec, self._dtype, self._device = spec, dtype, device
        # Without dtype, transformers keeps the precision in which the weights happen to be stored.
        loaded = AutoModelForDepthEstimation.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        self._model = _complete(loaded, folder).to(device).eval()
        self._mean, self._std = read_image_statistics(folder)
        self._multiple = getattr(self._model.config, "patch_size", None) or 32

    @torch.inference_mode()
    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b h w"]:
        pixels = _to_tensor(images, self._device)
        size = pixels.shape[-2:]
        pixels = _resize(pixels, self._multiple)
        shift, spread = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (self._mean, self._std))
        depth = self._model(pixel_values=((pixels - shift) / spread).to(self._dtype)).predicted_depth
        return _to_size(depth.float()[:, None], size)


class GenPerceptTeacher:
    """A one-step diffusion estimator: GenPercept's forward pass on `unet/`, `vae/` and an embedding of the empty text.

    One UNet call at t = 1 on the mean latent of the picture; no noise, so no seed. The two published text embeddings (77 or
    2 tokens) give different results: the one in the checkpoint's folder is used, and none is ever guessed.
    """

    def __init__(self, spec: TeacherSpec, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.spec, self._dtype, self._device = spec, dtype, device
        text_file = folder / EMPTY_TEXT
        if not text_file.exists():
            raise FileNotFoundError(f"{text_file}: not there; it must hold the empty text's embedding, [1, 77 or 2, width]")
        (text,) = load_file(text_file).values()
        self._text = text.to(device, dtype).reshape(1, *text.shape[-2:])
        self._vae = _load_part(AutoencoderKL, folder / "vae", dtype).to(device).eval()
        self._unet = _load_part(UNet2DConditionModel, folder / "unet", dtype).to(device).eval()

    @torch.inference_mode()
    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b h w"]:
        pixels = _to_tensor(images, self._device)
        size = pixels.shape[-2:]
        pixels = (_resize(pixels, 8) * 2 - 1).to(self._dtype)
        scale = self._vae.config.scaling_factor
        latent = self._vae.encode(pixels).latent_dist.mean * scale
        step = torch.ones((), dtype=torch.long, device=self._device)
        output = self._unet(latent, step, self._text.expand(len(pixels), -1, -1)).sample
        decoded = self._vae.decode(-output / scale).sample.float().mean(1, keepdim=True)
        return _to_size((decoded.clamp(-1, 1) + 1) / 2, size)


def _load_part(part: Any, folder: Path, dtype: torch.dtype) -> Any:
    # low_cpu_mem_usage would want the accelerate package, for networks that fit into memory many times over.
    loaded = part.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True, low_cpu_mem_usage=False)
    return _complete(loaded, folder)


def _complete(loaded: tuple[Any, dict[str, Any]], folder: Path) -> Any:
    """The network, once it is sure that the checkpoint gave every weight: both libraries fill gaps with random ones."""
    model, report = loaded
    for gap in ("missing_keys", "mismatched_keys"):
        if names := [str(name) for name in report.get(gap) or ()]:
            raise ValueError(
                f"{folder}: {len(names)} weights are {gap.removesuffix('_keys')} in the checkpoint: {', '.join(names[:5])}"
            )
    return model


def read_image_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel from the checkpoint's `preprocessor_config.json`.

    The file is read directly: the processors' fast classes need torchvision, for two lists of three numbers.
    Raises FileNotFoundError where it is missing: wrong statistics give labels that are silently wrong.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; it must give image_mean and image_std of the network's input")
    processor = json.loads(path.read_text(encoding="utf-8"))
    return processor["image_mean"], processor["image_std"]


def _to_tensor(images: UInt8[np.ndarray, "b h w 3"], device: str) -> Float[Tensor, "b 3 h w"]:
    return torch.tensor(images).to(device).permute(0, 3, 1, 2).float() / 255


def _resize(pixels: Float[Tensor, "b 3 h w"], multiple: int) -> Float[Tensor, "b 3 h2 w2"]:
    height, width = (nearest_multiple(side, multiple) for side in pixels.shape[-2:])
    if (height, width) == tuple(pixels.shape[-2:]):
        return pixels
    resized = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def _to_size(depth: Float[Tensor, "b 1 h2 w2"], size: tuple[int, ...]) -> Float32[np.ndarray, "b h w"]:
    """Bilinear, because bicubic overshoots below zero at depth edges."""
    if tuple(depth.shape[-2:]) != tuple(size):
        depth = F.interpolate(depth, tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return depth[:, 0].cpu().numpy()
