"""The rules by which a benchmark is scored: everything that moves a number, in one place, by name.

Three protocols, after PAPER's section on evaluation:

- `marigold-disparity`: lists, ranges, crops and input sizes of Marigold's evaluation; scale and shift are fitted in disparity.
- `marigold-depth`: the same, but fitted in depth, as Marigold is scored itself.
- `dav2`: as marigold-disparity, with Garg's crop on KITTI in place of Eigen's, as Depth Anything v2 is reported.

A disparity predictor is never scored in depth, nor a depth predictor in disparity: the inverse of an affine-invariant map is
not affine-invariant. Metric predictors are scored as affine-invariant ones of their kind, as zero-shot tables do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Literal, assert_never, get_args

from stages.depth_space import DepthSpace
from stages.evaluation.metrics import DISPARITY_FLOOR

BenchmarkName = Literal["nyuv2", "kitti", "diode", "scannet", "eth3d"]
BENCHMARKS: tuple[BenchmarkName, ...] = get_args(BenchmarkName)
ProtocolName = Literal["marigold-disparity", "marigold-depth", "dav2"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
RegionName = Literal["all", "eigen", "kitti-eigen", "garg"]


@dataclass(frozen=True, kw_only=True)
class Region:
    """Rows and columns that are scored, half-open, of pictures of exactly this height and width, pixels."""

    size_px: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


REGIONS: dict[RegionName, Region | None] = {
    "all": None,
    "eigen": Region(size_px=(480, 640), rows=(45, 471), columns=(41, 601)),
    "kitti-eigen": Region(size_px=(352, 1216), rows=(117, 321), columns=(43, 1172)),
    "garg": Region(size_px=(352, 1216), rows=(143, 349), columns=(43, 1172)),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkRules:
    """How one benchmark, or a set of one's own, is scored under one protocol.

    align_in: where scale and shift are fitted. valid_min_m, valid_max_m: true depth counts between them, both excluded; None is
    no bound, and where both are None the benchmark's own mask decides. clip_min_m, clip_max_m: what the aligned prediction is
    clipped to. benchmark_crop: height and width of the bottom-centred crop of picture and depth that comes first.
    input_long_side_px: what the model's input is resized to, None for native. fit_long_side_px: the fit looks at every n-th
    pixel, so that its long side is at most this. disparity_floor: in 1/m; None where the fit is in depth. expected_images:
    the number that published figures are of.
    """

    benchmark: str
    protocol: ProtocolName
    align_in: Literal["disparity", "depth"]
    valid_min_m: float | None
    valid_max_m: float | None
    clip_min_m: float
    clip_max_m: float | None
    region: RegionName = "all"
    benchmark_crop: tuple[int, int] | None = None
    input_long_side_px: int | None = None
    fit_long_side_px: int | None = None
    disparity_floor: float | None = None
    expected_images: int

    def describe(self) -> str:
        """One line with every option that moves a number."""
        region = REGIONS[self.region]
        fit = f"scale and shift fitted to {'1/depth' if self.align_in == 'disparity' else 'depth'} per image by least squares"
        valid = "the benchmark's mask" if self.valid_min_m is None else _between("depth", self.valid_min_m, self.valid_max_m)
        parts = [
            f"{self.benchmark}, {self.protocol}: {fit}",
            f"on every n-th pixel, long side at most {self.fit_long_side_px}" if self.fit_long_side_px else "",
            f"where the prediction is > 0, disparity floored at {self.disparity_floor:g}" if self.disparity_floor else "",
            f"valid: {valid}",
            _between("prediction clipped:", self.clip_min_m, self.clip_max_m),
            "bottom-centred crop {} x {}".format(*self.benchmark_crop) if self.benchmark_crop else "",
            f"region {self.region}: "
            + ("rows {}:{}, columns {}:{}".format(*region.rows, *region.columns) if region else "every pixel"),
            f"input's long side {self.input_long_side_px} px" if self.input_long_side_px else "input at native size",
            "mean over images",
        ]
        return "; ".join(part for part in parts if part)


_rules = partial(BenchmarkRules, protocol="marigold-disparity", align_in="disparity", disparity_floor=DISPARITY_FLOOR)
_MARIGOLD: dict[BenchmarkName, BenchmarkRules] = {
    "nyuv2": _rules(
        benchmark="nyuv2",
        valid_min_m=1e-3,
        valid_max_m=10.0,
        clip_min_m=1e-3,
        clip_max_m=10.0,
        region="eigen",
        expected_images=654,
    ),
    "kitti": _rules(
        benchmark="kitti",
        valid_min_m=1e-5,
        valid_max_m=80.0,
        clip_min_m=1e-5,
        clip_max_m=80.0,
        region="kitti-eigen",
        benchmark_crop=(352, 1216),
        expected_images=652,
    ),
    "diode": _rules(
        benchmark="diode",
        valid_min_m=None,
        valid_max_m=None,
        clip_min_m=0.6,
        clip_max_m=350.0,
        input_long_side_px=640,
        expected_images=771,
    ),
    "scannet": _rules(
        benchmark="scannet", valid_min_m=1e-3, valid_max_m=10.0, clip_min_m=1e-3, clip_max_m=10.0, expected_images=800
    ),
    "eth3d": _rules(
        benchmark="eth3d",
        valid_min_m=1e-5,
        valid_max_m=None,
        clip_min_m=1e-5,
        clip_max_m=None,
        input_long_side_px=756,
        fit_long_side_px=1024,
        expected_images=454,
    ),
}


def rules(benchmark: BenchmarkName, protocol: ProtocolName) -> BenchmarkRules:
    """The rules of one benchmark under one protocol."""
    marigold = dataclasses.replace(_MARIGOLD[benchmark], protocol=protocol)
    match protocol:
        case "marigold-disparity":
            return marigold
        case "marigold-depth":
            return dataclasses.replace(marigold, align_in="depth", disparity_floor=None)
        case "dav2":
            return dataclasses.replace(marigold, region="garg") if benchmark == "kitti" else marigold
    assert_never(protocol)


def refuse_space(rules: BenchmarkRules, space: DepthSpace) -> None:
    """Raises ValueError where a predictor of `space` cannot be scored under these rules."""
    if not space.startswith(rules.align_in):
        fits = "marigold-depth" if space.startswith("depth") else "marigold-disparity or dav2"
        raise ValueError(
            f"protocol {rules.protocol} fits scale and shift in {rules.align_in}, but the predictor's numbers are {space}, and"
            f" the inverse of an affine-invariant map is none; use {fits}, or state the predictor's space if this is not it"
        )


def _between(what: str, low: float, high: float | None) -> str:
    return f"{what} {low:g} m to {f'{high:g} m' if high is not None else 'infinity'}"
