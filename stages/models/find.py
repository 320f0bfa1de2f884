"""A depth model from a folder or a hub id: which loader it wants and what its numbers mean, read from the checkpoint itself.

Nothing is guessed silently: what a checkpoint does not say must be given, and what it does say cannot be overruled. Pictures
are shown at the size that the checkpoint states, unless another one is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from manifests.errors import RefusedError
from stages.depth_space import DepthSpace
from stages.models import DepthModel, InputSize, ModelSpec, custom, load_model, read_stated
from stages.models.checkpoints import checkpoint_sha256
from stages.models.families import FAMILIES
from stages.models.located import located, with_known
from stages.models.resolve import resolve

_BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
"""All seen for damaged and for hostile checkpoints, from the libraries that load them."""


_OWN_FUNCTION = re.compile(r"(?P<loader>[A-Za-z_][\w.]*:[A-Za-z_]\w*)(=(?P<checkpoint>.*))?", re.DOTALL)


class ModelError(RefusedError):
    """A model cannot be loaded; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model that has been looked at: its resolved spec, and the folder with its files and their digest.

    It is not loaded yet, but for one of a function of the user's own, which alone can say all that: it has no folder.
    """

    spec: ModelSpec
    folder: Path | None
    sha256: str
    stated_px: int | tuple[int, int] | None
    """The size that the checkpoint states: a long side, or height and width."""
    loaded: DepthModel | None = field(default=None, repr=False, compare=False)

    @property
    def has_noise(self) -> bool:
        """Whether its predictions start from noise, and so take steps, an ensemble and a seed."""
        return not self.spec.is_custom and FAMILIES[str(self.spec.loader)].has_noise

    @property
    def input_size(self) -> str:
        """The size at which it is shown pictures, as results record it."""
        if self.spec.input_px == "stated" and isinstance(self.stated_px, tuple):
            return "stated {} x {}".format(*self.stated_px)
        return str(self.spec.input_px or "native")

    def at(self, input_px: InputSize) -> FoundModel:
        """The same model, shown pictures at another size. Raises ModelError."""
        if self.spec.is_custom and input_px in ("stated", "native"):
            return self
        try:
            return replace(self, spec=resolve(replace(self.spec, input_px=input_px), self.folder))
        except ValueError as error:
            raise _cannot(self.spec.name, self.spec.checkpoint, error) from error

    def load(self, device: str = "auto") -> DepthModel:
        """The model as a predictor. Raises ModelError, also where its files are not those that were looked at any more."""
        try:
            if self.loaded:
                resolve(self.spec)  # which refuses what its function is never told
                return self.loaded
            return load_model(self.spec, self.folder, device=resolve_device(device), sha256=self.sha256)
        except _BROKEN as error:
            raise _cannot(self.spec.name, self.spec.checkpoint, error) from error


def find_model(
    checkpoint: str,
    *,
    name: str | None = None,
    depth_space: DepthSpace | None = None,
    revision: str | None = None,
    input_px: InputSize = "stated",
    steps: int | None = None,
    ensemble: int = 1,
    device: str = "auto",
) -> FoundModel:
    """A student or a teacher, of any family; a hub id is fetched, and a function of the user's own is called on `device`.

    checkpoint: a folder, a hub id, or `module:function=CHECKPOINT` for a function of the user's own. depth_space: of a
    checkpoint that does not say it. revision: of a hub id; the spec has the commit that was fetched.
    input_px: `stated` is `native` for a checkpoint that states no size. steps, ensemble: of a model that starts from noise,
    ignored by others; None is what the checkpoint states. Raises ModelError.
    """
    name = name or checkpoint
    if own := own_function(checkpoint):
        spec = ModelSpec(
            name=name,
            loader=own["loader"],
            checkpoint=own["checkpoint"] or "",
            revision=revision,
            depth_space=depth_space,
            input_px=None if input_px in ("stated", "native") else input_px,  # it is shown pictures as they come
        )
        return _called(spec, device)
    try:
        given = ModelSpec(name=name, checkpoint=checkpoint, revision=revision, depth_space=depth_space, input_px=input_px)
        spec, folder = located(with_known(given))
        if _has_noise(spec, folder):
            spec = replace(spec, steps=steps, ensemble=ensemble)
        spec = resolve(spec, folder)
        stated = read_stated(checkpoint, folder, spec.loader)
        return FoundModel(spec=spec, folder=folder, sha256=checkpoint_sha256(folder), stated_px=stated.input_px)
    except (OSError, ValueError) as error:
        raise _cannot(name, checkpoint, error) from error


def refuse_unused_noise(models: Collection[FoundModel], steps: int | None, ensemble: int) -> None:
    """Raises ModelError where steps or an ensemble were asked for and no model starts from noise."""
    if (steps, ensemble) != (None, 1) and models and not any(model.has_noise for model in models):
        names = ", ".join(model.spec.name for model in models)
        raise ModelError(f"--steps and --ensemble are for models that start from noise, as Marigold does, and not for {names}")


def _has_noise(spec: ModelSpec, folder: Path) -> bool:
    return FAMILIES[read_stated(spec.checkpoint, folder).loader].has_noise


def own_function(model: str) -> re.Match[str] | None:
    """The `loader` and the `checkpoint` of a model that is named as `module:function=CHECKPOINT`."""
    return None if Path(model).exists() else _OWN_FUNCTION.fullmatch(model)


def _called(spec: ModelSpec, device: str) -> FoundModel:
    """The model that a function of the user's own returns."""
    try:
        model = custom.load(resolve(spec), resolve_device(device))
    except Exception as error:  # whatever another package raises
        raise _cannot(spec.name, spec.checkpoint, error) from error
    return FoundModel(spec=model.spec, folder=None, sha256=model.weights_sha256, stated_px=None, loaded=model)


def resolve_device(device: str) -> str:
    """`auto` is a GPU where there is one. Raises ValueError for a GPU where there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RefusedError(f"device is {device}, but torch sees no CUDA device here; use cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _cannot(name: str, checkpoint: str, error: Exception) -> ModelError:
    reason = str(error).replace(f"{name}: ", "", 1)  # it is named already
    return ModelError(f"{name}: {checkpoint} cannot be loaded: {type(error).__name__}: {reason}")
