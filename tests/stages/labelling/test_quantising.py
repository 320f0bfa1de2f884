"""A label that is made on a device is the one that NumPy makes, to the last bit; and what is no label is none on both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manifests import Reason
from stages.label_store import QuantisedLabel
from stages.labelling.quantising import label_of, labels_on_device
from stages.views import Box

_SIDES = st.integers(2, 24)
_VALUES = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1e-40]))


def _equal(depth: np.ndarray, box: Box | None, *, marks_invalid: bool, device: str = "cpu") -> None:
    expected = label_of(depth, box, 3, marks_invalid=marks_invalid)
    (begun,) = labels_on_device(torch.from_numpy(depth[None]).to(device), [box], [3], marks_invalid=marks_invalid)
    assert_equal(begun(), expected)


def assert_equal(found: QuantisedLabel | Reason, expected: QuantisedLabel | Reason) -> None:
    """To the last bit."""
    if isinstance(expected, Reason) or isinstance(found, Reason):
        assert found == expected
        return
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(np.asarray(vars(found)[name]).tobytes(), np.asarray(value).tobytes(), err_msg=name)


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(_SIDES, _SIDES), elements=_VALUES), _SIDES, _SIDES, st.booleans(), st.booleans())
def test_a_device_makes_the_label_that_numpy_makes(depth: np.ndarray, height: int, width: int, patch: bool, marks: bool):
    _equal(depth, Box(0, 0, height, width) if patch else None, marks_invalid=marks)


@pytest.mark.parametrize("box", [None, Box(0, 0, 225, 313)])
@pytest.mark.parametrize("share_unknown", [0.0, 0.3, 1.0])
def test_at_the_size_of_the_paper_too(box: Box | None, share_unknown: float):
    rng = np.random.default_rng(0)
    depth = rng.normal(size=(560, 420)).astype(np.float32).cumsum(1)
    depth[rng.random(depth.shape) < share_unknown] = np.nan
    _equal(depth, box, marks_invalid=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("box", [None, Box(0, 0, 225, 313)])
def test_on_a_gpu_too(box: Box | None):
    depth = np.random.default_rng(0).normal(size=(560, 420)).astype(np.float32).cumsum(1)
    _equal(depth, box, marks_invalid=False, device="cuda")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("marks_invalid", [False, True])
def test_views_of_a_batch_go_by_size_and_come_back_in_their_order(device: str, marks_invalid: bool):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    depths = np.random.default_rng(0).normal(size=(7, 60, 48)).astype(np.float32).cumsum(1)
    depths[2, :9] = np.nan if marks_invalid else np.inf
    boxes = [Box(0, 0, 30, 24), None, Box(4, 9, 30, 24), Box(0, 0, 31, 24), None, Box(1, 1, 30, 24), Box(0, 0, 90, 96)]
    begun = labels_on_device(torch.from_numpy(depths).to(device), boxes, range(7), marks_invalid=marks_invalid)
    for number, (depth, box, label) in enumerate(zip(depths, boxes, begun, strict=True)):
        assert_equal(label(), label_of(depth, box, number, marks_invalid=marks_invalid))
