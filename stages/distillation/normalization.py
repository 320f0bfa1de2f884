"""A student's map and a teacher's label, each normalised within contexts that the label alone defines.

Equations 1 to 5 of "Distill Any Depth" (arXiv 2502.19204). Within a *context*, a set of pixels, a map is centred on its median
and divided by its mean absolute deviation from it, so that its scale and shift are gone. Nothing here ever gives NaN: where the
label has no contrast there is nothing to learn, and both maps are 0. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.distillation.loss_config import Segments

LEVELS: dict[str, tuple[int, ...]] = {"global": (1,), "local": (4,), "hybrid": (1, 2, 4)}
"""Into how many contexts each level cuts a map: powers of 2, rising, so that each cuts the ones before into equal parts."""
FLAT = 1e-4
"""A mean absolute deviation below this share of the map's range is noise: a few steps of the stored 16-bit codes."""


def clean(maps: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Maps of at least float32 with 0 where invalid, so that no arithmetic meets what is stored there."""
    return torch.where(valid, maps.to(torch.promote_types(maps.dtype, torch.float32)), 0)


def normalized_pairs(
    prediction: Float[Tensor, "b h w"],
    label: Float[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    levels: tuple[int, ...],
    segments: Segments = "range",
) -> Iterator[tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]]:
    """For each level, N_u of both maps at every pixel, u being the pixel's context; expects what `clean` returns.

    Both are 0 at pixels that are invalid or in a context where the label is flat. A student that is flat where its teacher is
    not still gets a finite value and a gradient that pulls its pixels apart.
    """
    floor, flat = _flat_deviation(prediction, valid), _flat_deviation(label, valid)
    our_order, their_order = rising_order(prediction), rising_order(label.masked_fill(~valid, torch.inf))
    finest = _context_of_pixel(label, their_order, valid, levels[-1], segments)
    for level in levels:
        context = finest >> ((levels[-1] // level).bit_length() - 1)
        size = _sums(torch.ones_like(context), context, level)
        ours, our_deviation = _centred(prediction, _by_context(our_order, context, level), context, size)
        theirs, their_deviation = _centred(label, their_order, context, size)
        contrast = their_deviation > flat
        yield (
            ours * _at_pixels(contrast / torch.maximum(our_deviation, floor), context),
            theirs * _at_pixels(contrast / torch.maximum(their_deviation, flat), context),
        )


def _flat_deviation(values: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 1"]:
    """The mean absolute deviation at or below which a context of this map counts as flat; no gradient.

    It follows the map's own range, so that it moves with scale and shift, and is the same share of it for student and
    teacher: a perfect student is never clamped where its teacher is not. A map that is constant up to rounding gets its
    own magnitude, 1 or more, which keeps its gradient no larger than that of a plain L1 loss.
    """
    values = values.detach()
    high = values.masked_fill(~valid, -torch.inf).flatten(1).amax(1, keepdim=True)
    low = values.masked_fill(~valid, torch.inf).flatten(1).amin(1, keepdim=True)
    magnitude = torch.maximum(high.abs(), low.abs())
    numbers = torch.finfo(values.dtype)
    rounding = (4 * numbers.eps * magnitude).clamp(min=numbers.tiny**0.5 / FLAT)  # what is divided by can be squared
    return torch.where(high - low > rounding, FLAT * (high - low), magnitude.clamp(min=1))


def rising_order(values: Float[Tensor, "b h w"]) -> Int[Tensor, "b n"]:
    """The flat indices of each map's pixels by rising value.

    A CPU sorts one row of integers seven times as fast as several rows of floats: a float's bits, the lower ones inverted where
    it is negative, rise as the float does, and the map's number before them keeps the maps apart.
    """
    flat = values.detach().flatten(1)
    if flat.dtype != torch.float32:
        return flat.argsort(dim=1, stable=True)
    bits = flat.view(torch.int32)
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    maps = torch.arange(len(flat), device=flat.device)[:, None]
    order = (rising + (maps << 32)).flatten().sort(stable=True).indices
    return order.view(flat.shape) - maps * flat.shape[1]


def _context_of_pixel(
    label: Float[Tensor, "b h w"], order: Int[Tensor, "b n"], valid: Bool[Tensor, "b h w"], count: int, segments: Segments
) -> Int[Tensor, "b h w"]:
    """0 to count - 1 by the teacher's value; count where invalid. `order` has valid pixels first.

    `range`: equal ranges of [min, max], the last one closed. `quantile`: equal numbers of pixels, equal values together.
    """
    if count == 1:
        return (~valid).long()
    flat, size = label.flatten(1), valid.sum((1, 2))[:, None]
    if segments == "quantile":
        ranks = torch.arange(1, count, device=label.device) * size // count
        edges = flat.gather(1, order.gather(1, ranks.clamp(max=flat.shape[1] - 1)))
        context = torch.searchsorted(edges, flat, right=True).view(label.shape)
    else:
        low, high = (flat.gather(1, order.gather(1, rank.clamp(min=0)))[..., None] for rank in (0 * size, size - 1))
        share = torch.where(high > low, (label - low) / (high - low), 0)
        context = (share * count).long().clamp(0, count - 1)
    return torch.where(valid, context, count)


def _by_context(order: Int[Tensor, "b n"], context: Int[Tensor, "b h w"], count: int) -> Int[Tensor, "b n"]:
    """The same indices by rising context, then as they were.

    Sorting again is cheap, as there are few contexts: one byte for each pixel where they are few enough.
    """
    maps = torch.arange(len(order), device=order.device)[:, None]
    key = context.flatten(1).gather(1, order) + maps * (count + 1)
    small = torch.uint8 if len(order) * (count + 1) <= 256 else torch.int32
    return order.flatten()[key.flatten().to(small).sort(stable=True).indices].view(order.shape)


def _centred(
    values: Float[Tensor, "b h w"], order: Int[Tensor, "b n"], context: Int[Tensor, "b h w"], size: Int[Tensor, "b u"]
) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b u"]]:
    """Values less their context's median, and each context's mean absolute deviation; its last column is for invalid pixels.

    `order` sorts by context, then by value; `size` is the number of pixels of each. The median is the mean of the two middle
    values, as in NumPy.
    """
    start = (size.cumsum(1) - size)[..., None]
    middle = start + torch.stack([(size - 1) // 2, size // 2], 2)
    pixel = order.gather(1, middle.flatten(1).clamp(0, order.shape[1] - 1))  # any pixel for an empty context: nobody reads it
    median = values.flatten(1).gather(1, pixel).unflatten(1, (-1, 2)).mean(2)
    centred = values - _at_pixels(median, context)
    return centred, _sums(centred.abs(), context, size.shape[1] - 1) / size.clamp(min=1)


def _sums(values: Float[Tensor, "b h w"] | Int[Tensor, "b h w"], context: Int[Tensor, "b h w"], count: int) -> Tensor:
    """[b, count + 1]: the sum over each context. First within each row, so that float32 adds few numbers one by one."""
    return values.new_zeros((*values.shape[:2], count + 1)).scatter_add(2, context, values).sum(1)


def _at_pixels(table: Float[Tensor, "b u"], context: Int[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Each pixel's own context's value."""
    return table[:, None].expand(-1, context.shape[1], -1).gather(2, context)
