"""Rendered scenes: the same for the same seed, exact in depth, and rich in structure."""

from __future__ import annotations

import numpy as np
import pytest

from stages.scenes import render_scene
from stages.scenes.geometry import FAR_M, Camera, Material, Plane, Solid, World, vec
from stages.scenes.rays import camera_rays, cast_camera_rays, intersect


def _material() -> Material:
    return Material(pattern="plain", color_a=vec(1, 1, 1), color_b=vec(0, 0, 0), size_m=1.0, noise_seed=0)


def _solid(kind: str, center: tuple[float, float, float], half: tuple[float, float, float], **more: object) -> Solid:
    return Solid(kind=kind, center=vec(*center), half=vec(*half), yaw=0.0, material=_material(), **more)  # type: ignore[arg-type]


def _forward(solid: Solid) -> float:
    return float(intersect(solid, vec(0, 0, 0)[:, None], vec(0, 0, 1)[:, None])[0])


def test_a_seed_names_one_scene_and_another_seed_another():
    first, again, other = (render_scene(seed, height_px=64, width_px=64) for seed in (3, 3, 4))
    assert (first.rgb == again.rgb).all()
    assert np.array_equal(first.depth_m, again.depth_m)
    assert (first.rgb != other.rgb).mean() > 0.5


def test_the_size_samples_the_same_world_more_finely():
    small, large = (render_scene(5, height_px=side, width_px=side).depth_m for side in (50, 250))
    shared = np.isfinite(small) & np.isfinite(large[2::5, 2::5])
    assert np.median(np.abs(small - large[2::5, 2::5])[shared] / small[shared]) < 1e-3


@pytest.mark.parametrize(
    ("solid", "distance"),
    [
        (_solid("box", (0, 0, 5), (1, 1, 1)), 4.0),
        (_solid("ellipsoid", (0, 0, 5), (1, 2, 0.5)), 4.5),
        (_solid("capsule", (0, 0, 5), (0.5, 2, 0.5)), 4.5),
        (_solid("capsule", (0, 0, 5), (0.5, 2, 0.5), axis=vec(0, 0, 1)), 2.5),
        (_solid("box", (3, 0, 5), (1, 1, 1)), float(FAR_M)),
        (_solid("ellipsoid", (0, 0, -5), (1, 1, 1)), float(FAR_M)),
    ],
)
def test_a_ray_meets_a_solid_where_geometry_says(solid: Solid, distance: float):
    assert _forward(solid) == pytest.approx(distance, rel=1e-5)


def test_depth_is_measured_along_the_optical_axis():
    """A wall straight ahead has one z-depth everywhere, although its corners are farther away."""
    wall = Plane(normal=vec(0, 0, -1), offset=-6.0, material=_material())
    camera = Camera(position=vec(0, 1, 0), rotation=np.eye(3, dtype=np.float32), tan_half_fov=0.7)
    black = vec(0, 0, 0)
    world = World(
        planes=(wall,),
        solids=(),
        camera=camera,
        to_light=vec(0, 1, 0),
        light_strength=1.0,
        ambient=black,
        sky=black,
        haze_per_m=0.0,
        exposure=1.0,
    )
    depth, surface = cast_camera_rays(world, 20, 30)
    assert np.allclose(depth, 6, rtol=1e-5)
    assert (surface == 0).all()
    assert camera_rays(camera, 20, 30).shape == (3, 20, 30)


def test_scenes_are_rich_thin_structure_included():
    scenes = [render_scene(seed, height_px=96, width_px=96) for seed in range(24)]
    finite = [scene.depth_m[np.isfinite(scene.depth_m)] for scene in scenes]
    assert all(depth.min() > 0.05 for depth in finite)
    assert np.median([np.quantile(depth, 0.95) / np.quantile(depth, 0.05) for depth in finite]) > 2
    assert all(scene.rgb.std() > 8 for scene in scenes)
    jumps = [(np.abs(np.diff(np.log(np.where(np.isfinite(s.depth_m), s.depth_m, 99)), axis=1)) > 0.15).mean() for s in scenes]
    assert np.median(jumps) > 0.01


@pytest.mark.parametrize(("seed", "side"), [(-1, 64), (0, 4)])
def test_a_bad_seed_or_size_is_refused(seed: int, side: int):
    with pytest.raises(ValueError, match="must not be negative"):
        render_scene(seed, height_px=side, width_px=side)
