"""Patches whose label contradicts the whole view's: crops of sky or of a bare wall, in which a teacher has nothing to go by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stages.label_store import AnyLabel, AnyPatch


def agreeing_patches(context: AnyLabel, patches: Iterable[AnyPatch], least: float) -> tuple[AnyPatch, ...]:
    """The patches that correlate with their slice of the whole view's label by at least `least`, from -1 to 1.

    Pearson's correlation of the pixels that are valid in both: blind to the scale and shift that each label has of its own. It
    is 0 where either is constant, or fewer than three pixels are valid.
    """
    return tuple(patch for patch in patches if _correlation(context, patch) >= least)


def _correlation(context: AnyLabel, patch: AnyPatch) -> float:
    top, left, height, width = patch.box
    window = np.s_[top : top + height, left : left + width]
    valid = context.valid[window] & patch.valid
    if valid.sum() < 3:
        return 0.0
    ours, theirs = (values[valid].astype(np.float64) for values in (context.values[window], patch.values))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    size = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / size if size > 0 else 0.0
