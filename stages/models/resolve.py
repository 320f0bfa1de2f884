"""A spec with everything stated: what it leaves out is the checkpoint's to say, and what that says cannot be overruled."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from manifests.errors import RefusedError
from manifests.licences import UNKNOWN
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.models.checkpoints import is_hub_id
from stages.models.families import FAMILIES
from stages.models.known import KNOWN
from stages.models.located import located, with_known
from stages.models.spec import LATEST, ModelSpec
from stages.models.stated import Stated, read_stated, same_licence

SpecT = TypeVar("SpecT", bound=ModelSpec)


def problems_of(spec: ModelSpec) -> list[str]:
    """Every value that cannot be accepted, in words; of a hub id that is not known, fetches what it says of itself."""
    return _examined(spec, None)[1]


def resolve(spec: SpecT, folder: Path | None = None) -> SpecT:
    """The spec with everything stated, by the checkpoint where it does not itself; this is what a run records.

    folder: the checkpoint's files, where they are at hand. Raises ValueError with all problems where something is wrong, is
    missing and not said by the checkpoint, or contradicts it.
    """
    filled, problems = _examined(spec, folder)
    if problems:
        raise RefusedError("; ".join(problems))
    return filled


def _examined(spec: SpecT, folder: Path | None) -> tuple[SpecT, list[str]]:
    """The spec as far as it can be filled in, and everything that is wrong with it."""
    known, found = KNOWN.get(spec.checkpoint), _out_of_range(spec)
    filled = with_known(spec)
    if spec.is_custom:
        return replace(filled, licence=spec.licence or UNKNOWN), _named(spec, [*found, *_not_passed_on(spec)])
    if not spec.checkpoint:
        return filled, _named(spec, found)
    if spec.loader not in (None, *FAMILIES):
        expected = f"{', '.join(FAMILIES)}, or a function of your own, as in my_module:load"
        return filled, _named(spec, [*found, f"loader is {spec.loader!r}, expected {expected}"])
    filled, unpinned = _pinned(filled, folder)
    if unpinned:
        found += unpinned
        if not known:
            return filled, _named(spec, found)
    try:
        # Of a known hub id the table is enough, and what its files say is compared once they are there.
        if folder is None and not (known and spec.input_px != "stated"):
            filled, folder = located(filled, words_only=True)
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
    if folder and FAMILIES[stated.loader].has_noise and filled.steps is None:
        found.append(f"steps is None, and {spec.checkpoint} states no default_denoising_steps; give --steps, of 1 or more")
    return filled, _named(spec, [*found, *FAMILIES[stated.loader].problems(filled)])


def _pinned(spec: SpecT, folder: Path | None) -> tuple[SpecT, list[str]]:
    """The spec with the commits that are to be looked up, and which hub ids have none."""
    hub_ids = {"revision": (spec.checkpoint, spec.revision), "base_revision": (spec.base or "", spec.base_revision)}
    hub_ids = {name: (hub_id, revision) for name, (hub_id, revision) in hub_ids.items() if is_hub_id(hub_id)}
    unpinned = [
        f"{name} is {revision!r}, expected the full commit of {hub_id}, 40 hexadecimal digits, because a branch moves; take it "
        f"from the commits on the checkpoint's hub page, give {LATEST!r}, or name a local folder"
        for name, (hub_id, revision) in hub_ids.items()
        if revision != LATEST and not re.fullmatch("[0-9a-f]{40}", revision or "")
    ]
    latest = [hub_id for hub_id, revision in hub_ids.values() if revision == LATEST]
    if unpinned or not latest or folder:
        return spec, unpinned
    try:
        return located(spec, words_only=True)[0], []
    except (OSError, ValueError) as error:
        return spec, [f"the latest commit of {' and '.join(latest)} cannot be looked up: {error}"]


def _named(spec: ModelSpec, problems: list[str]) -> list[str]:
    return [f"{spec.name}: {problem}" for problem in problems]


def _not_passed_on(spec: ModelSpec) -> list[str]:
    """What a user's own function is never told, and so must not be given."""
    names = ("revision", "base", "base_revision", "dtype", "compile", "channels_last", "input_px", "steps", "ensemble")
    return [
        f"{name} is {getattr(spec, name)}, but is not passed on to {spec.loader}, which decides it itself; leave it out"
        for name in names
        if getattr(spec, name) != getattr(ModelSpec, name)
    ]


def _out_of_range(spec: ModelSpec) -> list[str]:
    values = {"steps": (spec.steps, 1), "ensemble": (spec.ensemble, 1), "input_px": (spec.long_side_px, 8)}
    found = [
        f"{name} is {value}, expected at least {bound}"
        for name, (value, bound) in values.items()
        if value is not None and value < bound
    ]
    if spec.depth_space is not None and spec.depth_space not in DEPTH_SPACES:
        found.append(f"depth_space is {spec.depth_space!r}, expected one of {', '.join(DEPTH_SPACES)}")
    return found


def _contradictions(spec: ModelSpec, stated: Stated) -> list[str]:
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


def _filled(spec: SpecT, stated: Stated) -> SpecT:
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
        steps=spec.steps or stated.steps,
    )
