"""The paper's figures 2 and 5: what is fitted where, and regions that stay in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float32, UInt8
from PIL import Image

from pipeline.evaluate.data import RenderedScenes
from pipeline.figures.command import main, region_box, region_comparison
from stages.coloring import colorize_disparity, robust_range
from stages.depth_space import DepthSpace
from stages.evaluation.benchmarks import BenchmarkSample
from stages.evaluation.fixtures import write_benchmark
from stages.labelling.teacher import TeacherSpec


class _Brightness:
    """A teacher that labels the brightness it sees, and counts the pictures."""

    def __init__(self, space: DepthSpace = "disparity_affine_invariant") -> None:
        self.spec = TeacherSpec(loader="transformers", checkpoint="x", depth_space=space)
        self.seen: list[tuple[int, ...]] = []

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None) -> Float32[np.ndarray, "b h w"]:
        self.seen.append(images.shape)
        values = images.mean(-1).astype(np.float32)
        return values if self.spec.depth_space == "disparity_affine_invariant" else 255 - values


def test_a_prediction_that_is_right_in_the_centre_and_wrong_around_it_is_perfect_only_where_the_centre_is_fitted():
    depth_m = np.random.default_rng(0).uniform(1, 9, (40, 60)).astype(np.float32)
    prediction = 3 / depth_m + 1
    prediction[:10] += 1
    sample = BenchmarkSample(name="a", rgb=np.zeros((40, 60, 3), np.uint8), depth_m=depth_m, valid=np.ones((40, 60), np.bool_))
    scores = RenderedScenes([0], "disparity_affine_invariant").central_half(prediction.astype(np.float32), sample)
    assert scores is not None
    whole, half = scores
    assert half.abs_rel < 1e-5 < 0.01 < whole.abs_rel


def test_what_happens_outside_of_the_central_half_does_not_touch_the_fit_on_it():
    rng = np.random.default_rng(1)
    depth_m = rng.uniform(1, 9, (40, 60)).astype(np.float32)
    prediction = rng.uniform(1, 2, (40, 60)).astype(np.float32)
    valid = np.ones((40, 60), np.bool_)
    scores = []
    for changed in (False, True):
        values = prediction.copy()
        if changed:
            values[:10] = values[30:] = values[:, :15] = values[:, 45:] = 5
        sample = BenchmarkSample(name="a", rgb=np.zeros((40, 60, 3), np.uint8), depth_m=depth_m, valid=valid)
        scores.append(RenderedScenes([0], "disparity_affine_invariant").central_half(values, sample))
    assert scores[0][1] == scores[1][1]
    assert scores[0][0] != scores[1][0]


def test_an_image_without_depth_in_its_centre_is_left_out_of_figure_2_and_counted(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = write_benchmark("diode", tmp_path, scenes=[1, 2])
    mask = sorted(data.rglob("*_mask.npy"))[0]
    known = np.load(mask)
    known[24:72, 32:96] = 0
    np.save(mask, known)
    arguments = ["fig2", "--model", checkpoints / "primary", "--benchmark", "diode", "--data", data]
    settings = ["--network-px", "48", "--device", "cpu", "--output", tmp_path / "kept"]
    assert main([str(argument) for argument in (*arguments, *settings)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == ["primary", "diode", "1", "of", "2"]


def test_figure_2_prints_both_fits_per_benchmark(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_benchmark("diode", tmp_path, scenes=[1, 2])
    arguments = ["fig2", "--model", checkpoints / "primary", "--benchmark", "diode", "scenes", "--data", data, "--scenes", "2"]
    settings = ["--network-px", "48", "--device", "cpu", "--output", tmp_path / "kept"]
    assert main([str(argument) for argument in (*arguments, *settings)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines[1:3]] == [["primary", "diode", "2"], ["primary", "scenes", "2"]]
    for line in lines[1:3]:
        assert 0 < float(line[4]) < 2
        assert line[3] != line[4]
    assert lines[3][-2:] == ["0.140", "0.083"]


@pytest.mark.parametrize("space", ["disparity_affine_invariant", "depth_affine_invariant"])
def test_figure_5_shows_one_region_three_times_in_place_and_in_the_same_colours(space: DepthSpace):
    ramp = np.add.outer(np.arange(240), np.arange(320)) * (255 / 560)
    image = Image.fromarray(np.repeat(ramp[..., None], 3, -1).astype(np.uint8))
    teacher = _Brightness(space)
    picture = region_comparison(teacher, image, region_box(image, (40, 100, 80, 120)), input_px=96)
    assert [shape[1:3] for shape in teacher.seen] == [(72, 96), (64, 96)]
    region, cut, close = picture[:, :480], picture[:, 488:968], picture[:, 976:]
    assert region.shape == cut.shape == close.shape == (320, 480, 3)
    disparity = region.mean(-1)
    low, high = robust_range(disparity)
    expected = colorize_disparity(disparity, low=low, high=high).astype(int)
    for label in (cut, close):
        inside = np.s_[8:-8, 8:-8]
        assert np.abs(label.astype(int) - expected)[inside].mean() < 6


def test_a_close_up_shows_more_detail_than_its_part_of_the_whole():
    columns = np.arange(320)
    stripes_on_a_ramp = np.broadcast_to((columns // 2 + 40 * (columns // 2 % 2))[:, None], (240, 320, 3))
    image = Image.fromarray(stripes_on_a_ramp.astype(np.uint8))
    picture = region_comparison(_Brightness(), image, region_box(image, (80, 100, 80, 80)), input_px=80).astype(int)
    cut, close = picture[:, 488:968], picture[:, 976:]
    assert np.abs(np.diff(close, axis=1)).mean() > 1.5 * np.abs(np.diff(cut, axis=1)).mean()


def test_figure_5_writes_a_picture_and_names_a_box_that_is_not_inside(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)).save(photo)
    arguments = ["fig5", "--model", checkpoints / "primary", "--image", photo, "--network-px", "48", "--device", "cpu"]
    arguments = [str(argument) for argument in (*arguments, "--output", tmp_path / "new" / "fig5.png")]
    assert main(arguments) == 0
    assert Image.open(tmp_path / "new" / "fig5.png").size == (3 * 480 + 16, 360)
    assert main([*arguments, "--box", "0", "0", "97", "20"]) == 1
    assert "--box 0 0 97 20: expected" in capsys.readouterr().err
    photo.write_bytes(b"")
    assert main(arguments) == 1
    assert f"figures: {photo}: the file has no bytes" in capsys.readouterr().err
