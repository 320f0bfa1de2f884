"""Evaluation on rendered scenes whose depth is exact, with seeds that no training of ours has used.

A model sees what the pipeline would show it, the whole scene resized with antialiasing to the context's size; its
prediction is resized bilinearly to the scene's own size and compared there with the exact depth. The sky, and
what is beyond the depth range, is not scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from stages.depth_space import DepthSpace
from stages.evaluation.metrics import DepthMetrics, depth_metrics
from stages.labelling.pictures import resize_region
from stages.scenes import render_scene
from stages.views import SourceBox

HELD_OUT_SEED = 1_000_000
"""Scenes with this seed and above are for evaluation; training uses seeds from 0."""
SCENE_SIDE_PX = 352
CONTEXT_PX = 192
MIN_DEPTH_M = 1e-3
MAX_DEPTH_M = 80.0

Predict: TypeAlias = Callable[[UInt8[np.ndarray, "b h w 3"]], Float32[np.ndarray, "b h w"]]
"""Pictures to raw predictions of the same size, in the predictor's own space."""


@dataclass(frozen=True, kw_only=True)
class EvaluationScene:
    """context: what the model sees, uint8 [input_px, input_px, 3]. depth_m: exact, float32 [side_px, side_px]; sky is inf."""

    seed: int
    context: UInt8[np.ndarray, "h w 3"]
    depth_m: Float32[np.ndarray, "h2 w2"]


@dataclass(frozen=True, kw_only=True)
class SceneResult:
    """What one model scored on one scene."""

    seed: int
    metrics: DepthMetrics


def evaluate_on_scenes(
    predict: Predict,
    seeds: Iterable[int],
    space: DepthSpace,
    *,
    side_px: int = SCENE_SIDE_PX,
    input_px: int = CONTEXT_PX,
    batch: int = 8,
) -> Iterator[SceneResult]:
    """Score a predictor scene by scene, in the order of `seeds`; only `batch` scenes are held at a time.

    Raises ValueError, naming the scene, where a prediction cannot be scored.
    """
    for scenes in render_batches(seeds, side_px=side_px, input_px=input_px, batch=batch):
        yield from score_scenes(predict, scenes, space)


def render_batches(
    seeds: Iterable[int], *, side_px: int = SCENE_SIDE_PX, input_px: int = CONTEXT_PX, batch: int = 8
) -> Iterator[list[EvaluationScene]]:
    """Scenes in lists of at most `batch`: for scoring several models on scenes that are rendered once."""
    remaining = iter(seeds)
    while chunk := list(itertools.islice(remaining, batch)):
        yield [_render(seed, side_px, input_px) for seed in chunk]


def score_scenes(predict: Predict, scenes: Sequence[EvaluationScene], space: DepthSpace) -> list[SceneResult]:
    """Score one batch of scenes. Raises ValueError, naming the scene, where a prediction cannot be scored."""
    pictures = np.stack([scene.context for scene in scenes])
    predictions = predict(pictures)
    if predictions.shape != pictures.shape[:3]:
        raise ValueError(f"the prediction has shape {predictions.shape}, expected {pictures.shape[:3]}: that of the pictures")
    results = []
    for scene, prediction in zip(scenes, predictions, strict=True):
        valid = (scene.depth_m > MIN_DEPTH_M) & (scene.depth_m < MAX_DEPTH_M)
        resized = resize_bilinear(prediction, scene.depth_m.shape)
        try:
            metrics = depth_metrics(
                resized, scene.depth_m, valid, space=space, min_depth_m=MIN_DEPTH_M, max_depth_m=MAX_DEPTH_M
            )
        except ValueError as error:
            raise ValueError(f"scene {scene.seed}: {error}") from error
        results.append(SceneResult(seed=scene.seed, metrics=metrics))
    return results


def resize_bilinear(values: Float[np.ndarray, "h w"], shape: tuple[int, ...]) -> Float32[np.ndarray, "h2 w2"]:
    """A map resized to `shape` (height, width); pixel centres as in torch's align_corners=False, antialiased when smaller."""
    height, width = shape
    resized = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def _render(seed: int, side_px: int, input_px: int) -> EvaluationScene:
    scene = render_scene(seed, height_px=side_px, width_px=side_px)
    context = resize_region(Image.fromarray(scene.rgb), SourceBox(0, 0, side_px, side_px), input_px, input_px)
    return EvaluationScene(seed=seed, context=context, depth_m=scene.depth_m)
