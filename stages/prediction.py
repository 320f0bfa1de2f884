"""Whole photographs as depth maps: detail from tiles, 16-bit PNG files that say what their numbers mean, colour pictures.

A map has its photograph's size. Tiles of an affine-invariant model are each aligned in scale and shift, by least squares, to
the whole picture's map of the same area; those of a metric model are taken as they are. Where tiles overlap they are blended
with weights that fall smoothly to zero at their edges, so that no edge shows.

NaN is a failure, but in maps of a model that marks what it does not know (`marks_invalid_pixels`): there it stays NaN, and has
a code of its own in a PNG file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from manifests.errors import DistillError
from stages.coloring import colorize_disparity, robust_range
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.evaluation.metrics import align_scale_shift
from stages.models import DepthModel
from stages.models.batches import Predictor
from stages.models.family import marks_invalid_pixels
from stages.views import Box, even_starts

_LARGEST_CODE = 65535
_INVALID_CODE = 0
"""Of pixels without a value, in files that say so."""
_JPEG_SIDE_PX = 65500
"""Pictures with longer sides have no JPEG file."""
_NEAREST_M = 1e-3
_STRIP_PX = 2**21


class MapRejectedError(DistillError, ValueError):
    """An invalid depth map: `kind` for machines, the message for people."""

    def __init__(self, kind: Literal["non_finite_map", "constant_map"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class PicturePredictor:
    """Maps of pictures of any size, shown whole or, where they are larger than `tile_px`, also tile by tile.

    A batch that does not fit into memory is halved, for this and all further pictures of its shape. Noise has seed 0.
    """

    def __init__(self, model: DepthModel, *, batch_size: int, tile_px: int | None = None, tile_overlap: float = 0.25) -> None:
        if model.spec.depth_space is None:
            raise ValueError(f"{model.spec.name}: depth_space is None; expected a resolved spec")
        self.depth_space: DepthSpace = model.spec.depth_space
        self._model, self._batch_size = model, batch_size
        self.marks_invalid = marks_invalid_pixels(model)
        """Whether NaN in a map is a pixel that the model does not know."""
        self._tile_px, self._tile_overlap = tile_px, tile_overlap
        self._by_shape: dict[tuple[int, ...], Predictor] = {}

    def predict(self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Float32[np.ndarray, "h w"]]:
        """The map of each picture, all of one size, in the model's space.

        Raises torch.OutOfMemoryError when even one picture or tile is too much, and what `DepthModel.predict` and, for tiles
        that are not finite, `align_scale_shift` raise.
        """
        height, width = pictures[0].shape[:2]
        if self._tile_px is None or max(height, width) <= self._tile_px:
            return self._maps(pictures)
        boxes = tile_boxes(height, width, tile_px=self._tile_px, overlap=self._tile_overlap)
        affine = self.depth_space.endswith("affine_invariant")
        wholes = self._maps(pictures) if affine else [None] * len(pictures)
        return [self._tiled(picture, boxes, whole) for picture, whole in zip(pictures, wholes, strict=True)]

    def _tiled(
        self, picture: UInt8[np.ndarray, "h w 3"], boxes: Sequence[Box], whole: Float32[np.ndarray, "h w"] | None
    ) -> Float32[np.ndarray, "h w"]:
        tiles = self._maps([picture[_window(box)] for box in boxes])
        height, width, _ = picture.shape
        return blend_tiles(tiles, boxes, height_px=height, width_px=width, whole=whole, marks_invalid=self.marks_invalid)

    def _maps(self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Float32[np.ndarray, "h w"]]:
        predictor = self._by_shape.setdefault(pictures[0].shape, Predictor(self._model, self._batch_size))
        return list(predictor.predict(pictures))


def tile_boxes(height_px: int, width_px: int, *, tile_px: int, overlap: float) -> tuple[Box, ...]:
    """The fewest tiles of one size that cover a picture in an even grid; neighbours share `overlap` of a side or more.

    Squares of `tile_px`, or less along a side of the picture that is shorter. overlap: 0 or more, below 1.
    """
    height, width = min(tile_px, height_px), min(tile_px, width_px)
    tops, lefts = (
        even_starts(length, side, least=1, shared=side - max(int(side * (1 - overlap)), 1))
        for length, side in ((height_px, height), (width_px, width))
    )
    return tuple(Box(top, left, height, width) for top in tops for left in lefts)


def blend_tiles(
    tiles: Sequence[Float32[np.ndarray, "_ _"]],
    boxes: Sequence[Box],
    *,
    height_px: int,
    width_px: int,
    whole: Float32[np.ndarray, "h w"] | None = None,
    marks_invalid: bool = False,
) -> Float32[np.ndarray, "h w"]:
    """Tiles that cover a picture as one map of it.

    whole: a map of the whole picture, to which each tile is aligned in scale and shift; None blends tiles as they are. A tile
    that agrees with it only upside down, such as a piece of sky, is left out: the whole map stands there. marks_invalid: NaN
    is no value; the result has one where any tile has one, and is NaN elsewhere.
    Raises ValueError, with a whole map, for values that are not finite.
    """
    total, weights = np.zeros((height_px, width_px), np.float32), np.zeros((height_px, width_px), np.float32)
    for tile, box in zip(tiles, boxes, strict=True):
        weight = np.outer(_bump(box.height), _bump(box.width))
        values = tile if whole is None else _aligned(tile, whole[_window(box)], marks_invalid)
        if marks_invalid:
            known = ~np.isnan(values)
            values, weight = np.where(known, values, np.float32(0)), weight * known
        total[_window(box)] += weight * values
        weights[_window(box)] += weight
    return np.divide(total, weights, out=np.full_like(total, np.nan), where=weights > 0)


def _aligned(
    tile: Float32[np.ndarray, "h w"], whole: Float32[np.ndarray, "h w"], marks_invalid: bool
) -> Float32[np.ndarray, "h w"]:
    shared = ~np.isnan(tile + whole) if marks_invalid else np.ones(tile.shape, np.bool_)
    if not shared.any():
        return whole
    fit = align_scale_shift(tile, whole, shared)
    return np.float32(fit.scale) * tile + np.float32(fit.shift) if fit.scale > 0 else whole


def _bump(length: int) -> Float32[np.ndarray, "length"]:
    """Almost 0 at both ends, 1 in the middle, without a corner."""
    return (np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2).astype(np.float32)


def _window(box: Box) -> tuple[slice, slice]:
    return np.s_[box.top : box.top + box.height, box.left : box.left + box.width]


# --- files ----------------------------------------------------------------------------------------------------------


def require_map(values: Float32[np.ndarray, "h w"], *, marks_invalid: bool = False) -> None:
    """Raises MapRejectedError for values that are not finite, or a single one: a dead network, or a picture of one pixel.

    marks_invalid: NaN is no value, and only a map of nothing else is rejected for it.
    """
    known = values[~np.isnan(values)] if marks_invalid else values
    if wrong := int(np.count_nonzero(~np.isfinite(known))):
        raise MapRejectedError("non_finite_map", f"{wrong} of {values.size} values are not finite")
    if not known.size:
        raise MapRejectedError("non_finite_map", f"all {values.size} values are NaN, so the model knows none of the pixels")
    if (low := float(known.min())) == float(known.max()):
        everywhere = "everywhere" if known.size == values.size else f"at all {known.size} pixels that are known"
        raise MapRejectedError("constant_map", f"the prediction is {low:g} {everywhere}")


def encode_depth_png(
    values: Float32[np.ndarray, "h w"], space: DepthSpace, about: Mapping[str, str], *, marks_invalid: bool = False
) -> bytes:
    """A 16-bit grey PNG file; value = offset + scale * code, to half a code (1/131070 of the map's range).

    Its tEXt chunks are `scale`, `offset`, `depth_space`, and those of `about`. A map with NaN, which `marks_invalid` allows,
    has `invalid_code` too, the code of its pixels without a value. Raises MapRejectedError as `require_map` does.
    """
    require_map(values, marks_invalid=marks_invalid)
    known = ~np.isnan(values)
    low, high, first = float(np.nanmin(values)), float(np.nanmax(values)), 0 if known.all() else _INVALID_CODE + 1
    scale = (high - low) / (_LARGEST_CODE - first)
    codes = np.empty(values.shape, np.uint16)
    for rows in _strips(values):
        steps = np.rint((np.where(known[rows], values[rows], low) - low) / np.float64(scale)).clip(0, _LARGEST_CODE - first)
        codes[rows] = np.where(known[rows], steps + first, _INVALID_CODE)
    own = {"depth_space": space, "scale": repr(scale), "offset": repr(low - first * scale)}
    own |= {"invalid_code": str(_INVALID_CODE)} if first else {}
    text = PngImagePlugin.PngInfo()
    for key, value in {**own, **about}.items():
        text.add_text(key, value)
    file = io.BytesIO()
    Image.fromarray(codes).save(file, "PNG", pnginfo=text, compress_level=1)  # 3 takes half as long again, for 8 % less
    return file.getvalue()


def read_depth_png(path: Path) -> tuple[Float32[np.ndarray, "h w"], DepthSpace]:
    """A map and what its numbers mean, from a file of `encode_depth_png`; NaN where it has no value.

    Raises ValueError for what is no picture, OSError for what is missing, damaged or no picture.
    """
    with Image.open(path) as image:
        found = {key: image.info.get(key) for key in ("scale", "offset", "depth_space")}
        if image.mode != "I;16" or found["depth_space"] not in DEPTH_SPACES or not (found["scale"] and found["offset"]):
            raise ValueError(
                f"{path}: found {image.format} of mode {image.mode} with {found}; expected a 16-bit grey PNG with these three"
            )
        codes, marks_invalid = np.asarray(image), "invalid_code" in image.info
    values = float(found["offset"]) + float(found["scale"]) * codes.astype(np.float64)
    if marks_invalid:
        values[codes == _INVALID_CODE] = np.nan
    return values.astype(np.float32), found["depth_space"]


def png_text(path: Path) -> dict[str, str]:
    """The text in front of a PNG's pixels, which are not read; empty for what is no picture. Raises OSError as `open` does."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return {}


def encode_color_jpeg(values: Float32[np.ndarray, "h w"], space: DepthSpace) -> bytes:
    """The map as colours, near is red, grey has no value, in the map's own robust range; shrunk where a side is too long for a
    JPEG."""
    nearness = _nearness(values, space)
    low, high = robust_range(nearness, np.isfinite(nearness))
    colors = np.empty((*values.shape, 3), np.uint8)
    for rows in _strips(values):
        colors[rows] = colorize_disparity(nearness[rows], low=low, high=high)
    image = Image.fromarray(colors)
    image.thumbnail((_JPEG_SIDE_PX, _JPEG_SIDE_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


def _strips(values: Float32[np.ndarray, "h w"]) -> Iterator[slice]:
    """Rows of a map, some megapixels at a time: what is made of one on the way is many times as large as its result."""
    rows = max(_STRIP_PX // values.shape[1], 1)
    return (slice(top, top + rows) for top in range(0, values.shape[0], rows))


def _nearness(values: Float32[np.ndarray, "h w"], space: DepthSpace) -> Float32[np.ndarray, "h w"]:
    match space:
        case "disparity_affine_invariant" | "disparity_metric":
            return values
        case "depth_affine_invariant":
            return -values
        case "depth_metric":
            return 1 / np.maximum(values, np.float32(_NEAREST_M))
    assert_never(space)
