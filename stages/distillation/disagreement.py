"""Pixels in which the teachers of a run contradict each other: there no student learns from any of them.

A pure function of labels, as they are stored or converted. Maps are brought to a common scale by the global normalisation, as
for the average of several teachers: each has a scale and a shift of its own. Not in the paper, and off unless it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool

from stages.distillation.fusion import globally_normalized, refuse_other_boxes
from stages.label_store import Label, PatchLabel

LabelT = TypeVar("LabelT", bound=Label)


def agreeing_pixels(labels: Sequence[Label], most: float) -> Bool[np.ndarray, "h w"]:
    """Where no two labels of one view, of equal shape, differ by more than `most`; true where not all are valid.

    The difference is that of the maps less their median, in units of their mean absolute deviation from it, both over the
    pixels that are valid in all. A map without contrast there is 0.
    """
    valid = np.logical_and.reduce([label.valid for label in labels])
    maps = np.stack([globally_normalized(label.values, valid) for label in labels])
    return (maps.max(0) - maps.min(0) <= most) | ~valid


def without_disagreement(label: LabelT, labels: Sequence[Label], most: float) -> LabelT:
    """A view's label that is valid only where `labels`, those of all teachers of that view, agree (see `agreeing_pixels`)."""
    return dataclasses.replace(label, valid=label.valid & agreeing_pixels(labels, most))


def patches_without_disagreement(
    patches: Sequence[PatchLabel], of_teachers: Sequence[Sequence[PatchLabel]], most: float, where: str
) -> tuple[PatchLabel, ...]:
    """`without_disagreement` for each patch of a context. Raises ValueError where the teachers' boxes differ."""
    refuse_other_boxes(of_teachers, where)
    views = zip(patches, zip(*of_teachers, strict=True), strict=True)
    return tuple(without_disagreement(patch, labels, most) for patch, labels in views)
