"""What a step saw and said, as one picture: for looking at a training while it runs."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from stages.coloring import colorize_disparity, robust_range
from stages.distillation.batch import Batch
from stages.evaluation.metrics import align_scale_shift
from stages.label_store import ImageLabels, Label, PatchLabel
from stages.stitching import stitch_patches

_GAP_PX = 4


def training_pictures(batch: Batch, disparity: Float[Tensor, "b c c"], *, samples: int = 4) -> UInt8[np.ndarray, "h w 3"]:
    """A row for each of the first samples: input, label, the student's map, and the patches' labels stitched.

    Maps are aligned to the label in scale and shift and share its colours; grey is invalid.
    """
    rows = [_row(batch, disparity, i) for i in range(min(samples, len(batch.keys)))]
    gap = np.full((_GAP_PX, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def _row(batch: Batch, disparity: Float[Tensor, "b c c"], i: int) -> UInt8[np.ndarray, "c w 3"]:
    label, valid = _array(batch.label[i]), _array(batch.valid[i])
    low, high = robust_range(label, valid)
    student = _array(disparity[i]).astype(np.float64)
    if valid.any():
        fit = align_scale_shift(student, label, valid)
        student = fit.scale * student + fit.shift
    patches = tuple(
        PatchLabel(values=_array(values), valid=_array(known), box=box) for box, values, known in batch.patches_of(i)
    )
    stitched = stitch_patches(ImageLabels(context=Label(values=label, valid=valid), patches=patches))
    maps = [(label, valid), (student, None), (stitched.values, stitched.valid)]
    tiles = [_array(batch.image[i]).transpose(1, 2, 0), *(colorize_disparity(m, v, low, high) for m, v in maps)]
    gap = np.full((tiles[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], 1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).numpy()
