"""Where a spec's files are: a folder, a hub's snapshot, or both put together; and at which commits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from stages.models.assembled import BASE_FILES, PICKLED_NAME, assemble
from stages.models.checkpoints import checkpoint_folder, commit_of
from stages.models.known import BASES, KNOWN
from stages.models.spec import LATEST, ModelSpec

SpecT = TypeVar("SpecT", bound=ModelSpec)


def with_known(spec: SpecT) -> SpecT:
    """The spec with the commits and the base that are known here, where it does not give others."""
    known = KNOWN.get(spec.checkpoint)
    base = spec.base or (known.base if known else None)
    return replace(
        spec,
        revision=spec.revision or (known.revision if known else None),
        base=base,
        base_revision=spec.base_revision or BASES.get(base or ""),
    )


def located(spec: SpecT, *, words_only: bool = False) -> tuple[SpecT, Path]:
    """The spec at the commits that were found, and its folder; a hub id without a commit is that of its branch.

    words_only: of hub ids, what they say of themselves and no weights. Raises OSError and ValueError where something is not
    there, or not what it is to be.
    """
    folder = checkpoint_folder(spec.checkpoint, _commit(spec.revision), words_only=words_only)
    spec = replace(spec, revision=commit_of(spec.checkpoint, folder) or spec.revision)
    if spec.base is None:
        return spec, folder
    if not words_only and not any(folder.glob("*.safetensors")):
        folder = checkpoint_folder(spec.checkpoint, spec.revision, patterns=(PICKLED_NAME,))
    used = [name for name in BASE_FILES if not (words_only and name.endswith(".safetensors"))]
    base = checkpoint_folder(spec.base, _commit(spec.base_revision), patterns=used)
    spec = replace(spec, base_revision=commit_of(spec.base, base) or spec.base_revision)
    return spec, assemble(folder, base, name=Path(spec.checkpoint).resolve().name, words_only=words_only)


def _commit(revision: str | None) -> str | None:
    return None if revision == LATEST else revision
