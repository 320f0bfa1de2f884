"""Diffusion teachers: GenPercept against its published forward pass, Marigold against the pipeline of diffusers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, MarigoldDepthPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from stages.models import ModelSpec, load_model
from stages.models.marigold import MarigoldModel
from stages.models.resolve import resolve
from tests.stages.models.tiny_teachers import save_lotus, save_marigold_version


def _genpercept(folder: Path, depth_space: Any = "disparity_affine_invariant") -> ModelSpec:
    return ModelSpec(loader="genpercept", checkpoint=str(folder), depth_space=depth_space)


def _marigold(folder: Path, **more: Any) -> ModelSpec:
    return ModelSpec(loader="marigold", checkpoint=str(folder), depth_space="depth_affine_invariant", **more)


def _pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, height, width, 3), np.uint8)


def _text(folder: Path) -> torch.Tensor:
    if (folder / "empty_text_embed.npy").exists():
        return torch.from_numpy(np.load(folder / "empty_text_embed.npy"))[None]
    if (folder / "text_encoder").exists():
        tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")("", return_tensors="pt").input_ids
        return CLIPTextModel.from_pretrained(folder / "text_encoder")(tokens)[0]
    return load_file(folder / "empty_text_embedding.safetensors")["empty_text_embedding"]


@pytest.mark.parametrize(("text", "tokens"), [("77", 77), ("2", 2), ("encoder", 2)])
@pytest.mark.parametrize("depth_space", ["disparity_affine_invariant", "depth_affine_invariant"])
def test_genpercept_is_its_bare_forward_pass_on_sides_that_are_multiples_of_8(
    families: Path, text: str, tokens: int, depth_space: str
):
    """To the bit, so nothing is resized; written out from the published code, for each way in which a text comes."""
    folder, images = families / f"genpercept_{text}", _pictures(2, 40, 72)
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    with torch.inference_mode():
        embedding = _text(folder)
        assert embedding.shape[1] == tokens
        pixels = torch.tensor(images).permute(0, 3, 1, 2) / 255 * 2 - 1
        mean, _ = vae.quant_conv(vae.encoder(pixels)).chunk(2, 1)
        output = unet(mean * 0.18215, torch.tensor(1), embedding.repeat(2, 1, 1)).sample
        decoded = vae.decoder(vae.post_quant_conv(-output / 0.18215))
        wanted = (decoded.mean(1).clip(-1, 1) + 1) / 2
    assert (load_model(_genpercept(folder, depth_space)).predict(images) == wanted.numpy()).all()


def test_the_text_matters_so_none_is_guessed(families: Path, tmp_path: Path):
    shutil.copytree(families / "genpercept_2", tmp_path / "copy")
    images = _pictures(1, 64, 64)
    wanted = load_model(_genpercept(tmp_path / "copy")).predict(images)
    np.save(tmp_path / "copy/empty_text_embed.npy", np.ones((77, 16), np.float32))
    with pytest.raises(ValueError, match="several empty texts"):
        load_model(_genpercept(tmp_path / "copy"))
    (tmp_path / "copy/empty_text_embedding.safetensors").unlink()
    assert np.abs(load_model(_genpercept(tmp_path / "copy")).predict(images) - wanted).max() > 1e-3
    (tmp_path / "copy/empty_text_embed.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no embedding of the empty text; expected.*\[77 or 2, 16\]"):
        load_model(_genpercept(tmp_path / "copy"))


@pytest.mark.parametrize("shape", [(1, 3, 16), (1, 77, 24)])
def test_a_text_of_another_shape_is_refused(families: Path, tmp_path: Path, shape: tuple[int, ...]):
    shutil.copytree(families / "genpercept_2", tmp_path / "copy")
    save_file({"empty_text_embedding": torch.zeros(shape)}, tmp_path / "copy/empty_text_embedding.safetensors")
    with pytest.raises(ValueError, match=r"expected \[77 or 2, 16\]"):
        load_model(_genpercept(tmp_path / "copy"))


def test_a_text_that_is_a_pickle_is_not_loaded(families: Path, tmp_path: Path):
    shutil.copytree(families / "genpercept_77", tmp_path / "copy")
    np.save(tmp_path / "copy/empty_text_embed.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="a pickle is never loaded"):
        load_model(_genpercept(tmp_path / "copy"))


def test_lotus_is_its_bare_forward_pass_on_sides_that_are_multiples_of_8(families: Path):
    """To the bit, written out from the published code, but for the latent's mean in the place of a sample."""
    folder, images = families / "lotus", _pictures(2, 40, 72)
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    with torch.inference_mode():
        text = _text(folder)
        assert text.shape[1] == 2
        pixels = torch.tensor(images).permute(0, 3, 1, 2) / 255 * 2 - 1
        mean, _ = vae.quant_conv(vae.encoder(pixels)).chunk(2, 1)
        task = torch.tensor([1, 0]).float()[None]
        task = torch.cat([torch.sin(task), torch.cos(task)], dim=-1).repeat(2, 1)
        output = unet(mean * 0.18215, torch.tensor(999), text.repeat(2, 1, 1), class_labels=task).sample
        wanted = (vae.decoder(vae.post_quant_conv(output / 0.18215)) / 2 + 0.5).clip(0, 1).mean(1)
    found = load_model(ModelSpec(checkpoint=str(folder), depth_space="disparity_affine_invariant"))
    assert found.spec.loader == "lotus"
    assert (found.predict(images) == wanted.numpy()).all()


