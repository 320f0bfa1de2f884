"""Each loss against its definition, written a second time; what it ignores; what it makes of maps with nothing to learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.distillation.losses import (
    Normalization,
    Segments,
    anchor_loss,
    distillation_loss,
    feature_loss,
    gradient_loss,
    output_scale,
)
from tests.stages.distillation.loss_references import (
    random_maps,
    random_tokens,
    reference_anchor_loss,
    reference_feature_loss,
    reference_gradient_loss,
    reference_loss,
)

NORMALIZATIONS: tuple[Normalization, ...] = ("hybrid", "global", "local", "none")
AFFINE_INVARIANT: tuple[Normalization, ...] = ("hybrid", "global", "local")


@pytest.mark.parametrize("trim_fraction", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("segments", ["range", "quantile"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_loss_equals_the_equations(normalization: Normalization, segments: Segments, trim_fraction: float) -> None:
    for seed in range(5):
        maps = random_maps(seed)
        maps[2][1, 2:] = False  # few pixels: contexts of one pixel and of none
        loss = distillation_loss(*maps, normalization, segments, trim_fraction)
        assert loss.item() == pytest.approx(reference_loss(*maps, normalization, segments, trim_fraction), rel=1e-9)


def test_float32_maps_of_either_sign_give_what_float64_gives() -> None:
    prediction, label, valid = random_maps(1, (2, 150, 150), torch.float32)
    prediction, label = prediction - 6, label - 3  # 45,000 pixels: enough for the sort that CPUs keep for long rows
    for loss in (distillation_loss, gradient_loss):
        wide = loss(prediction.double(), label.double(), valid).item()
        assert loss(prediction, label, valid).item() == pytest.approx(wide, rel=1e-5)


def test_the_gradient_loss_equals_its_definition() -> None:
    for seed in range(5):
        maps = random_maps(seed)
        assert gradient_loss(*maps).item() == pytest.approx(reference_gradient_loss(*maps), rel=1e-9)


def test_the_feature_loss_equals_its_definition() -> None:
    for seed, margin in ((0, 0.85), (1, 0.3), (2, -0.2)):
        ours, theirs, valid = random_tokens(seed)
        valid[1] = False
        found = feature_loss(ours, theirs, margin, valid).item()
        assert found == pytest.approx(reference_feature_loss(ours, theirs, margin, valid), rel=1e-9)
        assert feature_loss(ours, theirs, margin) == feature_loss(ours, theirs, margin, torch.ones_like(valid))


def test_the_anchor_equals_its_definition_and_its_scale_is_a_mean_over_maps() -> None:
    prediction, _, valid = random_maps(3)
    valid[2] = False
    before, scale = prediction * 3 - 4, output_scale(prediction, valid)
    shown = [prediction[i][valid[i]].numpy() for i in (0, 1)]
    spreads = [np.abs(values - values.mean()).mean() for values in shown]
    assert scale.level.item() == pytest.approx(np.mean([values.mean() for values in shown]))
    assert scale.spread.item() == pytest.approx(np.mean(spreads))
    expected = reference_anchor_loss(before, valid, scale.level.item(), scale.spread.item())
    assert anchor_loss(before, valid, scale).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("normalization", AFFINE_INVARIANT)
def test_a_positive_scale_and_a_shift_of_student_or_teacher_change_nothing(normalization: Normalization) -> None:
    prediction, label, valid = random_maps(0)
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda ours, theirs: distillation_loss(ours, theirs, valid, normalization),
        lambda ours, theirs: distillation_loss(ours, theirs, valid, normalization, trim_fraction=0.1),
        lambda ours, theirs: gradient_loss(ours, theirs, valid),
    ]
    for loss in losses:
        for scale, shift in ((1e-3, 7.0), (250.0, -40.0)):
            assert torch.allclose(loss(prediction * scale + shift, label), loss(prediction, label), rtol=1e-6)
            assert torch.allclose(loss(prediction, label * scale + shift), loss(prediction, label), rtol=1e-6)


def test_the_anchor_sees_scale_and_shift_and_not_shape() -> None:
    prediction, _, _ = random_maps(4, (1, 8, 8))
    everywhere = torch.ones_like(prediction, dtype=torch.bool)
    scale = output_scale(prediction, everywhere)
    shuffled = prediction.flatten()[torch.randperm(64, generator=torch.Generator().manual_seed(0))].view(1, 8, 8)
    assert anchor_loss(shuffled, everywhere, scale).item() == pytest.approx(0, abs=1e-12)
    assert anchor_loss(prediction + 2 * scale.spread, everywhere, scale).item() == pytest.approx(2)
    centred = prediction - scale.level
    assert anchor_loss(scale.level + 3 * centred, everywhere, scale).item() == pytest.approx(2)


@pytest.mark.parametrize("normalization", AFFINE_INVARIANT)
def test_a_student_that_is_the_teacher_up_to_scale_and_shift_has_no_loss(normalization: Normalization) -> None:
    _, label, valid = random_maps(1, (2, 40, 40), torch.float32)
    label[1, :20] = 3.0 + torch.linspace(0, 1e-3, 40)  # nearly flat, still above the noise
    prediction = 0.3 * label + 2
    assert distillation_loss(prediction, label, valid, normalization) < 2e-3
    assert distillation_loss(prediction.double(), label.double(), valid, normalization) < 1e-4
    assert gradient_loss(prediction.double(), label.double(), valid) < 1e-5
    assert distillation_loss(-prediction, label, valid, normalization) > 0.5  # a negative scale is not allowed


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_equal_finite_differences(normalization: Normalization) -> None:
    prediction, label, valid = random_maps(2, (2, 5, 6))
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: distillation_loss(p, label, valid, normalization), (prediction,))
    assert torch.autograd.gradcheck(lambda p: distillation_loss(p, label, valid, normalization, "quantile", 0.2), (prediction,))


def test_gradients_of_the_other_losses_equal_finite_differences() -> None:
    prediction, label, valid = random_maps(2, (2, 5, 6))
    scale = output_scale(label, valid)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: gradient_loss(p, label, valid), (prediction,))
    assert torch.autograd.gradcheck(lambda p: anchor_loss(p, valid, scale), (prediction,))
    ours, theirs, shown = random_tokens(0)
    ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda tokens: feature_loss(tokens, theirs, 0.3, shown), (ours,))


def test_close_tokens_and_the_frozen_encoder_get_no_gradient() -> None:
    ours, theirs, _ = random_tokens(1)
    ours, theirs = torch.cat([theirs + 0.1 * ours, ours], 1).requires_grad_(), torch.cat([theirs, theirs], 1).requires_grad_()
    feature_loss(ours, theirs).backward()
    assert theirs.grad is None
    assert ours.grad is not None
    near = torch.cosine_similarity(ours, theirs, dim=2) > 0.85
    assert near.any()
    assert not ours.grad[near].any()
    assert ours.grad[~near].any(1).all()
    assert feature_loss(theirs, theirs) == 0


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda p, t, v: t[0].fill_(2.0), id="a constant label"),
        pytest.param(lambda p, t, v: p[0].fill_(0.0), id="a dead student"),
        pytest.param(lambda p, t, v: p[0].fill_(5.0), id="a constant student"),
        pytest.param(lambda p, t, v: p[0, 4:].fill_(5.0), id="a student constant in half the map"),
        pytest.param(lambda p, t, v: p[0].mul_(1e-40), id="a student among denormal numbers"),
        pytest.param(lambda p, t, v: v[0].fill_(False), id="no valid pixel"),
        pytest.param(lambda p, t, v: v.fill_(False), id="no valid pixel in the batch"),
        pytest.param(lambda p, t, v: (v[0].fill_(False), v[0, 3, 3].fill_(True)), id="one valid pixel"),
        pytest.param(lambda p, t, v: (v[0].fill_(False), v[0, 3, 3:5].fill_(True)), id="two valid pixels"),
        pytest.param(lambda p, t, v: (t[0].fill_(1.0), t[0, 0, 0].fill_(9.0), v.fill_(True)), id="one pixel apart"),
        pytest.param(lambda p, t, v: t[0].add_(1e9).round_(), id="a label lost in rounding"),
    ],
)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_degenerate_maps_give_finite_losses_and_gradients(normalization: Normalization, spoil: Callable[..., object]) -> None:
    prediction, label, valid = random_maps(3, dtype=torch.float32)
    spoil(prediction, label, valid)
    scale = output_scale(prediction[:1], valid[:1])
    prediction.requires_grad_()
    for loss in (
        distillation_loss(prediction, label, valid, normalization),
        distillation_loss(prediction, label, valid, normalization, "quantile", 0.1),
        gradient_loss(prediction, label, valid),
        anchor_loss(prediction, valid, scale),
    ):
        (slope,) = torch.autograd.grad(loss, prediction, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()


def test_maps_of_one_or_two_pixels_and_tokens_of_zeros_are_no_trouble() -> None:
    for height, width in ((1, 1), (1, 2), (2, 1)):
        prediction, label, _ = random_maps(0, (2, height, width))
        everywhere = torch.ones_like(prediction, dtype=torch.bool)
        for loss in (distillation_loss(prediction, label, everywhere), gradient_loss(prediction, label, everywhere)):
            assert torch.isfinite(loss)
    tokens = torch.zeros(2, 3, 4, requires_grad=True)
    feature_loss(tokens, torch.zeros(2, 3, 4)).backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()


def test_a_label_without_contrast_neither_costs_nor_pulls() -> None:
    prediction, label, valid = random_maps(4)
    label.fill_(2.0)
    prediction.requires_grad_()
    loss = distillation_loss(prediction, label, valid)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert not prediction.grad.any()


def test_a_constant_student_is_pulled_towards_its_teacher() -> None:
    _, label, valid = random_maps(5)
    prediction = torch.zeros_like(label, requires_grad=True)
    loss = distillation_loss(prediction, label, valid, "global")
    loss.backward()
    assert loss.item() == pytest.approx(1.0)  # N of the label has a mean magnitude of 1
    assert prediction.grad is not None
    assert torch.corrcoef(torch.stack([-prediction.grad[valid], label[valid]]))[0, 1] > 0.5


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_invalid_pixels_have_no_influence(normalization: Normalization) -> None:
    prediction, label, valid = random_maps(6)
    prediction.requires_grad_()
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda target: distillation_loss(prediction, target, valid, normalization),
        lambda target: gradient_loss(prediction, target, valid),
    ]
    for loss in losses:
        (clean,) = torch.autograd.grad(loss(label), prediction)
        for rubbish in (torch.nan, torch.inf, -1e30):
            spoilt = label.masked_fill(~valid, rubbish)
            assert torch.equal(loss(spoilt), loss(label))
            assert torch.equal(torch.autograd.grad(loss(spoilt), prediction)[0], clean)
        assert not clean[~valid].any()
    spoilt, whole = prediction.detach().masked_fill(~valid, torch.nan), prediction.detach()
    assert torch.equal(
        distillation_loss(spoilt, label, valid, normalization), distillation_loss(whole, label, valid, normalization)
    )


def test_the_largest_pixel_belongs_to_the_last_segment() -> None:
    label = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 3.5, 4.0]]], dtype=torch.float64)
    prediction = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 9.0, 5.0]]], dtype=torch.float64)
    everywhere = torch.ones_like(label, dtype=torch.bool)
    # the last of four segments is {3, 3.5, 4}; the others have one pixel each and say nothing
    ours, theirs = np.array([3.0, 9.0, 5.0]) - 5, np.array([3.0, 3.5, 4.0]) - 3.5
    expected = np.abs(ours / np.abs(ours).mean() - theirs / np.abs(theirs).mean()).sum() / 6
    assert distillation_loss(prediction, label, everywhere, "local").item() == pytest.approx(expected)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    prediction, label, valid = random_maps(8, (1, 64, 64), torch.float32)
    half = prediction.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(half, label, valid)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, distillation_loss(half.float(), label, valid))


# --- mistakes of others: each of these was made in an earlier attempt at this paper -----------------------------------


def test_mistake_segments_cut_separately_in_student_and_teacher() -> None:
    _, label, _ = random_maps(7)
    everywhere = torch.ones_like(label, dtype=torch.bool)
    warped = label.clone()
    for s in range(4):  # each segment of the teacher's range gets a scale and shift of its own: free for `local`
        low, high = label.amin((1, 2), keepdim=True), label.amax((1, 2), keepdim=True)
        share = (label - low) / (high - low)
        inside = (share >= s / 4) & (share < (s + 1) / 4) if s < 3 else share >= 0.75
        warped = torch.where(inside, label * (s + 1) - 50 * (s % 2), warped)
    assert distillation_loss(warped, label, everywhere, "local") < 1e-9
    assert distillation_loss(label, warped, everywhere, "local") > 0.1
    assert distillation_loss(warped, label, everywhere, "hybrid") > 0.1


def test_mistake_the_gradient_loss_without_a_teacher_or_one_that_rewards_scale() -> None:
    prediction, label, valid = random_maps(8, (1, 16, 16))
    other = random_maps(9, (1, 16, 16))[1]
    assert abs(gradient_loss(prediction, label, valid) - gradient_loss(prediction, other, valid)) > 0.1
    flat = torch.zeros_like(label)
    assert gradient_loss(label, label, valid) < gradient_loss(prediction, label, valid) < gradient_loss(flat, label, valid)
    prediction.requires_grad_()
    (slope,) = torch.autograd.grad(gradient_loss(prediction, label, valid), prediction)
    assert slope.any()
    assert (slope * prediction).sum().abs() < 1e-12  # nothing is gained by a larger or smaller map


def test_mistake_hybrid_with_one_level_and_local_the_same_as_hybrid() -> None:
    prediction, label, valid = random_maps(10)
    found = {name: distillation_loss(prediction, label, valid, name).item() for name in AFFINE_INVARIANT}
    halves = []
    for p, t, v in zip(prediction, label, valid, strict=True):
        p, t, middle = p[v], t[v], (t[v].min() + t[v].max()) / 2
        losses = torch.empty_like(p)
        for half in (t < middle, t >= middle):
            ours, theirs = (x[half] - x[half].quantile(0.5) for x in (p, t))
            losses[half] = (ours / ours.abs().mean() - theirs / theirs.abs().mean()).abs()
        halves.append(losses.mean().item())
    assert 3 * found["hybrid"] == pytest.approx(found["global"] + np.mean(halves) + found["local"])
    assert min(abs(found[a] - found[b]) for a, b in (("hybrid", "global"), ("hybrid", "local"), ("local", "global"))) > 0.01


def test_mistake_means_for_medians() -> None:
    label = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64)
    prediction = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 14.0]]], dtype=torch.float64)  # one outlier, which moves the mean to 4
    everywhere = torch.ones_like(label, dtype=torch.bool)
    ours, theirs = np.array([-2, -1, 0, 1, 12]) / 3.2, np.array([-2, -1, 0, 1, 2]) / 1.2
    expected = np.abs(ours - theirs).mean()
    assert distillation_loss(prediction, label, everywhere, "global").item() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 250.0])
def test_mistake_normalising_twice(scale: float) -> None:
    _, label, valid = random_maps(11, (1, 20, 20))
    constant = torch.full_like(label, 7.0)
    for (
        normalization
    ) in AFFINE_INVARIANT:  # divided once by its mean absolute deviation, a label is 1 from its median on average
        assert distillation_loss(constant, scale * label, valid, normalization).item() == pytest.approx(1.0)
    raw = (constant - scale * label).abs()[valid].mean().item()
    assert distillation_loss(constant, scale * label, valid, "none").item() == pytest.approx(raw)
