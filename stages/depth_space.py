"""Depth spaces: what the numbers of a depth map mean. They are stored as the teacher gave them and never converted silently."""

from __future__ import annotations

from typing import Literal, get_args

DepthSpace = Literal["disparity_affine_invariant", "depth_affine_invariant", "depth_metric", "disparity_metric"]
DEPTH_SPACES: tuple[DepthSpace, ...] = get_args(DepthSpace)
