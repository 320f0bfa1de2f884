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

from pathlib import Path

from stages.models import custom
from stages.models.checkpoints import checkpoint_folder, checkpoint_sha256, refuse_changed
from stages.models.families import FAMILIES
from stages.models.family import DepthModel
from stages.models.known import KNOWN, KnownCheckpoint
from stages.models.located import located
from stages.models.resolve import problems_of, resolve
from stages.models.spec import InputSize, ModelSpec
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
    "located",
    "problems_of",
    "read_stated",
    "resolve",
]


def load_model(spec: ModelSpec, folder: Path | None = None, *, device: str = "cpu", sha256: str | None = None) -> DepthModel:
    """A model on a device, as a predictor; its `spec` says what was found out.

    folder: the checkpoint's files, where they are at hand; a hub id is fetched. sha256: the digest that the checkpoint had when
    it was looked at; compared after loading, so that it is that of the weights that were loaded.
    Raises ValueError for a bad spec or a checkpoint that is not what the spec says, CheckpointChangedError for one that has
    changed, OSError for one that is not there.
    """
    spec = resolve(spec, folder)
    if spec.is_custom:
        return custom.load(spec, device, sha256)
    if folder is None:
        spec, folder = located(spec)
    spec = resolve(spec, folder)
    model = FAMILIES[str(spec.loader)].load(spec, folder, device)
    if sha256 is not None:
        refuse_changed(folder, sha256)
    return model
