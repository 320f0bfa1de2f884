"""Maps of whole photographs: tiles leave no seam, memory that runs out only makes batches smaller, files keep what they got."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages import prediction
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.labelling.teacher import TeacherSpec
from stages.prediction import (
    MapRejectedError,
    PicturePredictor,
    blend_tiles,
    encode_color_jpeg,
    encode_depth_png,
    png_text,
    read_depth_png,
    tile_boxes,
)
from stages.views import Box


def _cut(values: np.ndarray, box: Box) -> np.ndarray:
    return values[box.top : box.top + box.height, box.left : box.left + box.width]


def _hills(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (np.sin(x / 17) + np.cos(y / 23) + x / width).astype(np.float32)


class _Pointwise:
    """A teacher that holds `holds` pictures at a time; red is the depth, in each picture's own scale and shift."""

    def __init__(self, space: DepthSpace, holds: int = 99) -> None:
        self.spec = TeacherSpec(loader="transformers", checkpoint="none", depth_space=space)
        self.holds, self.batches = holds, list[tuple[int, ...]]()

    def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
        self.batches.append(images.shape)
        if len(images) > self.holds:
            raise torch.OutOfMemoryError(f"{len(images)} pictures")
        red = images[..., 0].astype(np.float32)
        if self.spec.depth_space == "depth_metric":
            return red
        own = red.mean((1, 2), keepdims=True)
        return red * (1 + own / 100) - 3 * own


@settings(deadline=None, max_examples=50)
@given(height=st.integers(1, 300), width=st.integers(1, 300), tile=st.integers(16, 120), overlap=st.floats(0, 0.9))
def test_tiles_are_of_one_size_cover_the_picture_and_overlap_as_asked(height: int, width: int, tile: int, overlap: float):
    boxes = tile_boxes(height, width, tile_px=tile, overlap=overlap)
    covered = np.zeros((height, width), np.bool_)
    for box in boxes:
        assert (box.height, box.width) == (min(tile, height), min(tile, width))
        covered[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert covered.all()
    lefts = sorted({box.left for box in boxes})
    step = max(int(boxes[0].width * (1 - overlap)), 1)
    assert all(right - left <= step for left, right in itertools.pairwise(lefts))
    assert lefts[-1] + boxes[0].width == width
    assert (len(lefts) - 2) * step < width - boxes[0].width or len(lefts) == 1


def test_tiles_that_say_the_same_in_scales_and_shifts_of_their_own_become_the_whole_map():
    whole = _hills(150, 210)
    boxes = tile_boxes(150, 210, tile_px=64, overlap=0.25)
    tiles = [(index + 0.5) * _cut(whole, box) - 3 * index for index, box in enumerate(boxes)]
    assert len(boxes) == 15
    blended = blend_tiles(tiles, boxes, height_px=150, width_px=210, whole=whole)
    np.testing.assert_allclose(blended, whole, atol=1e-4)


def test_tiles_that_disagree_leave_no_step_at_their_edges():
    ramp = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (60, 1))
    boxes = tile_boxes(60, 400, tile_px=100, overlap=0.3)
    bent = [_cut(ramp, box) + 0.05 * np.linspace(-1, 1, box.width, dtype=np.float32) ** 2 for box in boxes]
    blended = blend_tiles(bent, boxes, height_px=60, width_px=400, whole=ramp)
    pasted = ramp.copy()
    for tile, box in zip(bent, boxes, strict=True):
        _cut(pasted, box)[:] = tile
    steepest = max(float(np.abs(np.diff(tile, axis=1)).max()) for tile in bent)
    assert np.abs(np.diff(pasted, axis=1)).max() > 5 * steepest
    assert np.abs(np.diff(blended, axis=1)).max() < 1.3 * steepest


def test_the_detail_of_a_tile_comes_through_and_a_tile_upside_down_does_not():
    smooth = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    detailed = smooth + 0.05 * np.sin(np.arange(64, dtype=np.float32))
    (box,) = tile_boxes(64, 64, tile_px=64, overlap=0.25)
    blended = blend_tiles([detailed], [box], height_px=64, width_px=64, whole=smooth)
    assert np.corrcoef((blended - smooth).ravel(), (detailed - smooth).ravel())[0, 1] > 0.99
    upside_down = blend_tiles([-detailed], [box], height_px=64, width_px=64, whole=smooth)
    np.testing.assert_allclose(upside_down, smooth, rtol=1e-5)


@pytest.mark.parametrize("space", ["disparity_affine_invariant", "depth_affine_invariant", "depth_metric"])
def test_a_pointwise_model_gives_the_same_map_tile_by_tile_as_whole(space: DepthSpace):
    picture = np.repeat((_hills(90, 130) * 50 + 80).astype(np.uint8)[..., None], 3, axis=2)
    teacher = _Pointwise(space)
    (whole,) = PicturePredictor(teacher, batch_size=4).predict([picture])
    for tile_px in (48, 100):  # 100: the picture's height stays in one piece
        (tiled,) = PicturePredictor(teacher, batch_size=4, tile_px=tile_px).predict([picture])
        np.testing.assert_allclose(tiled, whole, atol=1e-3 * np.ptp(whole))
    teacher.batches.clear()
    PicturePredictor(teacher, batch_size=4, tile_px=130).predict([picture])
    assert teacher.batches == [(1, 90, 130, 3)]
    teacher.batches.clear()
    PicturePredictor(teacher, batch_size=4, tile_px=100).predict([picture])
    whole_too = [] if space == "depth_metric" else [(1, 90, 130, 3)]
    assert teacher.batches == [*whole_too, (2, 90, 100, 3)]


