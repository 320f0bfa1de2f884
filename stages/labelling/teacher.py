"""A model in the role of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from stages.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class TeacherSpec(ModelSpec):
    """A model that labels; `name` is that of its column."""

    label_bits: int | None = None
    """Bits of a pixel's code in its labels, 8 to 16 (docs/benchmarks.md says what they cost and keep). None is 12, or what the
    run's column has."""
    num_cpus: float = 1
    """Cores that each worker with this teacher holds."""
    num_gpus: float | None = None
    """GPUs, or the share of one, that each worker holds. None: one where there are any."""
