"""Distances between a student's map and a teacher's label that ignore the scale and the shift of both.

Equations 1 to 9 of "Distill Any Depth" (arXiv 2502.19204), without the feature term. Pixels are grouped into *contexts*
by the teacher's values alone; within a context both maps are centred on their own median and divided by their own mean
absolute deviation. Nothing here ever gives NaN: where a context has no contrast there is nothing to learn, and it adds
nothing. Invalid pixels may hold anything, NaN and infinity included. Work is in float32 (float64 for float64 input),
also under autocast, and never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Normalization = Literal["hybrid", "global", "local", "none"]
Segments = Literal["range", "quantile"]

LEVELS: dict[str, tuple[int, ...]] = {"global": (1,), "local": (4,), "hybrid": (1, 2, 4)}
FLAT = 1e-4
"""A mean absolute deviation below this share of the map's range is noise: a few steps of the stored 16-bit codes."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which distances make the total; the defaults are the paper's (the feature term is not part of this version)."""

    normalization_shared: Normalization = "hybrid"
    normalization_local: Normalization = "hybrid"
    segments: Segments = "range"
    local_global_weight: float = 0.5
    gradient_weight: float = 2.0


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """A batch's loss and what it is made of, before the weights; scalars. A term whose weight is 0 is 0."""

    total: Float[Tensor, ""]
    shared_context: Float[Tensor, ""]
    local_global: Float[Tensor, ""]
    gradient: Float[Tensor, ""]


