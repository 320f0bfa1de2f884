"""A teacher that says which pixels it does not know: from its NaN through the run to a loss that they do not touch."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import manifests
from pipeline.evaluate.command import main as evaluate
from pipeline.label.command import main
from pipeline.predict.command import main as predict
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from pipeline.train.ranks import Process
from pipeline.train.setup import make_plan
from stages.distillation.batch import Batch
from stages.distillation.dataset import LabelDataset
from stages.distillation.joined import JoinedLabels
from stages.distillation.losses import LossConfig, cross_context_loss
from stages.distillation.order import SampleRequest
from stages.prediction import read_depth_png
from stages.scenes import render_scene
from tests.training_run import write_student

_PROGRAM = '''
import numpy as np


class Teacher:
    """Green is near; blue is sky, of which it says nothing."""

    depth_space = "disparity_affine_invariant"
    weights_sha256 = "sky"
    marks_invalid = True

    def predict(self, images):
        red, green, blue = np.moveaxis(images.astype(np.float32), 3, 0)
        return np.where(blue - red > 100, np.float32("nan"), green + np.arange(images.shape[1], dtype=np.float32)[:, None])


def load(checkpoint, device):
    return Teacher()
'''
_SKY_ROWS = 60  # the upper patches show nothing else
_REQUEST = SampleRequest(0, 0, False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The working directory: a module, and photographs of 96 x 96: with a blue upper part, without any, and all blue."""
    (tmp_path / "sky_teacher.py").write_text(_PROGRAM)
    (tmp_path / "photos").mkdir()
    for number, rows in enumerate((_SKY_ROWS, 0, 96)):
        pixels = render_scene(number, height_px=96, width_px=96).rgb.copy()
        pixels[..., 2] = pixels[..., 0]
        pixels[:rows] = (0, 0, 255)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("sky_teacher", None)


def _label(*more: str) -> int:
    plan = ["--plan.context", "whole", "--plan.context-px", "48", "--plan.patch-px", "48", "--plan.min-image-px", "8"]
    teacher = ["--columns", "mine", "--mine.loader", "sky_teacher:load", "--mine.checkpoint", "none"]
    return main(["--run", "RUN", "--sources", "photos", *teacher, *plan, "--workers", "0", *more])


def _outcomes(folder: Path) -> list[str | None]:
    part = manifests.load_part(folder / "RUN", "mine", "photos.00000")
    return [image.problem.kind if image.problem else None for image in part.images]


def test_what_a_teacher_does_not_know_has_no_label_and_everything_else_has(folder: Path):
    assert _label("--max-rejected-fraction", "0.5") == 0
    assert _outcomes(folder) == [None, None, "non_finite_label"]
    part = manifests.load_part(folder / "RUN", "mine", "photos.00000")
    assert "all 2304 values are NaN, so the teacher knows none" in str(part.images[2].problem)
    assert manifests.verify(folder / "RUN", deep=True) == []
    sample, clear = (LabelDataset(folder / "RUN", ("mine",))[_REQUEST._replace(sample=number)] for number in (0, 1))
    assert clear.context.valid.all()
    assert all(patch.valid.all() for patch in clear.patches)
    edge = _SKY_ROWS // 2
    assert not sample.context.valid[: edge - 2].any()
    assert sample.context.valid[edge + 2 :].all()
    assert not sample.patches[0].valid.any()
    assert sample.patches[-1].valid.any()
    for patch in sample.patches:  # shown at the photograph's own size: the edge is sharp there
        assert not patch.valid[: max(edge - 1 - patch.box.top, 0)].any()
        assert patch.valid[max(edge + 1 - patch.box.top, 0) :].all()
    views = [label for s in (sample, clear) for label in (s.context, *s.patches)]
    known = np.concatenate([label.values[label.valid] for label in views])
    assert part.statistics.pixels == known.size < sum(label.values.size for label in views)
    assert part.statistics.min == pytest.approx(known.min(), abs=0.01)
    assert part.statistics.max == pytest.approx(known.max(), abs=0.01)


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        (("    marks_invalid = True\n", ""), ["non_finite_label", None, "non_finite_label"]),
        (("marks_invalid = True", "marks_invalid = False"), ["non_finite_label", None, "non_finite_label"]),
        (('"nan"', '"inf"'), ["non_finite_label", None, "non_finite_label"]),
    ],
)
def test_nan_of_a_teacher_that_has_not_said_so_and_infinity_of_any_are_no_label(
    folder: Path, change: tuple[str, str], outcomes: list[str | None]
):
    (folder / "sky_teacher.py").write_text(_PROGRAM.replace(*change))
    assert _label() == 1
    assert _outcomes(folder) == outcomes


def test_what_says_whether_nan_is_a_mark_must_be_a_yes_or_a_no(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "sky_teacher.py").write_text(_PROGRAM.replace("marks_invalid = True", 'marks_invalid = "sky"'))
    assert _label() == 2
    assert "marks_invalid is 'sky', expected True or False" in capsys.readouterr().err


