"""Models of other packages: a function of the user's own loads one, named by `loader = "module:function"`.

It is called with the checkpoint, a string that is its own affair, and the device, and returns a `CustomModel`. The module is
imported from where Python finds it, in the working directory too, and only because a command or its file names it: nothing in a
run, nor in a checkpoint, ever makes it be imported.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from manifests.errors import RefusedError
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.models.checkpoints import CheckpointChangedError
from stages.models.spec import ModelSpec


@runtime_checkable
class CustomModel(Protocol):
    """What a function of the user's own returns."""

    depth_space: DepthSpace
    """What the numbers mean."""
    weights_sha256: str
    """A digest of all that decides the predictions (`weights_sha256`): labels of two digests are never mixed."""

    def predict(self, images: np.ndarray, /, *seeds: Sequence[int]) -> np.ndarray:
        """uint8 [b, h, w, 3] to float32 [b, h, w], the same for a picture whatever else is in the batch.

        NaN is a failure; of a model that has an attribute `marks_invalid = True` it is a pixel that the model does not know,
        such as one of the sky. Raises torch.OutOfMemoryError where the batch does not fit, to be shown a smaller one.
        A model that has an attribute `takes_seeds = True` is given the seeds of `DepthModel.predict` as a second argument: of
        each picture a number for its noise, in a run a function of seed, key and view alone.
        """
        ...


class LoadedCustomModel:
    """A user's model as all others are called."""

    def __init__(self, spec: ModelSpec, model: CustomModel) -> None:
        self.spec, self.weights_sha256, self._model = spec, model.weights_sha256, model
        self.marks_invalid: bool = getattr(model, "marks_invalid", False)
        self._takes_seeds: bool = getattr(model, "takes_seeds", False)

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None) -> Float32[np.ndarray, "b h w"]:
        """See `DepthModel.predict`. Raises ValueError for what is no float32 array of this shape."""
        given = [list(seeds or [0] * len(images))] if self._takes_seeds else []
        depth = self._model.predict(images, *given)
        found = f"{depth.dtype} {list(depth.shape)}" if isinstance(depth, np.ndarray) else type(depth).__name__
        if not isinstance(depth, np.ndarray) or depth.dtype != np.float32 or depth.shape != images.shape[:3]:
            wanted = list(images.shape[:3])
            raise RefusedError(f"{self.spec.loader}: predict returned {found}, expected a NumPy array of float32 {wanted}")
        return depth


def weights_sha256(network: torch.nn.Module) -> str:
    """A digest of a network's weights and buffers, by name, type, shape and value."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{values.dtype}\0{list(values.shape)}\0".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(spec: ModelSpec, device: str, sha256: str | None = None) -> LoadedCustomModel:
    """Import the module and call the function.

    Raises ValueError for whatever is not as it is to be, ImportError for a module that cannot be imported,
    CheckpointChangedError for another digest than the one given, and what the function raises.
    """
    function = _function(str(spec.loader))
    model = function(spec.checkpoint, device)
    where = f"{spec.loader}({spec.checkpoint!r}, {device!r})"
    missing = [name for name in ("predict", "depth_space", "weights_sha256") if not hasattr(model, name)]
    if missing:
        found = type(model).__name__
        raise RefusedError(f"{where}: returned {found} without {', '.join(missing)}; see docs/labelling.md")
    if model.depth_space not in DEPTH_SPACES:
        raise RefusedError(f"{where}: depth_space is {model.depth_space!r}, expected one of {', '.join(DEPTH_SPACES)}")
    if spec.depth_space not in (None, model.depth_space):
        raise RefusedError(f"{where}: depth_space: {spec.depth_space} was given, but the model says {model.depth_space}")
    if not isinstance(model.weights_sha256, str) or not model.weights_sha256:
        raise RefusedError(f"{where}: weights_sha256 is {model.weights_sha256!r}, expected the digest of its weights")
    for name in ("marks_invalid", "takes_seeds"):
        if not isinstance(said := getattr(model, name, False), bool):
            raise RefusedError(f"{where}: {name} is {said!r}, expected True or False; see docs/labelling.md")
    if sha256 not in (None, model.weights_sha256):
        raise CheckpointChangedError(
            f"{where}: weights_sha256 is {model.weights_sha256:.16}, expected {sha256:.16}: its weights have changed, or "
            "differ between machines"
        )
    return LoadedCustomModel(replace(spec, depth_space=model.depth_space), model)


def _function(loader: str) -> Callable[[str, str], CustomModel]:
    module_name, _, name = loader.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # the working directory, in processes that were not started by `python -m` too
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0]:
            raise  # something that the user's module wants
        hint = "put it into the working directory or a folder of PYTHONPATH, on every machine that labels"
        raise ModuleNotFoundError(f"loader {loader}: no module {module_name!r}; {hint}", name=error.name) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RefusedError(f"loader {loader}: {module.__file__} has no function {name!r}")
    return cast("Callable[[str, str], CustomModel]", function)
