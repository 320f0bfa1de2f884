"""The report's pictures: photographs and maps as data URIs, curves as inline SVG in the page's own colours and font."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

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
