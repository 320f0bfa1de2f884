"""A page's curves, as inline SVG in its own colours and font."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

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
        axes.set(xlim=(0, 1.05 * max(*before, *after)), ylim=(0, 1.02), xlabel="AbsRel", ylabel="share below it")
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
