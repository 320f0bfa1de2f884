"""What makes a family of models: how its checkpoints are recognised, what they say of themselves, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor

from manifests.errors import RefusedError
from stages.depth_space import DepthSpace
from stages.models.checkpoints import read_json
from stages.models.spec import ModelSpec

TRAINING = "training.json"
_LARGEST_PX = 8192


@runtime_checkable
class DepthModel(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """Its resolved spec."""
        ...

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None) -> Float32[np.ndarray, "b h w"]:
        """Depth of each picture in `spec.depth_space`; what else is in the batch does not matter.

        seeds: 63-bit, one per picture, for models that start from noise; others ignore them. None is seed 0 for each.
        Raises torch.OutOfMemoryError where the batch does not fit, on any device; a smaller one may.
        """
        ...


class PredictsOnDevice:
    """Base of models whose maps stay where they are made, for whoever goes on there; a GPU may still be at work on them."""

    def predict_on_device(
        self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None
    ) -> Float32[Tensor, "b h w"]:
        """As `DepthModel.predict`."""
        raise NotImplementedError

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None) -> Float32[np.ndarray, "b h w"]:
        """See `DepthModel.predict`."""
        return self.predict_on_device(images, seeds).cpu().numpy()


def marks_invalid_pixels(model: DepthModel) -> bool:
    """Whether NaN in its maps says that the model does not know the pixel; of every other model it is a failure."""
    return getattr(model, "marks_invalid", False) is True


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a checkpoint says, and where."""

    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class FamilyStatements:
    """What a folder says in its library's own files."""

    depth_spaces: tuple[Statement, ...] = ()
    usual_space: DepthSpace | None = None
    """What the family's checkpoints give, where the folder does not say it itself."""
    input_px: int | tuple[int, int] | None = None
    """The size it was made for: a long side, or height and width."""
    steps: int | None = None
    """Denoising steps, of a family that has them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The functions of a family, which import its library when they are called: that takes seconds.

    recognises: whether a folder is laid out as the family's checkpoints are. states: reads JSON alone. load: the spec is
    resolved; raises ValueError, FileNotFoundError or OSError for a checkpoint that cannot be loaded. problems: what is wrong
    with a resolved spec, in words. has_noise: its predictions start from noise, and take steps and an ensemble.
    """

    recognises: Callable[[Path], bool]
    states: Callable[[Path], FamilyStatements]
    load: Callable[[ModelSpec, Path, str], DepthModel]
    problems: Callable[[ModelSpec], list[str]]
    has_noise: bool = False


def no_noise(spec: ModelSpec) -> list[str]:
    """The problems of a spec that asks for steps or an ensemble of a family that has neither."""
    if (spec.steps, spec.ensemble) == (ModelSpec.steps, ModelSpec.ensemble):
        return []
    return [f"steps {spec.steps} and ensemble {spec.ensemble} are for the loader 'marigold', not {spec.loader!r}"]


def training_size(folder: Path) -> int | None:
    """The long side that a checkpoint of ours states in its training.json. Raises ValueError for one that is none."""
    said = read_json(folder / TRAINING).get("input_px")
    return None if said is None else pixels(said, f"{folder / TRAINING}: input_px")


def pixels(value: Any, where: str) -> int:
    if type(value) is not int or not 8 <= value <= _LARGEST_PX:
        raise RefusedError(f"{where} is {value!r}, expected a side from 8 to {_LARGEST_PX} px")
    return value