@pytest.mark.parametrize(
    ("family", "loader", "message"),
    [
        ("genpercept_2", "lotus", "takes no task"),
        ("marigold", "lotus", "takes no task"),
        ("lotus", "genpercept", "takes a task .* Lotus"),
        ("marigold", "genpercept", "in_channels is 8, expected 4"),
    ],
)
def test_a_folder_of_another_diffusion_family_is_refused_by_name(families: Path, family: str, loader: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_model(ModelSpec(checkpoint=str(families / family), loader=loader, depth_space="disparity_affine_invariant"))


def test_lotus_g_is_refused_because_it_starts_from_noise(tmp_path: Path):
    save_lotus(tmp_path / "lotus", in_channels=8)
    with pytest.raises(ValueError, match="in_channels is 8, expected 4: this is Lotus-G"):
        load_model(ModelSpec(checkpoint=str(tmp_path / "lotus"), depth_space="disparity_affine_invariant"))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"steps": 1}, (64, 64)),
        ({}, (40, 61)),
        ({"steps": 1, "ensemble": 3}, (64, 64)),
        ({"steps": 2, "input_px": 48}, (80, 50)),
    ],
)
def test_marigold_is_the_pipelines_own_call_on_the_same_noise(families: Path, settings: dict[str, int], size: tuple[int, int]):
    """To the bit, from a picture file's pixels to the map, with the text encoder that we do not keep."""
    picture, seed = _pictures(1, *size), 2**62 + 5
    teacher = load_model(_marigold(families / "marigold", **settings))
    assert isinstance(teacher, MarigoldModel)
    pipeline: Any = MarigoldDepthPipeline.from_pretrained(families / "marigold", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        Image.fromarray(picture[0]),
        num_inference_steps=settings.get("steps", 4),
        ensemble_size=settings.get("ensemble", 1),
        processing_resolution=settings.get("input_px", 0),
        batch_size=settings.get("ensemble", 1),
        latents=teacher.noise(*size, [seed]),
    ).prediction
    found = teacher.predict(picture, [seed])
    assert (found == wanted[..., 0]).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_marigolds_noise_is_that_of_the_seed_whatever_else_is_in_the_batch(families: Path):
    teacher = load_model(_marigold(families / "marigold", ensemble=2))
    assert isinstance(teacher, MarigoldModel)
    alone, together = teacher.noise(64, 40, [7]), teacher.noise(64, 40, [3, 7])
    assert tuple(alone.shape) == (2, 4, 8, 5)
    assert (together[2:] == alone).all()
    assert not (together[:2] == alone).any()
    expected = torch.randn((2, 4, 8, 5), generator=torch.Generator("cpu").manual_seed(7))
    assert (alone == expected).all()


