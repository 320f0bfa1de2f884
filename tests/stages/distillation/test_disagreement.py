"""Where the teachers contradict each other, and only there, nobody is learned from; their scales and shifts do not matter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from pipeline.train.state import OutputMismatchError
from stages.distillation import disagreement
from stages.distillation.dataset import LabelDataset
from stages.distillation.disagreement import agreeing_pixels, patches_without_disagreement
from stages.distillation.order import AVERAGE, SampleRequest
from stages.label_store import CodedLabel, ImageLabels, Label, LabelReader, PatchLabel
from stages.views import Box
from tests import training_run
from tests.pipeline.train.trainings import interrupt_at, metrics
from tests.training_run import AFFINE, CONTEXT_PX, write_run, write_student

_SQUARE = np.s_[4:14, 6:16]
"""On the context grid; of the patches, which are 32 wide and lie in the corners, only the first shows it, in the same place."""


def _outside(shape: tuple[int, ...], square: tuple[slice, slice] = _SQUARE) -> np.ndarray:
    outside = np.ones(shape, bool)
    outside[square] = False
    return outside


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose assistant says otherwise in a square, in contexts and in patches, and elsewhere the same as the primary."""
    truthful = training_run._labels

    def labels(disparity: np.ndarray, scale: float, shift: float) -> ImageLabels:
        said = truthful(disparity, scale, shift)
        if (scale, shift) != AFFINE["assistant"]:
            return said
        first, *others = said.patches
        for label in (said.context, first):
            label.values[_SQUARE] += 4 * np.ptp(label.values)
        return ImageLabels(context=said.context, patches=(first, *others))

    monkeypatch.setattr(training_run, "_labels", labels)
    return write_run(tmp_path / "run", images=6)


def _config(run: Path, output: Path, **more: object) -> TrainConfig:
    base = TrainConfig(
        run=(run,),
        output=output,
        student=str(write_student(output.parent / "student")),
        steps=6,
        batch_size=2,
        loader_workers=0,
        device="cpu",
        checkpoint_every=2,
    )
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("teacher", [0, 1, AVERAGE])
@pytest.mark.parametrize("flip", [False, True])
def test_exactly_the_square_is_left_out_whoever_is_learned_from(run: Path, teacher: int, flip: bool):
    both = ("primary", "assistant")
    plain, masked, lenient = (LabelDataset(run, both, mask_disagreement=most) for most in (None, 2.0, 1e6))
    for number in range(6):
        request = SampleRequest(number, teacher, flip)
        before, after, kept = plain[request], masked[request], lenient[request]
        outside = _outside((CONTEXT_PX, CONTEXT_PX))
        outside[0, 0] = False  # which has no label in any column
        assert np.array_equal(after.context.valid, outside[:, ::-1] if flip else outside)
        shown = after.context.valid
        assert np.array_equal(after.context.values[shown], before.context.values[shown])
        assert [patch.box for patch in after.patches] == [patch.box for patch in before.patches]
        first, *others = (patch.valid for patch in after.patches)
        assert np.array_equal(first[:, ::-1] if flip else first, _outside(first.shape))
        assert all(valid.all() for valid in others)
        assert np.array_equal(kept.context.valid, before.context.valid)


def test_the_other_columns_are_read_only_where_they_are_compared(run: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    context = LabelReader.context

    def counted(self: LabelReader, row: int) -> CodedLabel | None:
        read.append(self.where.split("columns/")[1].split("/")[0])
        return context(self, row)

    monkeypatch.setattr(LabelReader, "context", counted)
    request = SampleRequest(1, 1, False)
    for most, columns in ((None, ["assistant"]), (2.0, ["primary", "assistant"])):
        read.clear()
        LabelDataset(run, ("primary", "assistant"), mask_disagreement=most)[request]
        assert read == columns


def test_pixels_that_not_all_know_are_not_compared_and_maps_without_contrast_are_zero():
    rng = np.random.default_rng(0)
    values = rng.random((12, 12), np.float32)
    one, every = Label(values=values, valid=np.ones((12, 12), bool)), np.ones((12, 12), bool)
    hidden = replace(one, values=np.where(_outside(values.shape), 3 * values, np.nan).astype(np.float32))
    hidden = replace(hidden, valid=_outside(values.shape))
    assert np.array_equal(agreeing_pixels([one, hidden], 1e-4), every)
    nothing = replace(one, valid=~every)
    assert agreeing_pixels([one, nothing], 1e-4).all()
    flat = replace(one, values=np.ones_like(values))
    assert agreeing_pixels([flat, flat], 1e-4).all()
    deviation = np.abs(values - np.median(values)) / np.abs(values - np.median(values)).mean()
    assert np.array_equal(agreeing_pixels([one, flat], 1.0), deviation <= 1)


def test_a_large_part_that_differs_does_not_make_the_rest_differ():
    """Sky in a quarter of the picture, which one teacher has near: an alignment that it pulls at would lose near ground too."""
    ramp = np.tile(np.linspace(0, 1, 60, dtype=np.float32)[:, None], (1, 40))
    near_sky, valid = 5 * ramp + 2, np.ones(ramp.shape, bool)
    near_sky[:15] = 9
    for order in ((ramp, near_sky), (near_sky, ramp)):
        kept = agreeing_pixels([Label(values=values, valid=valid) for values in order], 0.5)
        assert np.array_equal(kept, _outside(ramp.shape, np.s_[:15, :]))


def test_a_label_that_agrees_upside_down_does_not_agree():
    ramp, valid = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (6, 1)), np.ones((6, 40), bool)
    kept = agreeing_pixels([Label(values=values, valid=valid) for values in (ramp, 1 - ramp)], 0.5)
    assert np.array_equal(kept, np.abs(ramp - 0.5) <= 0.125)


