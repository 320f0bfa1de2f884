"""The distances of "Distill Any Depth" (arXiv 2502.19204), equations 1 to 9, and what keeps a student's output in place.

Each is a mean over the maps, or samples, that have anything to compare. Invalid pixels may hold anything, NaN and infinity
included; maps and contexts with nothing to learn add 0, never NaN. Work is in float32 (float64 for float64 input), also under
autocast, and never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.distillation.loss_config import LossConfig, Normalization, Segments
from stages.distillation.normalization import LEVELS, clean, normalized_pairs, rising_order
from stages.views import Box

DEAD = 1e-6
"""An untrained student whose spread is no larger than this has none to keep; its level, or 1, is then the anchor's unit."""


@dataclass(frozen=True, kw_only=True)
class PatchGroup:
    """Labels of patches, of whichever samples, filled up to one size with pixels marked invalid."""

    label: Float[Tensor, "n h w"]
    valid: Bool[Tensor, "n h w"]
    sample: Int[Tensor, "n"]
    box: Int[Tensor, "n 4"]
    """Top, left, height, width on the context grid."""

    def of_samples(self, start: int, end: int) -> PatchGroup:
        """Those of the samples from `start` to `end`, which are counted from 0 then; waits for the device."""
        kept = (self.sample >= start) & (self.sample < end)
        chosen = {name: value[kept] for name, value in vars(self).items()}
        return replace(self, **{**chosen, "sample": chosen["sample"] - start})


@dataclass(frozen=True, kw_only=True)
class LossTargets:
    """What a student's maps are compared with: one teacher's labels of whole contexts and of their patches."""

    label: Float[Tensor, "b c c"]
    valid: Bool[Tensor, "b c c"]
    patches: tuple[PatchGroup, ...]

    def patches_of(self, sample: int) -> list[tuple[Box, Float[Tensor, "h w"], Bool[Tensor, "h w"]]]:
        """Box, label and valid pixels of each of a sample's patches; waits for the device."""
        found = []
        for group in self.patches:
            of_sample = group.of_samples(sample, sample + 1)
            boxes = [Box(*box) for box in of_sample.box.tolist()]
            for box, label, valid in zip(boxes, of_sample.label, of_sample.valid, strict=True):
                found.append((box, label[: box.height, : box.width], valid[: box.height, : box.width]))
        return found


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """The student's tokens, those of the frozen encoder, and which of them show the picture (None: all)."""

    student: Float[Tensor, "b n d"]
    frozen: Float[Tensor, "b n d"]
    valid: Bool[Tensor, "b n"] | None = None


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """A batch's loss and what it is made of, before the weights; scalars. A term whose weight is 0 is 0."""

    total: Float[Tensor, ""]
    shared_context: Float[Tensor, ""]
    local_global: Float[Tensor, ""]
    feature: Float[Tensor, ""]
    gradient: Float[Tensor, ""]
    anchor: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class OutputScale:
    """Where a student's raw output lies: means, over its maps, of level (mean) and spread (mean absolute deviation from it)."""

    level: Float[Tensor, ""]
    spread: Float[Tensor, ""]


# --- one distance ---------------------------------------------------------------------------------------------------