def test_marigolds_label_follows_its_seed_and_no_seed_is_seed_0(families: Path):
    teacher, images = load_model(_marigold(families / "marigold", steps=1)), _pictures(2, 32, 32)
    first, second = teacher.predict(np.stack([images[0]] * 2), [0, 1])
    assert np.abs(first - second).max() > 1e-3
    assert (teacher.predict(images) == teacher.predict(images, [0, 0])).all()
    torch.manual_seed(99)
    assert (teacher.predict(images) == teacher.predict(images, [0, 0])).all()
    with pytest.raises(ValueError, match="seeds: found 1, expected one for each of 2"):
        teacher.predict(images, [0])


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"prediction_type": "disparity"}, "says disparity_affine_invariant .*prediction_type"),
        ("model_index.json", {"shift_invariant": False}, "shift_invariant must be true"),
        ("model_index.json", {"default_denoising_steps": 0}, "default_denoising_steps is 0, expected a number of 1 or more"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler"}, "found DDPMScheduler, expected DDIMScheduler or"),
    ],
)
def test_a_marigold_that_is_not_what_the_spec_says_is_refused(
    families: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
):
    shutil.copytree(families / "marigold", tmp_path / "copy")
    path = tmp_path / "copy" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_model(_marigold(tmp_path / "copy"))


@pytest.mark.parametrize(("version", "steps"), [("v1-0", 10), ("v1-1", 4), ("lcm-v1-0", 1)])
def test_the_steps_are_those_that_the_checkpoint_states_unless_others_are_given(tmp_path: Path, version: str, steps: int):
    save_marigold_version(tmp_path / "m", version)
    spec = _marigold(tmp_path / "m")
    assert (resolve(spec).steps, resolve(spec).ensemble) == (steps, 1)
    assert resolve(replace(spec, steps=2, ensemble=3)).steps == 2
    images = _pictures(1, 32, 32)
    as_stated = load_model(spec).predict(images)
    assert (as_stated == load_model(replace(spec, steps=steps)).predict(images)).all()
    assert (as_stated != load_model(replace(spec, steps=steps + 1)).predict(images)).any()


def test_a_marigold_that_states_no_steps_must_be_told_them(tmp_path: Path):
    save_marigold_version(tmp_path / "m", "v1-0")
    index = json.loads((tmp_path / "m/model_index.json").read_text())
    del index["default_denoising_steps"]
    (tmp_path / "m/model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"steps is None, and .* states no default_denoising_steps; give --steps"):
        resolve(_marigold(tmp_path / "m"))
    assert resolve(_marigold(tmp_path / "m", steps=50)).steps == 50


@pytest.mark.parametrize(("steps", "ensemble"), [(1, 1), (3, 1), (2, 3)])
def test_the_lcm_version_is_the_pipelines_own_call_with_the_noise_of_each_step_from_the_seed(
    tmp_path: Path, steps: int, ensemble: int
):
    """To the bit. The pipeline takes the first noise or a generator, so a generator is put under its scheduler."""
    save_marigold_version(tmp_path / "m", "lcm-v1-0")
    teacher = load_model(_marigold(tmp_path / "m", steps=steps, ensemble=ensemble))
    pipeline: Any = MarigoldDepthPipeline.from_pretrained(tmp_path / "m", prediction_type="depth", low_cpu_mem_usage=False)
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    pipeline.set_progress_bar_config(disable=True)
    own_step = pipeline.scheduler.step
    pictures, seeds, wanted = _pictures(2, 40, 40), [5, 2**40], []
    for picture, seed in zip(pictures, seeds, strict=True):
        drawn = torch.Generator().manual_seed(seed)
        first = torch.randn((ensemble, 4, 5, 5), generator=drawn)
        pipeline.scheduler.step = lambda *given, generator, drawn=drawn: own_step(*given, generator=[drawn] * ensemble)
        options: Any = {"ensemble_size": ensemble, "batch_size": ensemble, "processing_resolution": 0, "latents": first}
        wanted.append(pipeline(Image.fromarray(picture), num_inference_steps=steps, **options).prediction[0, ..., 0])
    for picture, seed, prediction in zip(pictures, seeds, wanted, strict=True):
        assert (teacher.predict(picture[None], [seed])[0] == prediction).all()
    together = teacher.predict(pictures, seeds)
    assert np.abs(together - np.stack(wanted)).max() < 1e-3


def test_more_steps_than_the_lcm_version_was_distilled_from_are_refused(tmp_path: Path):
    save_marigold_version(tmp_path / "m", "lcm-v1-0")
    with pytest.raises(ValueError, match=r"steps is 51: .*50"):
        load_model(_marigold(tmp_path / "m", steps=51))