def distillation_loss(
    prediction: Float[Tensor, "b h w"],
    label: Float[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    normalization: Normalization = "hybrid",
    segments: Segments = "range",
) -> Float[Tensor, ""]:
    """L_Dis, equations 1 to 6: mean over contexts, then over a map's valid pixels, then over the maps that have any.

    `global` has one context (all valid pixels), `local` four, `hybrid` seven (1 + 2 + 4); `none` compares raw values.
    """
    return _mean_over_maps(*_loss_per_map(prediction, label, valid, normalization, segments))


def gradient_loss(
    prediction: Float[Tensor, "b h w"], label: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"], num_scales: int = 4
) -> Float[Tensor, ""]:
    """L_grad as in MiDaS and Depth Anything: L1 of the forward differences of the globally normalised maps' residual.

    Scale k strides both axes by 2^k. A difference counts where both its pixels are valid; each scale is divided by its
    number of valid pixels, scales are summed, and maps with any valid pixel are averaged.
    """
    prediction, label = _clean(prediction, valid), _clean(label, valid)
    pixels = valid.flatten(1)
    segment = torch.zeros_like(pixels, dtype=torch.long)
    floor, flat = _flat_deviation(prediction, pixels), _flat_deviation(label, pixels)
    ours, _ = _normalize(prediction, _order(prediction), pixels, segment, 1, floor)
    theirs, deviation = _normalize(label, _order(label), pixels, segment, 1, flat)
    residual = ((ours - theirs) * (deviation > flat)).view(valid.shape)
    total = residual.new_zeros(len(residual))
    for scale in range(num_scales):
        step = 2**scale
        r, m = residual[:, ::step, ::step], valid[:, ::step, ::step]
        down = (r[:, 1:] - r[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])
        right = (r[:, :, 1:] - r[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])
        total = total + (down.sum((1, 2)) + right.sum((1, 2))) / m.sum((1, 2)).clamp(min=1)
    return _mean_over_maps(total, pixels.any(1))


def cross_context_loss(
    prediction: Float[Tensor, "b c c"],
    label: Float[Tensor, "b c c"],
    valid: Bool[Tensor, "b c c"],
    patch_label: Float[Tensor, "b p k k"],
    patch_valid: Bool[Tensor, "b p k k"],
    patch_box: Int[Tensor, "b p 4"],
    config: LossConfig,
) -> LossTerms:
    """Equation 9: L_sc + local_global_weight * L_lg + gradient_weight * L_grad; one student map serves all three.

    patch_box: top, left, height, width on the student's map. Samples with fewer than p patches, and patches smaller than
    k, are filled up with pixels marked invalid; L_lg (equation 8) is each sample's mean over its own patches.
    """
    zero = prediction.new_zeros((), dtype=torch.promote_types(prediction.dtype, torch.float32))
    shared = distillation_loss(prediction, label, valid, config.normalization_shared, config.segments)
    local = gradient = zero
    if config.local_global_weight and patch_label.numel():
        crops, labels, masks = (
            x.flatten(0, 1) for x in (crop_patches(prediction, patch_box, patch_label.shape[-1]), patch_label, patch_valid)
        )
        per_patch = _loss_per_map(crops, labels, masks, config.normalization_local, config.segments)
        loss, present = (x.view(patch_box.shape[:2]) for x in per_patch)
        local = _mean_over_maps(loss.sum(1) / present.sum(1).clamp(min=1), present.any(1))
    if config.gradient_weight:
        gradient = gradient_loss(prediction, label, valid)
    total = shared + config.local_global_weight * local + config.gradient_weight * gradient
    return LossTerms(total=total, shared_context=shared, local_global=local, gradient=gradient)


def crop_patches(maps: Float[Tensor, "b c c"], patch_box: Int[Tensor, "b p 4"], side: int) -> Float[Tensor, "b p side side"]:
    """The square of `side` pixels at each box's top-left corner; beyond the map's edge it repeats the edge."""
    height, width = maps.shape[1:]
    offset = torch.arange(side, device=maps.device)
    rows = (patch_box[..., 0, None] + offset).clamp(max=height - 1)
    columns = (patch_box[..., 1, None] + offset).clamp(max=width - 1)
    index = (rows[..., :, None] * width + columns[..., None, :]).flatten(2)
    source = maps.flatten(1)[:, None].expand(-1, patch_box.shape[1], -1)
    return source.gather(2, index).view(*patch_box.shape[:2], side, side)


def _loss_per_map(
    prediction: Float[Tensor, "b h w"],
    label: Float[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    normalization: Normalization,
    segments: Segments,
) -> tuple[Float[Tensor, "b"], Bool[Tensor, "b"]]:
    """Each map's L_Dis, 0 where it has no valid pixel, and whether it has any."""
    pixels = valid.flatten(1)
    prediction, label = _clean(prediction, valid), _clean(label, valid)
    if normalization == "none":
        difference = (prediction - label).abs() * pixels
    else:
        floor, flat = _flat_deviation(prediction, pixels), _flat_deviation(label, pixels)
        our_order, their_order = _order(prediction), _order(label)
        levels = LEVELS[normalization]
        difference = torch.zeros_like(prediction)
        for count in levels:
            segment = _segment_of_pixel(label, pixels, count, segments)
            ours, _ = _normalize(prediction, our_order, pixels, segment, count, floor)
            theirs, deviation = _normalize(label, their_order, pixels, segment, count, flat)
            has_contrast = pixels & (deviation > flat)
            difference = difference + (ours - theirs).abs() * has_contrast / len(levels)
    count = pixels.sum(1)
    return difference.sum(1) / count.clamp(min=1), count > 0


def _mean_over_maps(loss: Float[Tensor, "b"], present: Bool[Tensor, "b"]) -> Float[Tensor, ""]:
    return (loss * present).sum() / present.sum().clamp(min=1)


def _clean(maps: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]) -> Float[Tensor, "b n"]:
    """Flat maps of at least float32 with 0 where invalid, so that no arithmetic meets what is stored there."""
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return torch.where(valid, wide, 0).flatten(1)


def _flat_deviation(values: Float[Tensor, "b n"], pixels: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1"]:
    """The mean absolute deviation at or below which a context of this map counts as flat; no gradient.

    It follows the map's own range, so that it moves with scale and shift, and is the same share of it for student and
    teacher: a perfect student is never clamped where its teacher is not. A map that is constant up to rounding gets its
    own magnitude, 1 or more, which keeps its gradient no larger than that of a plain L1 loss.
    """
    values = values.detach()
    high = values.masked_fill(~pixels, -torch.inf).amax(1, keepdim=True)
    low = values.masked_fill(~pixels, torch.inf).amin(1, keepdim=True)
    magnitude = torch.maximum(high.abs(), low.abs())
    rounding = 4 * torch.finfo(values.dtype).eps * magnitude
    return torch.where(high - low > rounding, FLAT * (high - low), magnitude.clamp(min=1))


def _order(values: Float[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    return values.detach().argsort(dim=1, stable=True)


def _segment_of_pixel(
    label: Float[Tensor, "b n"], pixels: Bool[Tensor, "b n"], count: int, segments: Segments
) -> Int[Tensor, "b n"]:
    """0 to count - 1 by the teacher's value; unspecified where invalid.

    `range`: equal ranges of [min, max], the last one closed. `quantile`: equal numbers of pixels, equal values together.
    """
    if count == 1:
        return torch.zeros_like(label, dtype=torch.long)
    shown = label.masked_fill(~pixels, torch.inf)
    if segments == "quantile":
        ranks = torch.arange(1, count, device=label.device) * pixels.sum(1, keepdim=True) // count
        edges = shown.sort(1).values.gather(1, ranks.clamp(max=label.shape[1] - 1))
        return (shown[:, :, None] >= edges[:, None]).sum(2)
    low = shown.amin(1, keepdim=True)
    span = label.masked_fill(~pixels, -torch.inf).amax(1, keepdim=True) - low
    share = torch.where(pixels & (span > 0), (label - low) / span, 0.0)
    return (share * count).long().clamp(0, count - 1)


def _normalize(
    values: Float[Tensor, "b n"],
    order: Int[Tensor, "b n"],
    pixels: Bool[Tensor, "b n"],
    segment: Int[Tensor, "b n"],
    count: int,
    floor: Float[Tensor, "b 1"],
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """N_u of every pixel within its segment u, and u's mean absolute deviation, at that pixel. `order` sorts `values`.

    The median is the mean of the two middle values, as in NumPy. `floor` bounds the divisor from below: a student that is
    flat where its teacher is not still gets a finite loss and a gradient that pulls its pixels apart.
    """
    members = pixels[:, None] & (segment[:, None] == torch.arange(count, device=values.device)[:, None])
    sizes = members.sum(2)
    seen = members.gather(2, order[:, None].expand_as(members)).cumsum(2, dtype=torch.int32)
    middle = torch.stack([(sizes + 1) // 2, sizes // 2 + 1], 2).clamp(min=1).to(torch.int32)
    rank = torch.searchsorted(seen, middle).clamp(max=values.shape[1] - 1)
    median = values.gather(1, order.gather(1, rank.flatten(1))).unflatten(1, (count, 2)).mean(2)
    centred = values - median.gather(1, segment)
    deviation = ((centred.abs()[:, None] * members).sum(2) / sizes.clamp(min=1)).gather(1, segment)
    return centred / torch.maximum(deviation, floor), deviation
