"""What is found out about a checkpoint before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.label.command import main as label
from pipeline.train.card import licence_of
from stages.models import InputSize
from stages.models.find import ModelError, find_model
from tests.stages.models.tiny_teachers import save_depth_anything, save_genpercept, save_marigold


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
    with pytest.raises(ModelError, match=r"nothing in .* says what its numbers mean; give --depth-space"):
        find_model(str(folder))
    assert find_model(str(folder), depth_space="depth_affine_invariant").spec.depth_space == "depth_affine_invariant"
    (folder / "training.json").write_text(json.dumps({"depth_space": "disparity_affine_invariant"}))
    assert find_model(str(folder)).spec.depth_space == "disparity_affine_invariant"
    with pytest.raises(ModelError, match=r"depth_affine_invariant was given, but the checkpoint says.*training\.json"):
        find_model(str(folder), depth_space="depth_affine_invariant")


def test_a_hub_id_is_the_commit_that_its_branch_stands_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit, cached = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--owner--name"
    save_depth_anything(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = find_model("owner/name")
    assert (found.spec.revision, (found.folder or Path()).name) == (commit, commit)
    assert found.load("cpu").spec.checkpoint == "owner/name"


def test_a_checkpoint_that_is_not_there_or_broken_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"^x: .*missing cannot be loaded: FileNotFoundError"):
        find_model(str(tmp_path / "missing"), name="x")
    save_depth_anything(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"^x: .*cut cannot be loaded: .*model\.safetensors: damaged, or no safetensors file"):
        find_model(str(tmp_path / "cut"), name="x").load("cpu")


def test_a_model_whose_files_change_between_the_look_and_the_loading_is_refused(tmp_path: Path):
    save_depth_anything(tmp_path / "model")
    found = find_model(str(tmp_path / "model"))
    save_depth_anything(tmp_path / "model")  # other random weights
    with pytest.raises(ModelError, match=r"CheckpointChangedError: .*files have changed while this command ran"):
        found.load("cpu")
    assert find_model(str(tmp_path / "model")).sha256 != found.sha256


def test_labelling_against_a_checkpoints_own_words_is_refused_before_any_work(
    checkpoints: Path, scenes_tar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assistant, run = str(checkpoints / "assistant"), tmp_path / "run"
    arguments = ["--run", str(run), "--sources", str(scenes_tar), "--preset", "demo", "--workers", "0"]
    contradiction = ["--assistant.checkpoint", assistant, "--assistant.depth-space", "depth_affine_invariant"]
    licence = ["--primary.checkpoint", "depth-anything/Depth-Anything-V2-Large-hf", "--primary.licence", "Apache-2.0"]
    with pytest.raises(SystemExit) as stopped:
        label([*arguments, *contradiction, *licence])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert f"says disparity_affine_invariant ({assistant}/training.json)" in message
    assert "Apache-2.0 was given, but the weights are under CC-BY-NC-4.0 (the table of known checkpoints)" in message
    assert not run.exists()


def test_pictures_are_shown_at_the_size_that_the_checkpoint_states_unless_another_is_asked_for(tmp_path: Path):
    save_depth_anything(tmp_path / "model")  # states 48 x 48, with the aspect kept and multiples of 12
    picture = np.random.default_rng(0).integers(0, 256, (1, 96, 144, 3), np.uint8)
    shown = []
    sizes: dict[InputSize, tuple[int, int]] = {"stated": (48, 72), 48: (36, 48), "native": (96, 144)}
    for input_px, size in sizes.items():
        found = find_model(str(tmp_path / "model"), input_px=input_px)
        assert found.input_size == ("stated 48 x 48" if input_px == "stated" else str(input_px))
        teacher = found.load("cpu")
        teacher._model.register_forward_pre_hook(  # type: ignore[attr-defined]
            lambda _, __, given: shown.append(tuple(given["pixel_values"].shape[-2:])), with_kwargs=True
        )
        teacher.predict(picture)
        assert shown[-1] == size
    save_genpercept(tmp_path / "silent", text="2")
    silent = find_model(str(tmp_path / "silent"), depth_space="disparity_affine_invariant")
    assert (silent.input_size, silent.at(48).input_size) == ("native", "48")


def test_a_students_card_takes_the_licence_of_the_weights_it_began_with_from_those_weights(tmp_path: Path):
    demo = Path("pipeline/demo_checkpoints/student")
    assert licence_of(str(demo), None) == "Apache-2.0"
    assert licence_of("depth-anything/Depth-Anything-V2-Large-hf", None) == "CC-BY-NC-4.0"
    save_depth_anything(tmp_path / "student")
    assert licence_of(str(tmp_path / "student"), None) is None
    (tmp_path / "student/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert licence_of(str(tmp_path / "student"), None) == "cc-by-nc-4.0"
    assert licence_of(str(tmp_path / "gone"), None) is None
