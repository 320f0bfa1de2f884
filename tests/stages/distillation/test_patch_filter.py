"""Close-ups that contradict the whole view are left out, whatever the scale and shift of either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.distillation.dataset import LabelDataset
from stages.distillation.order import SampleRequest
from stages.distillation.patch_filter import agreeing_patches
from stages.label_store import Label, PatchLabel
from stages.views import Box
from tests.training_run import write_run

_BOX = Box(4, 6, 10, 12)


def _context() -> Label:
    values = np.random.default_rng(1).random((24, 24), np.float32)
    return Label(values=values, valid=np.ones((24, 24), bool))


def _patch(values: np.ndarray, valid: np.ndarray | None = None) -> PatchLabel:
    return PatchLabel(values=values.astype(np.float32), valid=np.ones(values.shape, bool) if valid is None else valid, box=_BOX)


def _slice(context: Label) -> np.ndarray:
    return context.values[4:14, 6:18]


@pytest.mark.parametrize(
    ("change", "correlation"),
    [
        (lambda own: 3 * own + 7, 1),
        (lambda own: -own, -1),
        (np.ones_like, 0),
        (lambda own: own + 2 * np.random.default_rng(2).random(own.shape), 0.4),
    ],
)
def test_a_patch_stays_as_long_as_no_more_agreement_is_asked_for_than_it_has(change, correlation: float):
    context = _context()
    patch = _patch(change(_slice(context)))
    assert agreeing_patches(context, [patch], correlation - 0.2) == (patch,)
    assert agreeing_patches(context, [patch], correlation + 0.2) == ()


def test_only_what_is_valid_in_both_counts():
    context = _context()
    values, valid = _slice(context).copy(), np.ones((10, 12), bool)
    values[:5], valid[:5] = np.nan, False
    assert len(agreeing_patches(context, [_patch(values, valid)], 0.99)) == 1
    assert agreeing_patches(context, [_patch(values, np.zeros_like(valid))], 0.01) == ()


def test_a_dataset_leaves_them_out_of_its_samples(tmp_path: Path):
    run = write_run(tmp_path / "run", images=4)
    every, some, none = (LabelDataset(run, ("primary",), patch_agreement=least) for least in (-1, 0.5, 1))
    request = SampleRequest(1, 0, False)
    assert len(every[request].patches) > 0
    assert len(some[request].patches) == len(every[request].patches)  # they show the same scene
    assert len(none.collate([none[request]]).keys) == 1
