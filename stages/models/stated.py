"""What a checkpoint says of itself: its loader, what its numbers mean, the size it wants, the licence of its weights.

The one place that decides it, for labels, predictions, evaluations and figures alike. Asked are, in this order, the table of
known checkpoints (`known`), its `training.json`, its library's own configuration, and the metadata of its model card. Nothing
is guessed: what nothing says is None, and two statements that differ are an error, naming both and where they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import RefusedError
from manifests.licences import UNKNOWN
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.models.checkpoints import read_json
from stages.models.families import FAMILIES, family_of
from stages.models.family import TRAINING, Statement
from stages.models.known import KNOWN

_TABLE = "the table of known checkpoints"
_CARD_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Stated:
    """All that a checkpoint says of itself; None where it says nothing."""

    loader: str
    depth_space: Statement | None = None
    usual_space: DepthSpace | None = None
    """What its family's checkpoints give, where it does not say it itself."""
    licence: Statement | None = None
    input_px: int | tuple[int, int] | None = None
    """The size it was made for: a long side, or height and width as its library's processor reads them."""
    steps: int | None = None
    """Denoising steps."""


def read_stated(checkpoint: str, folder: Path | None, loader: str | None = None) -> Stated:
    """What a checkpoint says.

    folder: its files, weights or not; None for a known hub id whose files are not at hand. loader: where it is given, and
    else the table's or the one that the folder is laid out for.
    Raises ValueError for a folder that is no checkpoint, and for statements that contradict each other or say nothing known.
    """
    known = KNOWN.get(checkpoint)
    spaces = [Statement(value=known.depth_space, source=_TABLE)] if known else []
    if folder is None:
        assert known, checkpoint
        licence = Statement(value=known.licence, source=_TABLE)
        return Stated(loader=known.loader, depth_space=spaces[0], licence=licence)
    _refuse_other_folders(folder)
    loader = loader or (known.loader if known else family_of(folder))
    said = FAMILIES[loader].states(folder)
    spaces += [*_spaces(folder, read_json(folder / TRAINING)), *said.depth_spaces]
    return Stated(
        loader=loader,
        depth_space=_the_same("depth_space", spaces),
        usual_space=said.usual_space,
        licence=Statement(value=known.licence, source=_TABLE) if known else read_licence(folder),
        input_px=said.input_px,
        steps=said.steps,
    )


def read_licence(folder: Path) -> Statement | None:
    """The licence that a folder states for its weights, in its training.json or its model card's metadata.

    Raises ValueError for a training.json that cannot be read.
    """
    if (said := read_json(folder / TRAINING).get("licence")) is not None:
        return _known_licence(str(said), folder / TRAINING)
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([\w.+ -]+?)[\"']?[ \t]*$", front[1] if front else "", re.M))
    licence = found.get("license_name") if found.get("license") == "other" else found.get("license")
    return _known_licence(licence, card) if licence else None


def same_licence(one: str, other: str) -> bool:
    """Whether two names are one licence, however they are written: `Apache-2.0` and `apache 2.0`."""
    return _plain(one) == _plain(other)


def _plain(licence: str) -> str:
    return re.sub(r"[\s_]+", "-", licence.strip().lower())


def _known_licence(licence: str, path: Path) -> Statement | None:
    """`unknown` is no licence: whoever knows it may state it."""
    return None if same_licence(licence, UNKNOWN) else Statement(value=licence.strip(), source=str(path))


def _refuse_other_folders(folder: Path) -> None:
    """Raises ValueError for a folder that is not a checkpoint, saying what it is."""
    unets = sorted(path.name for path in folder.glob("unet_*") if path.is_dir())
    if any((folder / name).exists() for name in ("config.json", "unet", *(() if unets else ("vae",)))):
        return
    if (folder / "run.json").exists() and (folder / "columns").is_dir():
        what = f"a run of labels, not a checkpoint; train a student on it: python -m pipeline.train --run {folder} --output ..."
    elif (folder / "states").is_dir() or (folder / "dataset.lock.json").exists():
        what = "a training that is not finished: it has no weights yet; the command that began it resumes it"
    elif unets:
        what = f"UNets alone ({', '.join(unets)}); name one, as in guangkaixu/genpercept-models/unet_disparity_v2, and its base"
    else:
        what = "no checkpoint: found neither config.json (transformers) nor unet/ and vae/ (diffusers)"
    raise RefusedError(f"{folder}: {what}")


def _spaces(folder: Path, training: dict[str, Any]) -> list[Statement]:
    if (said := training.get("depth_space")) is None:
        return []
    if said not in DEPTH_SPACES:
        raise RefusedError(f"{folder / TRAINING}: depth_space is {said!r}, expected one of {', '.join(DEPTH_SPACES)}")
    return [Statement(value=said, source=str(folder / TRAINING))]


def _the_same(name: str, found: Sequence[Statement]) -> Statement | None:
    for other in found[1:]:
        if other.value != found[0].value:
            first = found[0]
            raise RefusedError(
                f"{name}: the checkpoint contradicts itself: {first.value} by {first.source}, {other.value} by {other.source}"
            )
    return found[0] if found else None
