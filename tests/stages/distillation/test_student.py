"""Students of every family: their tokens, their three starts, what is refused, and checkpoints that others load."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForDepthEstimation, pipeline

from stages.distillation.student import Student, load_student, prepare_images, save_student
from stages.models import ModelSpec, load_model
from tests.stages.distillation.tiny_students import CONTEXT_PX, pictures, save_adapted, save_network
from tests.stages.models.tiny_teachers import save_depth_anything, save_depth_pro

FAMILIES = sorted(CONTEXT_PX)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    torch.manual_seed(5)
    return {family: save_network(family, folder / family) for family in FAMILIES}


def load(networks: dict[str, Path], family: str, **options: Any) -> Student:
    return load_student(str(networks[family]), CONTEXT_PX[family], **options)


def without(folder: Path, copy: Path, prefix: str) -> Path:
    """The checkpoint without the weights whose names begin so; without any file of weights where all do."""
    copy.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (copy / name).write_text((folder / name).read_text())
    left = {name: w for name, w in load_file(folder / "model.safetensors").items() if not name.startswith(prefix)}
    if left:
        save_file(left, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_student_gives_the_same_map_in_the_library(networks: dict[str, Path], family: str, tmp_path: Path) -> None:
    student = load(networks, family, start="fresh-head", seed=1)
    save_student(student, tmp_path / "out", {"steps": 1}, card="# A student\n")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"}
    loaded = AutoModelForDepthEstimation.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(student.network)
    images = pictures(CONTEXT_PX[family])
    with torch.no_grad():
        theirs = loaded(pixel_values=prepare_images(images, student.mean, student.std)).predicted_depth
        ours = student.forward(images).disparity
    if theirs.shape == ours.shape:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    else:
        assert family == "dpt_dinov2"  # its patches of 14 px come out as 16
    found = pipeline("depth-estimation", model=str(tmp_path / "out"))(Image.new("RGB", (60, 40), "teal"))
    assert found["predicted_depth"].shape == (40, 60)  # type: ignore[index, call-overload]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_last_map_the_encoder_hands_on_row_by_row(networks: dict[str, Path], family: str) -> None:
    student = load(networks, family)
    images = pictures(CONTEXT_PX[family])
    output = student.forward(images, with_tokens=True)
    passed = student.encoder(pixel_values=prepare_images(images, student.mean, student.std))
    rows, columns = output.grid
    assert output.tokens is not None
    assert output.tokens.shape == (2, rows * columns, student.encoder.config.hidden_size)
    for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (1, 2)):
        if family == "dpt_swinv2":
            expected = passed.feature_maps[-1][:, :, row, column]
        else:
            last = passed.last_hidden_state if family in ("dpt", "dpt_hybrid") else passed.feature_maps[-1]
            expected = last[:, 1 + row * columns + column]
        torch.testing.assert_close(output.tokens[:, row * columns + column], expected)
    assert (rows, columns) == ((3, 3) if family == "dpt_swinv2" else (4, 4))


def test_map_and_tokens_come_from_one_pass_that_leaves_nothing_behind(networks: dict[str, Path]) -> None:
    student = load(networks, "depth_anything")
    passes = []
    student.encoder.register_forward_hook(lambda *_: passes.append(1))
    output = student.forward(pictures(48), with_tokens=True)
    assert len(passes) == 1
    assert output.tokens is not None
    output.tokens.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in student.encoder.parameters())
    assert student.encoder.final_map is None
    assert student.forward(pictures(48)).tokens is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_head_keeps_every_bit_of_the_encoder_and_none_of_the_rest(networks: dict[str, Path], family: str) -> None:
    before = {name: p.detach() for name, p in load(networks, family).network.named_parameters()}
    torch.manual_seed(0)
    undisturbed = torch.rand(1)
    torch.manual_seed(0)
    student, again, other = (load(networks, family, start="fresh-head", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), undisturbed)
    encoder, decoder = student.parameter_groups()
    assert len(encoder) + len(decoder) == len(before)
    old_encoder, old_decoder = (
        [before[name] for name in before if name.startswith(("backbone.", "dpt.")) is part] for part in (True, False)
    )
    assert all(torch.equal(p, q) for p, q in zip(encoder, old_encoder, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(decoder, again.parameter_groups()[1], strict=True))
    last_bias = [m for m in student.network.head.modules() if isinstance(m, nn.Conv2d)][-1].bias  # type: ignore[union-attr]
    for i, p in enumerate(decoder):
        if p is not last_bias:
            assert not torch.isclose(p, old_decoder[i], rtol=0, atol=0).any()
            assert not torch.equal(p, other.parameter_groups()[1][i])


@pytest.mark.parametrize("family", ["depth_anything", "dpt"])
@pytest.mark.parametrize("start", ["fresh-head", "scratch"])
def test_a_new_head_is_alive_and_shows_a_shape_for_any_seed(networks: dict[str, Path], family: str, start: Any) -> None:
    for seed in range(10):
        student = load(networks, family, start=start, seed=seed)
        disparity = student.forward(pictures(CONTEXT_PX[family])).disparity.detach()
        assert (disparity > 0).all()
        assert disparity.std() > 1e-3 * disparity.mean()


def test_from_scratch_no_weights_need_be_there_and_the_seed_decides_them(networks: dict[str, Path], tmp_path: Path) -> None:
    bare = without(networks["depth_anything"], tmp_path / "bare", "")
    first, again, other = (load_student(str(bare), 48, start="scratch", seed=seed) for seed in (0, 0, 1))
    one, same, different = (s.network.state_dict() for s in (first, again, other))
    assert all(torch.equal(one[name], same[name]) for name in one)
    weights = [name for name in one if name.endswith("weight") and "norm" not in name]
    assert not any(torch.equal(one[name], different[name]) for name in weights)
    with pytest.raises(FileNotFoundError, match="weights: found none"):
        load_student(str(bare), 48, start="fresh-head")


def test_a_fresh_head_needs_the_whole_encoder_and_nothing_else(networks: dict[str, Path], tmp_path: Path) -> None:
    headless = without(networks["depth_anything"], tmp_path / "headless", "head.")
    load_student(str(headless), 48, start="fresh-head")
    with pytest.raises(ValueError, match=r"weights are missing.*head\.conv1"):
        load_student(str(headless), 48)
    gap = without(networks["depth_anything"], tmp_path / "gap", "backbone.encoder.layer.1.norm1")
    with pytest.raises(ValueError, match=r"2 weights are missing.*layer\.1\.norm1"):
        load_student(str(gap), 48, start="fresh-head")


@pytest.mark.parametrize("network", ["depth_anything", "dpt"])
def test_a_backbone_without_a_class_token_is_refused_by_name(network: str, tmp_path: Path) -> None:
    save_adapted(network, "dinov3_convnext", tmp_path)
    message = "is dinov3_convnext, which has no class token.*such as dinov2"
    for start in ("checkpoint", "fresh-head", "scratch"):
        with pytest.raises(ValueError, match=message):
            load_student(str(tmp_path), 64, start=start)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_model(ModelSpec(checkpoint=str(tmp_path)))


def test_what_cannot_be_a_student_is_refused_with_the_reason(networks: dict[str, Path], tmp_path: Path) -> None:
    save_depth_anything(tmp_path / "metric", metric=True)
    with pytest.raises(ValueError, match=r"depth_estimation_type is 'metric'.*expected 'relative'"):
        load_student(str(tmp_path / "metric"), 48)
    save_depth_pro(tmp_path / "pro")
    with pytest.raises(ValueError, match=r"model_type is 'depth_pro'; it gives metres.* expected one of depth_anything, dpt"):
        load_student(str(tmp_path / "pro"), 48)
    with pytest.raises(ValueError, match=r"patches of 14 px do not tile a context of 64 px.*such as 70"):
        load_student(str(networks["dpt_dinov2"]), 64)
    with pytest.raises(ValueError, match=r"patches of 32 px do not tile a context of 80 px"):
        load_student(str(networks["dpt_swinv2"]), 80)  # padding would shift its map against the picture
    with pytest.raises(ValueError, match="hybrid DPT takes 64 px only"):
        load_student(str(networks["dpt_hybrid"]), 96)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_student(str(tmp_path / "nothing"), 48)


@pytest.mark.parametrize("start", ["checkpoint", "fresh-head", "scratch"])
def test_a_configuration_that_names_code_on_the_hub_is_refused(networks: dict[str, Path], tmp_path: Path, start: Any) -> None:
    folder = shutil.copytree(networks["depth_anything"], tmp_path / "stranger")
    config = json.loads((folder / "config.json").read_text())
    config["attn_implementation"] = config["backbone_config"]["attn_implementation"] = "someone/kernel"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"someone/kernel.*names code on the hub"):
        load_student(str(folder), 48, start=start)


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_hub_id_needs_a_full_commit_unless_it_is_known_with_one(revision: str | None) -> None:
    with pytest.raises(ValueError, match=r"revision is .*, expected the full commit of someone/depth"):
        load_student("someone/depth", 560, revision=revision)


@pytest.mark.parametrize("family", ["depth_anything", "dpt", "dpt_swinv2"])
def test_tokens_and_map_are_float32_under_bf16(networks: dict[str, Path], family: str) -> None:
    student = load(networks, family)
    images = pictures(CONTEXT_PX[family])
    exact, fast = student.forward(images, with_tokens=True), student.forward(images, bf16=True, with_tokens=True)
    assert exact.tokens is not None
    assert fast.tokens is not None
    assert (fast.disparity.dtype, fast.tokens.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(fast.tokens, exact.tokens)
    assert torch.cosine_similarity(fast.tokens, exact.tokens, dim=-1).min() > 0.99


def test_a_copied_network_runs_its_own_head(networks: dict[str, Path]) -> None:
    student = load(networks, "depth_anything")
    twin = copy.deepcopy(student.network)
    nn.init.constant_(twin.head.conv3.weight, 0)  # type: ignore[union-attr, arg-type]
    nn.init.constant_(twin.head.conv3.bias, 7)  # type: ignore[union-attr, arg-type]
    assert (twin(pixel_values=torch.randn(1, 3, 48, 48)).predicted_depth == 7).all()


@pytest.mark.parametrize("family", ["depth_anything", "dpt", "dpt_swinv2"])
def test_checkpointed_activations_are_computed_twice_and_give_the_same_gradient(networks: dict[str, Path], family: str) -> None:
    gradients, attended = [], []
    for checkpointing in (False, True):
        student = load(networks, family, activation_checkpointing=checkpointing)
        student.network.train()
        inner = next(m for name, m in student.network.named_modules() if name.endswith("attention"))
        calls: list[int] = []
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        output = student.forward(pictures(CONTEXT_PX[family]), with_tokens=True)
        assert output.tokens is not None
        (output.disparity.sum() + output.tokens.square().sum()).backward()
        gradients.append([p.grad for p in student.network.parameters()])
        attended.append(len(calls))
    assert attended == [1, 2]
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) is (recomputed is None)
        assert plain is None or torch.equal(plain, recomputed)


def test_a_compiled_student_gives_the_same_map_tokens_and_gradient(
    networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the default compiles C++, for 20 s
    results = []
    for compiled in (False, True):
        student = load(networks, "depth_anything", compile=compiled)
        for shift in (0, 100):  # a second call must see its own pictures
            student.network.zero_grad()
            output = student.forward(pictures(48) // 2 + shift, with_tokens=True)
            assert output.tokens is not None
            (output.disparity.sum() + output.tokens.square().sum()).backward()
        gradient = student.network.get_parameter("backbone.encoder.layer.0.norm1.weight").grad
        results.append((output.disparity, output.tokens, gradient))
        assert all("_orig_mod" not in name for name in student.network.state_dict())
    torch.testing.assert_close(results[0], results[1])


def test_other_weights_can_be_exported_under_the_networks_names(networks: dict[str, Path], tmp_path: Path) -> None:
    student = load(networks, "depth_anything")
    average = {name: p.detach() + 1 for name, p in student.network.named_parameters()}
    save_student(student, tmp_path / "out", {"b": 1, "a": 2}, weights=average)
    found = load_student(str(tmp_path / "out"), 48).network
    assert all(torch.equal(p, average[name]) for name, p in found.named_parameters())
    assert all(torch.equal(p + 1, average[name]) for name, p in student.network.named_parameters())
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == {"a": 2, "b": 1}
    assert not (tmp_path / "out" / "README.md").exists()
    with pytest.raises(ValueError, match=r"1 weights are none of the student's: module\.head"):
        save_student(student, tmp_path / "other", {}, weights={"module.head": torch.zeros(1)})
    assert not (tmp_path / "other").exists()
