"""The report's pictures: photographs and maps as data URIs, curves as inline SVG in the page's own colours and font."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from stages.coloring import COLOR_MAP, colorize_disparity, robust_range
from stages.evaluation.metrics import align_scale_shift, depth_metrics
from stages.evaluation.rendered import MAX_DEPTH_M, MIN_DEPTH_M, resize_bilinear

PHOTOGRAPH, TRUTH = "Photograph", "True disparity"

# Drawn in these, shown in the page's variables: the curves follow light and dark as the text does.
_INK, _MUTED, _LINE, _BEFORE, _AFTER = "#010101", "#020202", "#030303", "#040404", "#050505"
_SHOWN = {_INK: "currentColor", _MUTED: "var(--muted)", _LINE: "var(--line)", _BEFORE: "var(--before)", _AFTER: "var(--accent)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "text.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
_MOST_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture and its caption. score: what stands beside the caption, or nothing. best: whether it is the row's lowest."""

    caption: str
    uri: str
    height_px: int
    width_px: int
    score: str = ""
    best: bool = False


def depth_colors() -> list[str]:
    """Eleven colours of the maps' colour scale, from far to near, as CSS writes them."""
    return [to_hex(colormaps[COLOR_MAP](position)) for position in np.linspace(0, 1, 11)]


def example_tiles(
    rgb: UInt8[np.ndarray, "h w 3"],
    depth_m: Float[np.ndarray, "h2 w2"] | None,
    maps: Mapping[str, Float[np.ndarray, "_ _"]],
) -> list[Tile]:
    """The photograph, the truth where it is known, and every map, as `pipeline.report.Example` describes them."""
    abs_rels = {} if depth_m is None else {caption: _abs_rel(values, depth_m) for caption, values in maps.items()}
    scores = {caption: "no score" if value is None else f"{value:.3f}" for caption, value in abs_rels.items()}
    lowest = min((value for value in abs_rels.values() if value is not None), default=None)
    shown = {caption: resize_bilinear(values, rgb.shape[:2]) for caption, values in maps.items()}
    if depth_m is not None:
        with np.errstate(divide="ignore"):
            truth = np.where(np.isfinite(depth_m), 1 / depth_m, np.nan)
        shown = {TRUTH: resize_bilinear(truth, rgb.shape[:2]), **shown}
    reference = next(iter(shown.values()), np.zeros(rgb.shape[:2]))
    low, high = robust_range(reference)
    tiles = [_tile(PHOTOGRAPH, rgb)]
    for caption, values in shown.items():
        picture = colorize_disparity(_aligned(values, reference), low=low, high=high)
        best = lowest is not None and abs_rels.get(caption) == lowest
        tiles.append(_tile(caption, picture, scores.get(caption, ""), best))
    return tiles


def _tile(caption: str, picture: UInt8[np.ndarray, "h w 3"], score: str = "", best: bool = False) -> Tile:
    height_px, width_px = picture.shape[:2]
    return Tile(caption=caption, uri=picture_uri(picture), height_px=height_px, width_px=width_px, score=score, best=best)


