"""What a world is made of: materials, planes, solids, and the camera that looks at them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
FAR_M = np.float32(1e9)
"""The distance of what is not there."""
EPS = np.float32(1e-6)


@dataclass(frozen=True, kw_only=True)
class Material:
    """A procedural texture: two colours mixed by a pattern laid on the surface in metres."""

    pattern: str
    color_a: Array
    color_b: Array
    size_m: float
    noise_seed: int


@dataclass(frozen=True, kw_only=True)
class Plane:
    """An endless plane, normal . p = offset; seen from the side its normal points to. Casts no shadow."""

    normal: Array
    offset: float
    material: Material


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A box, an ellipsoid (both inside |x| <= half, turned by yaw about the vertical) or a capsule along `axis`."""

    kind: str
    center: Array
    half: Array
    yaw: float
    material: Material
    axis: Array = field(default_factory=lambda: np.array([0, 1, 0], np.float32))

    def corners(self) -> Array:
        """The eight corners [8, 3] of a box around the solid."""
        if self.kind == "capsule":
            reach = np.abs(self.axis) * self.half[1] + self.half[0]
            turn = np.eye(3, dtype=np.float32)
        else:
            reach, turn = self.half, yaw_matrix(self.yaw)
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
        return (signs * reach) @ turn.T + self.center


@dataclass(frozen=True, kw_only=True)
class Camera:
    position: Array
    rotation: Array  # camera axes (right, up, forward) as columns, in world axes
    tan_half_fov: float  # of the longer side


@dataclass(frozen=True, kw_only=True)
class World:
    planes: tuple[Plane, ...]
    solids: tuple[Solid, ...]
    camera: Camera
    to_light: Array
    light_strength: float
    ambient: Array
    sky: Array
    haze_per_m: float
    exposure: float


def yaw_matrix(yaw: float) -> Array:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def vec(*xyz: SupportsFloat) -> Array:
    return np.array(xyz, np.float32)
