"""What models are shown and how they are scored: public benchmarks and rendered scenes behind one small interface."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from pipeline.evaluate.config import ScoringConfig
from stages.depth_space import DepthSpace, is_disparity
from stages.evaluation.benchmarks import Benchmark, BenchmarkSample, input_picture, open_benchmark
from stages.evaluation.metrics import DISPARITY_FLOOR, DepthMetrics, depth_metrics
from stages.evaluation.pairs import DepthUnits, Pairs, open_pairs
from stages.evaluation.protocols import BenchmarkName, ProtocolName, refuse_space
from stages.evaluation.rendered import (
    CONTEXT_PX,
    HELD_OUT_SEED,
    MAX_DEPTH_M,
    MIN_DEPTH_M,
    SCENE_SIDE_PX,
    evaluation_scene,
    resize_bilinear,
    scored_pixels,
)
from stages.evaluation.scoring import ImageScore, score, score_within, thinned

_ALIGNMENT = {
    "disparity_affine_invariant": f"scale and shift fitted to 1/depth per scene, disparity floored at {DISPARITY_FLOOR:g}",
    "depth_affine_invariant": "scale and shift fitted to depth per scene",
    "depth_metric": "no alignment",
    "disparity_metric": f"no alignment, disparity floored at {DISPARITY_FLOOR:g}",
}


class EvaluationSet(Protocol):
    """Pictures with true depth, for predictors of one depth space."""

    @property
    def name(self) -> str: ...

    @property
    def protocol(self) -> str: ...

    @property
    def names(self) -> Sequence[str]:
        """Of the images, in order."""
        ...

    @property
    def list_sha256(self) -> str:
        """Of what names the images."""
        ...

    @property
    def expected_images(self) -> int: ...

    def describe(self) -> str:
        """One line with every option that moves a number."""
        ...

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], BenchmarkSample]:
        """The picture that a model sees, and what it is compared with, whose own picture is left out.

        From any thread. Raises ValueError or OSError, naming the file, for what cannot be read.
        """
        ...

    def score(self, prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample) -> ImageScore:
        """Raises ValueError, naming the image, for a prediction that cannot be scored."""
        ...

    def central_half(
        self, prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample
    ) -> tuple[DepthMetrics, DepthMetrics] | None:
        """Metrics on the central half of rows and columns, fitted on all valid pixels, and fitted on that half's alone.

        None where no pixel of that half is valid. Raises ValueError, naming the image.
        """
        ...


class PublicBenchmark:
    """A benchmark as `open_benchmark` gives it, or a set of one's own."""

    def __init__(self, benchmark: Benchmark | Pairs, space: DepthSpace) -> None:
        """Raises ValueError where predictors of this space cannot be scored under the benchmark's protocol."""
        refuse_space(benchmark.rules, space)
        self._benchmark = benchmark
        self._space: DepthSpace = space
        self.name: str = benchmark.rules.benchmark
        self.protocol: str = benchmark.rules.protocol
        self.names, self.list_sha256 = benchmark.names, benchmark.list_sha256
        self.expected_images = benchmark.rules.expected_images

    def describe(self) -> str:
        notes = "".join(f"; {note}" for note in self._benchmark.notes)
        return f"{self._benchmark.rules.describe()}{notes}"

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], BenchmarkSample]:
        sample = self._benchmark.read(index)
        return input_picture(sample, self._benchmark.rules), replace(sample, rgb=_no_picture(sample.depth_m.shape))

    def score(self, prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample) -> ImageScore:
        return score(prediction, sample, self._benchmark.rules, self._space)

    def central_half(
        self, prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample
    ) -> tuple[DepthMetrics, DepthMetrics] | None:
        rules = self._benchmark.rules
        return _central_half(prediction, sample, self._space, rules.clip_min_m, rules.clip_max_m, rules.fit_long_side_px)


class RenderedScenes:
    """Held-out scenes with exact depth; see `stages.evaluation.rendered`."""

    name = "scenes"

    def __init__(
        self, seeds: Sequence[int], space: DepthSpace, input_px: int = CONTEXT_PX, side_px: int = SCENE_SIDE_PX
    ) -> None:
        self._seeds, self._input_px, self._side_px = seeds, input_px, side_px
        self._space: DepthSpace = space
        self.protocol = f"scenes-{'disparity' if is_disparity(space) else 'depth'}"
        self.names = [f"scene {seed}" for seed in seeds]
        self.list_sha256 = hashlib.sha256("\n".join(self.names).encode()).hexdigest()
        self.expected_images = len(seeds)

    def describe(self) -> str:
        return scenes_protocol(self._seeds, self._space, self._input_px, self._side_px)

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], BenchmarkSample]:
        scene = evaluation_scene(self._seeds[index], side_px=self._side_px, input_px=self._input_px)
        valid = scored_pixels(scene.depth_m)
        rgb = _no_picture(valid.shape)
        return scene.context, BenchmarkSample(name=self.names[index], rgb=rgb, depth_m=scene.depth_m, valid=valid)

    def score(self, prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample) -> ImageScore:
        return score_within((MIN_DEPTH_M, MAX_DEPTH_M), prediction, sample, self._space)

    def central_half(
        self, prediction: Float32[np.ndarray, "h w"], sample: BenchmarkSample
    ) -> tuple[DepthMetrics, DepthMetrics] | None:
        return _central_half(prediction, sample, self._space, MIN_DEPTH_M, MAX_DEPTH_M)


