"""One picture of an image's local labels, for looking at; training never uses it.

Each patch is true only up to its own scale and shift. It is aligned by least squares to the context's label of the same
region, and patches that overlap are blended with weights that fall linearly towards their edges.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from stages.evaluation.metrics import align_scale_shift
from stages.label_store import ImageLabels, Label


def stitch_patches(labels: ImageLabels) -> Label:
    """The patches of one image as one map of the context's size, in the context's scale and shift.

    A pixel without a valid patch keeps the context's value and validity. A patch that shares no valid pixel with the context
    cannot be aligned and is left out. Raises ValueError for a box that leaves the context or differs from its patch's size.
    """
    context = labels.context
    total, weights = np.zeros(context.values.shape), np.zeros(context.values.shape)
    for patch in labels.patches:
        top, left, height, width = patch.box
        window = np.s_[top : top + height, left : left + width]
        if min(top, left) < 0 or not patch.values.shape == (height, width) == context.values[window].shape:
            raise ValueError(
                f"the patch at {tuple(patch.box)} has {patch.values.shape} values on a context of {context.values.shape};"
                " expected a box inside the context and as many values as it has pixels"
            )
        shared = patch.valid & context.valid[window]
        if not shared.any():
            continue
        fit = align_scale_shift(patch.values, context.values[window], shared)
        weight = np.outer(_ramp(height), _ramp(width)) * patch.valid
        total[window] += weight * np.where(patch.valid, fit.scale * patch.values.astype(np.float64) + fit.shift, 0)
        weights[window] += weight
    covered = weights > 0
    stitched = np.where(covered, total / np.where(covered, weights, 1), context.values)
    return Label(values=stitched.astype(np.float32), valid=covered | context.valid)


def _ramp(length: int) -> Float64[np.ndarray, "length"]:
    """1 at both ends, rising linearly to the middle."""
    position = np.arange(length, dtype=np.float64)
    return np.minimum(position, length - 1 - position) + 1
