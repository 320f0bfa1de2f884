"""ZoeDepth, GLPN and TIPSv2: networks that give metres, each with a processor of its own, against the library's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForDepthEstimation
from transformers.models.glpn.image_processing_pil_glpn import GLPNImageProcessorPil
from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

from stages.distillation.features import load_feature_target
from stages.distillation.student import load_student
from stages.models import KNOWN, ModelSpec, load_model, problems_of, read_stated
from stages.models.resolve import resolve
from stages.models.transformers_models import TransformersModel
from tests.stages.models.tiny_teachers import save_depth_anything, save_glpn, save_tipsv2, save_zoedepth

FAMILIES = ("zoedepth", "zoedepth_two", "glpn", "tipsv2")


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each of the families."""
    folder = tmp_path_factory.mktemp("metric")
    torch.manual_seed(11)
    save_zoedepth(folder / "zoedepth")
    save_zoedepth(folder / "zoedepth_two", domains=2)
    save_glpn(folder / "glpn")
    save_tipsv2(folder / "tipsv2")
    return folder


def _smooth(height: int, width: int) -> np.ndarray:
    """A picture without edges, so that 8-bit rounding is all that differs between two good resizers."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    channels = [rows, columns, 0.5 + 0.4 * np.sin(5 * rows + 3 * columns)]
    return (np.stack(channels, -1) * 255).round().astype(np.uint8)[None]


def _library(folder: Path) -> Any:
    return AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval()


def _zoedepth(folder: Path, picture: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """What the network sees and metres, by the library; of its post-processing the resizing wants torchvision, written out."""
    height, width = picture.shape[:2]
    pixels = ZoeDepthImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        depth = _library(folder)(pixel_values=pixels).predicted_depth
    y, x = int(math.sqrt(height / 2) * 3), int(math.sqrt(width / 2) * 3)
    depth = F.interpolate(depth[:, None], (height + 2 * y, width + 2 * x), mode="bicubic", align_corners=False)[0, 0]
    return pixels, depth[y:-y, x:-x].numpy()


def _glpn(folder: Path, picture: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """What the network sees and metres, by the library."""
    processor = GLPNImageProcessorPil.from_pretrained(folder)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = _library(folder)(pixel_values=pixels)
    found: Any = processor.post_process_depth_estimation(output, target_sizes=[picture.shape[:2]])
    return pixels, found[0]["predicted_depth"].numpy()


def _seen(teacher: Any) -> list[torch.Tensor]:
    """Where the teacher's network leaves what it is shown."""
    assert isinstance(teacher, TransformersModel)
    seen: list[torch.Tensor] = []
    teacher._model.register_forward_pre_hook(lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True)
    return seen


@pytest.mark.parametrize("family", ["zoedepth", "zoedepth_two"])
@pytest.mark.parametrize("size", [(64, 96), (150, 130), (90, 240), (40, 33)])
def test_zoedepth_gives_what_the_library_gives(metric: Path, family: str, size: tuple[int, int]):
    images = np.random.default_rng(2).integers(0, 256, (1, *size, 3), np.uint8)
    pixels, wanted = _zoedepth(metric / family, images[0])
    teacher = load_model(ModelSpec(checkpoint=str(metric / family), input_px="stated"))
    seen = _seen(teacher)
    found = teacher.predict(images)[0]
    assert seen[0].shape == pixels.shape
    assert float((seen[0] - pixels).abs().max()) < 1e-5
    raw_range = (wanted.min(), wanted.max())
    assert np.abs(found - wanted).max() < 0.02 * (raw_range[1] - raw_range[0])  # beyond the network's own range it is cut off
    assert np.abs(found - wanted).mean() < 1e-4 * (raw_range[1] - raw_range[0])
    assert found.std() > 1e-4 * found.mean()


def test_zoedepths_border_is_seen_at_the_pictures_own_scale_where_no_size_is_asked_for(metric: Path):
    teacher = load_model(ModelSpec(checkpoint=str(metric / "zoedepth")))
    seen = _seen(teacher)
    assert teacher.predict(_smooth(96, 128)).shape == (1, 96, 128)
    assert seen[0].shape[-2:] == (128, 192)  # 96 + 2 * 20 and 128 + 2 * 24, as multiples of 32


