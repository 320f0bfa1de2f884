"""Depth models: uint8 pictures in, float32 depth in the model's own space out, at the pictures' size.

One door: a spec, resolved with what its checkpoint says of itself, is loaded by the family that its loader names, or by a
function of the user's own. `transformers` takes `AutoModelForDepthEstimation` checkpoints (Depth Anything, DPT, Depth Pro,
ZoeDepth, GLPN, TIPSv2), `genpercept` and `lotus` one-step diffusion estimators, `marigold` a diffusion estimator that starts
from noise. What the numbers mean is said by the checkpoint or, where it says nothing, by the spec; nothing is guessed, and no
code from a checkpoint is run.

A prediction depends on its picture and seed alone. In float32 on a CPU it is the same to the bit for batches of the same shape;
across batch sizes sums are rounded otherwise, and it differs by less than 1e-4 of the map's range (measured on random
networks: 0 to 3e-5).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.models.known import KNOWN, KnownCheckpoint
from stages.models.spec import InputSize, ModelSpec

if TYPE_CHECKING:
    from stages.models.checkpoints import checkpoint_folder, checkpoint_sha256
    from stages.models.families import FAMILIES
    from stages.models.family import DepthModel
    from stages.models.load import load_model
    from stages.models.resolve import problems_of
    from stages.models.stated import read_stated

__all__ = [
    "FAMILIES",
    "KNOWN",
    "DepthModel",
    "InputSize",
    "KnownCheckpoint",
    "ModelSpec",
    "checkpoint_folder",
    "checkpoint_sha256",
    "load_model",
    "problems_of",
    "read_stated",
]

_MODULES = {
    "FAMILIES": "families",
    "DepthModel": "family",
    "checkpoint_folder": "checkpoints",
    "checkpoint_sha256": "checkpoints",
    "load_model": "load",
    "problems_of": "resolve",
    "read_stated": "stated",
}
"""Where each name is that needs torch, which takes seconds to import: a command that only names models does without."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