def scenes_protocol(seeds: Sequence[int], space: DepthSpace, input_px: int = CONTEXT_PX, side_px: int = SCENE_SIDE_PX) -> str:
    """How the numbers on scenes are made, in one line."""
    kind = "held-out " if seeds[0] >= HELD_OUT_SEED else ""
    return (
        f"{len(seeds)} rendered scenes ({kind}seeds {seeds[0]} to {seeds[-1]}), seen at {input_px} px and scored at"
        f" {side_px} px; {_ALIGNMENT[space]}; depth {MIN_DEPTH_M:g} to {MAX_DEPTH_M:g} m; mean over scenes"
    )


def open_set(config: ScoringConfig, name: str, space: DepthSpace) -> EvaluationSet:
    """A set for models of one depth space, by one of the names in `sets`.

    Raises ValueError where it cannot be evaluated, with every problem found.
    """
    if name == "scenes":
        return RenderedScenes(range(config.seed_start, config.seed_start + config.scenes), space, config.input_px)
    protocol = default_protocol(space) if config.protocol == "auto" else config.protocol
    if name in config.own:
        units = DepthUnits(
            kind=config.depth_kind,
            scale=config.depth_scale,
            min_m=config.depth_min_m,
            max_m=config.depth_max_m,
            invalid=config.depth_invalid,
        )
        return PublicBenchmark(open_pairs(config.own[name], name, protocol=protocol, units=units), space)
    public: BenchmarkName = next(each for each in config.public if each == name)
    place = config.public.index(public)
    benchmark = open_benchmark(
        public,
        find_data(config.data[place if len(config.data) > 1 else 0], public),
        protocol=protocol,
        list_file=config.lists[place] if config.lists else None,
    )
    data = PublicBenchmark(benchmark, space)
    if not config.allow_missing and (problems := benchmark.check()):
        raise ValueError("; ".join(problems))
    return data


def default_protocol(space: DepthSpace) -> ProtocolName:
    """Scale and shift are fitted where the predictor's numbers are affine."""
    return "marigold-disparity" if is_disparity(space) else "marigold-depth"


def find_data(root: Path, benchmark: str) -> Path:
    """A benchmark's own folder or tar in a root folder: `NAME.tar`, `NAME/` or the only tar in it; else the path itself."""
    if (tar := root / f"{benchmark}.tar").is_file():
        return tar
    folder = root / benchmark if (root / benchmark).is_dir() else root
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    return tars[0] if len(tars) == 1 else folder


def _central_half(
    prediction: Float32[np.ndarray, "h w"],
    sample: BenchmarkSample,
    space: DepthSpace,
    min_depth_m: float,
    max_depth_m: float | None,
    fit_long_side_px: int | None = None,
) -> tuple[DepthMetrics, DepthMetrics] | None:
    height, width = sample.valid.shape
    central: Bool[np.ndarray, "h w"] = np.zeros_like(sample.valid)
    central[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = True
    central &= sample.valid
    fits = [pixels if fit_long_side_px is None else thinned(pixels, fit_long_side_px) for pixels in (sample.valid, central)]
    if not fits[1].any():
        return None
    resized = resize_bilinear(prediction, sample.valid.shape)
    affine: DepthSpace = "disparity_affine_invariant" if is_disparity(space) else "depth_affine_invariant"

    def fitted_on(pixels: Bool[np.ndarray, "h w"]) -> DepthMetrics:
        try:
            return depth_metrics(
                resized,
                sample.depth_m,
                central,
                space=affine,
                min_depth_m=min_depth_m,
                max_depth_m=max_depth_m,
                fit_valid=pixels,
            )
        except ValueError as error:
            raise ValueError(f"{sample.name}: central half: {error}") from error

    return fitted_on(fits[0]), fitted_on(fits[1])


def _no_picture(shape: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """Takes no memory: many samples wait at a time, and nothing looks at their pictures any more."""
    return np.broadcast_to(np.uint8(0), (*shape, 3))
