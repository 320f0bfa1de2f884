"""The things that stand in a world, each as the solids that it is made of; all choices come from the generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stages.scenes.geometry import Array, Material, Solid, vec, yaw_matrix

_PATTERNS = ("plain", "checker", "brick", "stripes", "planks", "noise", "speckle")


def random_material(rng: np.random.Generator, size_m: float, patterns: tuple[str, ...] = _PATTERNS) -> Material:
    base = rng.uniform(0.12, 0.85) * (0.68 + 0.32 * rng.dirichlet([1.5, 1.5, 1.5]) * 3)
    other = np.clip(base * rng.uniform(0.45, 1.5) + rng.normal(0, 0.05, 3), 0.02, 0.95)
    return Material(
        pattern=str(rng.choice(patterns)),
        color_a=np.clip(base, 0.03, 0.95).astype(np.float32),
        color_b=other.astype(np.float32),
        size_m=float(size_m * rng.uniform(0.6, 1.6)),
        noise_seed=int(rng.integers(1 << 16)),
    )


def box(rng: np.random.Generator, at: Array) -> list[Solid]:
    half = vec(rng.uniform(0.12, 0.6), rng.uniform(0.12, 0.8), rng.uniform(0.12, 0.6))
    return [upright("box", at, half, rng.uniform(0, np.pi), random_material(rng, 0.25))]


def ball(rng: np.random.Generator, at: Array) -> list[Solid]:
    radius = rng.uniform(0.12, 0.5)
    half = vec(radius, radius * rng.uniform(0.7, 1.3), radius)
    return [upright("ellipsoid", at, half, 0, random_material(rng, 0.2))]


def stack(rng: np.random.Generator, at: Array) -> list[Solid]:
    solids, top = [], 0.0
    for _ in range(int(rng.integers(2, 4))):
        half = vec(rng.uniform(0.12, 0.35), rng.uniform(0.1, 0.25), rng.uniform(0.12, 0.35))
        center = at + vec(rng.uniform(-0.06, 0.06), top, rng.uniform(-0.06, 0.06))
        solids.append(upright("box", center, half, rng.uniform(0, np.pi), random_material(rng, 0.15)))
        top += 2 * float(half[1])
    if rng.random() < 0.5:
        radius = rng.uniform(0.1, 0.2)
        solids.append(upright("ellipsoid", at + vec(0, top, 0), vec(radius, radius, radius), 0, random_material(rng, 0.1)))
    return solids


def table(rng: np.random.Generator, at: Array) -> list[Solid]:
    half_x, half_z, height = rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.5), rng.uniform(0.45, 0.85)
    yaw, wood = rng.uniform(0, np.pi), random_material(rng, 0.2)
    top = upright("box", at + vec(0, height, 0), vec(half_x, 0.025, half_z), yaw, wood)
    legs = [
        _leg(at, sx * half_x * 0.92, sz * half_z * 0.92, height, yaw, wood, rng.uniform(0.015, 0.03))
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]
    things = [_rest_on(rng, at + vec(0, height + 0.05, 0), min(half_x, half_z) * 0.6) for _ in range(int(rng.integers(0, 3)))]
    return [top, *legs, *things]


def chair(rng: np.random.Generator, at: Array) -> list[Solid]:
    half, seat, yaw, wood = (
        rng.uniform(0.18, 0.26),
        rng.uniform(0.4, 0.5),
        rng.uniform(0, 2 * np.pi),
        random_material(rng, 0.2),
    )
    turn = yaw_matrix(yaw)
    solids = [upright("box", at + vec(0, seat, 0), vec(half, 0.02, half), yaw, wood)]
    for sx in (-1, 1):
        solids.append(_leg(at, sx * half * 0.9, -half * 0.9, seat, yaw, wood, 0.018))
        solids.append(_leg(at, sx * half * 0.9, half * 0.9, seat + 0.45, yaw, wood, 0.018))
    for height in (seat + 0.2, seat + 0.4):
        center = at + turn @ vec(0, 0, half * 0.9) + vec(0, height, 0)
        solids.append(Solid(kind="box", center=center, half=vec(half * 0.9, 0.035, 0.012), yaw=yaw, material=wood))
    return solids


def shelf(rng: np.random.Generator, at: Array) -> list[Solid]:
    half_x, depth, height, yaw = rng.uniform(0.35, 0.7), 0.16, rng.uniform(0.9, 1.9), rng.uniform(0, np.pi)
    wood, levels, turn = random_material(rng, 0.2), int(rng.integers(3, 6)), yaw_matrix(yaw)
    solids = []
    for sx in (-1, 1):
        side = at + turn @ vec(sx * half_x, 0, 0)
        solids.append(upright("box", side, vec(0.015, height / 2, depth), yaw, wood))
    for level in range(levels):
        board = at + vec(0, height * level / (levels - 1) - 0.03 * (level > 0), 0)
        solids.append(upright("box", board, vec(half_x, 0.015, depth), yaw, wood))
        if level < levels - 1 and rng.random() < 0.7:
            solids.append(_rest_on(rng, board + turn @ vec(rng.uniform(-0.6, 0.6) * half_x, 0.03, 0), 0.05))
    return solids


def lamp(rng: np.random.Generator, at: Array) -> list[Solid]:
    height, metal = rng.uniform(1.3, 2.8), random_material(rng, 0.2, ("plain", "noise"))
    shade = rng.uniform(0.1, 0.22)
    return [
        _rod(at, at + vec(0, height, 0), rng.uniform(0.012, 0.035), metal),
        upright("ellipsoid", at + vec(0, height, 0), vec(shade, shade * 0.8, shade), 0, random_material(rng, 0.1)),
        upright("box", at, vec(0.14, 0.02, 0.14), rng.uniform(0, 1), metal),
    ]


def pole(rng: np.random.Generator, at: Array) -> list[Solid]:
    return [_rod(at, at + vec(0, rng.uniform(1.0, 5), 0), rng.uniform(0.012, 0.12), random_material(rng, 0.25))]


def rods(rng: np.random.Generator, at: Array) -> list[Solid]:
    """A bundle of thin leaning sticks, some of them a pixel wide."""
    material = random_material(rng, 0.2, ("plain", "stripes", "noise"))
    lean = [at + vec(rng.normal(0, 0.5), rng.uniform(0.5, 1.8), rng.normal(0, 0.5)) for _ in range(int(rng.integers(3, 8)))]
    return [
        _rod(at + vec(rng.normal(0, 0.15), 0, rng.normal(0, 0.15)), tip, rng.uniform(0.008, 0.025), material) for tip in lean
    ]


def fence(rng: np.random.Generator, at: Array) -> list[Solid]:
    length, height, yaw = rng.uniform(1.5, 4), rng.uniform(0.6, 1.3), rng.uniform(0, np.pi)
    wood, along = random_material(rng, 0.2), yaw_matrix(yaw) @ vec(1, 0, 0)
    radius = rng.uniform(0.015, 0.04)
    posts = [at + along * np.float32(offset) for offset in np.arange(-length / 2, length / 2 + 1e-6, rng.uniform(0.22, 0.45))]
    solids = [_rod(post, post + vec(0, height, 0), radius, wood) for post in posts]
    for share in (0.3, 0.85):
        rail = vec(0, height * share, 0)
        solids.append(_rod(posts[0] + rail, posts[-1] + rail, radius * 0.8, wood))
    return solids


def tree(rng: np.random.Generator, at: Array) -> list[Solid]:
    height, bark = rng.uniform(1.2, 3), random_material(rng, 0.1, ("noise", "stripes"))
    top = at + vec(rng.normal(0, 0.12), height, rng.normal(0, 0.12))
    solids, leaves = [_rod(at, top, rng.uniform(0.04, 0.13), bark)], random_material(rng, 0.12, ("speckle", "noise"))
    leaves = replace(leaves, color_a=leaves.color_a * vec(0.55, 0.95, 0.4))
    for _ in range(int(rng.integers(3, 7))):
        twig = top + vec(rng.normal(0, 0.5), rng.uniform(0.1, 0.9), rng.normal(0, 0.5))
        radius = rng.uniform(0.2, 0.55)
        solids.append(_rod(top, twig, 0.02, bark))
        solids.append(Solid(kind="ellipsoid", center=twig, half=vec(radius, radius * 0.8, radius), yaw=0, material=leaves))
    return solids


def _rest_on(rng: np.random.Generator, at: Array, spread: float) -> Solid:
    size = rng.uniform(0.04, 0.13)
    kind = "box" if rng.random() < 0.5 else "ellipsoid"
    place = at + vec(rng.uniform(-spread, spread), 0, rng.uniform(-spread, spread))
    return upright(kind, place, vec(size, size * rng.uniform(0.8, 2), size), rng.uniform(0, 3), random_material(rng, 0.08))


def upright(kind: str, at: Array, half: Array, yaw: float, material: Material) -> Solid:
    return Solid(kind=kind, center=at + vec(0, half[1], 0), half=half, yaw=float(yaw), material=material)


def _rod(start: Array, end: Array, radius: float, material: Material) -> Solid:
    length = float(np.linalg.norm(end - start))
    half = vec(radius, length / 2, radius)
    axis = ((end - start) / max(length, 1e-6)).astype(np.float32)
    return Solid(kind="capsule", center=(start + end) / 2, half=half, yaw=0, material=material, axis=axis)


def _leg(at: Array, x: float, z: float, height: float, yaw: float, material: Material, radius: float) -> Solid:
    foot = at + yaw_matrix(yaw) @ vec(x, 0, z)
    return _rod(foot, foot + vec(0, height, 0), radius, material)
