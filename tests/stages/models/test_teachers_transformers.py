"""Teachers of the transformers library, against its own processors and networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from stages.models import ModelSpec, load_model
from stages.models.transformers_models import TransformersModel
from tests.stages.distillation.tiny_students import save_network
from tests.stages.models.tiny_teachers import save_depth_anything, save_depth_pro


def _spec(folder: Path, depth_space: Any = "disparity_affine_invariant", **more: Any) -> ModelSpec:
    return ModelSpec(loader="transformers", checkpoint=str(folder), depth_space=depth_space, **more)


def _smooth(height: int, width: int) -> np.ndarray:
    """A picture without edges, so that 8-bit rounding is all that differs between two good resizers."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    channels = [rows, columns, 0.5 + 0.4 * np.sin(5 * rows + 3 * columns)]
    return (np.stack(channels, -1) * 255).round().astype(np.uint8)[None]


def _raw(folder: Path, pixels: torch.Tensor) -> Any:
    with torch.inference_mode():
        return AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval()(pixel_values=pixels)


def _to_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 255


def _edit(folder: Path, copy: Path, name: str = "preprocessor_config.json", **changes: Any) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | changes))
    return copy


@pytest.mark.parametrize(
    ("family", "mean", "std", "size"),
    [
        ("dpt", [0.5] * 3, [0.5] * 3, (64, 64)),
        ("depth_anything", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], (48, 96)),
        ("metric", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], (60, 24)),
    ],
)
def test_a_size_that_fits_goes_to_the_network_untouched(
    families: Path, family: str, mean: list[float], std: list[float], size: tuple[int, int]
):
    """To the bit: nothing is resized, neither the picture nor the map."""
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)
    pixels = _to_pixels(images)
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    space = "depth_metric" if family == "metric" else "disparity_affine_invariant"
    found = load_model(_spec(families / family, space)).predict(images)
    assert (found == _raw(families / family, pixels).predicted_depth.numpy()).all()


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(
    ("size", "processed", "keep_aspect"),
    [
        ((96, 96), (48, 48), True),
        ((40, 40), (60, 60), True),
        ((96, 64), (72, 48), True),
        ((64, 100), (36, 60), True),
        ((96, 64), (72, 72), False),
    ],
)
def test_pictures_are_prepared_as_by_the_librarys_own_processor(
    tmp_path: Path, size: tuple[int, int], processed: tuple[int, int], keep_aspect: bool, resample: int
):
    """The library resizes bytes and we resize floats: up to two steps of 8 bits apart, the map accordingly."""
    torch.manual_seed(3)
    target = {"height": processed[0], "width": processed[1]}
    folder, images = tmp_path / "network", _smooth(*size)
    save_depth_anything(folder, resample=resample, size=target, keep_aspect_ratio=keep_aspect)
    wanted = DPTImageProcessorPil.from_pretrained(folder)(images[0], return_tensors="pt")["pixel_values"]
    teacher, seen = load_model(_spec(folder, input_px=max(processed))), []
    assert isinstance(teacher, TransformersModel)
    teacher._model.register_forward_pre_hook(lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True)
    found = teacher.predict(images)
    assert seen[0].shape == wanted.shape == (1, 3, *processed)
    assert float((seen[0] - wanted).abs().max()) < 2 / 255 / 0.224
    raw = _raw(folder, wanted).predicted_depth[:, None]
    resized = F.interpolate(raw, size, mode="bilinear", antialias=True)[:, 0].numpy()
    assert np.abs(found - resized).max() < 0.05 * np.ptp(resized)


@pytest.mark.parametrize("input_px", [48, None])
def test_a_network_that_takes_squares_only_is_given_squares(families: Path, input_px: int | None):
    """`Intel/dpt-large` fails on anything else, and its processor squeezes too."""
    side = input_px or 96
    pixels = (_to_pixels(_smooth(96, 64)) - 0.5) / 0.5
    pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    raw = _raw(families / "dpt", pixels).predicted_depth[:, None]
    wanted = F.interpolate(raw, (96, 64), mode="bilinear", antialias=True)[:, 0].numpy()
    found = load_model(_spec(families / "dpt", input_px=input_px)).predict(_smooth(96, 64))
    assert np.allclose(found, wanted, atol=1e-4 * np.ptp(wanted))


_NEVER_RUN = {
    f"neck.fusion_stage.layers.0.residual_layer1.convolution{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
}


