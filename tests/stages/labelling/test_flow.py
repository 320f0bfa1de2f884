"""What flows through a worker stays in order, in bounds, and whole; memory that runs out only makes batches smaller."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import manifests
from pipeline.label.worker import WallClock
from stages.labelling.flow import Predicted, View, predict_views, views_in_batches
from stages.labelling.units import label_images_part, label_teacher_part
from stages.models.batches import Predictor
from stages.threads import Behind, ahead
from tests.conftest import scene_bytes, teacher_spec
from tests.stages.labelling.test_units import made_units


def _view(image: int, side_px: int = 8, number: int = 0) -> View:
    picture = np.full((side_px, side_px, 3), image % 256, np.uint8)
    return View(image=image, number=number, box=None, picture=picture, seed=1000 + image)


def _predicted(predictor: Predictor, views: int) -> list[Predicted]:
    batch = [_view(image) for image in range(views)]
    return list(predict_views(predictor, batch, np.stack([view.picture for view in batch])))


class _SmallMemory:
    """A teacher whose device holds three pictures at a time; its depth is the picture plus some of the seed."""

    def __init__(self, checkpoints: Path, holds: int = 3) -> None:
        self.spec = teacher_spec(checkpoints, "primary", "transformers")
        self.holds = holds

    def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
        if len(images) > self.holds:
            raise torch.OutOfMemoryError(f"{len(images)} pictures")
        seen = images[..., 0].astype(np.float32) + np.linspace(0, 1, images.shape[2], dtype=np.float32)
        return seen + np.array([seed % 7 for seed in seeds or [0] * len(images)], np.float32)[:, None, None]


@given(
    sides=st.lists(st.sampled_from([8, 9, 10, 11]), max_size=60),
    batch_size=st.integers(1, 8),
    max_waiting=st.integers(0, 12),
)
def test_every_view_goes_once_with_its_own_shape_and_none_waits_for_too_many_images(
    sides: list[int], batch_size: int, max_waiting: int
):
    views = [_view(image, side) for image, side in enumerate(sides)]
    drawn = -1

    def draw():
        nonlocal drawn
        for view in views:
            drawn = view.image
            yield view

    seen = []
    for batch in views_in_batches(draw(), batch_size, max_waiting):
        assert len({view.picture.shape for view in batch}) == 1
        assert len(batch) <= batch_size
        assert drawn - batch[0].image <= max_waiting + 1
        seen += [view.image for view in batch]
    assert sorted(seen) == list(range(len(sides)))


def test_batches_that_do_not_fit_are_halved_for_good_and_every_view_is_predicted(checkpoints: Path):
    predictor = Predictor(_SmallMemory(checkpoints), batch_size=8)
    labels = [view.label() for view in _predicted(predictor, 8)]
    assert [label.min for label in labels] == [image + (1000 + image) % 7 for image in range(8)]  # type: ignore[union-attr]
    assert predictor.batch_size == 2


def test_one_view_that_does_not_fit_is_an_error(checkpoints: Path):
    with pytest.raises(torch.OutOfMemoryError):
        _predicted(Predictor(_SmallMemory(checkpoints, holds=0), batch_size=8), 1)


def test_the_manifest_tells_the_batch_that_memory_allowed(tmp_path: Path, checkpoints: Path):
    images, primary, _ = made_units(tmp_path, checkpoints, {f"{i}.png": scene_bytes(i) for i in range(4)})
    label_images_part(images, WallClock())
    result = label_teacher_part(primary, _SmallMemory(checkpoints), WallClock(), batch_size=8)
    outcomes = manifests.load_part(images.run_dir, "primary", primary.part).images
    assert [outcome.problem for outcome in outcomes] == [None] * 4
    assert result.labelled == 4
    assert result.batch_size == 2
    assert manifests.load_part(images.run_dir, "primary", primary.part).volatile.batch_size == 2


def test_results_come_in_order_and_only_so_many_are_computed_ahead():
    started, lock = [], threading.Lock()

    def work(item: int) -> int:
        with lock:
            started.append(item)
        return item * item

    with closing(ahead(work, range(50), threads=3, depth=4)) as results:
        for item, result in enumerate(results):
            assert result == item * item
            with lock:
                assert max(started) <= item + 5
    assert sorted(started) == list(range(50))


@pytest.mark.parametrize("failing", ["make", "take"])
def test_what_goes_wrong_behind_is_raised_in_front(failing: str):
    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    def submit_all() -> None:
        make, take = (int, fail) if failing == "take" else (fail, int)
        with Behind(make, take, threads=2, depth=2) as behind:
            for item in range(3):
                behind.submit(item)

    with pytest.raises(ValueError, match="item 0"):
        submit_all()


def test_a_prediction_of_another_size_than_its_pictures_is_refused(checkpoints: Path):
    class _HalfAsLarge(_SmallMemory):
        def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
            return super().predict(images, seeds)[:, ::2, ::2]

    with pytest.raises(ValueError, match=r"has shape \(2, 4, 4\), expected \(2, 8, 8\)"):
        _predicted(Predictor(_HalfAsLarge(checkpoints), 2), 2)
