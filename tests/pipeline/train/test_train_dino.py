"""A student on DINOv3, from an encoder alone to maps: trained, killed and resumed, exported, and opened by every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

import manifests
from pipeline.evaluate.command import main as evaluate_main
from pipeline.label.command import main as label_main
from pipeline.predict.command import main as predict_main
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from stages.models import load_model
from stages.models.spec import ModelSpec
from tests.pipeline.label.test_growth import write_photos
from tests.pipeline.train.trainings import interrupt_at, metrics


@pytest.fixture(scope="module")
def dino(small: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A training of a new head on an encoder as the hub has it: patches of 16 px, registers, random positions in training."""
    encoder = tmp_path_factory.mktemp("dino") / "encoder"
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48, num_register_tokens=4, image_size=48
    )
    assert config.pos_embed_rescale
    DINOv3ViTModel(config).save_pretrained(encoder)
    processor = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 224, "width": 224}}
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (encoder / "preprocessor_config.json").write_text(json.dumps(processor | statistics))
    return replace(small, student=str(encoder), fresh_head=True)


@pytest.fixture(scope="module")
def dino_trained(dino: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "student"
    train(replace(dino, output=output))
    return output


def test_a_killed_training_resumes_to_the_same_weights(dino: TrainConfig, dino_trained: Path, tmp_path: Path) -> None:
    config = replace(dino, output=tmp_path / "out")
    interrupt_at(7, config)
    assert train(config).resumed_from == 6
    assert metrics(config.output) == metrics(dino_trained)
    assert (config.output / "model.safetensors").read_bytes() == (dino_trained / "model.safetensors").read_bytes()


def test_encoder_neck_and_head_all_learn(dino: TrainConfig, dino_trained: Path, tmp_path: Path) -> None:
    train(replace(dino, output=tmp_path / "one", steps=1, lr_encoder=1e-9, lr_decoder=1e-9))
    begun, ended = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", dino_trained))
    for part in ("backbone.", "neck.", "head."):
        assert any((ended[name] - begun[name]).abs().max() > 1e-4 for name in ended if name.startswith(part))


def test_every_command_opens_the_exported_student(dino_trained: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", range(2))
    photo = sorted(photos.iterdir())[0]
    device = ["--device", "cpu"]
    assert predict_main(["--model", str(dino_trained), str(photo), "--npy", "--output", str(tmp_path / "maps"), *device]) == 0
    values = np.load(tmp_path / "maps" / f"{photo.name}.npy")
    assert values.std() > 0
    picture = np.asarray(Image.open(photo).convert("RGB"))
    model = load_model(ModelSpec(checkpoint=str(dino_trained), input_px="stated"))
    np.testing.assert_allclose(model.predict(picture[None])[0], values, rtol=1e-4)
    result = tmp_path / "result.json"
    scenes = ["--scenes", "2", "--input-px", "48", "--output", str(tmp_path / "kept"), "--json", str(result)]
    assert evaluate_main(["--model", str(dino_trained), *scenes, *device]) == 0
    assert json.loads(result.read_text())["results"][0]["means"]["student"]["abs_rel"] > 0
    plan = ["--plan.context", "whole", "--plan.context-px", "48", "--plan.patch-px", "48", "--plan.min-image-px", "8"]
    labels = ["--run", str(tmp_path / "run"), "--sources", str(photos), "--workers", "0", *plan]
    teachers = ["--primary.checkpoint", str(dino_trained), "--assistant.checkpoint", str(dino_trained)]
    assert label_main([*labels, *teachers]) == 0
    assert all(column.labelled == 2 for column in manifests.summarize(tmp_path / "run").columns)


def test_its_card_says_that_the_library_alone_cannot_run_it(dino_trained: Path) -> None:
    card = ModelCard((dino_trained / "README.md").read_text())
    assert "library alone cannot run this network" in card.text
    assert "python -m pipeline.predict --model ." in card.text
    assert "library_name" not in card.data.to_dict()
    assert "its encoder, with a new neck and head" in card.text
