"""A model in the role of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from stages.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class TeacherSpec(ModelSpec):
    """A model that labels; `name` is that of its column, and what is added here decides no label."""

    num_cpus: float = 1
    """Cores that each worker with this teacher holds."""
    num_gpus: float | None = None
    """GPUs, or the share of one, that each worker holds. None: one where there are any."""