def _aligned(values: Float[np.ndarray, "h w"], reference: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    shared = np.isfinite(values) & np.isfinite(reference)
    if not shared.any():
        return values
    fit = align_scale_shift(values, reference, shared)
    return fit.scale * values + fit.shift


def _abs_rel(values: Float[np.ndarray, "h w"], depth_m: Float[np.ndarray, "h2 w2"]) -> float | None:
    """AbsRel of an affine-invariant disparity map; None for one that cannot be scored (dead, or nothing in common)."""
    disparity = resize_bilinear(values, depth_m.shape)
    valid: Bool[np.ndarray, "h2 w2"] = (depth_m > MIN_DEPTH_M) & (depth_m < MAX_DEPTH_M) & np.isfinite(disparity)
    if not (valid & (disparity > 0)).any():
        return None
    metrics = depth_metrics(
        disparity, depth_m, valid, space="disparity_affine_invariant", min_depth_m=MIN_DEPTH_M, max_depth_m=MAX_DEPTH_M
    )
    return metrics.abs_rel


def picture_uri(rgb: UInt8[np.ndarray, "h w 3"]) -> str:
    """The picture as a `data:` URI (JPEG without colour subsampling, which would smear a map's edges)."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def curve_svg(name: str, steps: Sequence[int], values: Sequence[float]) -> str:
    """One loss over the steps: every value lightly, a moving average over a twentieth of them strongly."""
    at, raw = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    smooth = _moving_average(raw, max(len(raw) // 20, 1))
    thin = np.s_[:: max(len(raw) // _MOST_POINTS, 1)]
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(3.1, 2.0)
        axes.plot(at[thin], raw[thin], color=_AFTER, alpha=0.28, linewidth=0.8)
        axes.plot(at[thin], smooth[thin], color=_AFTER, linewidth=2)
        low, high = np.quantile(raw, (0.005, 0.995))  # one wild step does not flatten the curve
        margin = 0.08 * (high - low) or 0.5
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("step")
        return _svg(figure, f"curve {name}")


def scatter_svg(before: Sequence[float], after: Sequence[float]) -> str:
    """AbsRel of each scene before (x) and after (y); below the diagonal is better."""
    end = 1.05 * max(*before, *after)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(4.6, 3.5)
        axes.plot([0, end], [0, end], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.scatter(before, after, s=16, color=_AFTER, alpha=0.65, linewidths=0)
        axes.set(xlim=(0, end), ylim=(0, end), xlabel="AbsRel before", ylabel="AbsRel after")
        axes.text(0.96, 0.05, "better after", transform=axes.transAxes, ha="right", color=_MUTED)
        axes.text(0.04, 0.93, "worse after", transform=axes.transAxes, color=_MUTED)
        return _svg(figure, "scatter")


def share_svg(before: Sequence[float], after: Sequence[float]) -> str:
    """Share of scenes whose AbsRel is below a bound, before and after; higher is better."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(4.6, 3.5)
        for label, values, color in (("before", before, _BEFORE), ("after", after, _AFTER)):
            axes.ecdf(np.asarray(values), color=color, linewidth=2, label=label)
        axes.set(xlim=(0, 1.05 * max(*before, *after)), ylim=(0, 1.02), xlabel="AbsRel", ylabel="share of scenes below it")
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure, "share")


@dataclass(frozen=True, kw_only=True)
class MapPoint:
    """A teacher on the map: what its close-ups gain in detail and lose in geometry, and what a student gains by them.

    sure: whether the gain's interval excludes 0.
    """

    detail: float
    geometry: float
    gain: float
    sure: bool


def map_svg(points: Sequence[MapPoint], metric: str) -> str:
    """Where close-ups help: blue is a gain of the student, red a loss; filled where the interval excludes 0."""
    most = max((abs(point.gain) for point in points), default=0) or 1.0
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(5.2, 4.0)
        for at, draw in ((0, axes.axhline), (0, axes.axvline)):
            draw(at, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for point in points:
            color = to_hex(colormaps["RdBu"](0.5 + 0.45 * point.gain / most))
            face = color if point.sure else "none"
            axes.scatter(point.detail, point.geometry, s=190, facecolors=face, edgecolors=_MUTED, linewidths=1.2)
            text = f"{point.gain:+.3f}".replace("-", "−")
            axes.annotate(text, (point.detail, point.geometry), (0, -17), textcoords="offset points", ha="center", size=8)
        axes.margins(0.16)
        axes.set_xlabel("detail: edge F1 of close-ups less that of slices")
        axes.set_ylabel("geometry: AbsRel of close-ups less that of slices")
        return _svg(figure, f"map {metric}")


def _axes(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _moving_average(values: Float64[np.ndarray, "n"], window: int) -> Float64[np.ndarray, "n"]:
    """Centred; near the ends over what is there."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _svg(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    no_metadata: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": salt}):  # the same report twice is the same file
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r' (width|height)="[\d.]+pt"| xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", drawing, count=5)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # the same in every figure, and an id may occur once on a page
    for drawn, shown in _SHOWN.items():
        drawing = drawing.replace(drawn, shown)
    return drawing
