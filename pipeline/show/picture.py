"""One picture of what the teachers say of a photograph: a row for each teacher, a legend below.

A row has the whole view's label, the close-ups' labels stitched, and where there is no label. Before these stands, in the first
row, what the teachers saw; in the others, how far the teacher is from the first one once scale and shift are fitted. Depths
are shown as disparities, so that red is near everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from manifests.errors import RefusedError
from stages.coloring import INVALID_GREY, colorize_difference, colorize_disparity, robust_range
from stages.depth_space import DepthSpace, convert_to_disparity, is_disparity
from stages.evaluation.metrics import align_scale_shift
from stages.label_store import ImageLabels, Label
from stages.stitching import stitch_patches

_LEAST_PX, _MOST_PX = 360, 1120
"""Width that a panel has at least, and the long side that its map has at most."""
_GAP_PX, _TEXT_PX = 10, 15
_LINE_PX = _TEXT_PX + 8
_MOST_DIFFERENCE = 0.25
"""Of the first teacher's range (its 2 % to 98 % quantiles): the full colour of a difference."""
_INVALID, _INVALID_CLOSE = (255, 0, 255), (255, 200, 0)
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


class Opinion(NamedTuple):
    """What a teacher says of a context, and what its numbers mean."""

    teacher: str
    space: DepthSpace
    labels: ImageLabels


class Panel(NamedTuple):
    title: str
    rgb: UInt8[np.ndarray, "h w 3"]


