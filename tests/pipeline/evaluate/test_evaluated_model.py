"""A model as an evaluation shows it pictures: as they come, or as squares."""

from __future__ import annotations

import numpy as np

from pipeline.evaluate.run import EvaluatedModel
from stages.models import ModelSpec
from stages.models.find import FoundModel


class _Red:
    """A depth model that takes a picture's red for its depth, and remembers what it was shown."""

    spec = ModelSpec(loader="tests:red", checkpoint="", depth_space="disparity_affine_invariant")

    def predict(self, images: np.ndarray, seeds: object = None) -> np.ndarray:
        self.shown = images.shape
        return images[..., 0].astype(np.float32)


def test_a_square_shows_the_whole_picture_and_its_map_is_brought_back_in_place():
    red = _Red()
    found = FoundModel(spec=red.spec, folder=None, sha256="", stated_px=None, loaded=red)
    y, x = np.mgrid[:30, :90]
    pictures = [np.repeat((2 * x + y)[..., None], 3, 2).astype(np.uint8), np.repeat((y + 50)[..., None], 3, 2).astype(np.uint8)]
    maps = EvaluatedModel(found, square_px=70).predict(pictures, ["a", "b"])
    assert red.shown == (2, 70, 70, 3)
    for picture, values in zip(pictures, maps, strict=True):
        assert values.shape == (30, 90)
        assert np.abs(values - picture[..., 0]).max() < 1.5
