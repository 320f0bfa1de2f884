"""From surfaces to a picture: textures, light and cast shadows, haze, lens and sensor."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from stages.scenes.geometry import FAR_M, Array, Material, World, vec
from stages.scenes.rays import camera_rays, intersect, surface_normals


def shade(world: World, depth: Array, surface: NDArray[np.int16], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    height_px, width_px = depth.shape
    rays = camera_rays(world.camera, height_px, width_px).reshape(3, -1)
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


def _sky_color(world: World, rays: Array) -> Array:
    up = np.clip(rays[1] / np.sqrt((rays * rays).sum(0)), 0, 1)
    return world.sky[:, None] * (1 - np.outer(vec(0.45, 0.3, 0.08), up)).astype(np.float32)


def _surfaces(world: World, surface: NDArray[np.int16], points: Array, pixel_m: Array) -> tuple[Array, Array]:
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
            (n, local), material = surface_normals(solid, points[:, members]), solid.material
        normal[:, members] = n
        albedo[:, members] = _albedo(material, _surface_coordinates(n, local), pixel_m[members])
    return normal, albedo


def _surface_coordinates(normal: Array, local: Array) -> tuple[Array, Array]:
    """(u, v) in metres on the coordinate plane that the surface faces most; v is the height on upright surfaces."""
    axis = np.abs(normal).argmax(0)
    u = np.where(axis == 0, local[2], local[0])
    return u, np.where(axis == 1, local[2], local[1])


def _albedo(material: Material, uv: tuple[Array, Array], pixel_m: Array) -> Array:
    u, v = uv[0] / material.size_m, uv[1] / material.size_m
    mix = _pattern(material, u, v)
    grain = _value_noise(material.noise_seed + 1, u * 3, v * 3)
    # A pattern finer than a pixel is seen as its mean; without this, distant floors turn into moire.
    fade = np.clip(1.5 - 3 * pixel_m / material.size_m, 0, 1)
    mix = 0.5 + (mix - 0.5) * fade
    grain = 1 + 0.24 * (grain - 0.5) * np.clip(1.5 - 9 * pixel_m / material.size_m, 0, 1)
    return (material.color_a[:, None] * (1 - mix) + material.color_b[:, None] * mix) * grain


def _pattern(material: Material, u: Array, v: Array) -> Array:
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

    def at(du: int, dv: int) -> Array:
        return table[((iu + du) * 73 + (iv + dv) * 1237) & 4095]

    top = at(0, 0) * (1 - fu) + at(1, 0) * fu
    return top * (1 - fv) + (at(0, 1) * (1 - fu) + at(1, 1) * fu) * fv


def _shadow(world: World, points: Array, candidates: NDArray[np.bool_]) -> Array:
    """1 where a solid stands between a point and the light, else 0, [n]."""
    side = np.cross(world.to_light, vec(0.3, 0.1, 0.9)).astype(np.float32)
    side /= np.linalg.norm(side)
    light_axes = np.stack([side, np.cross(world.to_light, side).astype(np.float32)])
    u, v = light_axes @ points
    shadow = np.zeros(points.shape[1], np.float32)
    for solid in world.solids:
        # The solid's bounding box on a plane across the light: only points inside it can be shaded by the solid.
        corners = solid.corners() @ light_axes.T
        (low_u, low_v), (high_u, high_v) = corners.min(0), corners.max(0)
        near = np.flatnonzero((u > low_u) & (u < high_u) & (v > low_v) & (v < high_v) & candidates)
        if near.size:
            hit = intersect(solid, points[:, near], world.to_light[:, None]) < FAR_M
            shadow[near[hit]] = 1
    return shadow


def _soften(picture: Array) -> Array:
    """The lens: a one-pixel binomial blur, which also takes the staircase off edges."""
    for axis in (1, 2):
        padded = np.pad(picture, [(0, 0)] + [(1, 1) if a == axis else (0, 0) for a in (1, 2)], mode="edge")
        n = picture.shape[axis]
        before, middle, after = (padded.take(range(k, k + n), axis) for k in range(3))
        picture = 0.2 * before + 0.6 * middle + 0.2 * after
    return picture
