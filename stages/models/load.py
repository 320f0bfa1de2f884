"""The one way to a model: its spec resolved, its checkpoint located, and its family asked to load it."""

from __future__ import annotations

from pathlib import Path

from stages.models import custom
from stages.models.checkpoints import refuse_changed
from stages.models.families import FAMILIES
from stages.models.family import DepthModel
from stages.models.located import located
from stages.models.resolve import resolve
from stages.models.spec import ModelSpec


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
