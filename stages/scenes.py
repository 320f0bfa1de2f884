"""Rendered scenes with exact depth: a seed in, a photograph-like picture and its metric depth out.

A small vectorised ray-caster. It exists so that the demo and the tests have pictures whose depth is *known*, on any
machine, without downloading a benchmark. The same seed and size give the same scene, bit for bit, on one machine.

A scene is a room or a yard filled with furniture, fences, trees, poles and balls, drawn so that no single cue suffices:
perspective of the floor and of textures, occlusion, known sizes, shading, cast shadows and haze all carry information, and
thin rods a pixel or two wide are there for a close-up crop to show what the whole picture cannot.

World axes: x right, y up, z forward, in metres; the ground is y = 0. Depth is z-depth (distance along the optical axis).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

Array = NDArray[np.float32]
_FAR_M = np.float32(1e9)
_EPS = np.float32(1e-6)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One rendered scene.

    rgb: uint8 [h, w, 3], sRGB. depth_m: float32 [h, w], metres along the optical axis; the sky is +inf.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float32[np.ndarray, "h w"]


def render_scene(seed: int, *, height_px: int = 416, width_px: int = 416) -> Scene:
    """Render the scene that `seed` names.

    The world and the camera depend on the seed alone; the size only sets how finely they are sampled.
    Raises ValueError for a negative seed or a side below 8 pixels.
    """
    if seed < 0 or min(height_px, width_px) < 8:
        raise ValueError(
            f"render_scene(seed={seed}, height_px={height_px}, width_px={width_px}): the seed must not be negative and"
            " both sides must be at least 8 pixels."
        )
    rng = np.random.default_rng([20250219, seed])
    world = _random_world(rng)
    depth, surface = _cast_camera_rays(world, height_px, width_px)
    rgb = _shade(world, depth, surface, rng)
    return Scene(rgb=rgb, depth_m=np.where(depth < _FAR_M, depth, np.float32(np.inf)).astype(np.float32))


# --- the world ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Material:
    """A procedural texture: two colours mixed by a pattern laid on the surface in metres."""

    pattern: str
    color_a: Array
    color_b: Array
    size_m: float
    noise_seed: int


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """An endless plane, normal . p = offset; seen from the side its normal points to. Casts no shadow."""

    normal: Array
    offset: float
    material: _Material


@dataclass(frozen=True, kw_only=True)
class _Solid:
    """A box, an ellipsoid (both inside |x| <= half, turned by yaw about the vertical) or a capsule along `axis`."""

    kind: str
    center: Array
    half: Array
    yaw: float
    material: _Material
    axis: Array = field(default_factory=lambda: np.array([0, 1, 0], np.float32))

    def corners(self) -> Array:
        """The eight corners [8, 3] of a box around the solid."""
        if self.kind == "capsule":
            reach = np.abs(self.axis) * self.half[1] + self.half[0]
            turn = np.eye(3, dtype=np.float32)
        else:
            reach, turn = self.half, _yaw_matrix(self.yaw)
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
        return (signs * reach) @ turn.T + self.center


@dataclass(frozen=True, kw_only=True)
class _Camera:
    position: Array
    rotation: Array  # camera axes (right, up, forward) as columns, in world axes
    tan_half_fov: float  # of the longer side


@dataclass(frozen=True, kw_only=True)
class _World:
    planes: tuple[_Plane, ...]
    solids: tuple[_Solid, ...]
    camera: _Camera
    to_light: Array
    light_strength: float
    ambient: Array
    sky: Array
    haze_per_m: float
    exposure: float


def _yaw_matrix(yaw: float) -> Array:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def _vec(*xyz: SupportsFloat) -> Array:
    return np.array(xyz, np.float32)


_PATTERNS = ("plain", "checker", "brick", "stripes", "planks", "noise", "speckle")


def _random_material(rng: np.random.Generator, size_m: float, patterns: tuple[str, ...] = _PATTERNS) -> _Material:
    base = rng.uniform(0.12, 0.85) * (0.68 + 0.32 * rng.dirichlet([1.5, 1.5, 1.5]) * 3)
    other = np.clip(base * rng.uniform(0.45, 1.5) + rng.normal(0, 0.05, 3), 0.02, 0.95)
    return _Material(
        pattern=str(rng.choice(patterns)),
        color_a=np.clip(base, 0.03, 0.95).astype(np.float32),
        color_b=other.astype(np.float32),
        size_m=float(size_m * rng.uniform(0.6, 1.6)),
        noise_seed=int(rng.integers(1 << 16)),
    )


def _random_world(rng: np.random.Generator) -> _World:
    indoors = rng.random() < 0.55
    planes, reach_m, buildings = _room(rng) if indoors else _yard(rng)
    camera = _random_camera(rng, indoors)
    solids = [*buildings]
    for _ in range(int(rng.integers(5, 13))):
        solids += _random_object(rng, camera, reach_m, indoors)
    solids = [solid for solid in solids if _clear_of_camera(solid, camera)]
    elevation, azimuth = rng.uniform(0.5, 1.3), rng.uniform(0, 2 * np.pi)
    sky = _vec(*(rng.uniform(0.55, 0.95) * np.array([rng.uniform(0.7, 1), rng.uniform(0.85, 1), 1.0])))
    return _World(
        planes=tuple(planes),
        solids=tuple(solids),
        camera=camera,
        to_light=_vec(np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)),
        light_strength=float(rng.uniform(0.35, 0.9)),
        ambient=(rng.uniform(0.3, 0.5) * (0.85 + 0.15 * sky)).astype(np.float32),
        sky=sky,
        haze_per_m=float(rng.uniform(0.002, 0.012) if indoors else rng.uniform(0.006, 0.03)),
        exposure=float(rng.uniform(0.85, 1.25)),
    )


def _random_camera(rng: np.random.Generator, indoors: bool) -> _Camera:
    height = rng.uniform(1.0, 1.9) if indoors else rng.uniform(1.1, 2.6)
    pitch, yaw, roll = rng.uniform(-0.38, 0.06), rng.uniform(-0.5, 0.5), rng.normal(0, 0.03)
    cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    pitch_matrix = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]], np.float32)
    roll_matrix = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]], np.float32)
    return _Camera(
        position=_vec(0, height, 0),
        rotation=(_yaw_matrix(yaw) @ pitch_matrix @ roll_matrix).astype(np.float32),
        tan_half_fov=float(np.tan(np.radians(rng.uniform(50, 75)) / 2)),
    )


def _room(rng: np.random.Generator) -> tuple[list[_Plane], float, list[_Solid]]:
    left, right, back, ceiling = rng.uniform(1.4, 4), rng.uniform(1.4, 4), rng.uniform(3, 9.5), rng.uniform(2.3, 3.6)
    wall = _random_material(rng, 0.35)
    planes = [
        _Plane(normal=_vec(0, 1, 0), offset=0, material=_random_material(rng, 0.45)),
        _Plane(normal=_vec(0, -1, 0), offset=-ceiling, material=_random_material(rng, 0.8, ("plain", "noise", "planks"))),
        _Plane(normal=_vec(1, 0, 0), offset=-left, material=wall),
        _Plane(normal=_vec(-1, 0, 0), offset=-right, material=wall),
        _Plane(normal=_vec(0, 0, -1), offset=-back, material=wall if rng.random() < 0.6 else _random_material(rng, 0.3)),
    ]
    panels: list[_Solid] = []  # doors, pictures and shelves that stand out of the back wall by a few centimetres
    for _ in range(int(rng.integers(0, 4))):
        half = _vec(rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.9), rng.uniform(0.02, 0.2))
        center = _vec(rng.uniform(-left, right), rng.uniform(half[1], ceiling - half[1]), back)
        panels.append(_Solid(kind="box", center=center, half=half, yaw=0, material=_random_material(rng, 0.2)))
    return planes, float(back), panels


def _yard(rng: np.random.Generator) -> tuple[list[_Plane], float, list[_Solid]]:
    ground = _Plane(
        normal=_vec(0, 1, 0), offset=0, material=_random_material(rng, 0.7, ("checker", "brick", "noise", "speckle", "planks"))
    )
    back = rng.uniform(9, 22)
    buildings = []
    # A closed backdrop keeps the far plane near enough to be judged: the horizon itself is never seen.
    span = -34.0
    while span < 34:
        half_width, half_height = rng.uniform(2, 6), rng.uniform(1.2, 6)
        center = _vec(span + half_width, half_height, back + rng.uniform(1, 5) + 1.5)
        material = _random_material(rng, 0.9, ("windows", "brick", "windows", "planks", "noise"))
        buildings.append(_Solid(kind="box", center=center, half=_vec(half_width, half_height, 1.5), yaw=0, material=material))
        span += 2 * half_width
    for side in (-1, 1):
        if rng.random() < 0.5:
            half = _vec(0.6, rng.uniform(0.8, 3.5), rng.uniform(2, 8))
            center = _vec(side * rng.uniform(3.5, 8), half[1], rng.uniform(4, 10))
            material = _random_material(rng, 0.6, ("windows", "brick", "planks", "noise"))
            buildings.append(_Solid(kind="box", center=center, half=half, yaw=0, material=material))
    return [ground], float(back), buildings


def _clear_of_camera(solid: _Solid, camera: _Camera) -> bool:
    corners = solid.corners()
    nearest = np.clip(camera.position, corners.min(0), corners.max(0))
    return bool(np.linalg.norm(nearest - camera.position) > 0.7)


def _random_object(rng: np.random.Generator, camera: _Camera, reach_m: float, indoors: bool) -> list[_Solid]:
    """One piece of furniture or yard, standing where the camera looks, as its solids."""
    makers: list[Callable[[np.random.Generator, Array], list[_Solid]]] = [_box, _ball, _table, _rods, _stack, _pole]
    makers += [_chair, _lamp, _shelf] if indoors else [_fence, _tree, _fence, _lamp]
    nearest = 1.6
    distance = nearest * (0.95 * reach_m / nearest) ** rng.random()  # log-uniform: close things are as frequent as far ones
    sideways = rng.uniform(-1.05, 1.05) * camera.tan_half_fov * distance
    forward = camera.rotation @ _vec(sideways, 0, distance)
    return makers[int(rng.integers(len(makers)))](rng, _vec(forward[0], 0, forward[2]))


def _box(rng: np.random.Generator, at: Array) -> list[_Solid]:
    half = _vec(rng.uniform(0.12, 0.6), rng.uniform(0.12, 0.8), rng.uniform(0.12, 0.6))
    return [_upright("box", at, half, rng.uniform(0, np.pi), _random_material(rng, 0.25))]


def _ball(rng: np.random.Generator, at: Array) -> list[_Solid]:
    radius = rng.uniform(0.12, 0.5)
    half = _vec(radius, radius * rng.uniform(0.7, 1.3), radius)
    return [_upright("ellipsoid", at, half, 0, _random_material(rng, 0.2))]


def _stack(rng: np.random.Generator, at: Array) -> list[_Solid]:
    solids, top = [], 0.0
    for _ in range(int(rng.integers(2, 4))):
        half = _vec(rng.uniform(0.12, 0.35), rng.uniform(0.1, 0.25), rng.uniform(0.12, 0.35))
        center = at + _vec(rng.uniform(-0.06, 0.06), top, rng.uniform(-0.06, 0.06))
        solids.append(_upright("box", center, half, rng.uniform(0, np.pi), _random_material(rng, 0.15)))
        top += 2 * float(half[1])
    if rng.random() < 0.5:
        radius = rng.uniform(0.1, 0.2)
        solids.append(_upright("ellipsoid", at + _vec(0, top, 0), _vec(radius, radius, radius), 0, _random_material(rng, 0.1)))
    return solids


def _table(rng: np.random.Generator, at: Array) -> list[_Solid]:
    half_x, half_z, height = rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.5), rng.uniform(0.45, 0.85)
    yaw, wood = rng.uniform(0, np.pi), _random_material(rng, 0.2)
    top = _upright("box", at + _vec(0, height, 0), _vec(half_x, 0.025, half_z), yaw, wood)
    legs = [
        _leg(at, sx * half_x * 0.92, sz * half_z * 0.92, height, yaw, wood, rng.uniform(0.015, 0.03))
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]
    things = [_rest_on(rng, at + _vec(0, height + 0.05, 0), min(half_x, half_z) * 0.6) for _ in range(int(rng.integers(0, 3)))]
    return [top, *legs, *things]


def _chair(rng: np.random.Generator, at: Array) -> list[_Solid]:
    half, seat, yaw, wood = (
        rng.uniform(0.18, 0.26),
        rng.uniform(0.4, 0.5),
        rng.uniform(0, 2 * np.pi),
        _random_material(rng, 0.2),
    )
    turn = _yaw_matrix(yaw)
    solids = [_upright("box", at + _vec(0, seat, 0), _vec(half, 0.02, half), yaw, wood)]
    for sx in (-1, 1):
        solids.append(_leg(at, sx * half * 0.9, -half * 0.9, seat, yaw, wood, 0.018))
        solids.append(_leg(at, sx * half * 0.9, half * 0.9, seat + 0.45, yaw, wood, 0.018))
    for height in (seat + 0.2, seat + 0.4):
        center = at + turn @ _vec(0, 0, half * 0.9) + _vec(0, height, 0)
        solids.append(_Solid(kind="box", center=center, half=_vec(half * 0.9, 0.035, 0.012), yaw=yaw, material=wood))
    return solids


def _shelf(rng: np.random.Generator, at: Array) -> list[_Solid]:
    half_x, depth, height, yaw = rng.uniform(0.35, 0.7), 0.16, rng.uniform(0.9, 1.9), rng.uniform(0, np.pi)
    wood, levels, turn = _random_material(rng, 0.2), int(rng.integers(3, 6)), _yaw_matrix(yaw)
    solids = []
    for sx in (-1, 1):
        side = at + turn @ _vec(sx * half_x, 0, 0)
        solids.append(_upright("box", side, _vec(0.015, height / 2, depth), yaw, wood))
    for level in range(levels):
        board = at + _vec(0, height * level / (levels - 1) - 0.03 * (level > 0), 0)
        solids.append(_upright("box", board, _vec(half_x, 0.015, depth), yaw, wood))
        if level < levels - 1 and rng.random() < 0.7:
            solids.append(_rest_on(rng, board + turn @ _vec(rng.uniform(-0.6, 0.6) * half_x, 0.03, 0), 0.05))
    return solids


def _lamp(rng: np.random.Generator, at: Array) -> list[_Solid]:
    height, metal = rng.uniform(1.3, 2.8), _random_material(rng, 0.2, ("plain", "noise"))
    shade = rng.uniform(0.1, 0.22)
    return [
        _rod(at, at + _vec(0, height, 0), rng.uniform(0.012, 0.035), metal),
        _upright("ellipsoid", at + _vec(0, height, 0), _vec(shade, shade * 0.8, shade), 0, _random_material(rng, 0.1)),
        _upright("box", at, _vec(0.14, 0.02, 0.14), rng.uniform(0, 1), metal),
    ]


def _pole(rng: np.random.Generator, at: Array) -> list[_Solid]:
    return [_rod(at, at + _vec(0, rng.uniform(1.0, 5), 0), rng.uniform(0.012, 0.12), _random_material(rng, 0.25))]


def _rods(rng: np.random.Generator, at: Array) -> list[_Solid]:
    """A bundle of thin leaning sticks, some of them a pixel wide."""
    material = _random_material(rng, 0.2, ("plain", "stripes", "noise"))
    lean = [at + _vec(rng.normal(0, 0.5), rng.uniform(0.5, 1.8), rng.normal(0, 0.5)) for _ in range(int(rng.integers(3, 8)))]
    return [
        _rod(at + _vec(rng.normal(0, 0.15), 0, rng.normal(0, 0.15)), tip, rng.uniform(0.008, 0.025), material) for tip in lean
    ]


def _fence(rng: np.random.Generator, at: Array) -> list[_Solid]:
    length, height, yaw = rng.uniform(1.5, 4), rng.uniform(0.6, 1.3), rng.uniform(0, np.pi)
    wood, along = _random_material(rng, 0.2), _yaw_matrix(yaw) @ _vec(1, 0, 0)
    radius = rng.uniform(0.015, 0.04)
    posts = [at + along * np.float32(offset) for offset in np.arange(-length / 2, length / 2 + 1e-6, rng.uniform(0.22, 0.45))]
    solids = [_rod(post, post + _vec(0, height, 0), radius, wood) for post in posts]
    for share in (0.3, 0.85):
        rail = _vec(0, height * share, 0)
        solids.append(_rod(posts[0] + rail, posts[-1] + rail, radius * 0.8, wood))
    return solids


def _tree(rng: np.random.Generator, at: Array) -> list[_Solid]:
    height, bark = rng.uniform(1.2, 3), _random_material(rng, 0.1, ("noise", "stripes"))
    top = at + _vec(rng.normal(0, 0.12), height, rng.normal(0, 0.12))
    solids, leaves = [_rod(at, top, rng.uniform(0.04, 0.13), bark)], _random_material(rng, 0.12, ("speckle", "noise"))
    leaves = replace(leaves, color_a=leaves.color_a * _vec(0.55, 0.95, 0.4))
    for _ in range(int(rng.integers(3, 7))):
        twig = top + _vec(rng.normal(0, 0.5), rng.uniform(0.1, 0.9), rng.normal(0, 0.5))
        radius = rng.uniform(0.2, 0.55)
        solids.append(_rod(top, twig, 0.02, bark))
        solids.append(_Solid(kind="ellipsoid", center=twig, half=_vec(radius, radius * 0.8, radius), yaw=0, material=leaves))
    return solids


def _rest_on(rng: np.random.Generator, at: Array, spread: float) -> _Solid:
    size = rng.uniform(0.04, 0.13)
    kind = "box" if rng.random() < 0.5 else "ellipsoid"
    place = at + _vec(rng.uniform(-spread, spread), 0, rng.uniform(-spread, spread))
    return _upright(kind, place, _vec(size, size * rng.uniform(0.8, 2), size), rng.uniform(0, 3), _random_material(rng, 0.08))


def _upright(kind: str, at: Array, half: Array, yaw: float, material: _Material) -> _Solid:
    return _Solid(kind=kind, center=at + _vec(0, half[1], 0), half=half, yaw=float(yaw), material=material)


def _rod(start: Array, end: Array, radius: float, material: _Material) -> _Solid:
    length = float(np.linalg.norm(end - start))
    half = _vec(radius, length / 2, radius)
    axis = ((end - start) / max(length, 1e-6)).astype(np.float32)
    return _Solid(kind="capsule", center=(start + end) / 2, half=half, yaw=0, material=material, axis=axis)


def _leg(at: Array, x: float, z: float, height: float, yaw: float, material: _Material, radius: float) -> _Solid:
    foot = at + _yaw_matrix(yaw) @ _vec(x, 0, z)
    return _rod(foot, foot + _vec(0, height, 0), radius, material)


# --- rays -----------------------------------------------------------------------------------------------------------
# Rays and points are kept as [3, n] arrays: each component contiguous, which is several times faster in NumPy than [n, 3].


def _intersect(solid: _Solid, origin: Array, direction: Array) -> Array:
    """Distance along each ray to the solid, in units of the ray's direction, [n]; `_FAR_M` where it is missed.

    origin: [3, n] or [3, 1]; direction: [3, n] or [3, 1]. Hits behind the origin count as misses.
    """
    relative = origin - solid.center[:, None]
    if solid.kind == "capsule":
        return _intersect_capsule(solid, relative, direction)
    turn = _yaw_matrix(solid.yaw).T
    o, d = turn @ relative, turn @ direction
    if solid.kind == "box":
        inverse = 1 / np.where(np.abs(d) < _EPS, _EPS, d)
        middle, width = -o * inverse, np.abs(inverse) * solid.half[:, None]
        enter, leave = (middle - width).max(0), (middle + width).min(0)
        return np.where((enter <= leave) & (enter > _EPS), enter, _FAR_M)
    o, d = o / solid.half[:, None], d / solid.half[:, None]
    return _nearest_root((d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1)


def _nearest_root(a: Array, half_b: Array, c: Array) -> Array:
    """Smaller root of a t^2 + 2 half_b t + c, or `_FAR_M` where there is none in front."""
    inside = half_b * half_b - a * c
    t = (-half_b - np.sqrt(np.maximum(inside, 0))) / np.maximum(a, _EPS * _EPS)
    return np.where((inside > 0) & (t > _EPS), t, _FAR_M)


def _intersect_capsule(solid: _Solid, o: Array, d: Array) -> Array:
    radius, half_length = solid.half[0], solid.half[1]
    od, dd = (solid.axis[:, None] * o).sum(0), (solid.axis[:, None] * d).sum(0)
    o_flat, d_flat = o - solid.axis[:, None] * od, d - solid.axis[:, None] * dd
    t = _nearest_root((d_flat * d_flat).sum(0), (o_flat * d_flat).sum(0), (o_flat * o_flat).sum(0) - radius * radius)
    best = np.where(np.abs(od + t * dd) <= half_length, t, _FAR_M)
    for end in (-half_length, half_length):
        to_end = o - (solid.axis * end)[:, None]
        best = np.minimum(best, _nearest_root((d * d).sum(0), (to_end * d).sum(0), (to_end * to_end).sum(0) - radius * radius))
    return best


def _normals(solid: _Solid, points: Array) -> tuple[Array, Array]:
    """Outward unit normals and object-space coordinates of surface points, both [3, n]."""
    relative = points - solid.center[:, None]
    if solid.kind == "capsule":
        along = np.clip((solid.axis[:, None] * relative).sum(0), -solid.half[1], solid.half[1])
        return (relative - solid.axis[:, None] * along) / solid.half[0], relative
    turn = _yaw_matrix(solid.yaw)
    local = turn.T @ relative
    if solid.kind == "box":
        scaled = local / solid.half[:, None]
        normal = np.where(np.abs(scaled) == np.abs(scaled).max(0), np.sign(scaled), np.float32(0))
    else:
        normal = local / (solid.half**2)[:, None]
    normal = normal / np.maximum(np.sqrt((normal * normal).sum(0)), _EPS)
    return turn @ normal, local


def _camera_rays(camera: _Camera, height_px: int, width_px: int) -> Array:
    """World directions [3, h, w] whose component along the optical axis is 1, so that ray length is z-depth."""
    pixel = 2 * camera.tan_half_fov / max(height_px, width_px)
    x = (np.arange(width_px, dtype=np.float32) + 0.5 - width_px / 2) * pixel
    y = -(np.arange(height_px, dtype=np.float32) + 0.5 - height_px / 2) * pixel
    r = camera.rotation
    return (r[:, 0, None, None] * x + r[:, 1, None, None] * y[:, None] + r[:, 2, None, None]).astype(np.float32)


def _screen_box(solid: _Solid, camera: _Camera, height_px: int, width_px: int) -> tuple[slice, slice]:
    """The rows and columns that can see the solid: all of them when it reaches behind the camera."""
    local = (solid.corners() - camera.position) @ camera.rotation
    if local[:, 2].min() < 0.05:
        return slice(0, height_px), slice(0, width_px)
    pixel = 2 * camera.tan_half_fov / max(height_px, width_px)
    x = local[:, 0] / local[:, 2] / pixel + width_px / 2
    y = -local[:, 1] / local[:, 2] / pixel + height_px / 2
    rows = slice(max(int(y.min()) - 1, 0), max(min(int(y.max()) + 2, height_px), 0))
    return rows, slice(max(int(x.min()) - 1, 0), max(min(int(x.max()) + 2, width_px), 0))


def _cast_camera_rays(world: _World, height_px: int, width_px: int) -> tuple[Array, NDArray[np.int16]]:
    """z-depth [h, w] (`_FAR_M` for the sky) and the index of the surface seen, planes first, then solids; -1 for the sky."""
    rays = _camera_rays(world.camera, height_px, width_px)
    depth = np.full((height_px, width_px), _FAR_M, np.float32)
    surface = np.full((height_px, width_px), -1, np.int16)
    for index, plane in enumerate(world.planes):
        facing = np.tensordot(plane.normal, rays, 1)
        t = (plane.offset - plane.normal @ world.camera.position) / np.where(facing > -_EPS, -_EPS, facing)
        closer = (facing < -_EPS) & (t < depth)
        depth[closer], surface[closer] = t[closer], index
    for index, solid in enumerate(world.solids, start=len(world.planes)):
        rows, cols = _screen_box(solid, world.camera, height_px, width_px)
        window = rays[:, rows, cols]
        if window.size == 0:
            continue
        t = _intersect(solid, world.camera.position[:, None], window.reshape(3, -1)).reshape(window.shape[1:])
        closer = t < depth[rows, cols]
        depth[rows, cols][closer], surface[rows, cols][closer] = t[closer], index
    return depth, surface


# --- light and colour -----------------------------------------------------------------------------------------------


def _shade(world: _World, depth: Array, surface: NDArray[np.int16], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    height_px, width_px = depth.shape
    rays = _camera_rays(world.camera, height_px, width_px).reshape(3, -1)
    flat_depth, flat_surface = depth.reshape(-1), surface.reshape(-1)
    color = _sky_color(world, rays)
    seen = np.flatnonzero(flat_surface >= 0)
    points = world.camera.position[:, None] + rays[:, seen] * flat_depth[seen]
    pixel_m = flat_depth[seen] * np.float32(2 * world.camera.tan_half_fov / max(height_px, width_px))
    normal, albedo = _surfaces(world, flat_surface[seen], points, pixel_m)
    facing = np.maximum((normal * world.to_light[:, None]).sum(0), 0)
    lit = facing * (1 - _shadow(world, points + normal * np.float32(0.004), facing > 0))
    # Surfaces that look up are brighter than those that look down: the cheap half of ambient occlusion.
    ambient = world.ambient[:, None] * (0.8 + 0.2 * normal[1]) * np.clip(0.55 + points[1] * 1.5, 0.55, 1)
    haze = 1 - np.exp(-flat_depth[seen] * np.float32(world.haze_per_m))
    shaded = albedo * (ambient + np.float32(world.light_strength) * lit)
    color[:, seen] = shaded * (1 - haze) + world.sky[:, None] * haze
    picture = color.reshape(3, height_px, width_px) * np.float32(world.exposure)
    picture = _soften(np.clip(picture, 0, 1)) ** np.float32(1 / 2.2)
    picture = picture + rng.normal(0, rng.uniform(0.002, 0.012), picture.shape).astype(np.float32)
    return np.clip(np.rint(picture.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)


def _sky_color(world: _World, rays: Array) -> Array:
    up = np.clip(rays[1] / np.sqrt((rays * rays).sum(0)), 0, 1)
    return world.sky[:, None] * (1 - np.outer(_vec(0.45, 0.3, 0.08), up)).astype(np.float32)


def _surfaces(world: _World, surface: NDArray[np.int16], points: Array, pixel_m: Array) -> tuple[Array, Array]:
    """Unit normals and albedo, both [3, n], of points on the surfaces they lie on."""
    normal, albedo = np.empty_like(points), np.empty_like(points)
    order = np.argsort(surface, kind="stable")
    counts = np.bincount(surface, minlength=len(world.planes) + len(world.solids))
    for index, members in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        if members.size == 0:
            continue
        if index < len(world.planes):
            plane = world.planes[index]
            n, local, material = np.repeat(plane.normal[:, None], members.size, 1), points[:, members], plane.material
        else:
            solid = world.solids[index - len(world.planes)]
            (n, local), material = _normals(solid, points[:, members]), solid.material
        normal[:, members] = n
        albedo[:, members] = _albedo(material, _surface_coordinates(n, local), pixel_m[members])
    return normal, albedo


def _surface_coordinates(normal: Array, local: Array) -> tuple[Array, Array]:
    """(u, v) in metres on the coordinate plane that the surface faces most; v is the height on upright surfaces."""
    axis = np.abs(normal).argmax(0)
    u = np.where(axis == 0, local[2], local[0])
    return u, np.where(axis == 1, local[2], local[1])


def _albedo(material: _Material, uv: tuple[Array, Array], pixel_m: Array) -> Array:
    u, v = uv[0] / material.size_m, uv[1] / material.size_m
    mix = _pattern(material, u, v)
    grain = _value_noise(material.noise_seed + 1, u * 3, v * 3)
    # A pattern finer than a pixel is seen as its mean; without this, distant floors turn into moire.
    fade = np.clip(1.5 - 3 * pixel_m / material.size_m, 0, 1)
    mix = 0.5 + (mix - 0.5) * fade
    grain = 1 + 0.24 * (grain - 0.5) * np.clip(1.5 - 9 * pixel_m / material.size_m, 0, 1)
    return (material.color_a[:, None] * (1 - mix) + material.color_b[:, None] * mix) * grain


def _pattern(material: _Material, u: Array, v: Array) -> Array:
    """The share of the second colour, [n] in [0, 1]."""
    match material.pattern:
        case "checker":
            return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
        case "brick":
            row = np.floor(v * 2)
            mortar = (np.abs((v * 2) % 1 - 0.5) > 0.43) | (np.abs((u + row / 2) % 1 - 0.5) > 0.46)
            return np.where(mortar, np.float32(1), 0.25 * _value_noise(material.noise_seed, np.floor(u + row / 2), row))
        case "stripes":
            return (u * 2 % 1 > 0.5).astype(np.float32)
        case "planks":
            board = np.floor(u * 2)
            gap = np.abs((u * 2) % 1 - 0.5) > 0.46
            return np.where(gap, np.float32(1), 0.7 * _value_noise(material.noise_seed, board, np.floor(v / 4 + board * 0.37)))
        case "windows":
            pane = (np.abs(u % 1 - 0.5) < 0.26) & (np.abs(v * 0.8 % 1 - 0.5) < 0.3)
            return pane.astype(np.float32)
        case "noise":
            seed = material.noise_seed
            return 0.6 * _value_noise(seed, u, v) + 0.4 * _value_noise(seed + 7, u * 2.7, v * 2.7)
        case "speckle":
            return (_value_noise(material.noise_seed, u * 4, v * 4) > 0.6).astype(np.float32)
    return np.zeros_like(u)


def _value_noise(seed: int, u: Array, v: Array) -> Array:
    """Smooth noise in [0, 1] on the integer lattice, the same for the same seed everywhere."""
    table = np.random.default_rng(seed).random(4096, dtype=np.float32)
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    fu, fv = (u - iu).astype(np.float32), (v - iv).astype(np.float32)
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    at = lambda du, dv: table[((iu + du) * 73 + (iv + dv) * 1237) & 4095]  # noqa: E731
    top = at(0, 0) * (1 - fu) + at(1, 0) * fu
    return top * (1 - fv) + (at(0, 1) * (1 - fu) + at(1, 1) * fu) * fv


def _shadow(world: _World, points: Array, candidates: NDArray[np.bool_]) -> Array:
    """1 where a solid stands between a point and the light, else 0, [n]."""
    side = np.cross(world.to_light, _vec(0.3, 0.1, 0.9)).astype(np.float32)
    side /= np.linalg.norm(side)
    light_axes = np.stack([side, np.cross(world.to_light, side).astype(np.float32)])
    u, v = light_axes @ points
    shadow = np.zeros(points.shape[1], np.float32)
    for solid in world.solids:
        # The solid's bounding box on a plane across the light: only points inside it can be shaded by the solid.
        (low_u, low_v), (high_u, high_v) = (edge(solid.corners() @ light_axes.T) for edge in (_lowest, _highest))
        near = np.flatnonzero((u > low_u) & (u < high_u) & (v > low_v) & (v < high_v) & candidates)
        if near.size:
            hit = _intersect(solid, points[:, near], world.to_light[:, None]) < _FAR_M
            shadow[near[hit]] = 1
    return shadow


def _lowest(points: Array) -> Array:
    return points.min(0)


def _highest(points: Array) -> Array:
    return points.max(0)


def _soften(picture: Array) -> Array:
    """The lens: a one-pixel binomial blur, which also takes the staircase off edges."""
    for axis in (1, 2):
        padded = np.pad(picture, [(0, 0)] + [(1, 1) if a == axis else (0, 0) for a in (1, 2)], mode="edge")
        n = picture.shape[axis]
        before, middle, after = (padded.take(range(k, k + n), axis) for k in range(3))
        picture = 0.2 * before + 0.6 * middle + 0.2 * after
    return picture
