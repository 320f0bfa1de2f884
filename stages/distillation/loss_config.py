"""Which losses a training has, and how much of each: plain values, so that a command line is read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Normalization = Literal["hybrid", "global", "local", "none"]
Segments = Literal["range", "quantile"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which distances make the total; the defaults are the paper's."""

    normalization_shared: Normalization = "hybrid"
    """Normalisation of the whole context."""
    normalization_local: Normalization = "hybrid"
    """Normalisation of the patches."""
    segments: Segments = "range"
    """How hybrid and local normalisation cut the teacher's values: equal ranges, or equal numbers of pixels."""
    shared_weight: float = 1.0
    """Weight of the shared-context loss."""
    local_global_weight: float = 0.5
    """Weight of the patches' loss; 0 leaves the patches unread."""
    feature_weight: float = 1.0
    """Weight of the feature alignment with a frozen encoder; 0 does without that encoder."""
    gradient_weight: float = 2.0
    """Weight of the gradient loss."""
    anchor_weight: float = 0.0
    """Weight of a term that keeps the output's level and spread where the untrained student had them."""
    trim_fraction: float = 0.0
    """Share of a map's pixels that L_sc and L_lg leave out, those with the largest loss; Depth Anything v2 uses 0.1."""
    feature_margin: float = 0.85
    """Tokens whose cosine with the frozen encoder's is above this are left alone."""
