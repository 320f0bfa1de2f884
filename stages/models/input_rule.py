"""How a checkpoint of the transformers library wants its pictures, and how its map comes back to their size.

Read from its `preprocessor_config.json` and its configuration, and done in torch, because the library's processors want
torchvision. Five of them are known; what each does:

- `DPTImageProcessor` (Depth Anything, DPT): a size, a multiple, the aspect kept or not, mean and deviation.
- `DepthProImageProcessor`: one size, resized without antialiasing.
- `ZoeDepthImageProcessor`: a border of int(3 * sqrt(side / 2)) pixels on each side that mirrors the picture; the whole resized
  corner on corner, without antialiasing; the border is cut off the map.
- `GLPNImageProcessor`: each side the largest multiple of 32 that is not above it; no mean and deviation.
- `Tipsv2DptImageProcessor`: a size, the aspect not kept; no mean and deviation.

Refused with a reason: checkpoints whose processor does anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from manifests.errors import RefusedError
from stages.models.checkpoints import read_image_statistics, read_json, read_preprocessor
from stages.models.family import pixels
from stages.models.pixels import network_size, resize_maps, resize_pictures, stated_size
from stages.models.spec import InputSize

PREPROCESSOR = "preprocessor_config.json"
_LARGEST_MULTIPLE_PX = 256
_BILINEAR, _BICUBIC = 2, 3  # PIL's numbers


@dataclass(frozen=True, kw_only=True)
class _Processor:
    """One of the library's processors: what it always does, and what its file says of the rest."""

    resample: int = _BILINEAR
    """Where the file does not say it."""
    antialias: bool = True
    normalizes: bool = True
    has_size: bool = True
    multiple: str = "ensure_multiple_of"
    """The file's word for what the sides are multiples of."""
    usual_multiple: int = 1
    floors: bool = False
    pads: bool = False
    bicubic_maps: bool = False
    needs: Mapping[str, Any]
    """What its file may say of these and nothing else."""


_RESCALED = {"do_rescale": True, "rescale_factor": 1 / 255}
_PROCESSORS: Mapping[str, _Processor] = {
    "DPTImageProcessor": _Processor(resample=_BICUBIC, needs=_RESCALED | {"do_normalize": True, "do_pad": False}),
    "DepthProImageProcessor": _Processor(antialias=False, needs=_RESCALED | {"do_normalize": True, "do_pad": False}),
    # Its class has 1/32 where 32 is meant; the published files say 32.
    "ZoeDepthImageProcessor": _Processor(
        antialias=False,
        usual_multiple=32,
        pads=True,
        bicubic_maps=True,
        needs=_RESCALED | {"do_normalize": True, "do_resize": True},
    ),
    "GLPNImageProcessor": _Processor(
        normalizes=False,
        has_size=False,
        multiple="size_divisor",
        usual_multiple=32,
        floors=True,
        bicubic_maps=True,
        needs=_RESCALED | {"do_normalize": False, "do_pad": False, "do_resize": True},
    ),
    "Tipsv2DptImageProcessor": _Processor(normalizes=False, needs=_RESCALED | {"do_normalize": False, "do_pad": False}),
}


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
    floors: bool = False
    """Sides are the largest multiples that are not above, and not the nearest."""
    corner_to_corner: bool = False
    """Pictures are resized so that the centres of their corners stay in the corners (`align_corners`)."""
    pads: bool = False
    """Pictures get a border that mirrors them, and maps lose it; the sizes are those of pictures with it."""
    bicubic_maps: bool = False

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
        return network_size(
            height, width, multiple=self.multiple, input_px=long_px, keep_aspect=keep_aspect, floors=self.floors
        )

    def prepare(self, pictures: Float[Tensor, "b 3 h w"], input_px: InputSize | None) -> Float[Tensor, "b 3 h2 w2"]:
        """Pictures in [0, 1] as the network takes them."""
        border_y, border_x = self._border(*pictures.shape[-2:])
        if border_y or border_x:
            pictures = F.pad(pictures, (border_x, border_x, border_y, border_y), mode="reflect")
        size = self.size(pictures.shape[-2], pictures.shape[-1], input_px)
        if self.corner_to_corner:
            mode = "bicubic" if self.bicubic else "bilinear"
            pictures = F.interpolate(pictures, size, mode=mode, align_corners=True)
        else:
            pictures = resize_pictures(pictures, size, bicubic=self.bicubic, antialias=self.antialias)
        shift, spread = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (pictures - shift) / spread

    def restore(self, maps: Float[Tensor, "b h2 w2"], height: int, width: int) -> Float32[Tensor, "b h w"]:
        """The network's maps at the size of the pictures that `prepare` was given, without the border."""
        border_y, border_x = self._border(height, width)
        padded = (height + 2 * border_y, width + 2 * border_x)
        maps = resize_maps(maps, *padded, bicubic=self.bicubic_maps)
        return maps[:, border_y : border_y + height, border_x : border_x + width]

    def _border(self, height: int, width: int) -> tuple[int, int]:
        """Pixels above and below, and left and right; a mirror shows at most the picture."""
        if not self.pads:
            return 0, 0
        return min(int(3 * math.sqrt(height / 2)), height - 1), min(int(3 * math.sqrt(width / 2)), width - 1)