def distillation_loss(
    prediction: Float[Tensor, "b h w"],
    label: Float[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    normalization: Normalization = "hybrid",
    segments: Segments = "range",
    trim_fraction: float = 0.0,
) -> Float[Tensor, ""]:
    """L_Dis, equations 1 to 6: mean over contexts, then over a map's valid pixels, then over the maps that have any.

    `global` has one context (all valid pixels), `local` four, `hybrid` seven (1 + 2 + 4); `none` compares raw values.
    `trim_fraction`, 0 to below 1, of each map's valid pixels, rounded down, is left out: those with the largest loss.
    """
    loss = _distillation(prediction, label, valid, normalization, segments, trim_fraction)
    return _mean(loss, _any_valid(valid).sum())


def gradient_loss(
    prediction: Float[Tensor, "b h w"], label: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"], num_scales: int = 4
) -> Float[Tensor, ""]:
    """L_grad as in MiDaS and Depth Anything: L1 of the forward differences of the globally normalised maps' residual.

    Scale k strides both axes by 2^k. A difference counts where both its pixels are valid; each scale is divided by its
    number of valid pixels, scales are summed, and maps with any valid pixel are averaged.
    """
    return _mean(_gradient(prediction, label, valid, num_scales), _any_valid(valid).sum())


def feature_loss(
    student_tokens: Float[Tensor, "b n d"],
    frozen_tokens: Float[Tensor, "b n d"],
    margin: float = 0.85,
    valid: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, ""]:
    """L_feat as in Depth Anything: 1 - cosine, mean over a sample's tokens (0 where none counts), then over samples.

    A token whose cosine is above `margin` is close enough and does not count. The frozen tokens get no gradient.
    """
    return _feature(student_tokens, frozen_tokens, margin, valid).mean()


def anchor_loss(prediction: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"], scale: OutputScale) -> Float[Tensor, ""]:
    """How far maps have moved from `scale`, in units of its spread: in level plus in spread, mean over maps; blind to shape."""
    return _mean(_anchor(prediction, valid, scale), _any_valid(valid).sum())


def output_scale(prediction: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]) -> OutputScale:
    """What `anchor_loss` is to keep; measured once, on the untrained student. Maps without a valid pixel do not count."""
    level, spread = _level_and_spread(prediction.detach(), valid)
    maps = _any_valid(valid).sum()
    return OutputScale(level=_mean(level, maps), spread=_mean(spread, maps))


# --- all together ---------------------------------------------------------------------------------------------------


def cross_context_loss(
    prediction: Float[Tensor, "b c c"],
    targets: LossTargets,
    config: LossConfig,
    *,
    tokens: TokenPair | None = None,
    anchor: OutputScale | None = None,
    counts: Float[Tensor, "3"] | None = None,
) -> LossTerms:
    """Equation 9, the weighted sum of L_sc, L_lg, L_feat and L_grad, and the anchor; one student map serves all.

    L_lg (equation 8) is each sample's mean over its own patches. Without `tokens`, L_feat is 0, and without `anchor`, its term.
    counts: `count_maps` of the whole step where this batch is a part of it. The terms, and their gradients, of all parts then
    add up to those of the whole.
    """
    label, valid = targets.label, targets.valid
    maps, samples_with_patches, samples = count_maps(targets) if counts is None else counts
    shared = local = feature = gradient = anchored = prediction.new_zeros((), dtype=_wide(prediction))
    if config.shared_weight:
        how = config.normalization_shared, config.segments, config.trim_fraction
        shared = _mean(_distillation(prediction, label, valid, *how), maps)
    if config.local_global_weight and targets.patches:
        local = _mean(_local_global(prediction, targets, config), samples_with_patches)
    if config.feature_weight and tokens is not None:
        feature = _mean(_feature(tokens.student, tokens.frozen, config.feature_margin, tokens.valid), samples)
    if config.gradient_weight:
        gradient = _mean(_gradient(prediction, label, valid), maps)
    if config.anchor_weight and anchor is not None:
        anchored = _mean(_anchor(prediction, valid, anchor), maps)
    total = config.shared_weight * shared + config.local_global_weight * local + config.feature_weight * feature
    total = total + config.gradient_weight * gradient + config.anchor_weight * anchored
    return LossTerms(
        total=total, shared_context=shared, local_global=local, feature=feature, gradient=gradient, anchor=anchored
    )


def count_maps(targets: LossTargets) -> Float[Tensor, "3"]:
    """Maps with a valid pixel, samples with a valid patch, samples: what the terms are means over. Adds up over batches."""
    samples = torch.ones_like(targets.valid[:, 0, 0])
    patches = sum((_per_sample(_any_valid(group.valid), group, len(samples)) for group in targets.patches), 0 * samples)
    return torch.stack([has.sum() for has in (_any_valid(targets.valid), patches > 0, samples)]).float()


def crop_patches(maps: Float[Tensor, "b c c"], group: PatchGroup) -> Float[Tensor, "n h w"]:
    """The group's places in the maps; where a patch is filled up, what lies there, and beyond the map's edge the edge again."""
    height, width = maps.shape[1:]
    rows, columns = (torch.arange(side, device=maps.device) for side in group.label.shape[1:])
    rows = (group.box[:, 0, None] + rows).clamp(max=height - 1) + group.sample[:, None] * height
    columns = (group.box[:, 1, None] + columns).clamp(max=width - 1)
    index = rows[:, :, None] * width + columns[:, None, :]
    return maps.flatten().gather(0, index.flatten()).view(index.shape)


def _per_sample(of_patches: Tensor, group: PatchGroup, samples: int) -> Float[Tensor, "b"]:
    """The sum over each sample's patches in the group, always in the same order."""
    values = of_patches.to(torch.promote_types(of_patches.dtype, torch.float32))
    return torch.where(group.sample == torch.arange(samples, device=values.device)[:, None], values, 0).sum(1)


# --- of each map, 0 where it has nothing to compare -----------------------------------------------------------------


def _distillation(
    prediction: Float[Tensor, "b h w"],
    label: Float[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    normalization: Normalization,
    segments: Segments,
    trim_fraction: float,
) -> Float[Tensor, "b"]:
    prediction, label = clean(prediction, valid), clean(label, valid)
    if normalization == "none":
        difference = (prediction - label).abs()
    else:
        levels = LEVELS[normalization]
        difference = torch.zeros_like(prediction)
        for ours, theirs in normalized_pairs(prediction, label, valid, levels, segments):
            difference = difference + (ours - theirs).abs() / len(levels)
    pixels = valid.sum((1, 2))
    if trim_fraction:
        dropped = (pixels * trim_fraction).long()
        rising = difference.flatten(1).gather(1, rising_order(difference))  # that of invalid pixels is 0
        difference = rising * (torch.arange(rising.shape[1], device=rising.device) < rising.shape[1] - dropped[:, None])
        pixels = pixels - dropped
    return difference.flatten(1).sum(1) / pixels.clamp(min=1)


def _local_global(prediction: Float[Tensor, "b c c"], targets: LossTargets, config: LossConfig) -> Float[Tensor, "b"]:
    """Each sample's mean over its patches that have a valid pixel."""
    how = config.normalization_local, config.segments, config.trim_fraction
    losses = counts = prediction.new_zeros(len(prediction), dtype=_wide(prediction))
    for group in targets.patches:
        of_patches = _distillation(crop_patches(prediction, group), group.label, group.valid, *how)
        losses = losses + _per_sample(of_patches, group, len(prediction))
        counts = counts + _per_sample(_any_valid(group.valid), group, len(prediction))
    return losses / counts.clamp(min=1)


def _gradient(
    prediction: Float[Tensor, "b h w"], label: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"], num_scales: int = 4
) -> Float[Tensor, "b"]:
    ((ours, theirs),) = normalized_pairs(clean(prediction, valid), clean(label, valid), valid, LEVELS["global"])
    residual = ours - theirs
    total = residual.new_zeros(len(residual))
    for scale in range(num_scales):
        step = 2**scale
        r, m = residual[:, ::step, ::step], valid[:, ::step, ::step]
        down = (r[:, 1:] - r[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])
        right = (r[:, :, 1:] - r[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])
        total = total + (down.sum((1, 2)) + right.sum((1, 2))) / m.sum((1, 2)).clamp(min=1)
    return total


def _feature(
    student_tokens: Float[Tensor, "b n d"],
    frozen_tokens: Float[Tensor, "b n d"],
    margin: float,
    valid: Bool[Tensor, "b n"] | None,
) -> Float[Tensor, "b"]:
    wide = _wide(student_tokens)
    cosine = F.cosine_similarity(student_tokens.to(wide), frozen_tokens.detach().to(wide), dim=2)
    counts = cosine.detach() <= margin
    if valid is not None:
        counts = counts & valid
    return ((1 - cosine) * counts).sum(1) / counts.sum(1).clamp(min=1)


def _anchor(prediction: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"], scale: OutputScale) -> Float[Tensor, "b"]:
    level, spread = _level_and_spread(prediction, valid)
    unit = torch.where(scale.spread > DEAD, scale.spread, scale.level.abs().clamp(min=1))
    return ((level - scale.level).abs() + (spread - scale.spread).abs()) / unit * _any_valid(valid)


def _level_and_spread(
    prediction: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    pixels = valid.sum((1, 2)).clamp(min=1)
    values = clean(prediction, valid)
    level = values.sum((1, 2)) / pixels
    return level, ((values - level[:, None, None]).abs() * valid).sum((1, 2)) / pixels


def _any_valid(valid: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b"]:
    return valid.flatten(1).any(1)


def _mean(per_map: Float[Tensor, "b"], count: Tensor) -> Float[Tensor, ""]:
    """The sum over maps, those that do not count being 0, over the number of those that do: here, or in the whole step."""
    return per_map.sum() / count.clamp(min=1)


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
