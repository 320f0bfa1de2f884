"""What a teacher is, in words that can be written down: everything that its labels depend on, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from manifests.licences import UNKNOWN
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.models.checkpoints import checkpoint_folder, is_hub_id
from stages.models.known import KNOWN, LoaderName
from stages.models.stated import Stated, read_stated, same_licence

InputSize = int | Literal["stated", "native"]
"""A long side in pixels, the size that the checkpoint states for itself, or that of the picture as it comes."""


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher's column: its name, how it is loaded, and what its numbers mean.

    Whatever is None here is the checkpoint's to say (see `stated`); what it says cannot be overruled.
    """

    name: str = "teacher"
    loader: LoaderName | None = None
    """None takes the one that the checkpoint is laid out for."""
    checkpoint: str
    """A folder, or a hub id."""
    depth_space: DepthSpace | None = None
    """What the numbers mean; to be stated for a checkpoint that does not say it."""
    revision: str | None = None
    """Full commit of the hub id. None for one that is known here with its commit."""
    licence: str | None = None
    """Licence of the weights, recorded with every label; unknown where neither this nor the checkpoint says it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations; labels are float32 all the same."""
    compile: bool = False
    """Compile the network with `torch.compile`: minutes at the start, faster afterwards."""
    input_px: InputSize | None = None
    """Long side of the picture as the network sees it; `stated` is the size that the checkpoint states, `native` the
    picture's own. None is native too, but for known checkpoints that are worse at other sizes than their own."""
    steps: int = 4
    """Denoising steps; marigold only. 4 is what its checkpoint v1-1 recommends."""
    ensemble: int = 1
    """Predictions, each from its own noise, that are aligned and merged by their median; marigold only."""

    num_cpus: float = 1
    """Cores that each worker with this teacher holds; decides no label."""
    num_gpus: float | None = None
    """GPUs, or the share of one, that each worker holds. None: one where there are any. Decides no label."""

    @property
    def long_side_px(self) -> int | None:
        """`input_px` where it is a number."""
        return self.input_px if isinstance(self.input_px, int) else None

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words; of a hub id that is not known, fetches what it says of itself."""
        return _examined(self, None)[1]


def resolve(spec: TeacherSpec, folder: Path | None = None) -> TeacherSpec:
    """The spec with everything stated, by the checkpoint where it does not itself; this is what a run records.

    folder: the checkpoint's files, where they are at hand. Raises ValueError with all problems where something is wrong, is
    missing and not said by the checkpoint, or contradicts it.
    """
    filled, problems = _examined(spec, folder)
    if problems:
        raise ValueError("; ".join(problems))
    return filled


def _examined(spec: TeacherSpec, folder: Path | None) -> tuple[TeacherSpec, list[str]]:
    """The spec as far as it can be filled in, and everything that is wrong with it."""
    known, found = KNOWN.get(spec.checkpoint), _out_of_range(spec)
    filled = replace(spec, revision=spec.revision or (known.revision if known else None))
    if not spec.checkpoint:
        return filled, _named(spec, found)
    if is_hub_id(spec.checkpoint) and not re.fullmatch("[0-9a-f]{40}", filled.revision or ""):
        found.append(
            f"revision is {filled.revision!r}, expected the full commit of {spec.checkpoint}, 40 hexadecimal digits, "
            "because a branch moves; take it from the commits on the checkpoint's hub page, or name a local folder"
        )
        if not known:
            return filled, _named(spec, found)
    try:
        # Of a known hub id the table is enough, and what its files say is compared once they are there.
        if folder is None and not (known and spec.input_px != "stated"):
            folder = checkpoint_folder(spec.checkpoint, filled.revision, words_only=True)
        stated = read_stated(spec.checkpoint, folder, None if known else spec.loader)
    except (OSError, ValueError) as error:
        return filled, _named(spec, [*found, str(error)])
    found += _contradictions(spec, stated)
    filled = _filled(filled, stated)
    if filled.depth_space is None:
        found.append(
            f"depth_space is None, and nothing in {spec.checkpoint} says what its numbers mean; give --depth-space, one of "
            f"{', '.join(DEPTH_SPACES)}"
        )
    if filled.loader == "marigold" and (filled.long_side_px or 0) % 8:
        found.append(f"input_px is {filled.input_px}, expected a multiple of 8")
    diffusion_only = (spec.steps, spec.ensemble) != (TeacherSpec.steps, TeacherSpec.ensemble)
    if filled.loader != "marigold" and diffusion_only:
        found.append(f"steps {spec.steps} and ensemble {spec.ensemble} are for the loader 'marigold', not {filled.loader!r}")
    return filled, _named(spec, found)


def _named(spec: TeacherSpec, problems: list[str]) -> list[str]:
    return [f"teacher {spec.name}: {problem}" for problem in problems]


def _out_of_range(spec: TeacherSpec) -> list[str]:
    values = {"steps": (spec.steps, 1), "ensemble": (spec.ensemble, 1), "input_px": (spec.long_side_px, 8)}
    found = [
        f"{name} is {value}, expected at least {bound}"
        for name, (value, bound) in values.items()
        if value is not None and value < bound
    ]
    if spec.depth_space is not None and spec.depth_space not in DEPTH_SPACES:
        found.append(f"depth_space is {spec.depth_space!r}, expected one of {', '.join(DEPTH_SPACES)}")
    return found


def _contradictions(spec: TeacherSpec, stated: Stated) -> list[str]:
    """What is given and the checkpoint says otherwise, each with both values and where they come from."""
    found = []
    if spec.loader not in (None, stated.loader):
        found.append(f"loader is {spec.loader!r}, but {spec.checkpoint} is loaded by {stated.loader!r}")
    space, licence = stated.depth_space, stated.licence
    if spec.depth_space and space and spec.depth_space != space.value:
        found.append(f"depth_space: {spec.depth_space} was given, but the checkpoint says {space.value} ({space.source})")
    given = spec.licence if spec.licence and not same_licence(spec.licence, UNKNOWN) else None
    if given and licence and not same_licence(given, licence.value):
        found.append(f"licence: {given} was given, but the weights are under {licence.value} ({licence.source}); leave it out")
    return found


def _filled(spec: TeacherSpec, stated: Stated) -> TeacherSpec:
    known = KNOWN.get(spec.checkpoint)
    size = spec.input_px
    if size is None and known:
        size = known.input_px
    elif size == "stated" and not isinstance(stated.input_px, tuple):
        size = stated.input_px  # a long side like any other, or nothing
    elif size == "native" and not (known and known.input_px):
        size = None  # one name for one thing
    space = spec.depth_space or (stated.depth_space.value if stated.depth_space else stated.usual_space)
    return replace(
        spec,
        loader=spec.loader or stated.loader,
        depth_space=cast("DepthSpace | None", space),
        licence=stated.licence.value if stated.licence else spec.licence or UNKNOWN,
        input_px=size,
    )
