"""A picture of a report and what is shown of it: maps, how far they are from the first, and values for the large view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.show.picture import Opinion, difference_panel, disparity_of
from pipeline.viewer.files import packed_map
from stages.coloring import colorize_disparity, robust_range
from stages.depth_space import DepthSpace
from stages.evaluation.metrics import align_scale_shift
from stages.label_store import ImageLabels, Label

PHOTOGRAPH = "photograph"
_VALUES_PX = 280  # the long side of the values in the page, at most
_BITS = 12


@dataclass(frozen=True, kw_only=True)
class ShownMap:
    """A map of an example. score: what stands beside its name; best: whether that is the best of the example."""

    name: str
    space: DepthSpace
    label: Label
    score: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture of an example. id: the same for the same thing in each example."""

    id: str
    caption: str
    rgb: UInt8[np.ndarray, "h w 3"]
    score: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture and what is shown of it.

    key: hostile text. tiles: the photograph, then a picture of each map; differences: of all but the first map, how far it is
    from that. maps: for the large view, values as `packed_map` has them. compared: two tiles to put beside each other.
    """

    key: str
    tiles: Sequence[Tile]
    differences: Sequence[Tile]
    maps: Sequence[Mapping[str, Any]]
    told: Mapping[str, str] = field(default_factory=dict)
    compared: tuple[str, str] | None = None


def label_of(values: Float[np.ndarray, "h w"]) -> Label:
    """A map that has a value wherever it is finite."""
    valid = np.isfinite(values)
    return Label(values=np.where(valid, values, 0).astype(np.float32), valid=valid)


def make_example(
    key: str,
    rgb: UInt8[np.ndarray, "h w 3"],
    maps: Sequence[ShownMap],
    *,
    caption: str = "Photograph",
    told: Mapping[str, str] | None = None,
    compared: tuple[str, str] | None = None,
) -> Example:
    """The picture with its maps, all of its size; in colours they are aligned to the first one, by least squares in disparity.

    compared: names of two maps; left out where one of them is not there.
    """
    first = next(iter(maps), None)
    tiles = [Tile(id=PHOTOGRAPH, caption=caption, rgb=rgb)]
    for shown in maps:
        picture = _in_colours_of(first or shown, shown)
        tiles.append(Tile(id=shown.name, caption=shown.name, rgb=picture, score=shown.score, best=shown.best))
    there = {shown.name for shown in maps}
    return Example(
        key=key,
        tiles=tiles,
        differences=[_difference(first, shown) for shown in maps[1:] if first is not None],
        maps=[_for_the_large_view(shown) for shown in maps],
        told=told or {},
        compared=compared if compared and there.issuperset(compared) else None,
    )


def _in_colours_of(first: ShownMap, shown: ShownMap) -> UInt8[np.ndarray, "h w 3"]:
    """The map in the range of the first one, once it is aligned to that."""
    target, label = disparity_of(first.label, first.space), disparity_of(shown.label, shown.space)
    low, high = robust_range(target.values, target.valid)
    shared, values = target.valid & label.valid, label.values
    if shown is not first and shared.any():
        fit = align_scale_shift(values, target.values, shared)
        values = fit.scale * values + fit.shift
    return colorize_disparity(values, label.valid, low, high)


def _difference(first: ShownMap, shown: ShownMap) -> Tile:
    """How much nearer or farther than the first map it is, as `pipeline.show` draws it."""
    opinions = [Opinion(m.name, m.space, ImageLabels(context=m.label, patches=())) for m in (first, shown)]
    panel = difference_panel(*opinions)
    apart = panel.title.removeprefix(f"{shown.name} against {first.name}: ")
    return Tile(id=f"difference: {shown.name}", caption=shown.name, rgb=panel.rgb, score=apart)


def _for_the_large_view(shown: ShownMap) -> dict[str, Any]:
    step = -(-max(shown.label.values.shape) // _VALUES_PX)
    label = Label(values=shown.label.values[::step, ::step], valid=shown.label.valid[::step, ::step])
    low, high = robust_range(label.values, label.valid)
    about = {"name": shown.name, "space": shown.space, "low": low, "high": high, "valid": float(label.valid.mean())}
    return about | dict(packed_map(label, _BITS))