def _rewrite(
    folder: Path, copy: Path, *, without: set[str] | frozenset[str] = frozenset(), filled: float | None = None
) -> Path:
    """A copy of a checkpoint without some weights, and with another value in those that are never used."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    assert without <= weights.keys()
    assert weights.keys() >= _NEVER_RUN
    changed = {
        name: torch.full_like(tensor, filled) if filled is not None and name in _NEVER_RUN else tensor
        for name, tensor in weights.items()
        if name not in without
    }
    save_file(changed, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("family", ["dpt", "dpt_hybrid"])
def test_midas_may_lack_the_weights_that_it_never_uses_and_no_other(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
):
    """As `Intel/dpt-large` and `Intel/dpt-hybrid-midas` are published; huggingface/transformers issue 28292."""
    torch.manual_seed(4)
    whole, images = save_network(family, tmp_path / "whole"), _smooth(64, 64)
    wanted = load_model(_spec(_rewrite(whole, tmp_path / "other", filled=1e3))).predict(images)
    assert not caplog.messages
    found = load_model(_spec(_rewrite(whole, tmp_path / "published", without=_NEVER_RUN)))
    assert (found.predict(images) == wanted).all()
    assert np.ptp(wanted) > 0
    assert isinstance(found, TransformersModel)
    zeroed = dict(found._model.named_parameters())
    assert not any(zeroed[name].any() for name in _NEVER_RUN)
    assert [message for message in caplog.messages if "published" in message and "zeros were taken" in message]
    used = "neck.fusion_stage.layers.1.residual_layer1.convolution1.bias"
    with pytest.raises(ValueError, match=r"1 weights are missing .*layers\.1\.residual_layer1"):
        load_model(_spec(_rewrite(whole, tmp_path / "one more", without={*_NEVER_RUN, used})))
    with pytest.raises(ValueError, match=r"1 weights are missing .*layers\.0\.residual_layer1"):
        load_model(_spec(_rewrite(whole, tmp_path / "one of them", without={min(_NEVER_RUN)})))


def test_depth_anything_must_have_the_weights_that_it_never_uses(families: Path, tmp_path: Path):
    """The published ones have them, so that a gap is damage."""
    with pytest.raises(ValueError, match="4 weights are missing"):
        load_model(_spec(_rewrite(families / "depth_anything", tmp_path / "copy", without=_NEVER_RUN)))


def test_a_hybrid_dpt_sees_the_one_size_that_it_takes(tmp_path: Path):
    torch.manual_seed(4)
    folder = save_network("dpt_hybrid", tmp_path / "hybrid")
    assert load_model(_spec(folder)).predict(_smooth(96, 80)).shape == (1, 96, 80)
    with pytest.raises(ValueError, match="input_px is 96, but this network takes 64 only"):
        load_model(_spec(folder, input_px=96))


@pytest.mark.parametrize("size", [(64, 64), (100, 80)])
def test_depth_pro_gives_metres_with_the_field_of_view_that_it_sees(families: Path, size: tuple[int, int]):
    """The library's processor needs torchvision; this is what it does, written out: normalise, resize plainly, and invert."""
    images = _smooth(*size)
    pixels = _to_pixels(images) * 2 - 1
    output = _raw(families / "depth_pro", F.interpolate(pixels, (64, 64), mode="bilinear"))
    focal_px = 0.5 * size[1] / torch.tan(0.5 * torch.deg2rad(output.field_of_view))
    inverse = output.predicted_depth * size[1] / focal_px
    wanted = 1 / F.interpolate(inverse[:, None], size, mode="bilinear", antialias=True)[:, 0].clamp(1e-4, 1e4)
    found = load_model(_spec(families / "depth_pro", "depth_metric")).predict(images)
    assert np.allclose(found, wanted.numpy(), rtol=1e-5)
    assert 0.1 < found.min() < found.max() < 10


def test_depth_pro_without_its_field_of_view_gives_no_metres_and_is_refused(tmp_path: Path):
    save_depth_pro(tmp_path / "depth_pro", field_of_view=False)
    with pytest.raises(ValueError, match="use_fov_model is false"):
        load_model(_spec(tmp_path / "depth_pro", "depth_metric"))


@pytest.mark.parametrize("family", ["metric", "depth_pro"])
def test_a_metric_network_is_not_taken_for_a_relative_one(families: Path, family: str):
    with pytest.raises(ValueError, match=r"was given, but the checkpoint says depth_metric .*gives metres"):
        load_model(_spec(families / family))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_processor_type": "SegformerImageProcessor"},
            "is SegformerImageProcessor, expected .*function of your own",
        ),
        ({"do_pad": True, "size_divisor": 14}, "do_pad is True"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"resample": 0}, "resample is 0"),
    ],
)
def test_an_input_prepared_in_another_way_is_refused(families: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        load_model(_spec(_edit(families / "dpt", tmp_path / "copy", **changes)))


def test_the_names_that_old_and_new_checkpoints_give_their_processor_are_one(families: Path, tmp_path: Path):
    images = _smooth(48, 48)
    wanted = load_model(_spec(families / "dpt")).predict(images)
    for number, name in enumerate(("DPTFeatureExtractor", "DPTImageProcessorFast", "DPTImageProcessorPil")):
        folder = _edit(families / "dpt", tmp_path / str(number), image_processor_type=name)
        assert (load_model(_spec(folder)).predict(images) == wanted).all()


def test_a_checkpoint_without_its_preprocessor_is_refused(families: Path, tmp_path: Path):
    shutil.copytree(families / "dpt", tmp_path / "copy")
    (tmp_path / "copy/preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        load_model(_spec(tmp_path / "copy"))


def test_code_that_a_checkpoint_brings_is_not_run(families: Path, tmp_path: Path):
    folder = _edit(
        families / "dpt",
        tmp_path / "copy",
        "config.json",
        model_type="unheard_of",
        auto_map={"AutoConfig": "trap.Config", "AutoModelForDepthEstimation": "trap.Model"},
    )
    ran = tmp_path / "ran"
    (folder / "trap.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(_spec(folder))
    assert not ran.exists()