def test_three_teachers_agree_where_all_do():
    values, valid = np.random.default_rng(1).random((12, 12), np.float32), np.ones((12, 12), bool)
    second, third = values.copy(), values * 3 - 1
    second[2:4], third[7:9] = second[2:4] + 2, third[7:9] - 5
    kept = agreeing_pixels([Label(values=each, valid=valid) for each in (values, second, third)], 1.0)
    assert np.array_equal(kept, _outside(values.shape, np.s_[2:4, :]) & _outside(values.shape, np.s_[7:9, :]))


def test_patches_in_other_places_are_refused():
    valid = np.ones((3, 3), bool)
    one, other = (PatchLabel(values=np.eye(3, dtype=np.float32), valid=valid, box=Box(0, left, 3, 3)) for left in (0, 1))
    with pytest.raises(ValueError, match=r"part 7: patch_box: teacher 1 has .*averaged, or compared, in one place"):
        patches_without_disagreement([one], [[one], [other]], 1.0, "part 7")


def test_a_training_says_how_much_it_leaves_out_resumes_and_keeps_to_its_threshold(run: Path, tmp_path: Path):
    config = _config(run, tmp_path / "whole", mask_disagreement=2.0)
    train(config)
    whole = metrics(tmp_path / "whole")
    assert [line["masked_share"] for line in whole] == pytest.approx([101 / CONTEXT_PX**2] * 6, rel=1e-3)
    resumed = replace(config, output=tmp_path / "resumed")
    interrupt_at(3, resumed)
    with pytest.raises(OutputMismatchError, match=r"mask_disagreement: begun with 2\.0, now None"):
        train(replace(resumed, mask_disagreement=None))
    assert train(resumed).resumed_from == 2
    assert metrics(tmp_path / "resumed") == whole
    with pytest.raises(OutputMismatchError, match=r"mask_disagreement: begun with 2\.0, now 3\.0"):
        train(replace(config, mask_disagreement=3.0))
    train(replace(config, output=tmp_path / "plain", mask_disagreement=None))
    plain = metrics(tmp_path / "plain")
    assert [line["masked_share"] for line in plain] == pytest.approx([1 / CONTEXT_PX**2] * 6, rel=1e-3)
    assert plain[0]["total"] != whole[0]["total"]


@pytest.mark.parametrize("everywhere", [True, False])
def test_samples_without_a_pixel_left_teach_nothing_and_end_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everywhere: bool
):
    """Every sample, or every other one: half of a step is then of samples that count."""
    calls = itertools.count()

    def nowhere(labels: Sequence[Label], most: float) -> np.ndarray:
        views = 5  # a context, and four patches
        return np.full(labels[0].valid.shape, not everywhere and next(calls) // views % 2 == 0)

    monkeypatch.setattr(disagreement, "agreeing_pixels", nowhere)
    config = _config(run, tmp_path / "out", mask_disagreement=1.0, batch_size=1 if everywhere else 2)
    assert train(config).steps == 6
    for line in metrics(tmp_path / "out"):
        assert line["masked_share"] == (1 if everywhere else pytest.approx(0.5, abs=1e-3))
        assert np.isfinite([line[name] for name in ("total", "shared_context", "local_global", "gradient_norm")]).all()
        assert (line["shared_context"] == 0) is everywhere
