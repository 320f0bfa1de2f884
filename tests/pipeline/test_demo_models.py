"""Training the demo's networks: it learns, it resumes, and what it writes is what the pipeline loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import demo_models
from pipeline.demo_models import DemoModelConfig, _build, _scene_cache, _train
from stages.demo_networks import draw_crops, load_weights, supervised_loss
from stages.models import load_model
from tests.conftest import teacher_spec

_LOADERS = {"primary": "transformers", "assistant": "genpercept", "student": "transformers"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    _scene_cache(folder, 4, 12)
    return folder


def _config(which: str, output: Path, cache: Path, **changes: object) -> DemoModelConfig:
    settings: dict[str, object] = {"scenes": 4, "steps": 2, "sides_px": (48,), "side_until": (1.0,), "batch": (2,)}
    return DemoModelConfig(which=which, output=output, cache=cache, **(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["primary", "assistant", "student"])
def test_a_checkpoint_is_loaded_by_the_loader_of_its_published_kin_and_by_the_next_training(
    tmp_path: Path, cache: Path, which: str
):
    _train(_config(which, tmp_path / which, cache), *_scene_cache(cache, 4, 12))
    teacher = load_model(teacher_spec(tmp_path, which, _LOADERS[which]))
    assert np.isfinite(teacher.predict(np.full((1, 48, 48, 3), 99, np.uint8))).all()
    model, _ = _build(which)
    load_weights(model, tmp_path / which)


@pytest.mark.campaign
def test_a_training_lowers_the_loss_and_an_interrupted_one_goes_on_to_the_same_weights(tmp_path: Path, cache: Path):
    data = _scene_cache(cache, 4, 12)
    _train(_config("student", tmp_path / "at-once", cache, steps=40), *data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_models, "_STATE_EVERY", 10)
        patch.setattr(demo_models, "_learn", _interrupted_at_step_17(demo_models._learn))
        with pytest.raises(KeyboardInterrupt):
            _train(_config("student", tmp_path / "in-two", cache, steps=40), *data)
    _train(_config("student", tmp_path / "in-two", cache, steps=40), *data)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("at-once", "in-two")]
    assert weights[0] == weights[1]
    before, after = (_loss(data, folder) for folder in (None, tmp_path / "at-once"))
    assert after < before


def _interrupted_at_step_17(learn: Callable[..., float]) -> Callable[..., float]:
    def learn_or_stop(config: DemoModelConfig, step: int, *rest: object) -> float:
        if step == 17:
            raise KeyboardInterrupt
        return learn(config, step, *rest)

    return learn_or_stop


def _loss(data: tuple[np.ndarray, np.ndarray], folder: Path | None) -> float:
    torch.manual_seed(0)
    model, forward = _build("student")
    if folder is not None:
        load_weights(model, folder)
    pictures, target, _ = draw_crops(*data, np.random.default_rng(0), 8, 48)
    with torch.inference_mode():
        return supervised_loss(forward(pictures), target).item()


def test_a_flat_crop_has_a_flat_target_even_where_it_is_nothing_but_sky():
    rgb = np.zeros((1, 64, 64, 3), np.uint8)
    for disparity in (np.zeros((1, 64, 64), np.float16), np.full((1, 64, 64), 0.3, np.float16)):
        _, target, weight = draw_crops(rgb, disparity, np.random.default_rng(0), 3, 48)
        assert torch.isfinite(weight).all()
        assert target.abs().max() < 1e-4
