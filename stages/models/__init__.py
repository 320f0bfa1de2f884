"""Depth teachers: uint8 pictures in, float32 depth in the teacher's own space out, at the pictures' size.

Three loaders. `transformers` takes `AutoModelForDepthEstimation` checkpoints (Depth Anything, DPT, Depth Pro), `genpercept` a
one-step diffusion estimator, `marigold` a diffusion estimator that starts from noise. What the numbers mean is said by the
checkpoint (`stated`) or, where it says nothing, by the spec; nothing is guessed, and no code from a checkpoint is run.

A prediction depends on its picture and seed alone. In float32 on a CPU it is the same to the bit for batches of the same shape;
across batch sizes sums are rounded otherwise, and it differs by less than 1e-4 of the map's range (measured on random
networks: 0 to 3e-5).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from stages.models.checkpoints import checkpoint_folder, checkpoint_sha256, refuse_changed
from stages.models.known import KNOWN, KnownCheckpoint
from stages.models.spec import InputSize, TeacherSpec, resolve
from stages.models.stated import read_stated

__all__ = [
    "KNOWN",
    "InputSize",
    "KnownCheckpoint",
    "Teacher",
    "TeacherSpec",
    "checkpoint_folder",
    "checkpoint_sha256",
    "load_teacher",
    "read_stated",
    "resolve",
]


@runtime_checkable
class Teacher(Protocol):
    """A loaded teacher; `spec` is its resolved spec."""

    spec: TeacherSpec

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None) -> Float32[np.ndarray, "b h w"]:
        """Depth of each picture in `spec.depth_space`; what else is in the batch does not matter.

        seeds: 63-bit, one per picture, for teachers that start from noise; others ignore them. None is seed 0 for each.
        Raises torch.OutOfMemoryError where the batch does not fit, on any device; a smaller one may.
        """
        ...


def load_teacher(spec: TeacherSpec, *, device: str = "cpu", sha256: str | None = None) -> Teacher:
    """Load the checkpoint on a device.

    sha256: the digest that the checkpoint had when it was looked at; compared after loading, so that it is that of the weights
    that were loaded. Raises ValueError for a bad spec or a checkpoint that is not what the spec says, CheckpointChangedError
    for one that has changed, OSError for one that is not there.
    """
    spec = resolve(spec)
    folder = checkpoint_folder(spec.checkpoint, spec.revision)
    teacher = _load(resolve(spec, folder), folder, device)
    if sha256 is not None:
        refuse_changed(folder, sha256)
    return teacher


def _load(spec: TeacherSpec, folder: Path, device: str) -> Teacher:
    # Each loader pulls in a library that takes seconds to import, and most processes need one of them or none.
    if spec.loader == "transformers":
        from stages.models.transformers_models import TransformersTeacher

        return TransformersTeacher(spec, folder, device)
    if spec.loader == "genpercept":
        from stages.models.genpercept import GenPerceptTeacher

        return GenPerceptTeacher(spec, folder, device)
    from stages.models.marigold import MarigoldTeacher

    return MarigoldTeacher(spec, folder, device)
