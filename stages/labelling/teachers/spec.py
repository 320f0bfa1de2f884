"""What a teacher is, in words that can be written down: everything that its labels depend on, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from stages.checkpoints import is_hub_id
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.labelling.teachers.known import KNOWN, LoaderName

_FROM_TABLE = ("depth_space", "licence", "revision", "input_px")


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher's column: its name, how it is loaded, and what its numbers mean."""

    name: str = "teacher"
    loader: LoaderName
    checkpoint: str
    """A folder, or a hub id."""
    depth_space: DepthSpace | None = None
    """What the numbers mean. None for a hub id that is known here; for all others it must be stated."""
    revision: str | None = None
    """Full commit of the hub id. None for one that is known here with its commit."""
    licence: str | None = None
    """Licence of the weights, recorded with every label. None takes the known one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations; labels are float32 all the same."""
    compile: bool = False
    """Compile the network with `torch.compile`: minutes at the start, faster afterwards."""
    input_px: int | None = None
    """Long side of the picture as the network sees it; None shows it as it is, or as a known checkpoint wants it."""
    steps: int = 4
    """Denoising steps; marigold only. 4 is what its checkpoint v1-1 recommends."""
    ensemble: int = 1
    """Predictions, each from its own noise, that are aligned and merged by their median; marigold only."""

    num_cpus: float = 1
    """Cores that each worker with this teacher holds; decides no label."""
    num_gpus: float | None = None
    """GPUs, or the share of one, that each worker holds. None: one where there are any. Decides no label."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        filled, known = _filled(self), KNOWN.get(self.checkpoint)
        found = []
        if known and known.loader != self.loader:
            found.append(f"loader is {self.loader!r}, but {self.checkpoint} is loaded by {known.loader!r}")
        if filled.depth_space not in DEPTH_SPACES:
            found.append(
                f"depth_space is {self.depth_space!r} and nothing in {self.checkpoint!r} says it, "
                f"expected one of {', '.join(DEPTH_SPACES)}"
            )
        elif known and known.depth_space != filled.depth_space:
            found.append(f"depth_space is {self.depth_space!r}, but {self.checkpoint} gives {known.depth_space}")
        if is_hub_id(self.checkpoint) and not re.fullmatch("[0-9a-f]{40}", filled.revision or ""):
            found.append(
                f"revision is {filled.revision!r}, expected the full commit of {self.checkpoint}, 40 hexadecimal digits, "
                "because a branch moves; take it from the commits on the checkpoint's hub page, or name a local folder"
            )
        if self.loader != "marigold" and (self.steps, self.ensemble) != (TeacherSpec.steps, TeacherSpec.ensemble):
            found.append(f"steps {self.steps} and ensemble {self.ensemble} are for the loader 'marigold', not {self.loader!r}")
        if self.loader == "marigold" and (filled.input_px or 0) % 8:
            found.append(f"input_px is {filled.input_px}, expected a multiple of 8")
        for name, bound in (("steps", 1), ("ensemble", 1), ("input_px", 8)):
            value = getattr(self, name)
            if value is not None and value < bound:
                found.append(f"{name} is {value}, expected at least {bound}")
        return [f"teacher {self.name}: {problem}" for problem in found]


def resolve(spec: TeacherSpec) -> TeacherSpec:
    """The spec with everything stated, from the table of known checkpoints; this is what a run records.

    Raises ValueError with all problems where something is wrong, or missing and not in the table.
    """
    if problems := spec.problems():
        raise ValueError("; ".join(problems))
    return _filled(spec)


def _filled(spec: TeacherSpec) -> TeacherSpec:
    known = KNOWN.get(spec.checkpoint)
    return (
        spec
        if known is None
        else replace(spec, **{name: getattr(known, name) for name in _FROM_TABLE if getattr(spec, name) is None})
    )
