"""The modules of docs/other-teachers.md label as they stand, with the real packages where these are installed.

Where they are not, stand-ins take their place: the same names, arguments, shapes and habits, as read in `depth-anything-3`
0.1.1 (`api.py`, `specs.py`, `model/da3.py`) and MoGe 2.0.0 (`model/v2.py`), around networks of one convolution.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import manifests
from pipeline.label.command import main
from stages.label_store import LabelReader
from stages.models import ModelSpec, load_model
from tests.pipeline.label.test_growth import write_photos

PAGE = (Path(__file__).parents[3] / "docs/other-teachers.md").read_text(encoding="utf-8")
_SMALL = ["--plan.context", "whole", "--plan.context-px", "48", "--plan.patch-px", "48", "--plan.min-image-px", "8"]
_DA3, _MOGE = "depth_anything_3_teacher", "moge_teacher"


# --- stand-ins -------------------------------------------------------------------------------------------------------


@dataclass
class _Prediction:
    """`depth_anything_3.specs.Prediction`, as far as one picture's depth goes."""

    depth: np.ndarray
    is_metric: Any
    sky: np.ndarray | None = None


class _DepthAnything3(nn.Module):
    """`depth_anything_3.api.DepthAnything3`: depth of the processed size, of pictures that are views of one scene."""

    def __init__(self, model_name: str = "da3-large", **_: Any) -> None:
        super().__init__()
        self.model_name, self.model = model_name, nn.Conv2d(3, 1, 3, padding=1)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_name": self.model_name}))
        torch.save(self.model.state_dict(), folder / "weights.pt")

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str | None = None, **_: Any) -> _DepthAnything3:
        network = cls(**json.loads((Path(name) / "config.json").read_text()))
        network.model.load_state_dict(torch.load(Path(name) / "weights.pt", weights_only=True))
        return network

    def inference(self, image: list[np.ndarray], *, process_res: int = 504, **_: Any) -> _Prediction:
        height, width = image[0].shape[:2]
        scale = process_res / max(height, width)
        size = [max(round(round(side * scale) / 14), 1) * 14 for side in (height, width)]
        pixels = torch.from_numpy(np.stack(image)).permute(0, 3, 1, 2).float() / 255
        depth = self.model(F.interpolate(pixels, size, mode="bilinear"))[:, 0].exp()
        depth = depth / depth.mean()  # one scale for all views
        sky = pixels.mean((1, 2, 3)).view(-1, 1, 1) + torch.linspace(-0.5, 0.5, size[1]) > 0.7
        sky = sky.expand(depth.shape)
        drawn = depth[~sky][torch.randint(0, int((~sky).sum()), (1000,))]
        depth = torch.where(sky, torch.quantile(drawn, 0.99), depth)
        return _Prediction(depth=depth.numpy(), is_metric=1 if "nested" in self.model_name else {}, sky=sky.numpy())


class _MoGeModel(nn.Module):
    """`moge.model.v2.MoGeModel`: maps at the picture's size, infinite where the mask is false."""

    def __init__(self, threshold: float = 0.4) -> None:
        super().__init__()
        self.threshold, self.points_head = threshold, nn.Conv2d(3, 1, 3, padding=1)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @classmethod
    def from_pretrained(cls, name: str | Path, model_kwargs: dict[str, Any] | None = None, **_: Any) -> _MoGeModel:
        checkpoint = torch.load(name, map_location="cpu", weights_only=True)
        network = cls(**checkpoint["model_config"] | (model_kwargs or {}))
        network.load_state_dict(checkpoint["model"], strict=False)
        return network

    def infer(self, image: torch.Tensor, apply_mask: bool = True, use_fp16: bool = True, **_: Any) -> dict[str, torch.Tensor]:
        with torch.autocast(image.device.type, torch.float16, enabled=use_fp16):
            depth = self.points_head(image)[:, 0].float().exp()
        mask = image.mean(1) < self.threshold
        if apply_mask:
            depth = torch.where(mask, depth, torch.inf)
        return {"depth": depth, "mask": mask, "intrinsics": torch.eye(3).expand(len(image), 3, 3)}


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


def _is_there(name: str) -> bool:
    """Whether the real package can be imported, with all that it imports itself."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: the page's modules, two photographs, and checkpoints `da3`, `nested` and `moge.pt`."""
    for name, program in re.findall(r"^`(\w+)\.py`:\n\n```python\n(.*?)```", PAGE, re.S | re.M):
        (tmp_path / f"{name}.py").write_text(program)
    if not _is_there("depth_anything_3.api"):
        api = _module("depth_anything_3.api", DepthAnything3=_DepthAnything3)
        monkeypatch.setitem(sys.modules, "depth_anything_3", _module("depth_anything_3", api=api))
        monkeypatch.setitem(sys.modules, "depth_anything_3.api", api)
    if not _is_there("moge.model.v2"):
        v2 = _module("moge.model.v2", MoGeModel=_MoGeModel)
        for name in ("moge", "moge.model"):
            monkeypatch.setitem(sys.modules, name, _module(name))
        monkeypatch.setitem(sys.modules, "moge.model.v2", v2)
    torch.manual_seed(0)
    depth_anything_3: Any = sys.modules["depth_anything_3.api"]
    depth_anything_3.DepthAnything3(model_name="da3-small").save_pretrained(tmp_path / "da3")
    _save_moge(tmp_path / "moge.pt")
    write_photos(tmp_path / "photos", range(2))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in (_DA3, _MOGE):
        sys.modules.pop(name, None)


