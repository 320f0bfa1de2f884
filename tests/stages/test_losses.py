"""The losses against the paper's equations, written a second time in NumPy, float64, one pixel at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.distillation.losses import (
    LossConfig,
    Normalization,
    Segments,
    cross_context_loss,
    distillation_loss,
    gradient_loss,
)

NORMALIZATIONS: tuple[Normalization, ...] = ("hybrid", "global", "local", "none")
AFFINE_INVARIANT: tuple[Normalization, ...] = ("hybrid", "global", "local")


def random_maps(
    seed: int, shape: tuple[int, ...] = (3, 9, 11), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction that resembles its label, the label, and a mask with holes."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.rand(shape, generator=rng, dtype=dtype) ** 2 * 5 + 1
    prediction = 2 * label + torch.rand(shape, generator=rng, dtype=dtype)
    return prediction, label, torch.rand(shape, generator=rng) > 0.2


def reference_map_loss(prediction: np.ndarray, label: np.ndarray, normalization: str, segments: str) -> float:
    """Equations 1 to 6 for the valid pixels of one map."""
    if normalization == "none":
        return float(np.mean(np.abs(prediction - label)))
    contexts = []
    for count in {"global": (1,), "local": (4,), "hybrid": (1, 2, 4)}[normalization]:
        edges = np.linspace(label.min(), label.max(), count + 1)
        if segments == "quantile":
            edges = np.array([*np.sort(label)[[s * len(label) // count for s in range(count)]], label.max()])
        for s in range(count):
            last = s == count - 1
            contexts.append(
                [i for i, x in enumerate(label) if edges[s] <= x and (x <= edges[s + 1] if last else x < edges[s + 1])]
            )
    losses: list[list[float]] = [[] for _ in label]
    for context in contexts:
        p, t = (x[context] - np.median(x[context]) if context else x[:0] for x in (prediction, label))
        for i, ours, theirs in zip(context, p, t, strict=True):
            scales = np.mean(np.abs(p)), np.mean(np.abs(t))
            losses[i].append(abs(ours / scales[0] - theirs / scales[1]) if scales[1] > 1e-4 * np.ptp(label) else 0.0)
    return float(np.mean([np.mean(one) for one in losses]))


def reference_loss(prediction: Tensor, label: Tensor, valid: Tensor, normalization: str, segments: str = "range") -> float:
    maps = zip(prediction.numpy(), label.numpy(), valid.numpy(), strict=True)
    return float(np.mean([reference_map_loss(p[v], t[v], normalization, segments) for p, t, v in maps if v.any()]))


def reference_gradient_loss(prediction: Tensor, label: Tensor, valid: Tensor) -> float:
    losses = []
    for p, t, v in zip(prediction.numpy(), label.numpy(), valid.numpy(), strict=True):
        p, t = ((x - np.median(x[v])) / np.mean(np.abs(x[v] - np.median(x[v]))) for x in (p, t))
        total = 0.0
        for step in (1, 2, 4, 8):
            r, m = (p - t)[::step, ::step], v[::step, ::step]
            here = 0.0
            for y, x in np.argwhere(m):
                for y2, x2 in ((y + 1, x), (y, x + 1)):
                    if y2 < r.shape[0] and x2 < r.shape[1] and m[y2, x2]:
                        here += abs(r[y2, x2] - r[y, x])
            total += here / max(m.sum(), 1)
        losses.append(total)
    return float(np.mean(losses))


@pytest.mark.parametrize("segments", ["range", "quantile"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_loss_equals_the_equations(normalization: Normalization, segments: Segments) -> None:
    for seed in range(5):
        maps = random_maps(seed)
        maps[2][1, 2:] = False  # few pixels: contexts of one pixel and of none
        loss = distillation_loss(*maps, normalization, segments)
        assert loss.item() == pytest.approx(reference_loss(*maps, normalization, segments), rel=1e-9)


def test_the_gradient_loss_equals_its_definition() -> None:
    for seed in range(5):
        maps = random_maps(seed)
        assert gradient_loss(*maps).item() == pytest.approx(reference_gradient_loss(*maps), rel=1e-9)


@pytest.mark.parametrize("normalization", AFFINE_INVARIANT)
def test_a_positive_scale_and_a_shift_of_student_or_teacher_change_nothing(normalization: Normalization) -> None:
    prediction, label, valid = random_maps(0)
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda ours, theirs: distillation_loss(ours, theirs, valid, normalization),
        lambda ours, theirs: gradient_loss(ours, theirs, valid),
    ]
    for loss in losses:
        for scale, shift in ((1e-3, 7.0), (250.0, -40.0)):
            assert torch.allclose(loss(prediction * scale + shift, label), loss(prediction, label), rtol=1e-6)
            assert torch.allclose(loss(prediction, label * scale + shift), loss(prediction, label), rtol=1e-6)


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
    assert torch.autograd.gradcheck(lambda p: gradient_loss(p, label, valid), (prediction,))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda p, t, v: t[0].fill_(2.0), id="a constant label"),
        pytest.param(lambda p, t, v: p[0].fill_(0.0), id="a dead student"),
        pytest.param(lambda p, t, v: p[0].fill_(5.0), id="a constant student"),
        pytest.param(lambda p, t, v: p[0, 4:].fill_(5.0), id="a student constant in half the map"),
        pytest.param(lambda p, t, v: v[0].fill_(False), id="no valid pixel"),
        pytest.param(lambda p, t, v: v.fill_(False), id="no valid pixel in the batch"),
        pytest.param(lambda p, t, v: (v[0].fill_(False), v[0, 3, 3].fill_(True)), id="one valid pixel"),
        pytest.param(lambda p, t, v: (t[0].fill_(1.0), t[0, 0, 0].fill_(9.0), v.fill_(True)), id="one pixel apart"),
        pytest.param(lambda p, t, v: t[0].add_(1e9).round_(), id="a label lost in rounding"),
    ],
)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_degenerate_maps_give_finite_losses_and_gradients(normalization: Normalization, spoil: Callable[..., object]) -> None:
    prediction, label, valid = random_maps(3, dtype=torch.float32)
    spoil(prediction, label, valid)
    prediction.requires_grad_()
    for loss in (distillation_loss(prediction, label, valid, normalization), gradient_loss(prediction, label, valid)):
        (slope,) = torch.autograd.grad(loss, prediction, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()


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


def test_segments_are_cut_by_the_teacher_alone() -> None:
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


def test_half_precision_predictions_are_compared_in_float32() -> None:
    prediction, label, valid = random_maps(8, (1, 64, 64), torch.float32)
    half = prediction.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(half, label, valid)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, distillation_loss(half.float(), label, valid))


# --- cross-context --------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[[0, 0, 6, 6], [0, 4, 6, 6], [4, 0, 6, 5]], [[2, 3, 5, 6], [4, 4, 6, 6], [0, 0, 0, 0]]])


def patch_maps(seed: int) -> tuple[Tensor, Tensor]:
    """Labels and masks for `BOXES`, filled up to 6 x 6; the second sample has two patches."""
    _, label, valid = random_maps(seed, (6, 6, 6))
    label, valid = label.view(2, 3, 6, 6), valid.view(2, 3, 6, 6)
    rows, columns = torch.arange(6)[:, None], torch.arange(6)[None]
    valid = valid & (rows < BOXES[..., 2, None, None]) & (columns < BOXES[..., 3, None, None])
    return label.masked_fill(~valid, torch.nan), valid


def test_the_total_is_the_weighted_sum_of_shared_local_and_gradient_terms() -> None:
    prediction, label, valid = random_maps(9, (2, 10, 10))
    patch_label, patch_valid = patch_maps(10)
    config = LossConfig(normalization_shared="hybrid", normalization_local="global")
    terms = cross_context_loss(prediction, label, valid, patch_label, patch_valid, BOXES, config)
    local = []
    for sample, patches in ((0, 3), (1, 2)):
        crops = [prediction[sample, y : y + h, x : x + w] for y, x, h, w in BOXES[sample, :patches].tolist()]
        labels = [(x, m) for x, m in zip(patch_label[sample], patch_valid[sample], strict=True)]
        local.append(
            np.mean(
                [
                    reference_map_loss(c[m[: c.shape[0], : c.shape[1]]].numpy(), x[m].numpy(), "global", "range")
                    for c, (x, m) in zip(crops, labels, strict=False)
                ]
            )
        )
    assert terms.shared_context.item() == pytest.approx(reference_loss(prediction, label, valid, "hybrid"))
    assert terms.local_global.item() == pytest.approx(np.mean(local))
    assert terms.gradient.item() == pytest.approx(reference_gradient_loss(prediction, label, valid))
    parts = terms.shared_context + 0.5 * terms.local_global + 2 * terms.gradient
    assert terms.total.item() == pytest.approx(parts.item())


def test_local_global_compares_the_student_with_the_teachers_patch_and_reaches_its_pixels() -> None:
    prediction, label, valid = random_maps(11, (2, 10, 10))
    patch_label, patch_valid = patch_maps(12)
    config = LossConfig(gradient_weight=0.0)
    prediction.requires_grad_()
    terms = cross_context_loss(prediction, label, valid, patch_label, patch_valid, BOXES, config)
    assert terms.local_global > 0.1  # a student compared with itself would have none
    (slope,) = torch.autograd.grad(terms.local_global, prediction)
    assert not slope[1, :2].any()  # outside every patch of the second sample
    assert slope[1, 2:].any()
    perfect = prediction.detach()[0, None].repeat(3, 1, 1)
    crops = torch.stack([perfect[i, y : y + 6, x : x + 6] for i, (y, x) in enumerate(((0, 0), (0, 4), (4, 0)))])
    boxes = torch.tensor([[[0, 0, 6, 6], [0, 4, 6, 6], [4, 0, 6, 6]]])
    whole = torch.ones(1, 3, 6, 6, dtype=torch.bool)
    found = cross_context_loss(prediction[:1], label[:1], valid[:1], 3 * crops[None] + 1, whole, boxes, config)
    assert found.local_global < 1e-9


def test_weights_of_zero_and_samples_without_patches_leave_the_shared_term() -> None:
    prediction, label, valid = random_maps(13, (2, 10, 10))
    patch_label, patch_valid = patch_maps(14)
    off = LossConfig(local_global_weight=0.0, gradient_weight=0.0)
    terms = cross_context_loss(prediction, label, valid, patch_label, patch_valid, BOXES, off)
    assert terms.total == terms.shared_context
    none = cross_context_loss(prediction, label, valid, patch_label[:, :0], patch_valid[:, :0], BOXES[:, :0], LossConfig())
    assert none.local_global == 0