def read_input_rule(config: Any, folder: Path) -> InputRule:
    """The rule of a checkpoint's processor and configuration. Raises ValueError for one that is not implemented here."""
    said, where = read_preprocessor(folder), f"{folder / PREPROCESSOR}"
    kind, processor = _processor_of(said, where)
    resample = said.get("resample", processor.resample)
    if resample not in (_BILINEAR, _BICUBIC):
        raise RefusedError(f"{where}: resample is {resample}, expected {_BILINEAR} (bilinear) or {_BICUBIC} (bicubic)")
    mean, std = read_image_statistics(folder) if processor.normalizes else ([0.0] * 3, [1.0] * 3)
    stated_px = stated_size_of(folder)
    if kind == "DepthProImageProcessor" and stated_px is None:
        raise RefusedError(f"{where}: no size; expected the height and width that Depth Pro's network takes")
    return InputRule(
        mean=tuple(mean),
        std=tuple(std),
        bicubic=resample == _BICUBIC,
        antialias=processor.antialias,
        multiple=math.lcm(_multiple(said, processor, where), _patch_px(config)),
        keep_aspect=bool(said.get("keep_aspect_ratio", not processor.has_size)),
        # The library's DPT learns the shape of its patches' grid from a backbone, and takes a root without one.
        square=config.model_type == "dpt" and (getattr(config, "backbone_config", None) is None or config.is_hybrid),
        fixed_px=_fixed_px(kind, config, stated_px),
        stated_px=stated_px,
        floors=processor.floors,
        corner_to_corner=processor.pads,
        pads=processor.pads and said.get("do_pad", True),
        bicubic_maps=processor.bicubic_maps,
    )


def stated_size_of(folder: Path) -> tuple[int, int] | None:
    """Height and width by a processor's `size`; None where it states none. Raises ValueError for a size that is none."""
    said = read_json(folder / PREPROCESSOR)
    known = _PROCESSORS.get(_kind(said))
    if (known and not known.has_size) or not said.get("do_resize", True) or (size := said.get("size")) is None:
        return None
    where = f"{folder / PREPROCESSOR}: size"
    sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    return cast("tuple[int, int]", tuple(pixels(side, where) for side in sides))


def _kind(said: Mapping[str, Any]) -> str:
    """The processor's class, whatever version of the library wrote its name."""
    kind = said.get("image_processor_type") or said.get("feature_extractor_type") or "DPTImageProcessor"
    return str(kind).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")


def _processor_of(said: Mapping[str, Any], where: str) -> tuple[str, _Processor]:
    kind = _kind(said)
    if kind not in _PROCESSORS:
        raise RefusedError(
            f"{where}: image_processor_type is {kind}, expected one of {', '.join(_PROCESSORS)}; others are not supported. "
            "A function of your own can load the network and prepare its pictures (docs/labelling.md, a network of another "
            "package)"
        )
    for name, wanted in _PROCESSORS[kind].needs.items():
        found = said.get(name)
        if found is not None and found != wanted:
            raise RefusedError(
                f"{where}: {name} is {found}, expected {wanted} of {kind}; other ways to prepare pictures are not supported"
            )
    return kind, _PROCESSORS[kind]


def _multiple(said: Mapping[str, Any], processor: _Processor, where: str) -> int:
    multiple = said.get(processor.multiple) or processor.usual_multiple
    if type(multiple) is not int or not 1 <= multiple <= _LARGEST_MULTIPLE_PX:
        raise RefusedError(f"{where}: {processor.multiple} is {multiple!r}, expected 1 to {_LARGEST_MULTIPLE_PX}")
    return multiple


def _patch_px(config: Any) -> int:
    backbone = getattr(config, "backbone_config", None)
    patch_px = getattr(config, "patch_size", None) or getattr(backbone, "patch_size", None) or 32
    # Swin merges 2 x 2 between its stages, and pads a picture that this does not tile: the map would cover more than it.
    return int(patch_px) * 2 ** (len(getattr(backbone, "depths", (1,))) - 1)


def _fixed_px(kind: str, config: Any, stated_px: tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of a network that takes no other: Depth Pro, and a hybrid DPT, which the library refuses all else."""
    if config.model_type == "dpt" and config.is_hybrid:
        sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        return cast("tuple[int, int]", tuple(sides))
    return stated_px if kind == "DepthProImageProcessor" else None