def label_picture(
    picture: UInt8[np.ndarray, "h w 3"], opinions: Sequence[Opinion], lines: Sequence[str]
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The picture as described above. `lines` are written over it, without control characters, please.

    opinions: of one teacher or more, of the same size as `picture`; the first is the one that the others are compared with.
    Raises RefusedError for labels of another size, and as `stitch_patches` does.
    """
    for teacher, _, labels in opinions:
        if labels.context.values.shape != picture.shape[:2]:
            found = f"found a label of {labels.context.values.shape} px by {teacher}"
            raise RefusedError(f"{found}, expected the picture's {picture.shape[:2]}; verify the run")
    rows = []
    for number, opinion in enumerate(opinions):
        seen = difference_panel(opinions[0], opinion) if number else Panel("what the teachers saw", picture)
        rows.append([seen, *_panels(picture, opinion)])
    grid = np.concatenate([_row([_framed(panel) for panel in row]) for row in rows])
    swatches = _legend(opinions[0].teacher, compared=len(opinions) > 1)
    page = np.concatenate([_text(lines, grid.shape[1]), grid, _flowing(swatches, grid.shape[1])])
    return np.pad(page, ((_GAP_PX, _GAP_PX), (_GAP_PX, 0), (0, 0)), constant_values=255)


def _panels(picture: UInt8[np.ndarray, "h w 3"], opinion: Opinion) -> list[Panel]:
    """A teacher's whole view, its close-ups, in the same colours, and where it has no label."""
    teacher, space, labels = opinion
    whole, stitched = disparity_of(labels.context, space), disparity_of(stitch_patches(labels), space)
    low, high = robust_range(whole.values, whole.valid)
    count, converted = len(labels.patches), "" if is_disparity(space) else ", as disparity"
    return [
        Panel(f"{teacher}: the whole view{converted}", colorize_disparity(whole.values, whole.valid, low, high)),
        Panel(f"{teacher}: {count} close-ups, stitched", colorize_disparity(stitched.values, stitched.valid, low, high)),
        _invalid(picture, teacher, labels),
    ]


def disparity_of(label: Label, space: DepthSpace) -> Label:
    return Label(values=convert_to_disparity(label.values, label.valid, space, "approximate"), valid=label.valid)


def difference_panel(first: Opinion, other: Opinion) -> Panel:
    """How much nearer or farther the other teacher's whole view is, aligned by least squares in disparity."""
    target, label = (disparity_of(opinion.labels.context, opinion.space) for opinion in (first, other))
    shared = target.valid & label.valid
    title = f"{other.teacher} against {first.teacher}"
    if not shared.any():
        return Panel(f"{title}: no pixel in common", colorize_difference(target.values, shared, 1))
    fit = align_scale_shift(label.values, target.values, shared)
    low, high = robust_range(target.values, shared)
    difference = (fit.scale * label.values + fit.shift - target.values) / max(high - low, np.finfo(np.float32).tiny)
    mean = f"{title}: {100 * np.abs(difference[shared]).mean():.1f} % apart" + ", upside down" * (fit.scale < 0)
    return Panel(mean, colorize_difference(difference, shared, _MOST_DIFFERENCE))


def _invalid(picture: UInt8[np.ndarray, "h w 3"], teacher: str, labels: ImageLabels) -> Panel:
    """The photograph, pale, and over it the pixels without a label."""
    close = np.zeros(picture.shape[:2], np.bool_)
    for patch in labels.patches:
        top, left, height, width = patch.box
        close[top : top + height, left : left + width] |= ~patch.valid
    pale = np.repeat(160 + 0.35 * picture.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    pale[close] = _INVALID_CLOSE
    pale[~labels.context.valid] = _INVALID
    return Panel(f"{teacher}: invalid: {_percent(~labels.context.valid)}; in close-ups: {_percent(close)}", pale)


def _percent(pixels: Bool[np.ndarray, "h w"]) -> str:
    return f"{100 * pixels.mean():.1f} %" if pixels.any() else "none"


def _legend(first: str, *, compared: bool) -> list[Panel]:
    """Swatches, each with what it stands for."""
    ramp = np.repeat(np.linspace(-1, 1, 120, dtype=np.float32)[None], _TEXT_PX, 0)
    everywhere = np.ones(ramp.shape, np.bool_)
    difference = f"farther or nearer than {first}, up to {100 * _MOST_DIFFERENCE:.0f} % of its range (scale and shift fitted)"
    return [
        Panel("far to near", colorize_disparity(ramp)),
        *([Panel(difference, colorize_difference(ramp, everywhere, 1))] if compared else []),
        Panel("no label: invalid", _swatch((INVALID_GREY,) * 3)),
        Panel("invalid in the whole view", _swatch(_INVALID)),
        Panel("invalid in a close-up alone", _swatch(_INVALID_CLOSE)),
    ]


def _swatch(color: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    return np.full((_TEXT_PX, 2 * _TEXT_PX, 3), color, np.uint8)


def _framed(panel: Panel) -> UInt8[np.ndarray, "_ _ 3"]:
    """The panel under its title, enlarged by a whole number where it is small, shrunk where it is large."""
    height, width = panel.rgb.shape[:2]
    times = max(min(-(-_LEAST_PX // width), _MOST_PX // max(height, width)), 1)
    shrink = min(_MOST_PX / max(height, width), 1)
    size = (times * width, times * height) if shrink == 1 else (max(round(width * shrink), 1), max(round(height * shrink), 1))
    how = Image.Resampling.NEAREST if shrink == 1 else Image.Resampling.BOX
    rgb = np.asarray(Image.fromarray(panel.rgb).resize(size, how))
    missing = max(_LEAST_PX - rgb.shape[1], 0)
    rgb = np.pad(rgb, ((0, 0), (0, missing), (0, 0)), constant_values=255)
    return np.concatenate([_text([panel.title], rgb.shape[1]), rgb])


def _row(panels: Sequence[UInt8[np.ndarray, "h _ 3"]]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Panels beside each other, with a gap after each and below."""
    return np.concatenate([np.pad(p, ((0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=255) for p in panels], 1)


def _flowing(items: Iterable[Panel], width_px: int) -> UInt8[np.ndarray, "_ w 3"]:
    """Swatches, each before its words, in as many lines as they need."""
    lines: list[list[UInt8[np.ndarray, "_ _ 3"]]] = [[]]
    for item in items:
        words = _text([item.title], int(_font().getlength(item.title)) + 4 * _GAP_PX)
        swatch = np.pad(item.rgb, ((4, _LINE_PX - _TEXT_PX - 4), (0, _GAP_PX), (0, 0)), constant_values=255)
        entry = np.concatenate([swatch, words], 1)[:, :width_px]
        if lines[-1] and sum(part.shape[1] for part in lines[-1]) + entry.shape[1] > width_px:
            lines.append([])
        lines[-1].append(entry)
    joined = [np.concatenate(line, 1) for line in lines]
    return np.concatenate([np.pad(x, ((0, 0), (0, width_px - x.shape[1]), (0, 0)), constant_values=255) for x in joined])


def _text(lines: Sequence[str], width_px: int) -> UInt8[np.ndarray, "_ w 3"]:
    """Lines of text on white, cut where they are too long."""
    image = Image.new("RGB", (width_px, _LINE_PX * len(lines)), _PAPER)
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((0, number * _LINE_PX + 2), _cut(line, width_px), _INK, _font())
    return np.asarray(image)


def _cut(line: str, width_px: int) -> str:
    line = line[:width_px]
    while _font().getlength(line) > width_px:
        line = line.removesuffix("…")[:-1] + "…"
    return line


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's own, which comes with it and has most alphabets."""
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), _TEXT_PX)
