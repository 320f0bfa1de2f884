"""Teachers of all loaders: right size, right space, no dependence on the batch, and nothing guessed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.models import KNOWN, DepthModel, ModelSpec, load_model, problems_of
from stages.models.batches import Predictor
from stages.models.pixels import network_size, out_of_memory
from stages.models.resolve import resolve
from stages.models.transformers_models import TransformersModel

FAMILIES = {
    "dpt": ModelSpec(loader="transformers", checkpoint="dpt", depth_space="disparity_affine_invariant"),
    "depth_anything": ModelSpec(loader="transformers", checkpoint="depth_anything", depth_space="disparity_affine_invariant"),
    "metric": ModelSpec(loader="transformers", checkpoint="metric", depth_space="depth_metric"),
    "depth_pro": ModelSpec(loader="transformers", checkpoint="depth_pro", depth_space="depth_metric"),
    "genpercept": ModelSpec(loader="genpercept", checkpoint="genpercept_2", depth_space="disparity_affine_invariant"),
    "lotus": ModelSpec(loader="lotus", checkpoint="lotus", depth_space="disparity_affine_invariant"),
    "marigold": ModelSpec(loader="marigold", checkpoint="marigold", depth_space="depth_affine_invariant", steps=2),
    "ensemble": ModelSpec(loader="marigold", checkpoint="marigold", depth_space="depth_affine_invariant", steps=1, ensemble=3),
}
all_families = pytest.mark.parametrize("family", list(FAMILIES))
SEEDS = [0, 1, 2**40, 2**63 - 1]


def family_spec(families: Path, family: str) -> ModelSpec:
    spec = FAMILIES[family]
    return replace(spec, checkpoint=str(families / spec.checkpoint))


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the wanted map's range, which is not nothing."""
    assert np.ptp(wanted) > 1e-3 * np.abs(wanted).max()
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


@pytest.fixture(scope="module")
def teachers(families: Path) -> dict[str, DepthModel]:
    return {family: load_model(family_spec(families, family)) for family in FAMILIES}


@all_families
@pytest.mark.parametrize("size", [(64, 64), (48, 31), (17, 48)])
def test_a_prediction_has_the_pictures_size(teachers: dict[str, DepthModel], family: str, size: tuple[int, int]):
    depth = teachers[family].predict(pictures(2, *size))
    assert depth.shape == (2, *size)
    assert depth.dtype == np.float32
    assert np.isfinite(depth).all()
    assert depth.min() >= 0


@all_families
def test_a_prediction_is_the_same_bits_again_and_in_another_place_of_the_batch_up_to_rounding(
    teachers: dict[str, DepthModel], family: str
):
    images = pictures(4, 64, 64)
    together = teachers[family].predict(images, SEEDS)
    assert (together == teachers[family].predict(images, SEEDS)).all()
    turned = teachers[family].predict(images[::-1].copy(), SEEDS[::-1])
    for one, other in zip(together, turned[::-1], strict=True):
        assert difference(other, one) < 1e-3


@all_families
def test_a_prediction_alone_is_that_of_a_batch_up_to_rounding(teachers: dict[str, DepthModel], family: str):
    """Measured 0 (ensemble) to 6e-6 here, and 3e-5 on other random networks, which magnify rounding more than trained ones."""
    images = pictures(4, 64, 64)
    together = teachers[family].predict(images, SEEDS)
    for i, seed in enumerate(SEEDS):
        assert difference(teachers[family].predict(images[i : i + 1], [seed])[0], together[i]) < 1e-3


def bfloat16_attention_works() -> bool:
    """False where ATEN_CPU_CAPABILITY says less than the processor has: torch packs for AVX-512, then lacks the kernel."""
    tokens = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    try:
        torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    except RuntimeError:
        return False
    return True


