"""L_feat's frozen encoder: frozen it is, its tokens lie on the student's grid, and one projection is trained towards it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from stages.distillation.features import FeatureTarget, feature_target_of, load_feature_target, token_mask
from stages.distillation.student import Student, load_student, prepare_images
from tests.stages.distillation.tiny_students import CONTEXT_PX, pictures, save_network

LEARNING_RATE = 0.1
GRID = (4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth checkpoints by family, and DINOv2 encoders: `wide` (32; the student has 24), `registers`, `fine`, `odd`;
    and `dinov3`, with patches of 16 px."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(5)
    for family in ("depth_anything", "dpt", "dpt_beit", "dpt_hybrid"):
        save_network(family, folder / family)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 48}
    dinov3 = DINOv3ViTConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_size=24,
        intermediate_size=48,
        patch_size=16,
        image_size=48,
        num_register_tokens=4,
    )
    encoders = {
        "dinov3": DINOv3ViTModel(dinov3),
        "wide": Dinov2Model(Dinov2Config(**sizes, hidden_size=32, patch_size=12)),
        "registers": Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**sizes, hidden_size=24, patch_size=12, num_register_tokens=3)
        ),
        "fine": Dinov2Model(Dinov2Config(**sizes, hidden_size=24, patch_size=6)),
        "odd": Dinov2Model(Dinov2Config(**sizes, hidden_size=24, patch_size=14)),
    }
    for name, encoder in encoders.items():
        encoder.save_pretrained(folder / name)
        DPTImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder / name)
    return folder


@pytest.fixture
def student(folder: Path) -> Student:
    return load_student(str(folder / "depth_anything"), 48)


def step(student: Student, target: FeatureTarget) -> None:
    """One step of gradient descent on the cosine."""
    images = pictures(48)
    output = student.forward(images, with_tokens=True)
    assert output.tokens is not None
    cosine = torch.cosine_similarity(target.project(output.tokens), target.tokens(images, output.grid) + 1, dim=-1)
    (1 - cosine).mean().backward()
    trained = [*student.network.parameters(), *(target.projection.parameters() if target.projection else ())]
    torch.optim.SGD(trained, lr=LEARNING_RATE).step()


@pytest.mark.parametrize("family", ["depth_anything", "dpt", "dpt_beit", "dpt_hybrid"])
def test_a_copy_says_what_the_untrained_student_says(folder: Path, family: str) -> None:
    student = load_student(str(folder / family), CONTEXT_PX[family])
    student.network.train()
    target = feature_target_of(student)
    student.network.eval()
    images = pictures(CONTEXT_PX[family])
    output = student.forward(images, with_tokens=True)
    torch.testing.assert_close(target.tokens(images, output.grid), output.tokens)
    assert target.projection is None
    assert output.tokens is not None
    assert target.project(output.tokens) is output.tokens
    assert getattr(target.encoder, "final_map", None) is None  # nothing of a pass is kept


def test_the_frozen_encoder_gets_no_gradient_and_stays_when_the_student_moves(student: Student) -> None:
    target = feature_target_of(student)
    images = pictures(48)
    before, weights = target.tokens(images, GRID), [p.clone() for p in target.encoder.parameters()]
    moved = student.encoder.get_parameter("encoder.layer.0.norm1.weight")
    start = moved.clone()
    for _ in range(2):
        step(student, target)
    assert not torch.equal(moved, start)
    assert not before.requires_grad
    assert torch.equal(target.tokens(images, GRID), before)
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(target.encoder.parameters(), weights, strict=True))


def test_the_frozen_encoder_drops_nothing_while_the_student_trains(folder: Path) -> None:
    student = load_student(str(folder / "dpt_beit"), 64)
    student.network.train()
    target = feature_target_of(student)
    images = pictures(64)
    first, second = (student.forward(images, with_tokens=True).tokens for _ in range(2))
    assert first is not None
    assert not torch.equal(first, second)  # type: ignore[arg-type]  # stochastic depth
    assert torch.equal(target.tokens(images, GRID), target.tokens(images, GRID))


def test_the_projection_is_one_parameter_that_is_trained_and_never_redrawn(folder: Path, student: Student) -> None:
    target = load_feature_target(str(folder / "wide"), student, seed=4)
    projection = target.projection
    assert projection is not None
    assert (projection.in_features, projection.out_features) == (24, 32)
    tokens = torch.randn(2, 16, 24)
    assert torch.equal(target.project(tokens), target.project(tokens))
    drawn = projection.weight.clone()
    step(student, target)
    assert target.projection is projection
    assert projection.weight.grad is not None
    torch.testing.assert_close(projection.weight, drawn - LEARNING_RATE * projection.weight.grad)
    assert torch.equal(load_feature_target(str(folder / "wide"), student, seed=4).projection.weight, drawn)  # type: ignore
    assert not torch.equal(load_feature_target(str(folder / "wide"), student, seed=5).projection.weight, drawn)  # type: ignore


@pytest.mark.parametrize(("name", "prefix"), [("wide", 1), ("registers", 4)])
def test_dinov2_gives_its_patches_tokens_of_pictures_prepared_its_own_way(
    folder: Path, student: Student, name: str, prefix: int
) -> None:
    target = load_feature_target(str(folder / name), student)
    images = pictures(48)
    with torch.no_grad():
        model = AutoModel.from_pretrained(folder / name)
        expected = model(pixel_values=prepare_images(images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))).last_hidden_state[:, prefix:]
    assert torch.equal(target.tokens(images, GRID), expected)
    assert (target.projection is None) is (name == "registers")
    assert target.tokens(images, GRID, bf16=True).dtype == torch.float32
    assert not torch.equal(target.tokens(images, GRID, bf16=True), expected)


def test_dinov3_gives_its_patches_tokens_one_for_each_of_the_students(folder: Path, student: Student) -> None:
    """48 px are 4 patches of the student's 12, and 3 of DINOv3's 16: it is shown 64."""
    target = load_feature_target(str(folder / "dinov3"), student)
    model, images = AutoModel.from_pretrained(folder / "dinov3").eval(), pictures(48)
    pixels = prepare_images(images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    with torch.no_grad():
        output = model(pixel_values=torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear"))
        same = model(pixel_values=pixels)
    assert output.last_hidden_state.shape[1] == 1 + 4 + 16
    assert torch.equal(target.tokens(images, GRID), output.last_hidden_state[:, 5:])
    assert torch.equal(target.tokens(images, (3, 3)), same.last_hidden_state[:, 5:])
    assert target.projection is None
    assert target.patch_px == 16
    assert target.tokens(images, GRID, bf16=True).dtype == torch.float32
    step(student, target)


def test_dinov3_sees_pictures_of_any_aspect(folder: Path, student: Student) -> None:
    """Rope: no position is resized. Changing the last columns changes the last tokens of each row."""
    target = load_feature_target(str(folder / "dinov3"), student)
    images = pictures(48)[:, :, :24]
    changed = images.clone()
    changed[:, :, :, -6:] = 255 - changed[:, :, :, -6:]
    before, after = (target.tokens(given, (2, 4)).view(2, 2, 4, 24) for given in (images, changed))
    assert (before - after).abs().amax((0, 1, 3)).argmax() == 3


def test_an_encoders_configuration_that_names_code_on_the_hub_is_refused(
    folder: Path, student: Student, tmp_path: Path
) -> None:
    stranger = shutil.copytree(folder / "wide", tmp_path / "stranger")
    config = json.loads((stranger / "config.json").read_text()) | {"attn_implementation": "someone/kernel"}
    (stranger / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"someone/kernel.*names code on the hub"):
        load_feature_target(str(stranger), student)


def test_a_finer_map_is_resized_to_the_students_grid(folder: Path, student: Student) -> None:
    target = load_feature_target(str(folder / "fine"), student)
    images = pictures(48)
    own = target.tokens(images, (8, 8)).view(2, 4, 2, 4, 2, 24)
    torch.testing.assert_close(target.tokens(images, GRID).view(2, 4, 4, 24), own.mean((2, 4)))


def test_patches_that_do_not_tile_the_context_still_see_all_of_it(folder: Path, student: Student) -> None:
    target = load_feature_target(str(folder / "odd"), student)  # 48 px is 3.4 patches of 14
    images = pictures(48)
    changed = images.clone()
    changed[:, :, :, -3:] = 255 - changed[:, :, :, -3:]
    assert target.tokens(images, GRID).shape == (2, 16, 24)
    difference = (target.tokens(images, GRID) - target.tokens(changed, GRID)).abs()
    assert difference.view(2, 4, 4, 24)[:, :, 3].max() > 1e-3


def test_the_encoder_of_a_depth_checkpoint_needs_no_head(folder: Path, student: Student, tmp_path: Path) -> None:
    for path in (folder / "depth_anything").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if name.startswith("backbone.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    images = pictures(48)
    target = load_feature_target(str(tmp_path), student)
    assert torch.equal(target.tokens(images, GRID), feature_target_of(student).tokens(images, GRID))


def test_other_encoders_are_refused(folder: Path, student: Student, tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    DPTImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type is 'vit', expected one of dinov2, .*dinov3_vit, depth_anything"):
        load_feature_target(str(tmp_path), student)
    with pytest.raises(ValueError, match="model_type is a hybrid dpt"):
        load_feature_target(str(folder / "dpt_hybrid"), student)
    with pytest.raises(ValueError, match="expected the full commit of facebook/dinov2-giant"):
        load_feature_target("facebook/dinov2-giant", student)


def test_tokens_count_where_at_least_half_of_them_is_picture() -> None:
    extent = torch.tensor([[48, 48], [48, 20], [18, 48], [17, 17], [0, 0]])
    mask = token_mask(extent, 48, GRID).view(5, 4, 4)  # tokens of 12 px
    assert mask[0].all()
    assert mask[1].tolist() == [[True, True, False, False]] * 4  # the second column shows 8 of 12
    assert mask[2].tolist() == [[True] * 4, [True] * 4, [False] * 4, [False] * 4]  # the second row exactly half
    assert mask[3].sum() == 1  # 5 of 12 on each side of the first token
    assert not mask[4].any()
    assert token_mask(torch.tensor([[30, 48]]), 48, (2, 3)).tolist() == [[True, True, True, False, False, False]]
