"""What is found out about a checkpoint before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.models import ModelError, find_model, load_model
from tests.stages.tiny_teachers import save_depth_anything, save_genpercept, save_marigold


@pytest.mark.parametrize(
    ("save", "loader", "space"),
    [
        (save_depth_anything, "transformers", "disparity_affine_invariant"),
        (lambda folder: save_depth_anything(folder, metric=True), "transformers", "depth_metric"),
        (save_marigold, "marigold", "depth_affine_invariant"),
    ],
)
def test_a_checkpoint_says_itself_how_it_is_loaded_and_what_its_numbers_mean(tmp_path: Path, save, loader: str, space: str):
    save(tmp_path / "model")
    found = find_model(str(tmp_path / "model"), name="x", input_px=48)
    assert (found.spec.name, found.spec.loader, found.spec.depth_space) == ("x", loader, space)
    assert found.folder == tmp_path / "model"
    assert found.load("cpu").predict(np.zeros((1, 48, 48, 3), np.uint8)).shape == (1, 48, 48)


def test_what_a_checkpoint_does_not_say_must_be_given_and_what_it_says_cannot_be_overruled(tmp_path: Path):
    folder = tmp_path / "model"
    save_genpercept(folder, text="77")
    with pytest.raises(ModelError, match=r"nothing in it says .* give --depth-space"):
        find_model(str(folder))
    assert find_model(str(folder), depth_space="depth_affine_invariant").spec.depth_space == "depth_affine_invariant"
    (folder / "training.json").write_text(json.dumps({"depth_space": "disparity_affine_invariant"}))
    assert find_model(str(folder)).spec.depth_space == "disparity_affine_invariant"
    with pytest.raises(ModelError, match="depth_affine_invariant was given, but the checkpoint says disparity"):
        find_model(str(folder), depth_space="depth_affine_invariant")


def test_a_hub_id_is_the_commit_that_its_branch_stands_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit, cached = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--owner--name"
    save_depth_anything(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = find_model("owner/name")
    assert (found.spec.revision, found.folder.name) == (commit, commit)
    assert found.load("cpu").spec.checkpoint == "owner/name"


def test_a_checkpoint_that_is_not_there_or_broken_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"^x: .*missing cannot be loaded: FileNotFoundError"):
        find_model(str(tmp_path / "missing"), name="x")
    save_depth_anything(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"^x: .*cut cannot be loaded: SafetensorError"):
        load_model(str(tmp_path / "cut"), name="x", device="cpu")