def test_a_domain_is_chosen_for_each_picture_alone(metric: Path, tmp_path: Path):
    """The library lets a batch vote: beside a picture of the other domain one of them would get that one's metres."""
    folder = tmp_path / "routed"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text((metric / "zoedepth_two" / name).read_text())
    weights = load_file(metric / "zoedepth_two/model.safetensors")
    images = np.concatenate([np.zeros((1, 96, 96, 3), np.uint8), _smooth(96, 96)])
    teacher = load_model(ModelSpec(checkpoint=str(metric / "zoedepth_two")))
    assert isinstance(teacher, TransformersModel)
    logits: list[torch.Tensor] = []
    teacher._model.register_forward_hook(lambda _, __, output: logits.append(output.domain_logits))
    teacher.predict(images)
    difference = torch.stack([logit[0, 0] - logit[0, 1] for logit in logits])
    bias = weights["metric_head.mlp_classifier.linear2.bias"]
    weights["metric_head.mlp_classifier.linear2.bias"] = bias - torch.tensor([float(difference.mean()), 0])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    routed = load_model(ModelSpec(checkpoint=str(folder)))
    together = routed.predict(images)
    alone = np.concatenate([routed.predict(images[i : i + 1]) for i in range(2)])
    assert (together == alone).all()
    assert isinstance(routed, TransformersModel)
    voted = routed._model(pixel_values=routed._rule.prepare(torch.tensor(images).permute(0, 3, 1, 2) / 255, None))
    voted = routed._rule.restore(voted.predicted_depth.detach(), 96, 96).numpy()
    apart = [np.abs(voted[i] - together[i]).max() / together[i].mean() for i in range(2)]
    assert max(apart) > 1e-3 > min(apart)