@all_families
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.5), ("float16", 0.06)])
def test_half_precision_gives_nearly_the_same_map_in_float32(
    teachers: dict[str, DepthModel], families: Path, family: str, dtype: str, tolerance: float
):
    """Measured up to 0.24 and 0.03 of the range on these random networks, which are rougher than trained ones."""
    if dtype == "bfloat16" and not bfloat16_attention_works():
        pytest.skip("torch has no bfloat16 attention with this ATEN_CPU_CAPABILITY on this processor")
    images = pictures(1, 64, 64)
    half = load_model(replace(family_spec(families, family), dtype=dtype)).predict(images)
    assert half.dtype == np.float32
    assert 0 < difference(half, teachers[family].predict(images)) < tolerance


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["depth_anything", "dpt"])
def test_the_head_stays_in_float32_so_that_a_map_has_no_steps(families: Path, family: str, dtype: str):
    if dtype == "bfloat16" and not bfloat16_attention_works():
        pytest.skip("torch has no bfloat16 attention with this ATEN_CPU_CAPABILITY on this processor")
    model = load_model(replace(family_spec(families, family), dtype=dtype))
    assert isinstance(model, TransformersModel)
    assert {p.dtype for p in model._model.head.parameters()} == {torch.float32}
    assert {p.dtype for p in model._model.neck.parameters()} == {getattr(torch, dtype)}
    depth = model.predict(pictures(1, 64, 64))
    levels = len(np.unique(depth[depth > 0]))
    assert levels > 0.8 * (depth > 0).sum()
    assert len(np.unique(depth.astype(np.float16))) < 0.8 * levels  # a head in half precision would have fewer


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", False), ("tf32", True)])
def test_tf32_is_allowed_while_a_model_that_asks_for_it_predicts_and_not_else(dtype: str, allowed: bool):
    def flags() -> tuple[object, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Model:
        spec = ModelSpec(checkpoint="", dtype=dtype)  # type: ignore[arg-type]

        def predict(self, images: np.ndarray, seeds: object = None) -> np.ndarray:
            self.flags = flags()
            return images[..., 0].astype(np.float32)

    model, before = Model(), flags()
    Predictor(model, 2).predict(list(pictures(2, 8, 8)))
    assert model.flags == (allowed, allowed)
    assert flags() == before


@all_families
def test_tf32_is_float32_where_there_is_no_gpu(teachers: dict[str, DepthModel], families: Path, family: str):
    images = pictures(1, 64, 64)
    found = load_model(replace(family_spec(families, family), dtype="tf32")).predict(images)
    assert np.array_equal(found, teachers[family].predict(images))


@all_families
def test_a_smaller_input_changes_what_the_network_sees_and_not_the_size_of_the_map(
    teachers: dict[str, DepthModel], families: Path, family: str
):
    images = pictures(1, 96, 64)
    if family == "depth_pro":
        with pytest.raises(ValueError, match="input_px is 48, but this network takes 64 only"):
            load_model(replace(family_spec(families, family), input_px=48))
        return
    smaller = load_model(replace(family_spec(families, family), input_px=48)).predict(images)
    assert smaller.shape == (1, 96, 64)
    assert not np.allclose(smaller, teachers[family].predict(images))


@all_families
def test_a_map_does_not_depend_on_the_sizes_of_pictures_before_it(families: Path, family: str):
    """Position embeddings are remembered by size (see `remember_positions`)."""
    used, fresh = (load_model(family_spec(families, family)) for _ in range(2))
    tall, square = pictures(1, 96, 64), pictures(1, 64, 64)
    first = used.predict(tall)
    assert (used.predict(square) == fresh.predict(square)).all()
    assert (used.predict(tall) == first).all()


@all_families
def test_a_compiled_network_stands_where_the_plain_one_did(teachers: dict[str, DepthModel], families: Path, family: str):
    """Its wiring, run without the compiler, which takes a minute and more; with it, 3e-6 to 6e-6 of the range was measured."""
    images = pictures(2, 64, 64)
    with torch.compiler.set_stance("force_eager"):
        found = load_model(replace(family_spec(families, family), compile=True)).predict(images)
    assert (found == teachers[family].predict(images)).all()


@all_families
def test_channels_last_in_memory_moves_weights_and_not_the_map(teachers: dict[str, DepthModel], families: Path, family: str):
    images = pictures(2, 64, 64)
    model = load_model(replace(family_spec(families, family), channels_last=True))
    networks = [*vars(model).values(), *vars(getattr(model, "_pipeline", object)).values()]
    weights = [
        weight for part in networks if isinstance(part, torch.nn.Module) for weight in part.parameters() if weight.ndim == 4
    ]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    # the alignment of an ensemble blows rounding up
    assert difference(model.predict(images), teachers[family].predict(images)) < (0.1 if family == "ensemble" else 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["depth_anything", "genpercept", "marigold"])
def test_a_compiled_network_gives_the_same_map_up_to_rounding(families: Path, family: str):
    spec, images = family_spec(families, family), pictures(2, 48, 48)
    plain, compiled = (load_model(replace(spec, compile=on), device="cuda").predict(images) for on in (False, True))
    assert difference(compiled, plain) < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "ensemble"])
def test_a_gpu_gives_the_labels_of_a_cpu_up_to_rounding(teachers: dict[str, DepthModel], families: Path, family: str):
    images = pictures(2, 64, 64)
    on_gpu = load_model(family_spec(families, family), device="cuda").predict(images, SEEDS[:2])
    assert difference(on_gpu, teachers[family].predict(images, SEEDS[:2])) < 1e-2


