"""Models of the transformers library: Depth Anything, Distill Any Depth, DPT/MiDaS, Depth Pro, ZoeDepth, GLPN, TIPSv2.

The input is prepared, and the map brought back to the picture's size, by the checkpoint's rule (`input_rule`). What comes out:

- Depth Anything v2, Distill Any Depth, DPT: `predicted_depth` as it is, affine-invariant disparity >= 0, near = large. A DPT
  without a backbone of another family (`Intel/dpt-large`) takes squares only; its processor squeezes pictures, and so do we.
  A hybrid one (`Intel/dpt-hybrid-midas`) takes those of its configuration's `image_size` only.
- Depth Anything v2 Metric, ZoeDepth, GLPN, TIPSv2 with a DPT head: `predicted_depth` as it is, depth in metres. A ZoeDepth with
  heads for several domains lets a batch vote for one of them; it is shown each picture alone, so that a label does not depend
  on its neighbours.
- Depth Pro: its `predicted_depth` is the inverse depth of a camera whose focal length is the picture's width. Depth in metres
  is 1 / (predicted_depth * width / focal length), within [1e-4, 1e4] m, with the field of view that the network itself
  estimates for each picture (the library's `DepthProImageProcessor.post_process_depth_estimation`). Refused without that head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from manifests.errors import RefusedError
from stages.models.checkpoints import read_json, read_preprocessor
from stages.models.family import Family, FamilyStatements, PredictsOnDevice, Statement, no_noise
from stages.models.input_rule import InputRule, read_input_rule, stated_size_of
from stages.models.loading import load_transformers
from stages.models.pixels import out_of_memory, resize_maps, to_tensor
from stages.models.precision import in_memory_format
from stages.models.spec import ModelSpec

METRIC_FAMILIES = ("depth_pro", "glpn", "tipsv2_dpt", "zoedepth")
"""Families all of whose networks give metres: up to a `max_depth`, or in bins between a `min_depth` and one."""
_HEADS = {"tipsv2_dpt": ("decoder", "bin_regressor"), "zoedepth": ("relative_head", "metric_head")}
"""What comes last, where it is not the `head`."""


class TransformersModel(PredictsOnDevice):
    """An `AutoModelForDepthEstimation` checkpoint with safetensors weights."""

    def __init__(self, spec: ModelSpec, folder: Path, device: str) -> None:
        self.spec, self._dtype, self._device = spec, getattr(torch, spec.weights_dtype), device
        read_preprocessor(folder)  # before weights, which take longer
        model = load_transformers("AutoModelForDepthEstimation", folder, torch.float32)
        self._rule = read_input_rule(model.config, folder)
        self._is_depth_pro = model.config.model_type == "depth_pro"
        self._votes = len(getattr(model.config, "bin_configurations", ())) > 1
        _refuse_contradictions(spec, model.config, self._rule, folder)
        with out_of_memory():
            model = _all_but_head(model, self._dtype).to(device).eval()
            in_memory_format(spec, model)
        self._model = torch.compile(model) if spec.compile else model

    @out_of_memory()
    @torch.no_grad()  # not inference_mode: the library keeps BEiT's indices for later passes, which may want a gradient
    def predict_on_device(
        self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None
    ) -> Float32[Tensor, "b h w"]:
        """See `DepthModel.predict`. There is no noise: seeds are ignored."""
        height, width = images.shape[1:3]
        pixels = self._rule.prepare(to_tensor(images, self._device), self.spec.input_px).to(self._dtype)
        if self._votes:
            maps = torch.cat([self._model(pixel_values=alone).predicted_depth for alone in pixels.split(1)])
            return self._rule.restore(maps, height, width)
        output = self._model(pixel_values=pixels)
        if self._is_depth_pro:
            maps = metres(output.predicted_depth, output.field_of_view, height, width)
        else:
            maps = self._rule.restore(output.predicted_depth, height, width)
        return maps


def _all_but_head(network: Any, dtype: torch.dtype) -> Any:
    """The network in this precision, its head in float32: eight bits of mantissa in a map would be steps in every slope."""
    heads = _HEADS.get(network.config.model_type, ("head",))
    for name, part in network.named_children():
        part.to(torch.float32 if name in heads else dtype)
        if name in heads and dtype != torch.float32:
            part.register_forward_pre_hook(lambda _, *given: tuple(map(_in_float32, given)), with_kwargs=True)
    return network


def _in_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, dict):
        return {name: _in_float32(part) for name, part in value.items()}
    return type(value)(map(_in_float32, value)) if isinstance(value, list | tuple) else value


def metres(
    inverse_depth: Float[Tensor, "b h2 w2"], field_of_view: Float[Tensor, "b"], height: int, width: int
) -> Float32[Tensor, "b h w"]:
    """Depth Pro's canonical inverse depth and horizontal field of view in degrees, as depth in metres at the picture's size."""
    width_over_focal = 2 * torch.tan(torch.deg2rad(field_of_view.float()) / 2)
    scaled = inverse_depth.float() * width_over_focal[:, None, None]
    return 1 / resize_maps(scaled, height, width).clamp(1e-4, 1e4)


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
    metric = config.get("depth_estimation_type") == "metric" or config.get("model_type") in METRIC_FAMILIES
    relative = config.get("model_type") in ("depth_anything", "dpt")
    return FamilyStatements(
        depth_spaces=(Statement(value="depth_metric", source=f"{path}, whose network gives metres"),) if metric else (),
        usual_space="disparity_affine_invariant" if relative else None,
        input_px=stated_size_of(folder),
    )


FAMILY = Family(
    recognises=lambda folder: (folder / "config.json").exists() and not (folder / "unet").is_dir(),
    states=_states,
    load=TransformersModel,
    problems=no_noise,
)
