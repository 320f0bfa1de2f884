"""Disparity as a picture, in the colours the field uses: blue is far, red is near; and differences of disparities."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16, UInt32
from matplotlib import colormaps

COLOR_MAP, DIFFERENCE_MAP = "Spectral_r", "RdBu_r"
INVALID_GREY = 128
_ENOUGH_VALUES = 1 << 18


def robust_range(values: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."] | None = None) -> tuple[float, float]:
    """The 2 % and 98 % quantiles of the finite valid values; (0, 1) where there are none.

    Of very many values every n-th counts, 262,144 at least: sorting 24 megapixels takes longer than predicting them.
    """
    wanted = np.isfinite(values) if valid is None else np.isfinite(values) & valid
    usable = values.reshape(-1) if wanted.all() else values[wanted]
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
    return _colors(COLOR_MAP)[:, :3].take(_steps(disparity, shown, low, high), axis=0)


def colorize_difference(
    difference: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], most: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour how much nearer (red) or farther (blue) one map is than another: white is none, and `most` or more the full
    colour. Pixels that are invalid or not finite are grey."""
    steps = _steps(difference, valid & np.isfinite(difference), -most, most, DIFFERENCE_MAP)
    return _colors(DIFFERENCE_MAP)[:, :3].take(steps, axis=0)


def colorize_for_pillow(disparity: Float[np.ndarray, "h w"], low: float, high: float) -> UInt32[np.ndarray, "h w"]:
    """As `colorize_disparity`, each colour in four bytes, as in Pillow's images of mode RGBX; in half of the time."""
    words = _colors(COLOR_MAP).view(np.uint32)[:, 0]
    return words.take(_steps(disparity, np.isfinite(disparity), low, high), mode="clip")  # which of the modes is the fast one


def _steps(
    values: Float[np.ndarray, "h w"], shown: Bool[np.ndarray, "h w"], low: float, high: float, color_map: str = COLOR_MAP
) -> UInt16[np.ndarray, "h w"]:
    """Which of `_colors` each pixel has: as in Matplotlib, steps of equal width, and 1 belongs to the last."""
    grey = len(_colors(color_map)) - 1
    every = bool(shown.all())
    position = (values if every else np.where(shown, values, low)) - low
    position /= max(high - low, np.finfo(np.float32).tiny)
    np.clip(position, 0, 1, out=position)
    position *= grey
    index = np.minimum(position, grey - 1, out=position).astype(np.uint16)
    if not every:
        index[~shown] = grey
    return index


@cache
def _colors(color_map: str) -> UInt8[np.ndarray, "n 4"]:
    """The colour map's own steps, from far to near, and last the grey of what is not shown; the fourth byte means nothing."""
    table = colormaps[color_map](np.arange(colormaps[color_map].N), bytes=True)
    return np.concatenate([table, np.full((1, 4), INVALID_GREY)]).astype(np.uint8)
