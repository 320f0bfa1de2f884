"""Where rays meet solids, and what each pixel of the camera sees.

Rays and points are [3, n] arrays: each component contiguous, which is several times faster in NumPy than [n, 3].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.scenes.geometry import EPS, FAR_M, Array, Camera, Solid, World, yaw_matrix


def intersect(solid: Solid, origin: Array, direction: Array) -> Array:
    """Distance along each ray to the solid, in units of the ray's direction, [n]; `FAR_M` where it is missed.

    origin: [3, n] or [3, 1]; direction: [3, n] or [3, 1]. Hits behind the origin count as misses.
    """
    relative = origin - solid.center[:, None]
    if solid.kind == "capsule":
        return _intersect_capsule(solid, relative, direction)
    turn = yaw_matrix(solid.yaw).T
    o, d = turn @ relative, turn @ direction
    if solid.kind == "box":
        inverse = 1 / np.where(np.abs(d) < EPS, EPS, d)
        middle, width = -o * inverse, np.abs(inverse) * solid.half[:, None]
        enter, leave = (middle - width).max(0), (middle + width).min(0)
        return np.where((enter <= leave) & (enter > EPS), enter, FAR_M)
    o, d = o / solid.half[:, None], d / solid.half[:, None]
    return _nearest_root((d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1)


def _nearest_root(a: Array, half_b: Array, c: Array) -> Array:
    """Smaller root of a t^2 + 2 half_b t + c, or `FAR_M` where there is none in front."""
    inside = half_b * half_b - a * c
    t = (-half_b - np.sqrt(np.maximum(inside, 0))) / np.maximum(a, EPS * EPS)
    return np.where((inside > 0) & (t > EPS), t, FAR_M)


def _intersect_capsule(solid: Solid, o: Array, d: Array) -> Array:
    radius, half_length = solid.half[0], solid.half[1]
    od, dd = (solid.axis[:, None] * o).sum(0), (solid.axis[:, None] * d).sum(0)
    o_flat, d_flat = o - solid.axis[:, None] * od, d - solid.axis[:, None] * dd
    t = _nearest_root((d_flat * d_flat).sum(0), (o_flat * d_flat).sum(0), (o_flat * o_flat).sum(0) - radius * radius)
    best = np.where(np.abs(od + t * dd) <= half_length, t, FAR_M)
    for end in (-half_length, half_length):
        to_end = o - (solid.axis * end)[:, None]
        best = np.minimum(best, _nearest_root((d * d).sum(0), (to_end * d).sum(0), (to_end * to_end).sum(0) - radius * radius))
    return best


def surface_normals(solid: Solid, points: Array) -> tuple[Array, Array]:
    """Outward unit normals and object-space coordinates of surface points, both [3, n]."""
    relative = points - solid.center[:, None]
    if solid.kind == "capsule":
        along = np.clip((solid.axis[:, None] * relative).sum(0), -solid.half[1], solid.half[1])
        return (relative - solid.axis[:, None] * along) / solid.half[0], relative
    turn = yaw_matrix(solid.yaw)
    local = turn.T @ relative
    if solid.kind == "box":
        scaled = local / solid.half[:, None]
        normal = np.where(np.abs(scaled) == np.abs(scaled).max(0), np.sign(scaled), np.float32(0))
    else:
        normal = local / (solid.half**2)[:, None]
    normal = normal / np.maximum(np.sqrt((normal * normal).sum(0)), EPS)
    return turn @ normal, local


def camera_rays(camera: Camera, height_px: int, width_px: int) -> Array:
    """World directions [3, h, w] whose component along the optical axis is 1, so that ray length is z-depth."""
    pixel = 2 * camera.tan_half_fov / max(height_px, width_px)
    x = (np.arange(width_px, dtype=np.float32) + 0.5 - width_px / 2) * pixel
    y = -(np.arange(height_px, dtype=np.float32) + 0.5 - height_px / 2) * pixel
    r = camera.rotation
    return (r[:, 0, None, None] * x + r[:, 1, None, None] * y[:, None] + r[:, 2, None, None]).astype(np.float32)


def _screen_box(solid: Solid, camera: Camera, height_px: int, width_px: int) -> tuple[slice, slice]:
    """The rows and columns that can see the solid: all of them when it reaches behind the camera."""
    local = (solid.corners() - camera.position) @ camera.rotation
    if local[:, 2].min() < 0.05:
        return slice(0, height_px), slice(0, width_px)
    pixel = 2 * camera.tan_half_fov / max(height_px, width_px)
    x = local[:, 0] / local[:, 2] / pixel + width_px / 2
    y = -local[:, 1] / local[:, 2] / pixel + height_px / 2
    rows = slice(max(int(y.min()) - 1, 0), max(min(int(y.max()) + 2, height_px), 0))
    return rows, slice(max(int(x.min()) - 1, 0), max(min(int(x.max()) + 2, width_px), 0))


def cast_camera_rays(world: World, height_px: int, width_px: int) -> tuple[Array, NDArray[np.int16]]:
    """z-depth [h, w] (`FAR_M` for the sky) and the index of the surface seen, planes first, then solids; -1 for the sky."""
    rays = camera_rays(world.camera, height_px, width_px)
    depth = np.full((height_px, width_px), FAR_M, np.float32)
    surface = np.full((height_px, width_px), -1, np.int16)
    for index, plane in enumerate(world.planes):
        facing = np.tensordot(plane.normal, rays, 1)
        t = (plane.offset - plane.normal @ world.camera.position) / np.where(facing > -EPS, -EPS, facing)
        closer = (facing < -EPS) & (t < depth)
        depth[closer], surface[closer] = t[closer], index
    for index, solid in enumerate(world.solids, start=len(world.planes)):
        rows, cols = _screen_box(solid, world.camera, height_px, width_px)
        window = rays[:, rows, cols]
        if window.size == 0:
            continue
        t = intersect(solid, world.camera.position[:, None], window.reshape(3, -1)).reshape(window.shape[1:])
        closer = t < depth[rows, cols]
        depth[rows, cols][closer], surface[rows, cols][closer] = t[closer], index
    return depth, surface