def _save_moge(path: Path) -> None:
    """A small random MoGe-2, by the class that is there."""
    module: Any = sys.modules["moge.model.v2"]
    settings: dict[str, Any] = {"threshold": 0.4}
    if module.MoGeModel is not _MoGeModel:
        widths = [16, 8, 8, 8, 8]
        block = {"dim_res_blocks": widths, "num_res_blocks": [0] * 5, "resamplers": ["bilinear"] * 4}
        block |= {"res_block_in_norm": "none", "res_block_hidden_norm": "none"}
        settings = {
            "encoder": {"backbone": "dinov2_vits14", "intermediate_layers": [5, 11], "dim_out": 16},
            "neck": block | {"dim_in": [18, 2, 2, 2, 2], "dim_out": [None] * 5},
            "points_head": block | {"dim_in": widths, "dim_out": [None] * 4 + [3]},
            "mask_head": block | {"dim_in": widths, "dim_out": [None] * 4 + [1]},
            "scale_head": {"dims": [384, 16, 1]},
            "remap_output": "exp",
            "num_tokens_range": [16, 64],
        }
    weights = module.MoGeModel(**settings).state_dict()
    if last := [name for name in weights if name.startswith("mask_head.") and name.endswith("bias")]:
        weights[last[-1]].fill_(10.0)  # a depth is known nearly everywhere
    torch.save({"model_config": settings, "model": weights}, path)


def _arguments(module: str, checkpoint: str) -> list[str]:
    """The page's command, with a checkpoint that is here."""
    (command,) = re.findall(rf"^    python -m pipeline.label (.*{module}:load.*)$", PAGE, re.M)
    (published,) = re.findall(r"\S+/\S+@COMMIT", command)
    return [*shlex.split(command.replace(published, checkpoint)), *_SMALL, "--workers", "0"]


def _teacher(module: str, checkpoint: str) -> Any:
    return load_model(ModelSpec(loader=f"{module}:load", checkpoint=checkpoint))


@pytest.mark.parametrize(
    ("module", "checkpoint", "column", "space", "licence"),
    [
        (_DA3, "da3", "da3", "depth_affine_invariant", "Apache-2.0"),
        (_MOGE, "moge.pt", "moge", "depth_metric", "LICENCE"),
    ],
)
def test_the_pages_commands_label(folder: Path, module: str, checkpoint: str, column: str, space: str, licence: str):
    assert main(_arguments(module, checkpoint)) == 0
    run = folder / "RUN"
    assert manifests.verify(run, deep=True) == []
    part = manifests.load_part(run, column, "photos.00000")
    assert (part.depth_space, part.licence) == (space, licence)
    assert [row.status for row in part.images] == ["labelled"] * 2
    context = LabelReader(manifests.place_of(run), f"columns/{column}/{part.zarr}").context(0)
    assert context
    assert np.isfinite(context.values).all()
    assert np.ptp(context.values) > 0


@pytest.mark.parametrize(("module", "checkpoint"), [(_DA3, "da3"), (_MOGE, "moge.pt")])
def test_a_picture_gets_the_same_numbers_whatever_else_is_in_the_batch(folder: Path, module: str, checkpoint: str):
    images = np.random.default_rng(1).integers(0, 90, (3, 40, 56, 3), np.uint8)
    images[1] //= 2
    teacher = _teacher(module, checkpoint)
    together = teacher.predict(images)
    assert (together.shape, together.dtype) == ((3, 40, 56), np.float32)
    alone = np.concatenate([teacher.predict(images[i : i + 1]) for i in range(3)])
    assert np.abs(together - alone).max() <= 1e-4 * np.ptp(alone)
    assert teacher.predict(images).tobytes() == together.tobytes()
    assert _teacher(module, checkpoint).weights_sha256 == teacher.weights_sha256


def test_a_nested_depth_anything_3_gives_metres(folder: Path):
    depth_anything_3: Any = sys.modules["depth_anything_3.api"]
    if depth_anything_3.DepthAnything3 is not _DepthAnything3:
        pytest.skip("the real one has 1.4 billion weights")
    _DepthAnything3(model_name="da3nested-giant-large").save_pretrained(folder / "nested")
    assert _teacher(_DA3, "nested").spec.depth_space == "depth_metric"


def test_where_moge_knows_no_depth_there_is_no_label(folder: Path):
    module: Any = sys.modules["moge.model.v2"]
    images = np.full((2, 40, 56, 3), 50, np.uint8)
    images[0, :10] = 200
    images[1] = 250
    mask = torch.ones(2, 40, 56, dtype=torch.bool)
    mask[0, :10], mask[1] = False, False
    depth = torch.linspace(1, 9, 56).expand(2, 40, 56)

    def infer(_: Any, image: torch.Tensor, **__: Any) -> dict[str, torch.Tensor]:
        return {"depth": torch.where(mask, depth, torch.inf)[: len(image)], "mask": mask[: len(image)]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.MoGeModel, "infer", infer)
        found = _teacher(_MOGE, "moge.pt").predict(images)
    assert np.isnan(found[0, :10]).all()
    assert np.allclose(found[0, 10:], depth[0, 10:])
    assert np.isnan(found[1]).all()
    threshold = torch.load(folder / "moge.pt", weights_only=True)
    if "threshold" in threshold["model_config"]:
        threshold["model_config"]["threshold"] = -1.0
        torch.save(threshold, folder / "nothing.pt")
        assert np.isnan(_teacher(_MOGE, "nothing.pt").predict(images)).all()