@pytest.mark.parametrize("size", [(96, 128), (100, 140), (255, 161), (64, 33)])
def test_glpn_gives_what_the_library_gives(metric: Path, size: tuple[int, int]):
    """The library resizes bytes and we resize floats: up to two steps of 8 bits apart, the map accordingly."""
    images = _smooth(*size)
    pixels, wanted = _glpn(metric / "glpn", images[0])
    teacher = load_model(ModelSpec(checkpoint=str(metric / "glpn")))
    seen = _seen(teacher)
    found = teacher.predict(images)[0]
    assert seen[0].shape == pixels.shape == (1, 3, size[0] // 32 * 32, size[1] // 32 * 32)
    assert float((seen[0] - pixels).abs().max()) < 2 / 255
    assert np.abs(found - wanted).max() < 0.05 * np.ptp(wanted)
    assert np.ptp(wanted) > 0.1


def test_glpn_shown_a_size_that_fits_gives_what_the_library_gives_to_rounding(metric: Path):
    images = np.random.default_rng(3).integers(0, 256, (1, 96, 64, 3), np.uint8)
    found = load_model(ModelSpec(checkpoint=str(metric / "glpn"))).predict(images)[0]
    assert np.allclose(found, _glpn(metric / "glpn", images[0])[1], rtol=1e-5)


@pytest.mark.parametrize("size", [(56, 56), (80, 112), (120, 70)])
def test_tipsv2_gives_what_the_library_gives(metric: Path, size: tuple[int, int]):
    """The library's processor needs torchvision; this is what it does, written out: a square, no mean, a bilinear map."""
    images = _smooth(*size)
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 255
    pixels = F.interpolate(pixels, (56, 56), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        raw = _library(metric / "tipsv2")(pixel_values=pixels).predicted_depth
    wanted = F.interpolate(raw[:, None], size, mode="bilinear", align_corners=False)[0, 0].numpy()
    found = load_model(ModelSpec(checkpoint=str(metric / "tipsv2"), input_px="stated")).predict(images)[0]
    assert np.abs(found - wanted).max() < 1e-3 * np.ptp(wanted)
    assert np.ptp(wanted) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_their_own_words_say_metres_and_half_precision_changes_little(metric: Path, family: str):
    folder, images = metric / family, _smooth(96, 128)
    stated = read_stated(str(folder), folder)
    assert stated.depth_space is not None
    assert (stated.depth_space.value, stated.loader) == ("depth_metric", "transformers")
    assert stated.input_px == {"glpn": None, "tipsv2": (56, 56)}.get(family, (64, 96))
    with pytest.raises(ValueError, match="was given, but the checkpoint says depth_metric"):
        load_model(ModelSpec(checkpoint=str(folder), depth_space="disparity_affine_invariant"))
    exact = load_model(ModelSpec(checkpoint=str(folder))).predict(images)
    half = load_model(ModelSpec(checkpoint=str(folder), dtype="bfloat16")).predict(images)
    assert half.dtype == np.float32
    assert np.abs(exact - half).max() < 0.02 * exact.max()
    assert len(np.unique(half)) > half.size / 2  # the head is in float32: no steps


def _edited(folder: Path, copy: Path, **changes: Any) -> Path:
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    said = json.loads((copy / "preprocessor_config.json").read_text()) | changes
    (copy / "preprocessor_config.json").write_text(json.dumps(said))
    return copy


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("zoedepth", {"do_normalize": False}, "do_normalize is False, expected True of ZoeDepthImageProcessor"),
        ("zoedepth", {"ensure_multiple_of": 1 / 32}, r"ensure_multiple_of is 0\.03125, expected 1 to 256"),
        ("zoedepth", {"image_std": None}, "image_std is null, expected three numbers above 0"),
        ("glpn", {"do_normalize": True}, "do_normalize is True, expected False of GLPNImageProcessor"),
        ("glpn", {"do_resize": False}, "do_resize is False, expected True"),
        ("glpn", {"size_divisor": "32"}, "size_divisor is '32', expected 1 to 256"),
        ("tipsv2", {"do_pad": True}, "do_pad is True, expected False"),
    ],
)
def test_a_processor_that_does_anything_else_is_refused(
    metric: Path, tmp_path: Path, family: str, changes: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        load_model(ModelSpec(checkpoint=str(_edited(metric / family, tmp_path / "copy", **changes))))


def test_a_zoedepth_without_its_border_gives_the_whole_map(metric: Path, tmp_path: Path):
    teacher = load_model(ModelSpec(checkpoint=str(_edited(metric / "zoedepth", tmp_path / "copy", do_pad=False))))
    seen = _seen(teacher)
    assert teacher.predict(_smooth(64, 96)).shape == (1, 64, 96)
    assert seen[0].shape[-2:] == (64, 96)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_no_students_and_no_frozen_encoders_and_the_message_says_why(metric: Path, tmp_path: Path, family: str):
    kind = {"tipsv2": "tipsv2_dpt"}.get(family, family.removesuffix("_two"))
    for start in ("checkpoint", "fresh-head", "scratch"):
        with pytest.raises(ValueError, match=f"is '{kind}'; it gives metres, .* expected one of depth_anything, dpt"):
            load_student(str(metric / family), 56, start=start)  # type: ignore[arg-type]
    save_depth_anything(tmp_path / "student")
    with pytest.raises(ValueError, match=f"model_type is '{kind}', expected one of dinov2"):
        load_feature_target(str(metric / family), load_student(str(tmp_path / "student"), 48))


def test_known_zoedepths_see_the_size_that_they_state():
    known = resolve(ModelSpec(checkpoint="Intel/zoedepth-nyu-kitti"))
    assert (known.depth_space, known.licence, known.input_px) == ("depth_metric", "MIT", "stated")
    assert known.revision == KNOWN["Intel/zoedepth-nyu-kitti"].revision
    assert resolve(ModelSpec(checkpoint="Intel/zoedepth-nyu", input_px="native")).input_px == "native"
    problems = problems_of(ModelSpec(checkpoint="vinvino02/glpn-nyu"))
    assert any("full commit of vinvino02/glpn-nyu" in problem for problem in problems)
