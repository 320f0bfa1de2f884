"""Evaluation on rendered scenes whose depth is exact, with seeds that no training of ours has used.

A model sees what the pipeline would show it, the whole scene resized with antialiasing to the context's size; its
prediction is resized bilinearly to the scene's own size and compared there with the exact depth. The sky, and
what is beyond the depth range, is not scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from stages.evaluation.metrics import DepthMetrics
from stages.scenes import render_scene
from stages.sources.photographs import resize_region
from stages.views import SourceBox

HELD_OUT_SEED = 1_000_000
"""Scenes with this seed and above are for evaluation; training uses seeds from 0."""
SCENE_SIDE_PX = 352
CONTEXT_PX = 192
MIN_DEPTH_M = 1e-3
MAX_DEPTH_M = 80.0


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


def evaluation_scene(seed: int, *, side_px: int = SCENE_SIDE_PX, input_px: int = CONTEXT_PX) -> EvaluationScene:
    """Render a scene, and show it at `input_px`."""
    scene = render_scene(seed, height_px=side_px, width_px=side_px)
    context = resize_region(Image.fromarray(scene.rgb), SourceBox(0, 0, side_px, side_px), input_px, input_px)
    return EvaluationScene(seed=seed, context=context, depth_m=scene.depth_m)


def scored_pixels(depth_m: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Neither the sky nor what lies beyond the range."""
    return (depth_m > MIN_DEPTH_M) & (depth_m < MAX_DEPTH_M)


def resize_bilinear(values: Float[np.ndarray, "h w"], shape: tuple[int, ...]) -> Float32[np.ndarray, "h2 w2"]:
    """A map resized to `shape` (height, width); pixel centres as in torch's align_corners=False, antialiased when smaller."""
    height, width = shape
    resized = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)