def _loss_and_gradient(batch: Batch, prediction: torch.Tensor, normalization: str) -> tuple[torch.Tensor, torch.Tensor]:
    prediction = prediction.clone().requires_grad_()
    how = {"normalization_shared": normalization, "normalization_local": normalization}
    terms = cross_context_loss(prediction, batch, LossConfig(**how, trim_fraction=0.1))  # type: ignore[arg-type]
    assert min(terms.shared_context, terms.local_global, terms.gradient) > 0
    terms.total.backward()
    assert prediction.grad is not None
    return terms.total.detach(), prediction.grad


@pytest.mark.parametrize("normalization", ["hybrid", "global", "local", "none"])
def test_no_loss_depends_on_the_values_under_the_mask_of_label_or_student(folder: Path, normalization: str):
    _label()
    dataset = LabelDataset(folder / "RUN", ("mine",))
    batch = dataset.collate([dataset[_REQUEST], dataset[SampleRequest(0, 0, True)]]).to("cpu")
    prediction = torch.rand(batch.label.shape, generator=torch.Generator().manual_seed(1))
    loss, gradient = _loss_and_gradient(batch, prediction, normalization)
    patches = tuple(dataclasses.replace(p, label=torch.where(p.valid, p.label, 1e9)) for p in batch.patches)
    changed = dataclasses.replace(batch, label=torch.where(batch.valid, batch.label, torch.nan), patches=patches)
    untouched = ~batch.valid
    untouched[:, _SKY_ROWS // 2 - 2 :] = False  # the photograph's own edge, which a patch knows better
    assert untouched.any()
    for other in (prediction, torch.where(untouched, -1e9, prediction)):
        other_loss, other_gradient = _loss_and_gradient(changed, other, normalization)
        assert other_loss == loss
        assert torch.equal(other_gradient, gradient)
    assert not gradient[untouched].any()


def test_a_student_learns_from_it_and_says_how_much_was_left_out(folder: Path):
    _label()
    config = TrainConfig(
        run=(folder / "RUN",),
        output=folder / "student",
        columns=("mine",),
        student=str(write_student(folder / "start")),
        steps=3,
        batch_size=2,
        loader_workers=0,
        device="cpu",
    )
    assert train(config).images == 2
    lines = [json.loads(line) for line in (folder / "student/metrics.jsonl").read_text().splitlines()]
    dataset = LabelDataset(folder / "RUN", ("mine",))
    masked = [1 - dataset[_REQUEST._replace(sample=number)].context.valid.mean() for number in (0, 1)]
    assert sorted(masked) == [0, 0.625]
    plan = make_plan(config, JoinedLabels([dataset]), Process(device="cpu"), 0)
    expected = [np.mean([masked[request.sample] for request in plan.requests(step)]) for step in range(3)]
    assert [line["masked_share"] for line in lines] == pytest.approx(expected)


def test_its_maps_have_no_value_there_and_a_photograph_without_any_fails(folder: Path, capsys: pytest.CaptureFixture[str]):
    command = ["photos", "--model", "sky_teacher:load", "--output", "DEPTH", "--npy"]
    assert predict(command) == 1
    assert "2.png: non_finite_map: all 9216 values are NaN" in capsys.readouterr().err
    exact = np.load(folder / "DEPTH/0.png.npy")
    assert np.isnan(exact[:_SKY_ROWS]).all()
    assert np.isfinite(exact[_SKY_ROWS:]).all()
    for name, invalid in (("0", "0"), ("1", None)):
        with Image.open(folder / f"DEPTH/{name}.png.png") as image:
            assert image.info.get("invalid_code") == invalid
        values = np.load(folder / f"DEPTH/{name}.png.npy")
        np.testing.assert_allclose(read_depth_png(folder / f"DEPTH/{name}.png.png")[0], values, atol=np.nanmax(values) / 65534)
    with Image.open(folder / "DEPTH/0.png.color.jpg") as image:
        assert np.abs(np.asarray(image)[: _SKY_ROWS - 12].astype(int) - 128).max() < 12
    assert predict([*command[:1], *command[1:4], "TILED", "--npy", "--tile", "60"]) == 1
    tiled = np.load(folder / "TILED/0.png.npy")
    assert np.array_equal(np.isnan(tiled), np.isnan(exact))
    (folder / "sky_teacher.py").write_text(_PROGRAM.replace("marks_invalid = True", "marks_invalid = False"))
    sys.modules.pop("sky_teacher")
    assert predict([*command[:4], "OTHER"]) == 1
    assert sorted(path.name for path in (folder / "OTHER").glob("?.png.png")) == ["1.png.png"]


def test_it_is_scored_in_every_pixel_whose_depth_is_known(folder: Path, capsys: pytest.CaptureFixture[str]):
    marks_the_near = _PROGRAM.replace("blue - red > 100", "np.arange(images.shape[1])[:, None] + 0 * red > 40")
    (folder / "sky_teacher.py").write_text(marks_the_near)
    command = ["--model", "sky_teacher:load", "--benchmark", "scenes", "--scenes", "2", "--input-px", "48"]
    assert evaluate(command) == 1
    assert "those that it marks as not known (NaN) too" in capsys.readouterr().err
