"""A depth model from a folder or a hub id: which loader it wants and what its numbers mean, read from the checkpoint itself.

Nothing is guessed silently: what a checkpoint does not say must be given, and what it does say cannot be overruled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from stages.checkpoints import checkpoint_folder, is_hub_id
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.labelling.teachers import KNOWN, Teacher, TeacherSpec, load_teacher, resolve
from stages.labelling.teachers.known import LoaderName

_BROKEN = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
"""All seen for damaged checkpoints."""


class ModelError(Exception):
    """A model cannot be loaded; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model that has been looked at and not loaded: its resolved spec, and the folder with its files."""

    spec: TeacherSpec
    folder: Path

    def load(self, device: str = "auto") -> Teacher:
        """The model as a predictor. Raises ModelError."""
        try:
            disable_progress_bar()  # transformers' own, one for each checkpoint
            return load_teacher(self.spec, device=resolve_device(device))
        except _BROKEN as error:
            raise _cannot(self.spec.name, self.spec.checkpoint, error) from error


def find_model(
    checkpoint: str,
    *,
    name: str | None = None,
    depth_space: DepthSpace | None = None,
    revision: str | None = None,
    input_px: int | None = None,
) -> FoundModel:
    """A student or a teacher, of any of the three loaders; a hub id is fetched.

    depth_space: of a checkpoint that does not say it. revision: of a hub id; the spec has the commit that was fetched.
    Raises ModelError.
    """
    name, known = name or checkpoint, KNOWN.get(checkpoint)
    try:
        folder = checkpoint_folder(checkpoint, revision or (known.revision if known else None))
        spec = TeacherSpec(
            name=name,
            loader=known.loader if known else _loader(folder),
            checkpoint=checkpoint,
            revision=folder.name if is_hub_id(checkpoint) else revision,  # a snapshot's folder is named by its commit
            depth_space=None if known else _depth_space(folder, depth_space),
            input_px=input_px,
        )
        return FoundModel(spec=resolve(spec), folder=folder)
    except _BROKEN as error:
        raise _cannot(name, checkpoint, error) from error


def load_model(
    checkpoint: str,
    *,
    name: str | None = None,
    depth_space: DepthSpace | None = None,
    revision: str | None = None,
    input_px: int | None = None,
    device: str = "auto",
) -> Teacher:
    """`find_model`, loaded; the predictor's `spec` says what was found out. Raises ModelError."""
    found = find_model(checkpoint, name=name, depth_space=depth_space, revision=revision, input_px=input_px)
    return found.load(device)


def resolve_device(device: str) -> str:
    """`auto` is a GPU where there is one. Raises ValueError for a GPU where there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch sees no CUDA device here; use cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _cannot(name: str, checkpoint: str, error: Exception) -> ModelError:
    return ModelError(f"{name}: {checkpoint} cannot be loaded: {type(error).__name__}: {error}")


def _loader(folder: Path) -> LoaderName:
    """Marigold's pipeline has a scheduler beside `unet/` and `vae/`; GenPercept has none."""
    if not ((folder / "unet").is_dir() and (folder / "vae").is_dir()):
        return "transformers"
    is_pipeline = "Marigold" in str(_json(folder / "model_index.json").get("_class_name", ""))
    return "marigold" if is_pipeline else "genpercept"


def _depth_space(folder: Path, given: DepthSpace | None) -> DepthSpace:
    """What the checkpoint says of itself, else what is given. Raises ValueError where they differ or neither says it."""
    said: DepthSpace | None = None
    training, config, index = (_json(folder / name) for name in ("training.json", "config.json", "model_index.json"))
    if training.get("depth_space") in DEPTH_SPACES:
        said = training["depth_space"]
    elif config.get("depth_estimation_type") == "metric" or config.get("model_type") == "depth_pro":
        said = "depth_metric"
    elif "Marigold" in str(index.get("_class_name", "")):
        said = "disparity_affine_invariant" if index.get("prediction_type") == "disparity" else "depth_affine_invariant"
    elif config.get("model_type") in ("depth_anything", "dpt"):
        said = given or "disparity_affine_invariant"  # every relative checkpoint of these families
    if said and given and said != given:
        raise ValueError(f"depth space: {given} was given, but the checkpoint says {said}")
    if (found := said or given) is None:
        raise ValueError(f"nothing in it says what its numbers mean; give --depth-space, one of {', '.join(DEPTH_SPACES)}")
    return found


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
