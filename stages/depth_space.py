"""Depth spaces: what the numbers of a depth map mean. They are stored as the teacher gave them and never converted silently.

A conversion is chosen by name, and turns what is not a disparity into one; disparities are taken as they are.
- `refuse`: nothing is converted.
- `metric`: metric depth becomes 1/depth, which is exact. Affine-invariant depth is refused.
- `approximate`: also affine-invariant depth, as 1/(depth - nearest + 0.1 * (farthest - nearest)), each view by its own range.
  An approximation, and not an affine disparity: the true inverse depends on the unknown shift of the depth; this one puts the
  farthest point of every view at eleven times the distance of the nearest.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32

from manifests.schema import DepthSpace

DEPTH_SPACES: tuple[DepthSpace, ...] = get_args(DepthSpace)
DepthConversion = Literal["refuse", "metric", "approximate"]
DEPTH_CONVERSIONS: tuple[DepthConversion, ...] = get_args(DepthConversion)

_NEAREST_M = 1e-3
_NEAREST_SHARE = 0.1  # the nearest point's assumed distance, as a share of the view's range


def is_disparity(space: DepthSpace) -> bool:
    """Whether near is large."""
    return space in ("disparity_affine_invariant", "disparity_metric")


def can_convert(space: DepthSpace, conversion: DepthConversion) -> bool:
    """Whether maps of the space are disparities, or become so by the conversion."""
    return is_disparity(space) or conversion == "approximate" or (conversion == "metric" and space == "depth_metric")


def convert_to_disparity(
    values: Float32[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], space: DepthSpace, conversion: DepthConversion
) -> Float32[np.ndarray, "h w"]:
    """One view's map as a disparity; invalid pixels of a converted map are 0, and so is a map without any range.

    Metric depth below 1 mm counts as 1 mm. Raises ValueError where the conversion cannot.
    """
    if not can_convert(space, conversion):
        raise ValueError(f"depth_space: {space} does not become a disparity by the conversion {conversion!r}")
    if is_disparity(space):
        return values
    if space == "depth_metric":
        distance = np.maximum(values, np.float32(_NEAREST_M))
    else:
        nearest, farthest = values.min(where=valid, initial=np.inf), values.max(where=valid, initial=-np.inf)
        if not nearest < farthest:
            return np.zeros_like(values)
        distance = values - nearest + np.float32(_NEAREST_SHARE) * (farthest - nearest)
    return np.divide(np.float32(1), distance, out=np.zeros_like(values), where=valid)
