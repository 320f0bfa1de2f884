"""Students on DINOv3 and on DINOv2 with registers: the neck gets a class token and the patches wherever such a folder is
opened, and an encoder alone becomes a student under a new head."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForDepthEstimation, DINOv3ViTConfig
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from stages.distillation.student import load_student, prepare_images, save_student
from stages.models import ModelSpec, load_model
from stages.models.dino_backbone import ADAPTED, BARE_ENCODERS, depth_config_of
from stages.models.loading import load_transformers
from tests.stages.distillation.tiny_students import pictures, save_adapted


@pytest.fixture(scope="module", params=[(n, b) for n in ("depth_anything", "dpt") for b in ADAPTED], ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    network, backbone = request.param
    return save_adapted(network, backbone, tmp_path_factory.mktemp("dino") / "student")


@pytest.fixture
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An encoder alone, as the hub has it."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 24, "num_hidden_layers": 8, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
    AutoModel.from_config(AutoConfig.for_model(request.param, **sizes)).save_pretrained(tmp_path / "encoder")
    processor = {"image_processor_type": "DINOv3ViTImageProcessorFast", "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (tmp_path / "encoder" / "preprocessor_config.json").write_text(json.dumps(processor | {"size": {"height": 8, "width": 8}}))
    return tmp_path / "encoder"


def test_the_neck_gets_the_class_token_and_the_patches_of_each_stage(folder: Path) -> None:
    student = load_student(str(folder), 64)
    given: list[Any] = []
    student.network.neck.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))  # type: ignore[union-attr, operator]
    images = pictures(64)
    output = student.forward(images, with_tokens=True)
    pixels = prepare_images(images, student.mean, student.std)
    encoder = student.encoder
    states = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states
    norm = getattr(encoder, "norm", None) or encoder.layernorm
    for stage, tokens in zip(states[1:], given[0], strict=True):
        torch.testing.assert_close(tokens, torch.cat([norm(stage)[:, :1], norm(stage)[:, 5:]], 1), rtol=0, atol=0)
    assert output.tokens is not None
    assert output.grid == (4, 4)
    assert torch.equal(output.tokens, given[0][-1][:, 1:])


def test_an_exported_student_gives_the_same_map_here_and_none_in_the_library(folder: Path, tmp_path: Path) -> None:
    student = load_student(str(folder), 64, start="fresh-head", seed=1)
    save_student(student, tmp_path / "out", {"depth_space": "disparity_affine_invariant"})
    images = pictures(64)
    with torch.no_grad():
        expected = student.forward(images).disparity
        pixels = prepare_images(images, student.mean, student.std)
        opened = load_transformers("AutoModelForDepthEstimation", tmp_path / "out", torch.float32)
        torch.testing.assert_close(opened(pixel_values=pixels).predicted_depth, expected)
        torch.testing.assert_close(load_student(str(tmp_path / "out"), 64).forward(images).disparity, expected)
        with pytest.raises((RuntimeError, ValueError)):  # else our part, and what the model card says, can go
            AutoModelForDepthEstimation.from_pretrained(tmp_path / "out")(pixel_values=pixels)
    found = load_model(ModelSpec(checkpoint=str(tmp_path / "out"))).predict(images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(expected.max()))
    assert expected.std() > 1e-3 * expected.mean()


def test_positions_are_not_random_in_training(folder: Path) -> None:
    student = load_student(str(folder), 64)
    student.network.train()
    assert torch.equal(student.forward(pictures(64)).disparity, student.forward(pictures(64)).disparity)


def test_pictures_of_any_aspect_go_in_without_padding(folder: Path) -> None:
    student = load_student(str(folder), 64)
    assert student.takes_any_aspect
    assert student.forward(pictures(64)[:, :, :32]).disparity.shape == (2, 32, 64)


@pytest.mark.campaign
def test_a_compiled_student_gives_the_same_map(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the default compiles C++, for 20 s
    plain, compiled = (load_student(str(folder), 64, compile=compile).forward(pictures(64)) for compile in (False, True))
    torch.testing.assert_close(compiled.disparity, plain.disparity)


@pytest.mark.parametrize("encoder", BARE_ENCODERS, indirect=True)
def test_an_encoder_alone_is_a_student_under_a_fresh_head(encoder: Path, tmp_path: Path) -> None:
    student = load_student(str(encoder), 64, start="fresh-head")
    theirs = AutoModel.from_pretrained(encoder).state_dict()
    ours = student.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert student.encoder.config.out_indices == [2, 4, 6, 8]
    assert student.mean == (0.4, 0.4, 0.4)
    disparity = student.forward(pictures(64)).disparity.detach()
    assert disparity.std() > 1e-3 * disparity.mean() > 0
    save_student(student, tmp_path / "out", {"depth_space": "disparity_affine_invariant"})
    model = load_model(ModelSpec(checkpoint=str(tmp_path / "out"), input_px="stated"))
    assert model.predict(np.zeros((1, 40, 60, 3), np.uint8)).shape == (1, 40, 60)
    assert DPTImageProcessorPil.from_pretrained(tmp_path / "out").size == {"height": 64, "width": 64}
    new = load_student(str(encoder), 64, start="scratch")
    assert not torch.equal(new.encoder.embeddings.cls_token, student.encoder.embeddings.cls_token)


@pytest.mark.parametrize("encoder", ["dinov3_vit"], indirect=True)
def test_an_encoder_alone_is_refused_without_a_new_head(encoder: Path) -> None:
    with pytest.raises(ValueError, match=r"model_type is 'dinov3_vit', an encoder alone; --fresh-head draws"):
        load_student(str(encoder), 64)
    with pytest.raises(ValueError, match="patches of 16 px do not tile a context of 56 px"):
        load_student(str(encoder), 56, start="fresh-head")


@pytest.mark.parametrize(
    ("width", "neck", "fusion"),
    [
        (384, [48, 96, 192, 384], 64),
        (768, [96, 192, 384, 768], 128),
        (1024, [256, 512, 1024, 1024], 256),
        (4096, [256, 512, 1024, 1024], 256),
    ],
)
def test_a_new_decoder_has_the_sizes_of_depth_anything_v2(width: int, neck: list[int], fusion: int) -> None:
    """Its Small, Base and Large, by the configurations of their published checkpoints."""
    config = depth_config_of(DINOv3ViTConfig(hidden_size=width, num_hidden_layers=12))
    assert (config.neck_hidden_sizes, config.fusion_hidden_size, config.patch_size) == (neck, fusion, 16)
    assert config.backbone_config.out_indices == [3, 6, 9, 12]
