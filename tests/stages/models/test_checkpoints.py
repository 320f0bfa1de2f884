"""Checkpoints: found, whole, never executed, and told apart by their digest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from stages.models.checkpoints import checkpoint_folder, checkpoint_sha256, is_hub_id, require_safetensors


def test_a_checkpoint_that_is_neither_a_folder_nor_a_hub_id_is_refused():
    with pytest.raises(FileNotFoundError, match="no such folder"):
        checkpoint_folder("./not/there")


def test_a_folder_is_a_folder_even_where_it_is_named_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    Path("owner/name").mkdir(parents=True)
    assert not is_hub_id("owner/name")
    assert checkpoint_folder("owner/name") == Path("owner/name")


@pytest.mark.parametrize("changed", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt", "model_index.json"])
def test_the_digest_of_a_checkpoint_changes_with_all_that_decides_its_output(families: Path, tmp_path: Path, changed: str):
    before = checkpoint_sha256(families / "marigold")
    shutil.copytree(families / "marigold", tmp_path / "copy")
    assert checkpoint_sha256(tmp_path / "copy") == before
    path = tmp_path / "copy" / changed
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert checkpoint_sha256(tmp_path / "copy") != before


def test_the_digest_of_a_checkpoint_is_that_of_its_stored_embedding_too(families: Path, tmp_path: Path):
    before = checkpoint_sha256(families / "genpercept_77")
    shutil.copytree(families / "genpercept_77", tmp_path / "copy")
    (tmp_path / "copy/empty_text_embed.npy").unlink()
    assert checkpoint_sha256(tmp_path / "copy") != before


def test_notes_beside_the_weights_leave_the_digest_alone(families: Path, tmp_path: Path):
    shutil.copytree(families / "dpt", tmp_path / "copy")
    (tmp_path / "copy/training.json").write_text("{}")
    (tmp_path / "copy/README.md").write_text("words")
    assert checkpoint_sha256(tmp_path / "copy") == checkpoint_sha256(families / "dpt")


def test_pickled_weights_are_refused_by_name_with_what_to_do(tmp_path: Path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only pytorch_model\.bin, which can run code.*save_pretrained"):
        require_safetensors(tmp_path)


def test_a_hub_id_that_is_not_at_hand_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"some/network at 1{40}: not in the hub's cache here.*hf download"):
        checkpoint_folder("some/network", "1" * 40)
