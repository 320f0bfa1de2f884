"""A label that is made on a device is the one that NumPy makes, to the last bit; and what is no label is none on both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manifests import Reason
from stages.labelling.quantising import label_of, labels_on_device
from stages.views import Box

_SIDES = st.integers(2, 24)
_VALUES = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1e-40]))


def _equal(depth: np.ndarray, box: Box | None, *, marks_invalid: bool, device: str = "cpu") -> None:
    expected = label_of(depth, box, 3, marks_invalid=marks_invalid)
    (begun,) = labels_on_device(torch.from_numpy(depth[None]).to(device), [box], [3], marks_invalid=marks_invalid)
    found = begun()
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
