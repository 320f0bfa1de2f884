"""Disparity as a picture, in the colours the field uses: blue is far, red is near."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps

COLOR_MAP = "Spectral_r"
_INVALID_GREY = 128


def robust_range(values: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."] | None = None) -> tuple[float, float]:
    """The 2 % and 98 % quantiles of the finite valid values; (0, 1) where there are none."""
    usable = values[np.isfinite(values) & (True if valid is None else valid)]
    if usable.size == 0:
        return 0.0, 1.0
    low, high = np.quantile(usable, (0.02, 0.98))
    return float(low), float(high)


def colorize_disparity(
    disparity: Float[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour a disparity map: `low` and below is the far end of the colour map, `high` and above the near end.

    A bound that is not given is the map's own robust one. Pixels that are invalid or not finite are grey.
    """
    shown = np.isfinite(disparity) if valid is None else valid & np.isfinite(disparity)
    own_low, own_high = robust_range(disparity, shown)
    low, high = own_low if low is None else low, own_high if high is None else high
    position = (np.where(shown, disparity, low) - low) / max(high - low, np.finfo(np.float32).tiny)
    rgb = colormaps[COLOR_MAP](np.clip(position, 0, 1), bytes=True)[..., :3]
    return np.where(shown[..., None], rgb, np.uint8(_INVALID_GREY)).astype(np.uint8)
