"""Rendered scenes with exact depth: a seed in, a photograph-like picture and its metric depth out.

A small vectorised ray-caster. It exists so that the demo and the tests have pictures whose depth is *known*, on any
machine, without downloading a benchmark. The same seed and size give the same scene, bit for bit, on one machine.

A scene is a room or a yard filled with furniture, fences, trees, poles and balls, drawn so that no single cue suffices:
perspective of the floor and of textures, occlusion, known sizes, shading, cast shadows and haze all carry information, and
thin rods a pixel or two wide are there for a close-up crop to show what the whole picture cannot.

World axes: x right, y up, z forward, in metres; the ground is y = 0. Depth is z-depth (distance along the optical axis).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from stages.scenes.geometry import FAR_M, Array
from stages.scenes.light import shade
from stages.scenes.rays import cast_camera_rays
from stages.scenes.world import random_world


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One rendered scene.

    rgb: uint8 [h, w, 3], sRGB. depth_m: float32 [h, w], metres along the optical axis; the sky is +inf.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float32[np.ndarray, "h w"]


def render_scene(seed: int, *, height_px: int = 416, width_px: int = 416, yard_reach_m: float = 12) -> Scene:
    """Render the scene that `seed` names.

    The world and the camera depend on the seed and on how far a yard may reach before a wall closes it; the size only sets
    how finely they are sampled.
    Raises ValueError for a negative seed or a side below 8 pixels.
    """
    if seed < 0 or min(height_px, width_px) < 8:
        raise ValueError(
            f"render_scene(seed={seed}, height_px={height_px}, width_px={width_px}): the seed must not be negative and"
            " both sides must be at least 8 pixels."
        )
    rng = _choices(seed)
    world = random_world(rng, yard_reach_m)
    depth, surface = cast_camera_rays(world, height_px, width_px)
    rgb = shade(world, depth, surface, rng)
    return Scene(rgb=rgb, depth_m=_with_sky(depth))


def scene_depth(seed: int, *, height_px: int, width_px: int, yard_reach_m: float = 12) -> Float32[np.ndarray, "h w"]:
    """The depth of `render_scene` alone, bit for bit, metres; the sky is +inf. Takes a fraction of its time."""
    depth, _ = cast_camera_rays(random_world(_choices(seed), yard_reach_m), height_px, width_px)
    return _with_sky(depth)


def _choices(seed: int) -> np.random.Generator:
    return np.random.default_rng([20250219, seed])


def _with_sky(depth: Array) -> Float32[np.ndarray, "h w"]:
    return np.where(depth < FAR_M, depth, np.float32(np.inf)).astype(np.float32)
