"""Models of the transformers library: Depth Anything, Distill Any Depth, DPT/MiDaS, Depth Pro.

The input is prepared as the checkpoint's `preprocessor_config.json` says (mean, deviation, resampling, multiple, aspect, and
the size where the spec says `stated`), in torch, because the library's processors want torchvision. What comes out:

- Depth Anything v2, Distill Any Depth, DPT: `predicted_depth` as it is, affine-invariant disparity >= 0, near = large. A DPT
  without a backbone of another family (`Intel/dpt-large`) takes squares only; its processor squeezes pictures, and so do we.
  A hybrid one (`Intel/dpt-hybrid-midas`) takes those of its configuration's `image_size` only.
- Depth Anything v2 Metric: `predicted_depth` as it is, depth in metres.
- Depth Pro: its `predicted_depth` is the inverse depth of a camera whose focal length is the picture's width. Depth in metres
  is 1 / (predicted_depth * width / focal length), within [1e-4, 1e4] m, with the field of view that the network itself
  estimates for each picture (the library's `DepthProImageProcessor.post_process_depth_estimation`). Refused without that head.

Refused with a reason: checkpoints whose processor does anything else. ZoeDepth, for one, pads and crops, and votes over the
whole batch for its indoor or outdoor head, so that a label would depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from manifests.errors import RefusedError
from stages.models.checkpoints import read_json, read_preprocessor
from stages.models.family import Family, FamilyStatements, Statement, no_noise, pixels
from stages.models.loading import load_transformers
from stages.models.pixels import (
    network_size,
    out_of_memory,
    resize_maps,
    resize_pictures,
    stated_size,
    to_tensor,
)
from stages.models.spec import InputSize, ModelSpec

PREPROCESSOR = "preprocessor_config.json"
_DPT, _DEPTH_PRO = "DPTImageProcessor", "DepthProImageProcessor"
_LARGEST_MULTIPLE_PX = 256
_BILINEAR, _BICUBIC = 2, 3  # PIL's numbers
_NOTHING_ELSE = {"do_rescale": True, "do_normalize": True, "do_pad": False, "rescale_factor": 1 / 255}


@dataclass(frozen=True, kw_only=True)
class InputRule:
    """How a checkpoint wants its pictures."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bicubic: bool
    antialias: bool
    multiple: int
    keep_aspect: bool
    square: bool
    """The network takes squares only: pictures are squeezed into one."""
    fixed_px: tuple[int, int] | None
    """Height and width of a network that takes no other."""
    stated_px: tuple[int, int] | None
    """Height and width that the processor states."""

    def size(self, height: int, width: int, input_px: InputSize | None) -> tuple[int, int]:
        """Height and width of a picture as the network sees it."""
        if self.fixed_px:
            return self.fixed_px
        keep_aspect = self.keep_aspect and not self.square
        if input_px == "stated" and self.stated_px:
            side_px = max(self.stated_px)
            stated_px = (side_px, side_px) if self.square else self.stated_px
            return stated_size(height, width, stated_px=stated_px, multiple=self.multiple, keep_aspect=keep_aspect)
        long_px = input_px if isinstance(input_px, int) else max(height, width) if self.square else None
        return network_size(height, width, multiple=self.multiple, input_px=long_px, keep_aspect=keep_aspect)


class TransformersModel:
    """An `AutoModelForDepthEstimation` checkpoint with safetensors weights."""

    def __init__(self, spec: ModelSpec, folder: Path, device: str) -> None:
        self.spec, self._dtype, self._device = spec, getattr(torch, spec.weights_dtype), device
        processor = read_preprocessor(folder)
        model = load_transformers("AutoModelForDepthEstimation", folder, torch.float32)
        self._rule = read_input_rule(processor, model.config, folder)
        self._is_depth_pro = model.config.model_type == "depth_pro"
        _refuse_contradictions(spec, model.config, self._rule, folder)
        with out_of_memory():
            model = _all_but_head(model, self._dtype).to(device).eval()
        self._model = torch.compile(model) if spec.compile else model

    @out_of_memory()
    @torch.inference_mode()
    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None) -> Float32[np.ndarray, "b h w"]:
        """See `DepthModel.predict`. There is no noise: seeds are ignored."""
        height, width = images.shape[1:3]
        rule = self._rule
        pixels = resize_pictures(
            to_tensor(images, self._device),
            rule.size(height, width, self.spec.input_px),
            bicubic=rule.bicubic,
            antialias=rule.antialias,
        )
        shift, spread = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (rule.mean, rule.std))
        output = self._model(pixel_values=((pixels - shift) / spread).to(self._dtype))
        if self._is_depth_pro:
            maps = metres(output.predicted_depth, output.field_of_view, height, width)
        else:
            maps = resize_maps(output.predicted_depth, height, width)
        return maps.cpu().numpy()


def _all_but_head(network: Any, dtype: torch.dtype) -> Any:
    """The network in this precision, its head in float32: eight bits of mantissa in a map would be steps in every slope."""
    for name, part in network.named_children():
        part.to(torch.float32 if name == "head" else dtype)
    if dtype != torch.float32:
        network.head.register_forward_pre_hook(lambda _, inputs: _in_float32(inputs))
    return network


def _in_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    return type(value)(map(_in_float32, value)) if isinstance(value, list | tuple) else value


