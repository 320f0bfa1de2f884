"""A random world: a room or a yard, a camera in it, and furniture where the camera looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from stages.scenes import furniture
from stages.scenes.furniture import random_material
from stages.scenes.geometry import Array, Camera, Plane, Solid, World, vec, yaw_matrix

_Maker: TypeAlias = Callable[[np.random.Generator, Array], list[Solid]]
_ANYWHERE: tuple[_Maker, ...] = (
    furniture.box,
    furniture.ball,
    furniture.table,
    furniture.rods,
    furniture.stack,
    furniture.pole,
)
_INDOORS: tuple[_Maker, ...] = (furniture.chair, furniture.lamp, furniture.shelf)
_OUTDOORS: tuple[_Maker, ...] = (furniture.fence, furniture.tree, furniture.fence, furniture.lamp)


def random_world(rng: np.random.Generator, yard_reach_m: float) -> World:
    indoors = rng.random() < 0.55
    planes, reach_m, buildings = _room(rng) if indoors else _yard(rng, yard_reach_m)
    camera = _random_camera(rng, indoors)
    solids = [*buildings]
    for _ in range(int(rng.integers(5, 13))):
        solids += _random_object(rng, camera, reach_m, indoors)
    solids = [solid for solid in solids if _clear_of_camera(solid, camera)]
    elevation, azimuth = rng.uniform(0.5, 1.3), rng.uniform(0, 2 * np.pi)
    sky = vec(*(rng.uniform(0.55, 0.95) * np.array([rng.uniform(0.7, 1), rng.uniform(0.85, 1), 1.0])))
    return World(
        planes=tuple(planes),
        solids=tuple(solids),
        camera=camera,
        to_light=vec(np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)),
        light_strength=float(rng.uniform(0.35, 0.9)),
        ambient=(rng.uniform(0.3, 0.5) * (0.85 + 0.15 * sky)).astype(np.float32),
        sky=sky,
        haze_per_m=float(rng.uniform(0.002, 0.012) if indoors else rng.uniform(0.006, 0.03)),
        exposure=float(rng.uniform(0.85, 1.25)),
    )


def _random_camera(rng: np.random.Generator, indoors: bool) -> Camera:
    height = rng.uniform(1.0, 1.9) if indoors else rng.uniform(1.1, 2.6)
    pitch, yaw, roll = rng.uniform(-0.38, 0.06), rng.uniform(-0.5, 0.5), rng.normal(0, 0.03)
    cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    pitch_matrix = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]], np.float32)
    roll_matrix = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]], np.float32)
    return Camera(
        position=vec(0, height, 0),
        rotation=(yaw_matrix(yaw) @ pitch_matrix @ roll_matrix).astype(np.float32),
        tan_half_fov=float(np.tan(np.radians(rng.uniform(50, 75)) / 2)),
    )


def _room(rng: np.random.Generator) -> tuple[list[Plane], float, list[Solid]]:
    left, right, back, ceiling = rng.uniform(1.4, 4), rng.uniform(1.4, 4), rng.uniform(3, 9.5), rng.uniform(2.3, 3.6)
    wall = random_material(rng, 0.35)
    planes = [
        Plane(normal=vec(0, 1, 0), offset=0, material=random_material(rng, 0.45)),
        Plane(normal=vec(0, -1, 0), offset=-ceiling, material=random_material(rng, 0.8, ("plain", "noise", "planks"))),
        Plane(normal=vec(1, 0, 0), offset=-left, material=wall),
        Plane(normal=vec(-1, 0, 0), offset=-right, material=wall),
        Plane(normal=vec(0, 0, -1), offset=-back, material=wall if rng.random() < 0.6 else random_material(rng, 0.3)),
    ]
    panels: list[Solid] = []  # doors, pictures and shelves that stand out of the back wall by a few centimetres
    for _ in range(int(rng.integers(0, 4))):
        half = vec(rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.9), rng.uniform(0.02, 0.2))
        center = vec(rng.uniform(-left, right), rng.uniform(half[1], ceiling - half[1]), back)
        panels.append(Solid(kind="box", center=center, half=half, yaw=0, material=random_material(rng, 0.2)))
    return planes, float(back), panels


def _yard(rng: np.random.Generator, reach_m: float) -> tuple[list[Plane], float, list[Solid]]:
    ground = Plane(
        normal=vec(0, 1, 0), offset=0, material=random_material(rng, 0.7, ("checker", "brick", "noise", "speckle", "planks"))
    )
    back = reach_m * rng.uniform(0.41, 1)
    buildings = []
    # A closed backdrop keeps the far plane near enough to be judged: the horizon itself is never seen.
    span = -34.0
    while span < 34:
        half_width, half_height = rng.uniform(2, 6), rng.uniform(1.2, 6)
        center = vec(span + half_width, half_height, back + rng.uniform(1, 5) + 1.5)
        material = random_material(rng, 0.9, ("windows", "brick", "windows", "planks", "noise"))
        buildings.append(Solid(kind="box", center=center, half=vec(half_width, half_height, 1.5), yaw=0, material=material))
        span += 2 * half_width
    for side in (-1, 1):
        if rng.random() < 0.5:
            half = vec(0.6, rng.uniform(0.8, 3.5), rng.uniform(2, 8))
            center = vec(side * rng.uniform(3.5, 8), half[1], rng.uniform(4, 10))
            material = random_material(rng, 0.6, ("windows", "brick", "planks", "noise"))
            buildings.append(Solid(kind="box", center=center, half=half, yaw=0, material=material))
    return [ground], float(back), buildings


def _clear_of_camera(solid: Solid, camera: Camera) -> bool:
    corners = solid.corners()
    nearest = np.clip(camera.position, corners.min(0), corners.max(0))
    return bool(np.linalg.norm(nearest - camera.position) > 0.7)


def _random_object(rng: np.random.Generator, camera: Camera, reach_m: float, indoors: bool) -> list[Solid]:
    """One piece of furniture or yard, standing where the camera looks, as its solids."""
    makers = _ANYWHERE + (_INDOORS if indoors else _OUTDOORS)
    nearest = 1.6
    distance = nearest * (0.95 * reach_m / nearest) ** rng.random()  # log-uniform: close things are as frequent as far ones
    sideways = rng.uniform(-1.05, 1.05) * camera.tan_half_fov * distance
    forward = camera.rotation @ vec(sideways, 0, distance)
    return makers[int(rng.integers(len(makers)))](rng, vec(forward[0], 0, forward[2]))
