"""Disparity as a picture, in the colours the field uses: blue is far, red is near; and differences of disparities."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps

COLOR_MAP, DIFFERENCE_MAP = "Spectral_r", "RdBu_r"
INVALID_GREY = 128
_ENOUGH_VALUES = 1 << 18


def robust_range(values: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."] | None = None) -> tuple[float, float]:
    """The 2 % and 98 % quantiles of the finite valid values; (0, 1) where there are none.

    Of very many values every n-th counts, 262,144 at least: sorting 24 megapixels takes longer than predicting them.
    """
    usable = values[np.isfinite(values) & (True if valid is None else valid)]
    if usable.size == 0:
        return 0.0, 1.0
    low, high = np.quantile(usable[:: max(usable.size // _ENOUGH_VALUES, 1)], (0.02, 0.98))
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
    if low is None or high is None:
        own_low, own_high = robust_range(disparity, shown)
        low, high = own_low if low is None else low, own_high if high is None else high
    return _colored(disparity, shown, low, high, COLOR_MAP)


def colorize_difference(
    difference: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], most: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour how much nearer (red) or farther (blue) one map is than another: white is none, and `most` or more the full
    colour. Pixels that are invalid or not finite are grey."""
    return _colored(difference, valid & np.isfinite(difference), -most, most, DIFFERENCE_MAP)


def _colored(
    values: Float[np.ndarray, "h w"], shown: Bool[np.ndarray, "h w"], low: float, high: float, color_map: str
) -> UInt8[np.ndarray, "h w 3"]:
    colors = _colors(color_map)
    steps = len(colors) - 1
    position = (np.where(shown, values, low) - low) / max(high - low, np.finfo(np.float32).tiny)
    # as in Matplotlib, steps of equal width, and 1 belongs to the last
    index = np.where(shown, np.minimum(position.clip(0, 1) * steps, steps - 1), steps).astype(np.uint16)
    return colors.take(index, axis=0)


@cache
def _colors(color_map: str) -> UInt8[np.ndarray, "n 3"]:
    """The colour map's own steps, from far to near, and last the grey of what is not shown."""
    table = colormaps[color_map](np.arange(colormaps[color_map].N), bytes=True)[:, :3]
    return np.concatenate([table, np.full((1, 3), INVALID_GREY)]).astype(np.uint8)
