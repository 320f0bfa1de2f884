"""Teachers: right size, right space, no dependence on the batch, and nothing guessed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForDepthEstimation

from stages.labelling.teachers import checkpoint_folder, checkpoint_sha256, load_teacher
from tests.conftest import teacher_spec

_LOADERS = [("primary", "transformers"), ("assistant", "genpercept")]


def _pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize(("name", "loader"), _LOADERS)
@pytest.mark.parametrize("size", [(48, 48), (48, 31), (17, 48)])
def test_a_prediction_has_the_pictures_size(checkpoints: Path, name: str, loader: str, size: tuple[int, int]):
    depth = load_teacher(teacher_spec(checkpoints, name, loader)).predict(_pictures(2, *size))
    assert depth.shape == (2, *size)
    assert depth.dtype == np.float32
    assert np.isfinite(depth).all()
    assert depth.min() >= 0


@pytest.mark.parametrize(("name", "loader"), _LOADERS)
def test_a_prediction_does_not_depend_on_its_batch(checkpoints: Path, name: str, loader: str):
    teacher, pictures = load_teacher(teacher_spec(checkpoints, name, loader)), _pictures(5, 48, 48)
    together = teacher.predict(pictures)
    alone = np.concatenate([teacher.predict(pictures[i : i + 1]) for i in range(5)])
    assert np.abs(together - alone).max() < 1e-5
    assert (together == teacher.predict(pictures)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "loader"), _LOADERS)
def test_a_gpu_gives_the_labels_of_a_cpu_up_to_rounding(checkpoints: Path, name: str, loader: str):
    spec, pictures = teacher_spec(checkpoints, name, loader), _pictures(2, 48, 48)
    on_cpu, on_gpu = (load_teacher(spec, device=device).predict(pictures) for device in ("cpu", "cuda"))
    assert np.abs(on_cpu - on_gpu).max() < 2e-3 * max(np.ptp(on_cpu), 1e-3)


def test_the_depth_anything_teacher_gives_the_networks_raw_disparity(checkpoints: Path):
    pictures = _pictures(1, 48, 48)
    model = AutoModelForDepthEstimation.from_pretrained(checkpoints / "primary", dtype=torch.float32).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.tensor(pictures) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = model(pixel_values=pixels).predicted_depth.numpy()
    teacher = load_teacher(teacher_spec(checkpoints, "primary", "transformers"))
    assert np.allclose(teacher.predict(pictures), wanted, atol=1e-5)


def test_the_genpercept_teacher_follows_the_published_forward_pass(checkpoints: Path):
    pictures = _pictures(1, 48, 48)
    folder = checkpoints / "assistant"
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    text = load_file(folder / "empty_text_embedding.safetensors")["empty_text_embedding"].float()
    with torch.inference_mode():
        latent = vae.encode(torch.tensor(pictures).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean * 0.18215
        decoded = vae.decode(-unet(latent, torch.tensor(1), text).sample / 0.18215).sample
        wanted = (decoded.mean(1).clip(-1, 1) + 1) / 2
    teacher = load_teacher(teacher_spec(checkpoints, "assistant", "genpercept"))
    assert np.allclose(teacher.predict(pictures), wanted.numpy(), atol=1e-5)


def test_an_unknown_depth_space_is_refused_with_the_choices(checkpoints: Path):
    spec = teacher_spec(checkpoints, "primary", "transformers")
    object.__setattr__(spec, "depth_space", "disparity")  # as untyped code would; the tests' type checks forbid the front door
    with pytest.raises(ValueError, match="disparity_affine_invariant, depth_affine_invariant"):
        load_teacher(spec)


@pytest.mark.parametrize(
    ("name", "loader", "lost"),
    [("assistant", "genpercept", "empty_text_embedding.safetensors"), ("primary", "transformers", "preprocessor_config.json")],
)
def test_nothing_that_is_missing_is_guessed(checkpoints: Path, tmp_path: Path, name: str, loader: str, lost: str):
    shutil.copytree(checkpoints / name, tmp_path / name)
    (tmp_path / name / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost):
        load_teacher(teacher_spec(tmp_path, name, loader))


@pytest.mark.parametrize(
    ("name", "loader", "weights"),
    [
        ("primary", "transformers", "model.safetensors"),
        ("assistant", "genpercept", "unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_checkpoint_without_all_its_weights_is_refused(
    checkpoints: Path, tmp_path: Path, name: str, loader: str, weights: str
):
    shutil.copytree(checkpoints / name, tmp_path / name)
    kept = load_file(tmp_path / name / weights)
    lost = sorted(kept)[3]
    del kept[lost]
    save_file(kept, tmp_path / name / weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are missing.*{lost}"):
        load_teacher(teacher_spec(tmp_path, name, loader))


def test_a_checkpoint_that_is_neither_a_folder_nor_a_hub_id_is_refused():
    with pytest.raises(FileNotFoundError, match="no such folder"):
        checkpoint_folder("./not/there")


def test_the_digest_of_a_checkpoint_changes_with_any_weight(checkpoints: Path, tmp_path: Path):
    before = checkpoint_sha256(checkpoints / "primary")
    shutil.copytree(checkpoints / "primary", tmp_path / "copy")
    assert checkpoint_sha256(tmp_path / "copy") == before
    weights = tmp_path / "copy/model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert checkpoint_sha256(tmp_path / "copy") != before
