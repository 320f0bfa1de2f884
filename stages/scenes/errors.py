"""Exact depth spoilt in known ways: what a teacher says whose errors are of a chosen size.

Two errors that depth networks have, each measured in the view that the network is shown, whatever of the world that is: a blur,
because its maps are coarse, and a smooth distortion, because it misjudges the layout. A distortion that is drawn anew for
each view is noise, which a student averages out; one that lies in all views alike is learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from scipy.ndimage import gaussian_filter

_WAVES = 6
_MOST_CYCLES = 1.5


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How wrong a view's label is."""

    blur: float = 0.0
    """Standard deviation of a Gaussian, as a share of the view's long side."""
    bias: float = 0.0
    """RMS of a smooth distortion that is the same in every view, in mean absolute deviations of the view's disparity."""
    noise: float = 0.0
    """The same of one that is drawn anew for each view."""
    scale: float = 0.0
    """Standard deviation of the logarithm of the view's own scale."""
    shift: float = 0.0
    """Standard deviation of the view's own shift, in mean absolute deviations of its disparity."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        return [f"{name} is {value}, expected 0 or more" for name, value in vars(self).items() if not value >= 0]


def with_errors(
    disparity: Float[np.ndarray, "h w"], errors: Errors, *, bias_seed: int, view_seed: int
) -> Float32[np.ndarray, "h w"]:
    """A view's exact disparity (1/m, the sky 0) with these errors.

    bias_seed: of the distortion that all views have. view_seed: of all that is the view's own, which does not depend on the
    size of the errors: two teachers differ in a view only by what they are said to differ in.
    """
    height, width = disparity.shape
    rng = np.random.default_rng([view_seed, 1])
    spread = float(np.abs(disparity - np.median(disparity)).mean())
    values = gaussian_filter(disparity.astype(np.float64), errors.blur * max(height, width), mode="nearest")
    values += spread * errors.bias * smooth_field(np.random.default_rng([bias_seed, 0]), height, width)
    values += spread * errors.noise * smooth_field(rng, height, width)
    scale, shift = rng.normal(size=2)
    return (np.exp(errors.scale * scale) * (values + errors.shift * shift * spread)).astype(np.float32)


def smooth_field(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w"]:
    """A sum of waves of half a cycle to one and a half along the view's sides: mean 0, RMS 1; alike at every size."""
    y, x = ((np.arange(side) + 0.5) / side for side in (height, width))
    total = np.zeros((height, width))
    for _ in range(_WAVES):
        cycles, angle, phase = rng.uniform(0.5, _MOST_CYCLES), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
        total += np.cos(2 * np.pi * cycles * (np.sin(angle) * y[:, None] + np.cos(angle) * x) + phase)
    total -= total.mean()
    return total / np.sqrt((total**2).mean())
