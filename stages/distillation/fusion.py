"""Several teachers' labels of one view as one label: the paper's alternative to letting one teacher speak at a time.

The paper says of its "Avg." only that it weights each pixel by the teachers' agreement, and that it loses. The definition here
is ours: maps are brought to a common scale by the global normalisation, the primary always counts fully, and others the less
the more they contradict it. A fused label is affine-invariant, whatever its teachers' labels are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64

from stages.label_store import AnyLabel, AnyPatch, Label, PatchLabel


def agreement_weighted_average(labels: Sequence[AnyLabel]) -> Label:
    """The labels of one view, of equal shape and the primary teacher's first, as one; invalid pixels are 0.

    N_i: a teacher's map less its median, divided by its mean absolute deviation from that, both over the pixels that are valid
    for all teachers; 0 everywhere where a map has no contrast. The result is sum(w_i N_i) / sum(w_i) with
    w_i = exp(-|N_i - N_primary|) for each pixel, valid where all are.
    """
    valid = np.logical_and.reduce([label.valid for label in labels])
    maps = np.stack([_normalized(label.values, valid) for label in labels])
    weights = np.exp(-np.abs(maps - maps[0]))
    return Label(values=((weights * maps).sum(0) / weights.sum(0)).astype(np.float32), valid=valid)


def fused_patches(patches: Sequence[Sequence[AnyPatch]], where: str) -> tuple[PatchLabel, ...]:
    """Each patch fused, from every teacher's patches of one context. Raises ValueError where their boxes differ."""
    refuse_other_boxes(patches, where)
    fused = (agreement_weighted_average(views) for views in zip(*patches, strict=True))
    return tuple(PatchLabel(values=f.values, valid=f.valid, box=patch.box) for f, patch in zip(fused, patches[0], strict=True))


def refuse_other_boxes(patches: Sequence[Sequence[AnyPatch]], where: str) -> None:
    """Raises ValueError where the teachers' patches of one context do not lie in the same places."""
    first = [tuple(patch.box) for patch in patches[0]]
    for number, others in enumerate(patches):
        if (boxes := [tuple(patch.box) for patch in others]) != first:
            raise ValueError(
                f"{where}: patch_box: teacher {number} has {boxes}, the primary {first}; "
                "patches can only be averaged, or compared, in one place: verify the run"
            )


def _normalized(values: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    result = np.zeros(values.shape)
    if not valid.any():
        return result
    centred = values[valid].astype(np.float64)
    centred -= np.median(centred)
    deviation = np.abs(centred).mean()
    result[valid] = centred / deviation if deviation > 0 else 0
    return result