def metres(
    inverse_depth: Float[Tensor, "b h2 w2"], field_of_view: Float[Tensor, "b"], height: int, width: int
) -> Float32[Tensor, "b h w"]:
    """Depth Pro's canonical inverse depth and horizontal field of view in degrees, as depth in metres at the picture's size."""
    width_over_focal = 2 * torch.tan(torch.deg2rad(field_of_view.float()) / 2)
    scaled = inverse_depth.float() * width_over_focal[:, None, None]
    return 1 / resize_maps(scaled, height, width).clamp(1e-4, 1e4)


def read_input_rule(processor: dict[str, Any], config: Any, folder: Path) -> InputRule:
    """The rule of a checkpoint's processor and configuration. Raises ValueError for one that is not implemented here."""
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type") or _DPT
    kind = str(kind).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    where = f"{folder}/preprocessor_config.json"
    if kind not in (_DPT, _DEPTH_PRO):
        raise RefusedError(
            f"{where}: image_processor_type is {kind}, expected {_DPT} or {_DEPTH_PRO}; others are not supported"
        )
    for name, wanted in _NOTHING_ELSE.items():
        found = processor.get(name)
        if found is not None and found != wanted:
            raise RefusedError(
                f"{where}: {name} is {found}, expected {wanted}; other ways to prepare pictures are not supported"
            )
    resample = processor.get("resample", _BICUBIC if kind == _DPT else _BILINEAR)
    if resample not in (_BILINEAR, _BICUBIC):
        raise RefusedError(f"{where}: resample is {resample}, expected {_BILINEAR} (bilinear) or {_BICUBIC} (bicubic)")
    stated_px = stated_size_of(folder)
    if kind == _DEPTH_PRO and stated_px is None:
        raise RefusedError(f"{where}: no size; expected the height and width that Depth Pro's network takes")
    backbone = getattr(config, "backbone_config", None)
    patch_px = getattr(config, "patch_size", None) or getattr(backbone, "patch_size", None) or 32
    # Swin merges 2 x 2 between its stages, and pads a picture that this does not tile: the map would cover more than it.
    patch_px *= 2 ** (len(getattr(backbone, "depths", (1,))) - 1)
    return InputRule(
        mean=tuple(processor["image_mean"]),
        std=tuple(processor["image_std"]),
        bicubic=resample == _BICUBIC,
        antialias=kind == _DPT,
        multiple=math.lcm(_multiple(processor, where), int(patch_px)),
        keep_aspect=bool(processor.get("keep_aspect_ratio", False)),
        # The library's DPT learns the shape of its patches' grid from a backbone, and takes a root without one.
        square=config.model_type == "dpt" and (backbone is None or config.is_hybrid),
        fixed_px=_fixed_px(kind, config, stated_px),
        stated_px=stated_px,
    )


def _fixed_px(kind: str, config: Any, stated_px: tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of a network that takes no other: Depth Pro, and a hybrid DPT, which the library refuses all else."""
    if config.model_type == "dpt" and config.is_hybrid:
        sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        return cast("tuple[int, int]", tuple(sides))
    return stated_px if kind == _DEPTH_PRO else None


def _multiple(processor: dict[str, Any], where: str) -> int:
    multiple = processor.get("ensure_multiple_of") or 1
    if type(multiple) is not int or not 1 <= multiple <= _LARGEST_MULTIPLE_PX:
        raise RefusedError(f"{where}: ensure_multiple_of is {multiple!r}, expected 1 to {_LARGEST_MULTIPLE_PX}")
    return multiple


def _refuse_contradictions(spec: ModelSpec, config: Any, rule: InputRule, folder: Path) -> None:
    """Raises ValueError where the checkpoint's own words are not those of the spec."""
    is_depth_pro = config.model_type == "depth_pro"
    if is_depth_pro and not config.use_fov_model:
        raise RefusedError(
            f"{folder}/config.json: use_fov_model is false; without its field of view, Depth Pro gives no metres"
        )
    if rule.fixed_px and spec.long_side_px not in (None, max(rule.fixed_px)):
        raise RefusedError(f"{folder}: input_px is {spec.input_px}, but this network takes {max(rule.fixed_px)} only")


def _states(folder: Path) -> FamilyStatements:
    path = folder / "config.json"
    config = read_json(path)
    metric = config.get("depth_estimation_type") == "metric" or config.get("model_type") == "depth_pro"
    relative = config.get("model_type") in ("depth_anything", "dpt")
    return FamilyStatements(
        depth_spaces=(Statement(value="depth_metric", source=f"{path}, whose network gives metres"),) if metric else (),
        usual_space="disparity_affine_invariant" if relative else None,
        input_px=stated_size_of(folder),
    )


def stated_size_of(folder: Path) -> tuple[int, int] | None:
    """Height and width by a processor's `size`; None where it states none. Raises ValueError for a size that is none."""
    processor = read_json(folder / PREPROCESSOR)
    if not processor.get("do_resize", True) or (size := processor.get("size")) is None:
        return None
    where = f"{folder / PREPROCESSOR}: size"
    sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    return cast("tuple[int, int]", tuple(pixels(side, where) for side in sides))


FAMILY = Family(
    recognises=lambda folder: (folder / "config.json").exists() and not (folder / "unet").is_dir(),
    states=_states,
    load=TransformersModel,
    problems=no_noise,
)