def test_the_spec_of_a_loaded_teacher_is_the_resolved_one(teachers: dict[str, DepthModel], families: Path):
    assert teachers["dpt"].spec == resolve(family_spec(families, "dpt"))
    assert teachers["dpt"].spec.name == "model"


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        ("dpt", "model.safetensors"),
        ("genpercept", "unet/diffusion_pytorch_model.safetensors"),
        ("genpercept", "vae/diffusion_pytorch_model.safetensors"),
        ("marigold", "unet/diffusion_pytorch_model.safetensors"),
        ("marigold", "text_encoder/model.safetensors"),
    ],
)
def test_a_checkpoint_without_all_its_weights_is_refused(families: Path, tmp_path: Path, family: str, weights: str):
    spec = family_spec(families, family)
    shutil.copytree(spec.checkpoint, tmp_path / "copy")
    kept = load_file(tmp_path / "copy" / weights)
    lost = sorted(kept)[3]
    del kept[lost]
    save_file(kept, tmp_path / "copy" / weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing"):
        load_model(replace(spec, checkpoint=str(tmp_path / "copy")))


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        ("dpt", "model.safetensors"),
        ("genpercept", "unet/diffusion_pytorch_model.safetensors"),
        ("marigold", "vae/diffusion_pytorch_model.safetensors"),
        ("marigold", "text_encoder/model.safetensors"),
    ],
)
def test_a_pickle_is_never_loaded(families: Path, tmp_path: Path, family: str, weights: str):
    spec = family_spec(families, family)
    shutil.copytree(spec.checkpoint, tmp_path / "copy")
    path = tmp_path / "copy" / weights
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="which can run code when loaded"):
        load_model(replace(spec, checkpoint=str(tmp_path / "copy")))


def test_memory_that_runs_out_in_a_network_is_always_the_same_error(
    teachers: dict[str, DepthModel], monkeypatch: pytest.MonkeyPatch
):
    def allocate(**_: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(teachers["dpt"], "_model", allocate)
    with pytest.raises(torch.OutOfMemoryError):
        teachers["dpt"].predict(pictures(1, 64, 64))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_memory_that_runs_out_elsewhere_is_that_error_too(error: Exception):
    with pytest.raises(torch.OutOfMemoryError), out_of_memory():
        raise error


def test_other_errors_of_a_network_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes") as caught, out_of_memory():
        raise RuntimeError("shapes cannot be multiplied")
    assert not isinstance(caught.value, torch.OutOfMemoryError)


def test_a_known_hub_id_brings_its_space_licence_commit_and_input():
    spec = resolve(ModelSpec(loader="transformers", checkpoint="Intel/dpt-large"))
    assert spec.depth_space == "disparity_affine_invariant"
    assert (spec.licence, spec.input_px) == ("Apache-2.0", 384)
    assert spec.revision == KNOWN["Intel/dpt-large"].revision
    assert resolve(replace(spec, licence="apache 2.0", input_px=560)) == replace(spec, input_px=560)
    with pytest.raises(ValueError, match=r"licence: MIT was given, but the weights are under Apache-2\.0 \(the table"):
        resolve(replace(spec, licence="MIT"))


@pytest.mark.parametrize("checkpoint", list(KNOWN))
def test_a_known_hub_id_is_pinned_or_must_be(checkpoint: str):
    spec = ModelSpec(loader=KNOWN[checkpoint].loader, checkpoint=checkpoint)
    if KNOWN[checkpoint].revision is None:
        assert ["revision is None, expected the full commit" in problem for problem in problems_of(spec)] == [True]
    assert not problems_of(replace(spec, revision="0" * 40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth_space": None, "loader": "genpercept"}, "disparity_affine_invariant, depth_affine_invariant"),
        ({"checkpoint": "someone/network", "revision": "main"}, "revision is 'main', expected the full commit"),
        ({"steps": 8}, "are for the loader 'marigold'"),
        ({"loader": "marigold", "ensemble": 0}, "ensemble is 0, expected at least 1"),
        ({"loader": "marigold", "input_px": 300}, "input_px is 300, expected a multiple of 8"),
        ({"checkpoint": "apple/DepthPro-hf", "revision": "0" * 40}, "but the checkpoint says depth_metric"),
        ({"checkpoint": "Intel/dpt-large", "loader": "genpercept"}, "is loaded by 'transformers'"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(families: Path, changes: dict[str, object], message: str):
    spec = replace(family_spec(families, "dpt"), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_model(spec)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"multiple": 14}, (476, 630)),
        ({"multiple": 14, "input_px": 518}, (392, 518)),
        ({"multiple": 32, "input_px": 384, "keep_aspect": False}, (384, 384)),
        ({"multiple": 1000}, (1000, 1000)),
    ],
)
def test_the_network_sees_the_nearest_multiple(given: dict[str, Any], wanted: tuple[int, int]):
    assert network_size(480, 636, **given) == wanted


def test_naming_a_model_imports_no_library_of_networks():
    code = "import sys, stages.models; print({'transformers', 'diffusers', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
