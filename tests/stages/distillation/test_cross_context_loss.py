"""The sum that a student learns from: its terms, its parts over micro-batches and devices, and that it never waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from stages.distillation.batch import packed
from stages.distillation.loss_config import Normalization
from stages.distillation.losses import (
    LossConfig,
    LossTargets,
    LossTerms,
    TokenPair,
    count_maps,
    cross_context_loss,
    distillation_loss,
    feature_loss,
    gradient_loss,
    output_scale,
)
from stages.distillation.normalization import LEVELS
from tests.stages.distillation.loss_references import (
    BOXES,
    patch_groups,
    patch_maps,
    random_maps,
    random_tokens,
    recorded_loss,
    reference_anchor_loss,
    reference_feature_loss,
    reference_gradient_loss,
    reference_loss,
    reference_map_loss,
)
from tests.stages.distillation.test_batch import samples_of_many_sizes


def targets_of(every: dict[str, Any]) -> LossTargets:
    patches = patch_groups(every["patch_label"], every["patch_valid"], every["patch_box"])
    return LossTargets(label=every["label"], valid=every["valid"], patches=patches)


def loss_of(every: dict[str, Any], config: LossConfig, **more: Any) -> LossTerms:
    """`cross_context_loss` of what `everything` gives, or a part of it."""
    pair = TokenPair(student=every["student_tokens"], frozen=every["frozen_tokens"], valid=every["token_valid"])
    return cross_context_loss(every["prediction"], targets_of(every), config, tokens=pair, **more)


def everything(seed: int) -> dict[str, Any]:
    """What `loss_of` takes, for 6 samples: one without a valid pixel, one with a patch that has none, one
    without patches, and one without tokens."""
    prediction, label, valid = random_maps(seed, (6, 10, 10))
    patches = [patch_maps(seed + i) for i in range(3)]
    patch_label, patch_valid = (torch.cat([pair[i] for pair in patches]) for i in (0, 1))
    tokens = [random_tokens(seed + i) for i in range(2)]
    student_tokens, frozen_tokens, token_valid = (torch.cat([triple[i] for triple in tokens]) for i in (0, 1, 2))
    valid[1], patch_valid[2, 0], patch_valid[4], token_valid[5] = False, False, False, False
    return {
        "prediction": prediction,
        "label": label,
        "valid": valid,
        "patch_label": patch_label,
        "patch_valid": patch_valid,
        "patch_box": BOXES.repeat(3, 1, 1),
        "student_tokens": student_tokens,
        "frozen_tokens": frozen_tokens,
        "token_valid": token_valid,
    }


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    prediction, label, valid = random_maps(9, (2, 10, 10))
    patch_label, patch_valid = patch_maps(10)
    ours, theirs, counted = (tokens[:2] for tokens in random_tokens(9))
    scale = output_scale(label, valid)
    config = LossConfig(normalization_shared="hybrid", normalization_local="global", anchor_weight=0.3, trim_fraction=0.1)
    targets = LossTargets(label=label, valid=valid, patches=patch_groups(patch_label, patch_valid, BOXES))
    pair = TokenPair(student=ours, frozen=theirs, valid=counted)
    terms = cross_context_loss(prediction, targets, config, tokens=pair, anchor=scale)
    local = []
    for sample, patches in ((0, 3), (1, 2)):
        crops = [prediction[sample, y : y + h, x : x + w] for y, x, h, w in BOXES[sample, :patches].tolist()]
        labels = [(x, m) for x, m in zip(patch_label[sample], patch_valid[sample], strict=True)]
        local.append(
            np.mean(
                [
                    reference_map_loss(c[m[: c.shape[0], : c.shape[1]]].numpy(), x[m].numpy(), "global", "range", 0.1)
                    for c, (x, m) in zip(crops, labels, strict=False)
                ]
            )
        )
    assert terms.shared_context.item() == pytest.approx(reference_loss(prediction, label, valid, "hybrid", "range", 0.1))
    assert terms.local_global.item() == pytest.approx(np.mean(local))
    assert terms.gradient.item() == pytest.approx(reference_gradient_loss(prediction, label, valid))
    assert terms.feature.item() == pytest.approx(reference_feature_loss(ours, theirs, 0.85, counted))
    level, spread = scale.level.item(), scale.spread.item()
    assert terms.anchor.item() == pytest.approx(reference_anchor_loss(prediction, valid, level, spread))
    parts = terms.shared_context + 0.5 * terms.local_global + terms.feature + 2 * terms.gradient + 0.3 * terms.anchor
    assert terms.total.item() == pytest.approx(parts.item())


@pytest.mark.parametrize("normalization", ["hybrid", "global", "local"])
def test_values_and_gradients_of_patches_of_any_sizes_are_those_of_each_patch_alone(normalization: Normalization) -> None:
    config = LossConfig(shared_weight=0, gradient_weight=0, feature_weight=0, normalization_local=normalization)
    for seed in range(4):
        batch = packed(samples_of_many_sizes(seed), 40).to("cpu")
        targets = replace(batch, patches=tuple(replace(group, label=group.label.double()) for group in batch.patches))
        prediction = torch.rand(batch.label.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        prediction[0] = prediction[0].round(decimals=1)  # many equal values
        prediction[3] = 0.25  # a constant
        prediction.requires_grad_()
        found = cross_context_loss(prediction, targets, config).local_global
        means = []
        for i, student in enumerate(prediction):
            views = [(student[t : t + h, x : x + w][m], y[m]) for (t, x, h, w), y, m in targets.patches_of(i) if m.any()]
            if views:
                means.append(torch.stack([recorded_loss(*view, LEVELS[normalization]) for view in views]).mean())
        expected = torch.stack(means).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)
        slopes = [torch.autograd.grad(loss, prediction)[0] for loss in (found, expected)]
        slopes = [slope[[1, 2, 3, 4]] for slope in slopes]  # of equal middle values, either may move the median
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-13)


def test_weights_of_zero_and_samples_without_patches_leave_the_shared_term() -> None:
    prediction, label, valid = random_maps(13, (2, 10, 10))
    patch_label, patch_valid = patch_maps(14)
    off = LossConfig(local_global_weight=0.0, feature_weight=0.0, gradient_weight=0.0)
    targets = LossTargets(label=label, valid=valid, patches=patch_groups(patch_label, patch_valid, BOXES))
    terms = cross_context_loss(prediction, targets, off)
    assert terms.total == terms.shared_context
    no_patches = replace(targets, patches=patch_groups(patch_label, patch_valid, 0 * BOXES))
    none = cross_context_loss(prediction, no_patches, LossConfig())
    assert none.local_global == 0
    assert none.total == none.shared_context + 2 * none.gradient
    every = everything(15)
    every["prediction"] = every["prediction"] * torch.nan  # a term that is off is not even computed
    config = LossConfig(shared_weight=0.0, local_global_weight=0.0, gradient_weight=0.0)
    assert torch.isfinite(loss_of(every, config).total)


def test_a_mean_leaves_out_maps_and_samples_that_have_nothing_to_compare() -> None:
    every = everything(20)
    maps = every["prediction"], every["label"], every["valid"]
    terms = loss_of(every, LossConfig())
    assert terms.shared_context == distillation_loss(*maps)
    assert terms.gradient == gradient_loss(*maps)
    assert terms.feature == feature_loss(every["student_tokens"], every["frozen_tokens"], valid=every["token_valid"])
    with_patches = {name: tensor[[0, 1, 2, 3, 5]] for name, tensor in every.items()}
    assert terms.local_global.item() == pytest.approx(loss_of(with_patches, LossConfig()).local_global.item())


ALL_TERMS = LossConfig(local_global_weight=0.7, anchor_weight=0.3, trim_fraction=0.1)


@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1), (2, 4), (5, 1), (1, 3, 2), (3, 3)])
def test_the_terms_and_gradients_of_a_batchs_parts_add_up_to_those_of_the_batch(split: tuple[int, ...]) -> None:
    whole = everything(16)
    learned = [whole["prediction"].requires_grad_(), whole["student_tokens"].requires_grad_()]
    scale = output_scale(whole["label"], whole["valid"])
    expected = loss_of(whole, ALL_TERMS, anchor=scale)
    slopes = torch.autograd.grad(expected.total, learned)
    parts = [dict(zip(whole, tensors, strict=True)) for tensors in zip(*(x.split(split) for x in whole.values()), strict=True)]
    counts = torch.stack([count_maps(targets_of(part)) for part in parts]).sum(0)
    assert counts.tolist() == count_maps(targets_of(whole)).tolist() == [5, 5, 6]
    terms = [loss_of(part, ALL_TERMS, anchor=scale, counts=counts) for part in parts]
    for name, value in vars(expected).items():
        assert value > 0
        assert sum(getattr(term, name).item() for term in terms) == pytest.approx(value.item(), rel=1e-12)
    for term in terms:
        term.total.backward()
    for tensor, slope in zip(learned, slopes, strict=True):
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, slope, rtol=1e-10, atol=1e-15)


def test_the_gradient_of_the_total_equals_finite_differences() -> None:
    every = everything(17)
    scale = output_scale(every["label"], every["valid"])
    every["prediction"].requires_grad_()
    every["student_tokens"].requires_grad_()

    def total(prediction: Tensor, student_tokens: Tensor) -> Tensor:
        given = every | {"prediction": prediction, "student_tokens": student_tokens}
        return loss_of(given, ALL_TERMS, anchor=scale).total

    assert torch.autograd.gradcheck(total, (every["prediction"], every["student_tokens"]), fast_mode=True)


def test_the_losses_never_wait_for_the_device() -> None:
    with FakeTensorMode() as mode:  # its tensors have no values: reading one on the host is an error
        with pytest.raises(DataDependentOutputException):
            torch.ones(1).item()
        with pytest.raises(DynamicOutputShapeException):
            torch.ones(3)[torch.ones(3) > 0]
    every = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in everything(18).items()}
    targets = _faked(targets_of(every), mode)
    every = {name: mode.from_tensor(tensor) for name, tensor in every.items()}
    pair = TokenPair(student=every["student_tokens"], frozen=every["frozen_tokens"], valid=every["token_valid"])
    every["prediction"].requires_grad_()
    for normalization, segments in (("hybrid", "range"), ("local", "quantile"), ("none", "range")):
        config = replace(ALL_TERMS, normalization_shared=normalization, normalization_local=normalization, segments=segments)
        with mode:
            scale = output_scale(every["prediction"], every["valid"])
            more = {"tokens": pair, "anchor": scale, "counts": count_maps(targets)}
            cross_context_loss(every["prediction"], targets, config, **more).total.backward()


def _faked(record: Any, mode: FakeTensorMode) -> Any:
    """The same record with tensors that have no values, in records of it too."""
    if isinstance(record, tuple):
        return tuple(_faked(part, mode) for part in record)
    if isinstance(record, Tensor):
        return mode.from_tensor(record)
    return replace(record, **{name: _faked(value, mode) for name, value in vars(record).items()})


def test_the_loss_of_half_precision_under_autocast_is_float32() -> None:
    every = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in everything(19).items()}
    for name in ("prediction", "student_tokens", "frozen_tokens"):
        every[name] = every[name].bfloat16()
    scale = output_scale(every["prediction"], every["valid"])
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss_of(every, ALL_TERMS, anchor=scale)
    wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in every.items()}
    for name, value in vars(loss_of(wide, ALL_TERMS, anchor=scale)).items():
        assert getattr(terms, name).dtype == torch.float32
        assert torch.equal(getattr(terms, name), value)


# --- mistakes of others ---------------------------------------------------------------------------------------------


def test_mistake_local_global_compares_the_student_with_itself() -> None:
    prediction, label, valid = random_maps(11, (2, 10, 10))
    patch_label, patch_valid = patch_maps(12)
    config = LossConfig(gradient_weight=0.0)
    prediction.requires_grad_()
    targets = LossTargets(label=label, valid=valid, patches=patch_groups(patch_label, patch_valid, BOXES))
    terms = cross_context_loss(prediction, targets, config)
    assert terms.local_global > 0.1  # a student compared with itself would have none
    (slope,) = torch.autograd.grad(terms.local_global, prediction)
    assert not slope[1, :2].any()  # outside every patch of the second sample
    assert slope[1, 2:].any()
    perfect = prediction.detach()[0, None].repeat(3, 1, 1)
    crops = torch.stack([perfect[i, y : y + 6, x : x + 6] for i, (y, x) in enumerate(((0, 0), (0, 4), (4, 0)))])
    boxes = torch.tensor([[[0, 0, 6, 6], [0, 4, 6, 6], [4, 0, 6, 6]]])
    whole = torch.ones(1, 3, 6, 6, dtype=torch.bool)
    own = LossTargets(label=label[:1], valid=valid[:1], patches=patch_groups(3 * crops[None] + 1, whole, boxes))
    found = cross_context_loss(prediction[:1], own, config)
    assert found.local_global < 1e-9
