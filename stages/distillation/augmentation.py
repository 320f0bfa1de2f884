"""Colours of the student's input, changed on the device; labels, boxes and what the teachers saw never change by it.

What to change is drawn with the order (`order.color_of`): nothing here is random.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from stages.distillation.order import UNCHANGED

_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_FROM_YIQ: list[list[float]] = np.linalg.inv(_TO_YIQ).tolist()


def color_jitter(
    images: UInt8[Tensor, "b 3 h w"], color: Float[Tensor, "b 4"], extent: Int[Tensor, "b 2"] | None = None
) -> UInt8[Tensor, "b 3 h w"]:
    """Brightness, contrast around the picture's grey mean, saturation, and hue as a rotation of the chroma in YIQ.

    color: the first three as factors, the hue in turns; 1, 1, 1, 0 gives each pixel back as it is. All four are linear in a
    pixel's values, which are clipped once, at the end. extent: height and width of each picture where it does not fill the
    square; what lies beyond must be 0, does not count in the mean, and may come out as another grey.
    """
    if color.device.type == "cpu" and (color == torch.tensor(UNCHANGED)).all():  # elsewhere, to ask would be to wait
        return images
    brightness, contrast, saturation, turns = color[:, :, None, None].unbind(1)
    grey, in_phase, quadrature = (_weighted(weights, images.float().unbind(1)) for weights in _TO_YIQ)
    pixels = images[0, 0].numel() if extent is None else extent.prod(1)
    sums = images.sum((2, 3))  # of integers: exact, in whatever order the device adds
    mean = _weighted(_TO_YIQ[0], (sums.T / pixels)[:, :, None, None])
    grey = brightness * (contrast * grey + (1 - contrast) * mean)
    chroma = brightness * contrast * saturation
    cosine, sine = chroma * torch.cos(2 * math.pi * turns), chroma * torch.sin(2 * math.pi * turns)
    rotated = (grey, cosine * in_phase - sine * quadrature, sine * in_phase + cosine * quadrature)
    changed = torch.stack([_weighted(weights, rotated) for weights in _FROM_YIQ], 1)
    return changed.round().clamp(0, 255).to(torch.uint8)


def _weighted(weights: Sequence[float], planes: Iterable[Tensor]) -> Tensor:
    red, green, blue = (weight * plane for weight, plane in zip(weights, planes, strict=True))
    return red + green + blue