def test_memory_that_runs_out_halves_the_batch_of_that_size_only_and_changes_no_map():
    large, small = [np.full((8, 8, 3), 10 * i, np.uint8) for i in range(8)], [np.zeros((4, 4, 3), np.uint8)] * 8
    teacher = _Pointwise("depth_metric", holds=3)
    predictor = PicturePredictor(teacher, batch_size=8)
    assert [values[0, 0] for values in predictor.predict(large)] == [10 * i for i in range(8)]
    assert [shape[0] for shape in teacher.batches] == [8, 4, 2, 2, 2, 2]
    teacher.holds = 8
    predictor.predict(small)
    assert teacher.batches[-1][0] == 8
    teacher.holds = 0
    with pytest.raises(torch.OutOfMemoryError):
        predictor.predict(large)


@settings(deadline=None, max_examples=50)
@given(
    low=st.floats(-1e4, 1e4, width=32),
    spread=st.floats(0.015625, 1e4, width=32),
    space=st.sampled_from(DEPTH_SPACES),
    seed=st.integers(0, 99),
)
def test_a_map_comes_back_from_its_png_to_half_a_code(
    tmp_path_factory: pytest.TempPathFactory, low: float, spread: float, space: DepthSpace, seed: int
):
    values = (low + spread * np.random.default_rng(seed).random((5, 7))).astype(np.float32)
    path = tmp_path_factory.mktemp("png") / "map.png"
    path.write_bytes(encode_depth_png(values, space, {"model_sha256": "abc"}))
    back, back_space = read_depth_png(path)
    half_a_code = float(np.ptp(values)) / 65535 / 2
    np.testing.assert_allclose(back, values, rtol=1e-6, atol=1.001 * half_a_code)
    assert back_space == space
    text = png_text(path)
    assert text["model_sha256"] == "abc"
    with Image.open(path) as image:
        codes = np.asarray(image)
    assert (codes.dtype, codes.min(), codes.max()) == (np.uint16, 0, 65535)


def test_the_four_lines_of_the_document_read_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("maps").mkdir()
    Path("maps/photo.jpg.png").write_bytes(encode_depth_png(_hills(6, 8), "disparity_metric", {}))
    document = (Path(__file__).parents[2] / "docs/predict.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", document, flags=re.S)
    names: dict[str, object] = {}
    exec(snippet, names)
    np.testing.assert_allclose(np.asarray(names["values"]), read_depth_png(Path("maps/photo.jpg.png"))[0], rtol=1e-6)
    assert names["space"] == "disparity_metric"


def test_what_is_no_map_is_refused_in_writing_and_in_reading(tmp_path: Path):
    values = _hills(6, 8)
    with pytest.raises(MapRejectedError, match="the prediction is 2 everywhere") as constant:
        encode_depth_png(np.full_like(values, 2), "depth_metric", {})
    values[0, 0] = np.nan
    with pytest.raises(MapRejectedError, match="1 of 48 values") as not_finite:
        encode_depth_png(values, "depth_metric", {})
    assert (constant.value.kind, not_finite.value.kind) == ("constant_map", "non_finite_map")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="expected a 16-bit grey PNG with these three"):
        read_depth_png(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert png_text(tmp_path / "bomb.png") == {}
    assert png_text(tmp_path / "text.png") == {}


@pytest.mark.parametrize("space", DEPTH_SPACES)
def test_what_is_near_is_red_in_every_space(space: DepthSpace):
    depth = np.tile(np.linspace(1, 9, 64, dtype=np.float32), (32, 1))
    values = depth if space.startswith("depth") else 1 / depth
    with Image.open(io.BytesIO(encode_color_jpeg(values, space))) as image:
        near, far = np.asarray(image)[16, [2, 61]].astype(int)
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 50


def test_a_panorama_too_long_for_a_jpeg_gets_a_smaller_picture():
    with Image.open(io.BytesIO(encode_color_jpeg(_hills(2, 70_000), "depth_metric"))) as image:
        assert image.width == 65_500


@pytest.mark.parametrize("marks_invalid", [False, True])
def test_files_are_the_same_whatever_is_worked_on_at_a_time(marks_invalid: bool, monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=(37, 23)).astype(np.float32)
    if marks_invalid:
        values[:9] = np.nan  # a strip without any value

    def files() -> tuple[bytes, bytes]:
        png = encode_depth_png(values, "depth_affine_invariant", {}, marks_invalid=marks_invalid)
        return png, encode_color_jpeg(values, "depth_affine_invariant")

    at_once = files()
    monkeypatch.setattr(prediction, "_STRIP_PX", 100)
    assert files() == at_once
